"""What a prepared folder holds: the contract between `prepare` and every other command.

    DIR/schema.json                          the dataclasses below; written last, so its presence means complete
    DIR/vocabulary/<table>.parquet           id (int64 or string), index (int32, from 1), count (int64, training events)
    DIR/catalog.arrow                        one row an item, uncompressed Arrow IPC so that it can be memory-mapped
    DIR/events/{train,validation,test}/part-*.parquet      layout `event`: a row is one query and its positives
    DIR/sequences/part-*.parquet                           layout `sequence`: a row is a user's ordered training events

Index 0 of every table is its out-of-vocabulary row. A *catalogue row* is an item's row number in catalog.arrow; it
names the item everywhere in the prepared data (targets, histories, seen items), while the `item_id` feature column of
the catalogue holds the row of the item's embedding (0 for an item without enough training events).
"""

import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from trainer.errors import UserError

SPLITS = ("train", "validation", "test")

# Columns of the prepared files that are no features.
RAW_ITEM_ID = "raw_item_id"  # catalogue: the user's own item id, int64 or string
TRAIN_COUNT = "train_count"  # catalogue: training events of the item, int64
VALIDATION_COUNT = "validation_count"  # catalogue: validation events of the item, int64
ITEM_ROW = "item_row"  # training events: catalogue row of the positive, int32
TARGETS = "targets"  # validation and test events: catalogue rows of the positives, list<int32>, each once
RAW_USER_ID = "raw_user_id"  # validation and test events: the user's own user id, int64 or string
SEEN = "seen"  # validation and test events: catalogue rows of all earlier events of the user, list<int32>
TIMESTAMP = "timestamp"  # events: seconds after 1970, int64; sequences: a list of them
HISTORY_AGE = "history_age"  # events: seconds from each event of the history to the row's own, list<int64>
WEIGHT = "weight"  # train events: how much the event counts in the loss, float32; sequences: a list of them
RESERVED_COLUMNS = (
    RAW_ITEM_ID, TRAIN_COUNT, VALIDATION_COUNT, ITEM_ROW, TARGETS, RAW_USER_ID, SEEN, TIMESTAMP, HISTORY_AGE, WEIGHT
)  # fmt: skip

SCHEMA_VERSION = 3
HASHED_WORDS = "hashed words"
"""The encoder of a text without a model."""
DECLARATION = "features.json"
"""What another engine writes in place of schema.json; see foreign.py."""

Side = Literal["query", "candidate"]
Kind = Literal["id", "categorical", "numeric", "vector", "history", "audience"]
VectorType = Literal["float32", "float16"]


@dataclass(frozen=True)
class Feature:
    """One input of one tower, as a column of the events (query side) or of the catalogue (candidate side).

    Column types: `id` int32 row of its table; `categorical` the same, or list<int32> where multi_valued;
    `history` list<int32> of catalogue rows, oldest first; `audience` list<int32> rows of its table;
    `numeric` float32, NaN where missing;
    `vector` fixed-size list of `dtype`.
    """

    name: str
    side: Side
    kind: Kind
    table: str = ""
    """Embedding table (id, categorical, history, audience). A history has the item id's, an audience that of an id of
    the query, so that both share it."""
    num_embeddings: int = 0
    """Rows of that table, the out-of-vocabulary row 0 included."""
    hashed: bool = False
    """Whether a value's row is its hash, 1 + md5(value) modulo num_embeddings - 1, so that there is no vocabulary."""
    multi_valued: bool = False
    """Whether a categorical holds a list of values a row; they are averaged."""
    weighted: bool = False
    """Whether each of those values has a weight, 0 or more: list<float32>, in the column that `weight_column` names."""
    length: int = 0
    """Most values that a row of a history, of an audience, or of a categorical that is multi_valued, may have."""
    per_event: bool = False
    """Whether a query feature is the event's rather than its user's: a sequence row holds one for each event."""
    dim: int = 1
    """Width of a vector; 1 for a numeric."""
    dtype: VectorType = "float32"
    """What a vector's elements are in the files; the towers get float32."""
    encoder: str = ""
    """What made a text a vector: hashed words, or a model by the digest of its files; empty where it was one."""
    log1p: bool = False
    """Whether a numeric is replaced by log(1 + x) before it is standardised."""
    mean: float = 0.0
    """Mean of a numeric over the training rows (after log1p); subtracted."""
    std: float = 1.0
    """Standard deviation likewise; divided by."""
    since: int = 0
    """Which of the folders in the schema's `extends`, from 0, was the first of those that had it without a gap until
    now; their number where the last had not. An older one may have had a feature of this name, with other rows."""

    @property
    def is_sparse(self) -> bool:
        """Whether the feature is looked up in an embedding table."""
        return self.kind in ("id", "categorical", "history", "audience")

    @property
    def is_list(self) -> bool:
        """Whether a row holds several values that are looked up."""
        return self.multi_valued or self.kind in ("history", "audience")

    @property
    def weight_column(self) -> str:
        """Name of the column with the weights of its values, where it is weighted."""
        return weight_column(self.name)

    def check(self) -> None:
        """Raises a ValueError for what the feature alone shows to be wrong."""
        for entry in fields(self):
            value, kind = getattr(self, entry.name), str if entry.default is MISSING else type(entry.default)
            if type(value) is not kind and not (kind is float and type(value) is int):
                raise ValueError(f"feature {self.name}: {entry.name}={value!r} is no {kind.__name__}")
        is_vector = self.kind == "vector"
        for rule, holds in {
            f"name is one of {', '.join(RESERVED_COLUMNS)}, which have a meaning": self.name not in RESERVED_COLUMNS,
            "name is not of letters, digits and underscores": re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.name),
            f"side={self.side} is not one of {', '.join(get_args(Side))}": self.side in get_args(Side),
            f"kind={self.kind} is not one of {', '.join(get_args(Kind))}": self.kind in get_args(Kind),
            "a history is the query's": self.kind != "history" or self.side == "query",
            "an audience is the candidate's": self.kind != "audience" or self.side == "candidate",
            "only a categorical can be multi_valued": not self.multi_valued or self.kind == "categorical",
            "only a categorical that is multi_valued can be weighted": not self.weighted or self.multi_valued,
            "only a vector has an encoder": not self.encoder or is_vector,
            "per_event is for the query side": not self.per_event or self.side == "query",
            "table is missing": self.table or not self.is_sparse,
            f"num_embeddings={self.num_embeddings} has no rows": self.num_embeddings >= 1 or not self.is_sparse,
            f"length={self.length} is not above 0": self.length >= 1 or not self.is_list,
            f"dim={self.dim} is not above 0": self.dim >= 1 or not is_vector,
            f"dtype={self.dtype} is not one of {', '.join(get_args(VectorType))}": self.dtype in get_args(VectorType),
            f"std={self.std} is not above 0": 0 < self.std < math.inf,
            f"mean={self.mean} is not finite": math.isfinite(self.mean),
        }.items():
            if not holds:
                raise ValueError(f"feature {self.name}: {rule}")


def weight_column(name: str) -> str:
    """Name of the column with the weights of a feature's values."""
    return f"{name}_weight"


def check_features(features: Sequence[Feature]) -> None:
    """Raises a ValueError for features that are wrong, each for itself or together."""
    for feature in features:
        feature.check()
    names = [feature.name for feature in features]
    if len(set(names)) < len(names):
        raise ValueError("two features of one name among " + ", ".join(names))
    for feature in features:
        if feature.weighted and feature.weight_column in names:
            raise ValueError(f"feature {feature.weight_column}: the weights of {feature.name} have that name")
    items = [feature for feature in features if (feature.side, feature.kind) == ("candidate", "id")]
    if len(items) != 1:
        raise ValueError("not exactly one id on the candidate side, that of the item")
    for kind in ("history", "audience"):
        if sum(feature.kind == kind for feature in features) > 1:
            raise ValueError(f"more than one {kind}")
    of_ids = {feature.table for feature in features if (feature.side, feature.kind) == ("query", "id")}
    for feature in features:
        if feature.kind == "audience" and feature.table not in of_ids:
            raise ValueError(f"feature {feature.name}: table={feature.table} is not that of an id of the query")
        if feature.kind == "history" and feature.table != items[0].table:
            raise ValueError(f"feature {feature.name}: table={feature.table} is not that of {items[0].name}")
        for other in features:
            same = (feature.num_embeddings, feature.hashed) == (other.num_embeddings, other.hashed)
            if feature.table and feature.table == other.table and not same:
                raise ValueError(f"features {feature.name} and {other.name} differ about table {feature.table}")


@dataclass(frozen=True)
class Schema:
    """Features and sizes of a prepared folder."""

    features: tuple[Feature, ...]
    num_items: int
    """Rows of the catalogue."""
    num_events: dict[str, int]
    """Training events, and queries of each held-out split: rows of the files, but for a train split that is written as
    sequences alone."""
    num_sequences: int
    """Rows of the sequences; 0 where that layout is not written."""
    sequence_length: int
    """Most events of a sequence; 0 likewise."""
    user_id_type: Literal["int64", "string"]
    item_id_type: Literal["int64", "string"]
    fingerprint: str
    """Digest of which id has which row, in the catalogue and in every vocabulary: data that gives rows to other ids
    would pass for the same by all else that stands here."""
    footers: dict[str, int] = field(default_factory=dict)
    """CRC-32 of the footer of the catalogue, every vocabulary and every part of events and sequences, by its path in
    the folder: so that a file that is missing, damaged where it says what is in it, or another run's, is noticed."""
    timestamps: bool = False
    """Whether events and sequences have times, and events with a history its ages."""
    sample_weights: bool = False
    """Whether training events have weights."""
    extends: tuple[str, ...] = ()
    """Fingerprints of the folders whose vocabularies this one continues, the oldest first."""
    version: int = SCHEMA_VERSION

    def side(self, side: Side) -> tuple[Feature, ...]:
        """The features of one tower, in declared order."""
        return tuple(feature for feature in self.features if feature.side == side)

    @property
    def item_id(self) -> Feature:
        """The candidates' id; a history of items is looked up in its table."""
        return next(feature for feature in self.features if feature.side == "candidate" and feature.kind == "id")

    @property
    def history(self) -> Feature | None:
        """The history of items, where there is one."""
        return next((feature for feature in self.features if feature.kind == "history"), None)

    def select(self, query: list[str] | None, candidate: list[str] | None) -> tuple[Feature, ...]:
        """The features that the two towers take, query side first, in the order asked for; None stands for all.

        Raises:
            UserError: a name is not among the features of that side.
        """
        chosen: list[Feature] = []
        for side, names in (("query", query), ("candidate", candidate)):
            available = {feature.name: feature for feature in self.features if feature.side == side}
            for name in available if names is None else names:
                if name not in available:
                    raise UserError(
                        f"model.{side}.features", names, f"names among {list(available)}",
                        f"leave {name} out, or prepare the data with it",
                    )  # fmt: skip
                if available[name] in chosen:
                    raise UserError(f"model.{side}.features", names, "every name once", f"name {name} once")
                chosen.append(available[name])
        return tuple(chosen)

    def to_json(self) -> str:
        """Text of schema.json; `from_json` reads it back."""
        content = asdict(self)
        return json.dumps(content | {"sha256": _digest(content)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Schema":
        """The schema written by `to_json`.

        Raises:
            ValueError, TypeError, KeyError, AttributeError: the text is something else, or damaged.
        """
        content = json.loads(text)
        if content["version"] != SCHEMA_VERSION:
            raise ValueError(f"it is of version {content['version']}")
        if content.pop("sha256") != _digest(content):
            raise ValueError("its sha256 does not fit its content")
        content["features"] = tuple(Feature(**feature) for feature in content["features"])
        content["extends"] = tuple(content["extends"])
        check_features(content["features"])
        return cls(**content)


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_schema(data_dir: str | Path, field: str = "data.dir") -> Schema:
    """The schema of a prepared folder.

    Args:
        data_dir: the folder.
        field: of the config that names it.

    Raises:
        UserError: the folder is missing, empty or unfinished, or was written by another version of `prepare`.
    """
    path = Path(data_dir) / "schema.json"
    remedy = f"python -m trainer.prepare data=... data.dir={data_dir}"
    if path.with_name(DECLARATION).is_file() and not path.is_file():
        remedy = f"python -m trainer.prepare data=foreign data.dir={data_dir}"
        raise UserError(field, data_dir, "a folder that has been checked and completed", remedy)
    if not path.is_file():
        raise UserError(field, data_dir, "a folder written by trainer.prepare, with its schema.json", remedy)
    try:
        return Schema.from_json(path.read_text())
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        expected = f"a schema.json of version {SCHEMA_VERSION} as trainer.prepare writes it ({error})"
        raise UserError(field, data_dir, expected, f"prepare it anew: {remedy}") from None
