"""What `trainer.evaluate`, `trainer.export` and `trainer.replay` are told: the YAML of the same name in configs/."""

from dataclasses import dataclass, field

from omegaconf import MISSING


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
    """Cut-offs of recall, NDCG, MRR, hit rate and MAP, and of the lists whose coverage and popularity are measured."""
    baselines: list[str] = field(default_factory=lambda: ["popularity"])
    """What is ranked beside the model: popularity, the same list for everybody; markov, what followed the user's last
    items in training, for which every rank reads the training rows; ials, matrix factorisation of who had what, by
    `implicit` (pip install '.[baselines]'), which the first rank fits and of which each rank holds all item factors."""
    bootstrap: int = 1000
    """Resamples of the users from which each ranking metric's 95 % interval is taken; 0 for none."""
    slices: list[str] = field(default_factory=list)
    """Categorical features of the query, such as hour, by whose values recall and NDCG are told apart, as they are by
    new and known users, length of the history and popularity of the target."""
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
    """item: the whole catalogue, through its tower; query: the rows of a split, through theirs; table: an embedding
    table as it was saved, with the ids of its rows, read from the checkpoint's files without a model or a GPU."""
    table: str | None = None
    """Table side: name of the table, as RUN/sharding.json has it."""
    split: str = "test"
    """Query side: test or validation."""
    rows_per_shard: int = 100_000
    """Items, queries or rows of the table in a file, which does not bear on memory. A query has a row for each of its
    interests."""
    batch_size_per_rank: int = 16_384
    """Item and query side: rows a rank embeds at a time; they go to a file 32,768 at a time."""
    dtype: str = "float32"
    """float32, float16, or int8 with a column `scale`, of which an embedding is nearly int8 * scale: an element is off
    by at most 1/254 of the largest of its row."""
    since: str | None = None
    """Item side: folder of an earlier export of all items by this model. Writes to RUN/item_embeddings_since the items
    that are new or whose features have changed; the manifest lists those that are gone under `deleted`. With
    run.data_dir, data that extends that of the run (data.extends): ids it was not trained on are out of vocabulary."""
    verify: bool = False
    """Writes nothing: proves that the folder is complete, as it was written, free of duplicates, and on a sample of its
    rows what the model gives."""
    verify_rows: int = 1000
    """That sample's, spread over the shards."""


@dataclass
class ExportConfig:
    """configs/export.yaml."""

    run: CheckpointConfig = field(default_factory=CheckpointConfig)
    export: EmbeddingExportConfig = field(default_factory=EmbeddingExportConfig)


@dataclass
class RowsConfig:
    """What is replayed."""

    rows: str = MISSING
    """A file of RUN/non_finite."""


@dataclass
class ReplayConfig:
    """configs/replay.yaml."""

    run: CheckpointConfig = field(default_factory=CheckpointConfig)
    replay: RowsConfig = field(default_factory=RowsConfig)
