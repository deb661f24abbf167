# make demo and make test set up everything they need in .venv. Needs Python 3.10 or newer with pip, and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOG := $(VENV)/install.log

# One home for the version: the gpu extra in pyproject.toml.
TORCHREC := $(shell grep -o 'torchrec==[0-9.]*' pyproject.toml | head -n 1)

# $(call pip,ARGUMENTS): pip install, quiet; the end of its log where it fails.
pip = $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off $(1) >>$(LOG) 2>&1 \
	|| { tail -n 30 $(LOG) >&2; printf 'the install failed; whole log: $(LOG)\n' >&2; exit 1; }

# $(call have,COMMANDS,PACKAGES): Debian's packages, unless their commands are there. Daemons lie in /usr/sbin, which not
# every PATH has.
have = PATH="$$PATH:/usr/sbin:/sbin"; ( for name in $(1); do command -v $$name || exit 1; done ) >$(VENV)/apt.log || { \
	printf 'installing $(2) (log: $(VENV)/apt.log)\n'; \
	{ apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install --yes $(2); } \
		>$(VENV)/apt.log 2>&1 || printf 'they cannot be installed here: tests that need them are skipped\n' >&2; }

.DEFAULT_GOAL := help
.PHONY: help demo test test-survival test-slurm test-image check format clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 24

demo: $(VENV)/.installed ## prepare, train over two processes, evaluate, export on generated data
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash launch/demo.sh

# A process for each core, of a thread each; tests of one file share what they set up, so they go to one process.
test: $(VENV)/.installed-dev ## the whole test suite, on all cores; ARGS="-k loss" narrows it
	@PATH="$(CURDIR)/$(BIN):$$PATH" OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile $(ARGS)

test-survival: $(VENV)/.installed-dev ## runs that are killed, preempted, stopped, resumed, out of disk
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -m survival $(ARGS)

test-slurm: $(VENV)/.installed-dev ## runs under SLURM itself and over two hosts; as root, installs Debian's packages for it
	@$(call have,slurmctld slurmd munged ip,slurm-wlm munge iproute2)
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -m cluster $(ARGS)

test-image: $(VENV)/.installed-dev ## the Dockerfile built upon a new root; as root, installs buildah and debootstrap for it
	@$(call have,buildah debootstrap,buildah debootstrap)
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -m image $(ARGS)

check: $(VENV)/.installed-dev ## lint and types: ruff, mypy, shellcheck, hadolint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/shellcheck .ci/run launch/*.sh launch/*.bash launch/slurm.sbatch benchmarks/*.sh
	if [ -x $(BIN)/hadolint ]; then $(BIN)/hadolint Dockerfile; else echo 'hadolint: no build for this machine, left out'; fi

format: $(VENV)/.installed-dev ## rewrite the code as ruff wants it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove .venv, caches, builds and the demo's output
	rm -rf $(VENV) build dist demo outputs multirun .pytest_cache .ruff_cache .mypy_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A Python without ensurepip (Debian keeps it in a package of its own) still has pip: that pip then serves .venv.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { printf '%s is not Python 3.10 or newer: make PYTHON=python3.12 ...\n' '$(PYTHON)' >&2; exit 1; }
	@rm -rf $(VENV) && mkdir -p $(VENV)
	@$(PYTHON) -m venv $(VENV) >$(LOG) 2>&1 || { \
		$(PYTHON) -m venv --clear --without-pip $(VENV) && \
		$(BIN)/python "$$($(PYTHON) -c 'import os, pip; print(os.path.dirname(pip.__file__))')" install --upgrade pip >>$(LOG) 2>&1; \
	} || { cat $(LOG) >&2; rm -rf $(VENV); printf '%s can make no virtual environment; see above\n' '$(PYTHON)' >&2; exit 1; }

# torchrec goes without its dependencies: on CPU they would bring fbgemm-gpu over fbgemm-gpu-cpu.
$(VENV)/.installed: pyproject.toml | $(BIN)/python
	@printf 'installing the trainer and what it runs on into $(VENV) (minutes the first time; log: $(LOG))\n'
	@$(call pip,'pip>=23')
	@$(call pip,--no-deps $(TORCHREC))
	@$(call pip,--editable '.[cpu]')
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@printf 'installing the test and lint tools into $(VENV) (log: $(LOG))\n'
	@$(call pip,--editable '.[dev]')
	@touch $@
