from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException

from tests.forked import run
from trainer.checks import (
    check_batch_size,
    check_evaluate_config,
    check_export_config,
    check_negatives,
    check_train_config,
)
from trainer.config import (
    CONFIG_DIR,
    EvaluateConfig,
    ExportConfig,
    ForeignConfig,
    IndexConfig,
    LossConfig,
    PlanConfig,
    PrepareConfig,
    QueryTowerConfig,
    RecommendConfig,
    ReplayConfig,
    TrainConfig,
    register_configs,
    typed,
)
from trainer.errors import UserError

KINDS = {"prepare": PrepareConfig, "train": TrainConfig, "evaluate": EvaluateConfig, "export": ExportConfig,
         "query_tower": QueryTowerConfig, "index": IndexConfig, "recommend": RecommendConfig,
         "replay": ReplayConfig, "plan": PlanConfig}  # fmt: skip
REQUIRED = {
    "prepare": ["data.dir=out", "data.source=in"],
    "train": ["data.dir=in", "run.dir=out"],
    "evaluate": ["run.dir=out"],
    "export": ["run.dir=out"],
    "query_tower": ["run.dir=out"],
    "index": ["run.dir=out"],
    "recommend": ["run.dir=out"],
    "replay": ["run.dir=out", "replay.rows=in"],
    "plan": ["data.dir=in"],
}


@pytest.fixture(autouse=True)
def hydra() -> Iterator[None]:
    register_configs()
    with initialize_config_dir(CONFIG_DIR, version_base="1.3"):
        yield


def shipped(group: str) -> list[str]:
    return sorted(path.stem for path in Path(CONFIG_DIR, group).glob("*.yaml"))


def test_no_shipped_yaml_is_left_out_here() -> None:
    folders = {str(path.parent.relative_to(CONFIG_DIR)) for path in Path(CONFIG_DIR).rglob("*.yaml")}
    assert folders == {".", "data", "model", "experiment", "hydra/help"}
    assert {path.stem for path in Path(CONFIG_DIR).glob("*.yaml")} == {*KINDS, "command"}


@pytest.mark.parametrize("command", ["train", "evaluate", "export", "query_tower", "replay", "plan"])
def test_commands_compose_to_their_dataclass(command: str) -> None:
    assert isinstance(typed(compose(command, REQUIRED[command]), KINDS[command]), KINDS[command])


@pytest.mark.parametrize("source", shipped("data"))
def test_every_source_composes(source: str) -> None:
    extra = {"generated": [], "foreign": [], "tabular": ["data.events=e.csv"]}.get(source, ["data.source=in"])
    config = typed(compose("prepare", [f"data={source}", "data.dir=out", *extra]), PrepareConfig)
    if source == "foreign":  # its features are declared in the folder
        assert config.data == ForeignConfig(dir="out")
    else:
        assert config.data.features["item_id"].kind == "id"


@pytest.mark.parametrize("model", shipped("model"))
def test_every_model_composes(model: str) -> None:
    check_train_config(typed(compose("train", [*REQUIRED["train"], f"model={model}"]), TrainConfig))


@pytest.mark.parametrize("experiment", shipped("experiment"))
def test_every_experiment_composes_and_divides_over_ranks(experiment: str) -> None:
    config = typed(compose("train", [*REQUIRED["train"], f"experiment={experiment}"]), TrainConfig)
    check_train_config(config)
    for world_size in (1, 2, 4):
        assert check_batch_size(config.data, world_size) * world_size == config.data.global_batch_size


@pytest.mark.parametrize(
    ("command", "typo"),
    [("train", "run.epoch=3"), ("train", "model.embeding_dim=8"), ("train", "data.batch=9"),
     ("evaluate", "evaluate.ks=[1]"), ("export", "export.sid=item"), ("replay", "replay.row=x"),
     ("plan", "plan.node=9"),
     ("prepare", "data.splitt=x")],
)  # fmt: skip
def test_a_misspelt_override_is_refused_by_name(command: str, typo: str) -> None:
    extra = ["data=movielens"] if command == "prepare" else []
    with pytest.raises(ConfigCompositionException, match="Could not override|not in") as error:
        compose(command, [*extra, *REQUIRED[command], typo])
    assert typo.split("=")[0] in f"{error.value} {error.value.__cause__}"


def test_a_wrong_type_is_refused() -> None:
    with pytest.raises(ConfigCompositionException):
        compose("train", [*REQUIRED["train"], "run.epochs=many"])


def test_a_missing_value_is_named_with_its_remedy() -> None:
    with pytest.raises(UserError, match=r"data.dir=\?\?\?.*add data.dir=\.\.\. to the command line"):
        typed(compose("train", ["run.dir=out"]), TrainConfig)


@pytest.mark.parametrize(
    ("override", "message"),
    [("run.epochs=0", "run.epochs=0: expected a number above 0"),
     ("run.stall_seconds=0", "run.stall_seconds=0.0: expected a number above 0"),
     ("model.id_dropout=1.5", r"model.id_dropout=1.5: expected a share in \[0, 1\)"),
     ("run.validate_every=11", "run.validate_every=11.0: expected at most run.epochs=10"),
     ("model.loss.temperature=0", "model.loss.temperature=0"),
     ("optimizer.embedding=adam", "optimizer.embedding=adam: expected one of rowwise_adagrad, sgd"),
     ("model.table_dtype=bfloat16", "model.table_dtype=bfloat16: expected one of float32, float16"),
     ("start.changes=[vocabulary,rows]", "start.changes=rows: expected one of vocabulary, features, optimizer"),
     ("start.state=most", "start.state=most: expected one of all, weights"),
     ("start.state=weights", "start.checkpoint=None: expected the checkpoint that start.changes and start.state speak"),
     ("optimizer.warmup_steps=-1", "optimizer.warmup_steps=-1: expected 0 or more"),
     ("run.threads=0", "run.threads=0: expected 1 or more"),
     ("model.embedding_dim=30", "model.embedding_dim=30: expected a multiple of 4.*set model.embedding_dim=28"),
     ("+model.table_dims.user_id=0", "model.table_dims.user_id=0: expected a multiple of 4"),
     ("model.query.hidden=[0]", r"model.query.hidden=\[0\]: expected widths from 1"),
     ("model.query.combine=add", "model.query.combine=add: expected one of concatenate, sum"),
     ("model.candidate.cross_layers=-1", "model.candidate.cross_layers=-1: expected 0 or more"),
     ("model.history.encoder=lstm", "model.history.encoder=lstm: expected one of mean, item_mean, attention"),
     ("model.history.interests=3", "model.history.interests=3: expected 1 for the encoder mean"),
     ("data.layout=sequence", "encoder=mean: expected item_mean, attention or transformer for data.layout=sequence"),
     ("model.history.sees=others", "sees=others: expected data.layout=sequence and model.history.encoder=item_mean"),
     ("model.loss.log_q=yes", "model.loss.log_q=yes: expected one of counts, streaming, none"),
     ("model.loss.in_batch_negatives=false", "uniform_negatives=0: expected some where in_batch_negatives=false"),
     ("model.loss.uniform_negatives=-1", "model.loss.uniform_negatives=-1: expected 0 or more"),
     ("model.loss.streaming_rate=2", r"model.loss.streaming_rate=2.0: expected a rate in \(0, 1\]"),
     ("model.list_dropout=1", r"model.list_dropout=1.0: expected a share in \[0, 1\)"),
     ("optimizer.schedule=linear", "optimizer.schedule=linear: expected one of constant, cosine"),
     ("optimizer.dense_gradient_clip=0", "optimizer.dense_gradient_clip=0.0: expected a number above 0"),
     ("sharding.ids=diagonal", "sharding.ids=diagonal: expected one of row_wise"),
     ("+sharding.tables.item_id=x", "sharding.tables.item_id=x"),
     ("run.monitor=val/auc", "run.monitor=val/auc: expected one of val/recall@k"),
     ("run.accelerator=tpu", "run.accelerator=tpu: expected one of auto, cpu, gpu")],
)  # fmt: skip
def test_values_out_of_range_are_named(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_train_config(typed(compose("train", [*REQUIRED["train"], override]), TrainConfig))


def test_values_that_contradict_one_another_are_named() -> None:
    for overrides, message in {
        ("model=sequence", "model.history.heads=3"): "heads=3: expected a number twice which divides",
        ("model.loss.remove_known_positives=user", "model.loss.remove_accidental_hits=false"): "accidental_hits=False",
        ("model.loss.in_batch_negatives=false", "model.loss.uniform_negatives=9", "model.loss.log_q=streaming"):
            "log_q=streaming: expected none",
        ("model.table_dtype=float16", "optimizer.embedding=sgd"): "table_dtype=float16: expected float32 with",
        ("data.layout=sequence", "model.history={encoder: item_mean, sees: all}"):
            "remove_known_positives=none: expected history or user",
    }.items():  # fmt: skip
        with pytest.raises(UserError, match=message):
            check_train_config(typed(compose("train", [*REQUIRED["train"], *overrides]), TrainConfig))
    with pytest.raises(UserError, match="negatives=11: expected at most the 10 items.*negatives=10"):
        check_negatives(LossConfig(uniform_negatives=11), 10)


def test_evaluate_and_export_values_are_checked() -> None:
    with pytest.raises(UserError, match=r"evaluate.k=\[0\]"):
        check_evaluate_config(typed(compose("evaluate", ["run.dir=r", "evaluate.k=[0]"]), EvaluateConfig))
    with pytest.raises(UserError, match="evaluate.baselines=random: expected one of popularity, markov, ials"):
        check_evaluate_config(typed(compose("evaluate", ["run.dir=r", "evaluate.baselines=[random]"]), EvaluateConfig))
    with pytest.raises(UserError, match="evaluate.bootstrap=-1: expected 0 or more"):
        check_evaluate_config(typed(compose("evaluate", ["run.dir=r", "evaluate.bootstrap=-1"]), EvaluateConfig))
    with pytest.raises(UserError, match="evaluate.split=train: expected one of test, validation"):
        check_evaluate_config(typed(compose("evaluate", ["run.dir=r", "evaluate.split=train"]), EvaluateConfig))
    with pytest.raises(UserError, match="export.side=user: expected one of item, query, table"):
        check_export_config(typed(compose("export", ["run.dir=r", "export.side=user"]), ExportConfig))


def test_batch_streams_and_ranks_must_divide_one_another() -> None:
    data = TrainConfig().data
    data.global_batch_size, data.streams = 100, 16
    with pytest.raises(
        UserError,
        match="data.streams=16: .* the 3 ranks.*set data.streams=15 data.global_batch_size=105",
    ):
        check_batch_size(data, 3)
    with pytest.raises(UserError, match="data.global_batch_size=100.*set data.streams=16 data.global_batch_size=112"):
        check_batch_size(data, 2)


@pytest.mark.parametrize(
    ("command", "override"),
    [
        ("train", "+data.batch_size=3"),
        ("train", "+run.epoch=3"),
        ("prepare", "+data.batch=3"),
        ("export", "+k=2"),
    ],
)
def test_a_key_added_with_a_plus_is_refused_too(command: str, override: str) -> None:
    extra = ["data=movielens"] if command == "prepare" else []
    with pytest.raises((UserError, ConfigCompositionException), match=override[1:].split("=")[0].split(".")[-1]):
        typed(compose(command, [*extra, *REQUIRED[command], override]), KINDS[command])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("source: [", "line"),
        ("sauce: .\n", "In 'data/mine': data.sauce: TabularConfig has no field sauce. Remedy: source is meant?"),
        ("features:\n", "is not Optional"),
    ],
)
def test_a_file_of_ones_own_that_is_wrong_is_one_line(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.yaml").write_text("defaults: [tabular_schema, _self_]\n" + text)
    done = run(
        "trainer.prepare", "--config-dir", str(tmp_path), "data=mine", "data.events=e.csv", f"data.dir={tmp_path}/o"
    )
    lines = done.stderr.strip().splitlines()
    assert (done.returncode, len(lines)) == (2, 1), done.stderr
    assert lines[0].startswith("error: ") and told in lines[0]
