# GPU clusters:  docker build --tag two-tower-trainer:0.1.0 .
# CPU:           docker build --tag two-tower-trainer:0.1.0-cpu --build-arg VARIANT=cpu .
# Any command:   docker run --gpus all --ipc host --volume /data:/data IMAGE launch/torchrun.sh train data.dir=/data/prepared ...
#                docker run --volume /data:/data IMAGE python -m trainer.prepare data=movielens ...
# Another base needs Python 3.10 or newer as python3, and apt. The wheels bring CUDA's libraries, so `base` of CUDA is enough.
ARG VARIANT=gpu
ARG GPU_BASE=nvidia/cuda:13.0.3-base-ubuntu24.04@sha256:7c7413a56200486f71f181cad9310f6fd31b6bb21816ade15fc9c1e1e927a5c1
ARG CPU_BASE=ubuntu:24.04@sha256:d1e2e92c075e5ca139d51a140fff46f84315c0fdce203eab2807c7e495eff4f9

FROM ${GPU_BASE} AS base-gpu
FROM ${CPU_BASE} AS base-cpu

# hadolint ignore=DL3006
FROM base-${VARIANT} AS base
# Not pinned: the distribution removes old versions, so a pin fails soon after; the base's digest dates the rest.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 tini \
    && rm -rf /var/lib/apt/lists/*

# By itself, so that an edit of pyproject.toml that leaves the dependencies as they are keeps the layer that installs them.
FROM base AS requirements
ARG VARIANT
WORKDIR /build
COPY pyproject.toml ./
RUN python3 -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; print(*project['dependencies'], *project['optional-dependencies']['${VARIANT}'], sep='\n')" > requirements.txt \
    && grep --only-matching --max-count 1 'torchrec==[0-9.]*' pyproject.toml > torchrec.txt

FROM base AS dependencies
# An index with CPU builds of torch, given here, keeps CUDA's libraries out of the CPU image; pip reads it from the environment.
ARG PIP_EXTRA_INDEX_URL
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3-pip \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY --from=requirements /build/*.txt ./
# torchrec without its dependencies, see pyproject.toml. In the GPU image they are in requirements.txt.
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv --without-pip /opt/venv \
    && pip --python /opt/venv install --requirement requirements.txt \
    && pip --python /opt/venv install --no-deps --requirement torchrec.txt

FROM base
LABEL org.opencontainers.image.title="two-tower-trainer" org.opencontainers.image.licenses="Apache-2.0"
COPY --from=dependencies /opt/venv /opt/venv
RUN useradd --no-log-init --create-home --uid 10001 trainer
WORKDIR /opt/two-tower-trainer
COPY LICENSE ./
COPY launch launch
COPY configs configs
COPY trainer trainer
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/opt/two-tower-trainer \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 10001:10001
# tini passes signals on, as process 1 must, so that a pod that is told to stop does.
ENTRYPOINT ["tini", "--"]
CMD ["python", "-m", "trainer.train", "--help"]
