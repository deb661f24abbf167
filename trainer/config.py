"""Every YAML's schema, documented where it is declared; checks.py holds what the types alone do not say.

Hydra composes configs/*.yaml against these dataclasses, so a misspelt key is refused before anything starts. Commands
receive the typed object: `@hydra.main` around `train(config: TrainConfig)`.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError

from trainer.errors import UserError, end_with

_PACKAGED = Path(__file__).parent / "configs"
CONFIG_DIR = str(_PACKAGED if _PACKAGED.is_dir() else Path(__file__).parent.parent / "configs")
"""Inside the package when installed from a wheel, beside it in a checkout."""


# --- prepare ---------------------------------------------------------------------------------------------------------


@dataclass
class FeatureConfig:
    """How one source column becomes one input of one tower."""

    side: str = MISSING
    """query (a column of the events or the users) or candidate (a column of the items)."""
    kind: str = MISSING
    """id, categorical, numeric, vector, text (made into a vector), hour, weekday, or history (no column)."""
    column: str | None = None
    """Source column; the feature's own name when null."""
    optional: bool = False
    """Leave the feature out, with a line saying so, where the source has no such column; otherwise an error."""
    min_count: int = 1
    """Id and categorical: values with fewer training events map to the out-of-vocabulary row."""
    hash_buckets: int | None = None
    """Id and categorical: no vocabulary; a value's row is its hash, one of this many, which values may share."""
    max_values: int = 100
    """Categorical: the most values that a row may have; a row with more is an error."""
    separator: str | None = None
    """Categorical: split a string into several values at this separator; list columns need none."""
    weight_column: str | None = None
    """Categorical with several values a row: the source column with a weight for each of them, 0 or more, as a list or
    as a string that is split at the same separator. Values without a row of their own weigh what they do at row 0."""
    weighting: str = "given"
    """Categorical with weights: given (as they are), or tf_idf: made of counts, (1 + ln count) * (ln((1 + n) / (1 + m))
    + 1) where m of n training rows (or items) have the value, and each row scaled to length 1; values at row 0 count as
    one. With `extends` it is made anew of the new rows."""
    log1p: bool = False
    """Numeric: replace x by log(1 + x) before it is standardised."""
    dim: int = 64
    """Text: width of the hashed vector."""
    encoder: str | None = None
    """Text: null to hash its words; or a sentence-transformers model (extra `text`) that makes the vector, named by its
    folder or by an installed package that holds it; nothing is downloaded."""
    dtype: str = "float32"
    """Vector and text: float32, or float16 for files of half the size."""
    length: int = 50
    """History: the most recent events kept."""


@dataclass
class SplitConfig:
    """Which events are held out."""

    by: str = "leave_one_out"
    """leave_one_out: each user's last event is test, the one before it validation, where the user has three or more;
    time: the last events overall, by the shares below; user: all events of some users, by the shares below. In these,
    every held-out event is a query of its own, and all events before it are its history.
    random: of each user's events, shares drawn at random; item: all events of some items, which are cold then; given:
    as a column of the source says. In these, a user has one query with all that is held out of theirs as targets;
    history and seen are their training events, and for test those of validation too. The query's time is that of its
    first target, or of the newest event known, if later."""
    validation: float = 0.1
    """By time: share of all events. By user: of the users. By random: of a user's events, rounded down. By item: of the
    items. By given: what is drawn from the events given as train, where none is given as validation."""
    test: float = 0.1
    """Likewise; nothing by given."""
    validation_by: str = "random"
    """By given: how validation is drawn, random or item."""


@dataclass
class PreparedConfig:
    """What every source has in common."""

    dir: str = MISSING
    """Folder to write; it must not hold anything else."""
    features: dict[str, FeatureConfig] = field(default_factory=dict)
    """Inputs of the two towers, by name."""
    split: SplitConfig = field(default_factory=SplitConfig)
    unknown_items: str = "error"
    """Events that name an item the items lack: error, drop (counted), or out_of_vocabulary: they stay in histories, as
    the item table's row 0, and are nobody's positive."""
    layouts: list[str] = field(default_factory=lambda: ["event"])
    """How training rows are written: event (a row is one query and its positive), sequence (a row is a user's ordered
    events, each the positive of those before it), or both."""
    sequence_length: int = 200
    """Most events of a sequence; a longer past becomes several, each beginning with the last event of the one
    before."""
    extends: str | None = None
    """Folder prepared earlier whose vocabularies are continued: what they know keeps its rows, what is new follows. No
    events are taken over: name the old ones too where histories are to reach back."""
    row_group_size: int = 16384
    """Events of a Parquet row group, which training shuffles and holds in memory as a whole."""
    seed: int = 0
    """Orders rows and vocabulary."""


@dataclass
class MovieLensConfig(PreparedConfig):
    """A MovieLens folder as GroupLens ships it; which release it is, is read off its files."""

    source: str = MISSING
    """Folder with u.data (100K), *.dat (1M, 10M) or *.csv (20M, 25M, 32M)."""


@dataclass
class ColumnsConfig:
    """Names of the columns that carry the meaning of an event."""

    user_id: str = "user_id"
    item_id: str = "item_id"
    timestamp: str | None = "timestamp"
    """Null when the events are merely listed in order."""
    weight: str | None = None
    """How much an event counts in the loss, 0 or more, as in views weighed by how long they lasted; null: all alike."""
    split: str | None = None
    """Column that says train, validation or test, for split.by=given."""
    items_item_id: str | None = None
    """Name of the item id in the items, where it is another than in the events."""
    users_user_id: str | None = None
    """Name of the user id in the users, likewise."""


@dataclass
class TabularConfig(PreparedConfig):
    """One's own events, items and users as CSV or Parquet."""

    source: str = "."
    """Folder that the paths below are relative to: a path, or a URI that pyarrow.fs knows, as s3://bucket/logs?region=...,
    gs://, abfs:// or hdfs://; credentials come from the environment as these services have it."""
    events: str = MISSING
    """File, folder or glob (or a URI of one) of events, in the order in which they happened where timestamps tie."""
    items: str | None = None
    """File, folder or glob of items; null when an item is nothing but its id."""
    users: str | None = None
    """File, folder or glob of users, joined to the events by user id; null when the events hold all there is."""
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    timestamp_unit: str = "s"
    """Unit of a timestamp that is a number: s, ms, us or ns."""


@dataclass
class UserItemListsConfig(PreparedConfig):
    """A folder with train.txt and test.txt as LightGCN's data sets have them: a line a user id and the items' ids."""

    source: str = MISSING
    """The folder."""


@dataclass
class CiteULikeConfig(PreparedConfig):
    """A folder of citeulike-a or -t: users.dat, mult.dat, vocabulary.dat; cold_items.txt names the cold articles."""

    source: str = MISSING
    """The folder."""


@dataclass
class GeneratedConfig(PreparedConfig):
    """Made-up shoppers with a planted structure: tastes follow a user's segment, the items just seen, and the hour."""

    users: int = 20_000
    items: int = 5_000
    events_per_user: int = 20
    """Mean; at least 3."""


@dataclass
class ForeignConfig:
    """A folder that another engine wrote after docs/prepared_folder.md, to be checked and completed in place."""

    dir: str = MISSING


@dataclass
class PrepareConfig:
    """configs/prepare.yaml."""

    data: Any = MISSING
    memory_limit: str = "3GB"
    """What the engine may hold in memory before it spills to disk; the process as a whole takes some 0.5 GB more."""


# --- train -----------------------------------------------------------------------------------------------------------


@dataclass
class TrainDataConfig:
    """Which rows train, and in what portions."""

    dir: str = MISSING
    """Folder written by trainer.prepare."""
    layout: str = "event"
    """event: a row is one query and its positive; sequence: a row is a user's ordered events, each of them the positive
    of a query that has seen those before it. The folder must have been prepared with it."""
    global_batch_size: int = 4096
    """Rows of one optimizer step over all ranks; each rank takes an equal share."""
    streams: int = 64
    """Logical streams that fix the order of rows whatever the number of ranks: a multiple of every number of ranks that
    the run may go on with, and a divisor of global_batch_size."""
    memory_gb: float = 4.0
    """What a rank may hold of row groups, one a stream; data that needs more is refused at the start."""


@dataclass
class TowerConfig:
    """One tower: embed, combine, cross, MLP."""

    features: list[str] | None = None
    """Names of its inputs; null for every feature that the prepared data has on this side."""
    combine: str = "concatenate"
    """concatenate, or sum: all inputs have width embedding_dim and are added up, dense ones after a linear layer."""
    cross_layers: int = 0
    """DCN-v2 layers that multiply the combined inputs with one another; what they give goes on into the MLP."""
    hidden: list[int] | None = field(default_factory=lambda: [256])
    """Widths of the hidden layers before the linear layer to embedding_dim; [] for that layer alone; null for none:
    the combined inputs are the embedding."""
    residual: bool = False
    """Whether a hidden layer's input is added to its output; from the second on, so they have one width."""
    layer_norm: bool = False
    """Whether hidden layers are normalised before their ReLU."""
    dropout: float = 0.0
    """Share of each hidden layer's outputs that training sets to zero."""


@dataclass
class HistoryConfig:
    """What the query tower makes of the user's events."""

    encoder: str = "mean"
    """mean: average of their rows in the item table. Others see each event as the candidate tower embeds its item:
    item_mean: the average of these; attention: an average with learned weights; transformer: causal self-attention with
    learned positions and, where events have times, buckets of the time between them."""
    sees: str = "before"
    """What a query of data.layout=sequence has seen of its row. before: the events before it; others: all but its
    positive, for events whose order says nothing (of item_mean)."""
    interests: int = 1
    """Of attention: query embeddings per user, each with weights of its own; an item's score is that of the best."""
    layers: int = 2
    """Of the transformer."""
    heads: int = 2
    """Of the transformer; twice their number divides embedding_dim."""
    dropout: float = 0.2
    """Of attention and the transformer: of what they see of events, and of what each layer adds."""


@dataclass
class LossConfig:
    """Softmax of a query's positive against candidates: the positives of the whole batch and uniform draws."""

    temperature: float = 0.1
    """Divides the scores."""
    learn_temperature: bool = False
    """Whether the temperature is trained from there on, between a tenth of it and ten times it."""
    in_batch_negatives: bool = True
    """Whether the positives of all queries of the global batch are candidates."""
    uniform_negatives: int = 0
    """Further candidates of each step, drawn from the whole catalogue, each item at most once; as many as there are
    items stand for all of them."""
    cold_negatives: bool = True
    """Whether items without training events are among the uniform draws: they teach that nobody chooses such items,
    which is so of old ones and not of new ones. Otherwise draws of them are dropped."""
    log_q: str = "counts"
    """Correction of a candidate's score for how often it comes into a batch. counts: by its training events in the
    catalogue; streaming: by an estimate from the batches so far; none. Uniform negatives are reckoned in."""
    streaming_rate: float = 0.01
    """Of the streaming estimate: weight of an item's newest appearance."""
    streaming_buckets: int = 1 << 20
    """Of the streaming estimate: buckets that items are hashed to where there are more items."""
    remove_accidental_hits: bool = True
    """Whether other candidates that are the query's own item are left out of its negatives."""
    sample_weights: bool = False
    """Whether queries count by the weights that their events were prepared with."""
    remove_known_positives: str = "none"
    """Whether other items that the query's user chose are: none are; history: those that it had chosen before; user:
    also what other rows of the batch say of the same user, and in sequences what came after."""


@dataclass
class ModelConfig:
    """Both towers and the loss between them."""

    embedding_dim: int = 64
    """Width of the query and candidate embeddings, and of the id tables."""
    categorical_dim: int = 16
    """Width of the categoricals' tables."""
    table_dims: dict[str, int] = field(default_factory=dict)
    """Width of a single table, by name, where the two above do not suit."""
    query: TowerConfig = field(default_factory=TowerConfig)
    candidate: TowerConfig = field(default_factory=TowerConfig)
    history: HistoryConfig = field(default_factory=HistoryConfig)
    normalize: bool = True
    """Whether embeddings are scaled to length 1, so that the score is a cosine."""
    id_dropout: float = 0.1
    """Share of ids that a step replaces by the out-of-vocabulary row, so that other features learn to stand alone."""
    list_dropout: float = 0.0
    """Share of the values of an item's lists (tags, words) that a step leaves out, of each item for itself."""
    loss: LossConfig = field(default_factory=LossConfig)


@dataclass
class OptimizerConfig:
    """Two optimizers: one fused into the embedding kernels, one for the dense layers."""

    embedding: str = "rowwise_adagrad"
    """rowwise_adagrad or sgd."""
    embedding_learning_rate: float = 0.05
    embedding_weight_decay: float = 0.0
    """Of the rows that a step looks up."""
    embedding_init_std: float = 0.05
    """Standard deviation of the initial table rows."""
    dense_learning_rate: float = 1e-3
    """Of AdamW."""
    dense_weight_decay: float = 0.0
    """Of the dense layers' weights; biases and norms have none."""
    dense_gradient_clip: float | None = None
    """Norm that the gradient of all dense layers together is scaled down to."""
    warmup_steps: int = 100
    """Steps over which the dense learning rate rises linearly to its value."""
    schedule: str = "constant"
    """constant, or cosine: both learning rates fall along half a cosine, to zero at the run's last step."""


@dataclass
class ShardingConfig:
    """What TorchRec's planner may choose from; see its ShardingType."""

    ids: str = "row_wise"
    """Sharding type of the id tables: row_wise or table_wise."""
    categoricals: str | None = None
    """Of the categoricals' tables; null leaves it to the planner."""
    tables: dict[str, str] = field(default_factory=dict)
    """Of a single table, by name, where the two above do not suit."""


@dataclass
class RunConfig:
    """One training run."""

    dir: str = MISSING
    """Where everything about the run is written; the same command again resumes from what is there."""
    seed: int = 0
    accelerator: str = "auto"
    """cpu, gpu, or auto: gpu where there is one."""
    threads: int | None = None
    """Threads a rank on the CPU; null shares the cores out evenly."""
    epochs: int = 10
    """Passes over the training rows. The run ends with a validation, and each of those falls on a whole step: so it may
    go on into one pass more by as many steps as there are validations."""
    validate_every: float = 1.0
    """Epochs between validations; each saves a checkpoint."""
    validation_batch_size_per_rank: int = 1024
    """Queries a rank scores at a time."""
    monitor: str = "val/recall@100"
    """The metric that decides the best checkpoint and when to stop: recall, ndcg, mrr or hit_rate at any k. Of
    val/cold/recall@100 cold items alone are candidates and targets, of val/warm/recall@100 the others; cold are those
    without training events."""
    patience: int = 3
    """Validations without a better monitor before training stops."""
    log_every: int = 20
    """Steps between lines of the logs."""


@dataclass
class TrainConfig:
    """configs/train.yaml."""

    data: TrainDataConfig = field(default_factory=TrainDataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    sharding: ShardingConfig = field(default_factory=ShardingConfig)
    run: RunConfig = field(default_factory=RunConfig)


# --- evaluate, export ------------------------------------------------------------------------------------------------


@dataclass
class CheckpointConfig:
    """Which run, and on what it continues."""

    dir: str = MISSING
    """run.dir of the training."""
    checkpoint: str = "best"
    """best (by the run's monitor), last, or the name of a folder in RUN/checkpoints."""
    data_dir: str | None = None
    """Prepared folder, where it is not where it was in training."""
    accelerator: str = "auto"
    """cpu, gpu, or auto: gpu where there is one."""
    threads: int | None = None
    """Threads a rank on the CPU; null shares the cores out evenly."""


@dataclass
class EvaluationConfig:
    """What is measured."""

    split: str = "test"
    """test or validation."""
    k: list[int] = field(default_factory=lambda: [1, 5, 10, 20, 50, 100])
    """Cut-offs of recall, NDCG, MRR and hit rate."""
    batch_size_per_rank: int = 1024
    """Queries a rank scores at a time against its share of the catalogue."""


@dataclass
class EvaluateConfig:
    """configs/evaluate.yaml."""

    run: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluate: EvaluationConfig = field(default_factory=EvaluationConfig)


@dataclass
class EmbeddingExportConfig:
    """What is written."""

    side: str = "item"
    """item: the whole catalogue; query: the rows of a split."""
    split: str = "test"
    """Query side: test or validation."""
    rows_per_shard: int = 100_000
    """Items, or queries, in a file; a query has a row for each of its interests."""
    batch_size_per_rank: int = 4096
    """Rows a rank embeds at a time."""


@dataclass
class ExportConfig:
    """configs/export.yaml."""

    run: CheckpointConfig = field(default_factory=CheckpointConfig)
    export: EmbeddingExportConfig = field(default_factory=EmbeddingExportConfig)


# --- from YAML and back ----------------------------------------------------------------------------------------------

Config = TypeVar("Config", PrepareConfig, TrainConfig, EvaluateConfig, ExportConfig)


def run_command(main: Callable[[], None]) -> None:
    """Runs a command's main; what Hydra finds wrong with files or overrides is one line, like other mistakes."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises rather than prints
    try:
        main()
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        # What Hydra advises is wrong for a misspelt name; where it is in a file, the cause tells more.
        lines = [line.strip() for told in (error, error.__cause__) if told for line in str(told).splitlines()]
        kept = [line for line in dict.fromkeys(lines) if line and not line.startswith(("To append", "Set the env"))]
        end_with(" ".join(kept))


def register_configs() -> None:
    """Makes the dataclasses known to Hydra under the names that configs/*.yaml use in their defaults lists."""
    store = ConfigStore.instance()
    store.store(name="prepare_schema", node=PrepareConfig)
    store.store(name="train_schema", node=TrainConfig)
    store.store(name="evaluate_schema", node=EvaluateConfig)
    store.store(name="export_schema", node=ExportConfig)
    store.store(group="data", name="movielens_schema", node=MovieLensConfig)
    store.store(group="data", name="tabular_schema", node=TabularConfig)
    store.store(group="data", name="user_item_lists_schema", node=UserItemListsConfig)
    store.store(group="data", name="citeulike_schema", node=CiteULikeConfig)
    store.store(group="data", name="generated_schema", node=GeneratedConfig)
    store.store(group="data", name="foreign_schema", node=ForeignConfig)


def typed(config: DictConfig, kind: type[Config]) -> Config:
    """The composed config as its dataclass.

    Raises:
        UserError: a value that has no default was not given.
    """
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise UserError(missing[0], "???", "a value", f"add {missing[0]}=... to the command line")
    _refuse_unknown_keys(config)
    result = OmegaConf.to_object(config)
    assert isinstance(result, kind)
    return result


def _refuse_unknown_keys(config: DictConfig) -> None:
    """An override with a + can add keys that no field stands for."""
    for node in (config, *(node for node in config.values() if isinstance(node, DictConfig))):
        kind = OmegaConf.get_type(node)
        try:
            OmegaConf.merge(OmegaConf.structured(kind), OmegaConf.to_container(node))
        except ConfigKeyError as error:
            expected = f"a field of {getattr(kind, '__name__', kind)}"
            raise UserError(str(error.full_key), "given", expected, "correct it; --help lists all fields") from None


def to_yaml(config: TrainConfig) -> str:
    """The config as the text that `from_yaml` reads back."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def from_yaml(path: Path) -> TrainConfig:
    """The config of a run from its file, checked against this version's fields."""
    try:
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(TrainConfig), OmegaConf.load(path)))
    except (OmegaConfBaseException, YAMLError, OSError) as error:
        expected = f"a config of this version's trainer.train ({error})"
        raise UserError("run.dir", path, expected, "use the version that wrote it, or another run") from None
    assert isinstance(config, TrainConfig)
    return config
