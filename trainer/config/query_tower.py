"""What `trainer.query_tower` is told: configs/query_tower.yaml."""

from dataclasses import dataclass, field

from trainer.config.evaluate import CheckpointConfig


@dataclass
class ServedTowerConfig:
    """The file that serves queries."""

    dtype: str = "float32"
    """Of the tables inside: float32, as they are; or int8, a quarter of that, with which no number of a row is off by
    more than 1/254 of the row's largest."""
    without: list[str] = field(default_factory=list)
    """Tables too large for one process, such as [user_id], of features with one value a query: it is then given as its
    row in place of its id. `trainer.export export.side=table` writes the rows for a key-value store."""
    max_gb: float = 2.0
    """What tables and vocabularies inside may take of a serving process's memory; more is refused."""
    split: str = "test"
    """test or validation: on its last rows the file is compared with the model, and its latency measured."""


@dataclass
class QueryTowerConfig:
    """configs/query_tower.yaml."""

    run: CheckpointConfig = field(default_factory=CheckpointConfig)
    tower: ServedTowerConfig = field(default_factory=ServedTowerConfig)
