"""What `trainer.prepare` is told: configs/prepare.yaml and configs/data/*.yaml."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass
class FeatureConfig:
    """How one source column becomes one input of one tower."""

    side: str = MISSING
    """query (a column of the events or the users) or candidate (a column of the items)."""
    kind: str = MISSING
    """id, categorical, numeric, vector, text (made into a vector), hour, weekday; or, without a column, history: the
    items that the query's user had before, by the item's table; or audience: the users who had the candidate in
    training, by the table of the query's id."""
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
    """History: the most recent events kept. Audience: the users kept, those whose events are the most recent; drawn
    where events have no times."""


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
    items. By given: what is drawn from the events given as train, where none is given as validation. By any: 0 holds
    nothing out, and what would be validation trains, with test as it is: for the last run, of settings that an earlier
    one has chosen on validation; train it with run.monitor=null."""
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
    title: str | None = None
    """Column of the items by which people know them. No model reads it: lists of `trainer.recommend` show it."""
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
    """Whose event it is."""
    item_id: str = "item_id"
    """The item that they chose."""
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
    """How many shoppers."""
    items: int = 5_000
    """How many they choose among; at least 200."""
    events_per_user: int = 20
    """Mean; at least 3."""


@dataclass
class ForeignConfig:
    """A folder that another engine wrote after docs/prepared_folder.md, to be checked and completed in place."""

    dir: str = MISSING
    """That folder."""


@dataclass
class PrepareConfig:
    """configs/prepare.yaml."""

    data: Any = MISSING
    """The source; data=... names its kind."""
    memory_limit: str = "3GB"
    """What the engine may hold in memory before it spills to disk; the process as a whole takes some 0.5 GB more."""
