"""The declared features against the columns there are."""

from dataclasses import dataclass
from typing import cast

from trainer.config import FeatureConfig, PreparedConfig
from trainer.data.engine import EVENTS, INTEGERS, ITEMS, NUMBERS, USERS, Connection, columns, quoted
from trainer.data.schema import TIMESTAMP, Side
from trainer.data.weights import find_weights, parts_of
from trainer.errors import UserError

# UTC, also before 1970. Monday is 0; the epoch was a Thursday.
_TIME_PARTS = {
    "hour": "(timestamp % 86400 + 86400) % 86400 // 3600",
    "weekday": "((timestamp - (timestamp % 86400 + 86400) % 86400) // 86400 % 7 + 10) % 7",
}
TIME_VALUES = {"hour": 24, "weekday": 7}


@dataclass(frozen=True)
class Input:
    """A declared feature and how the source gives its value."""

    name: str
    config: FeatureConfig
    relation: str
    """The source view that holds its column; a history has its events, an audience its items."""
    value: str = ""
    """SQL of its value there: BIGINT or VARCHAR (or a list of them) where is_sparse, FLOAT, VARCHAR or FLOAT[]."""
    value_type: str = ""
    """DuckDB type of the value."""
    weights: str = ""
    """SQL of the weights of its values, DOUBLE[]: null where there are not as many; empty where it has none."""

    @property
    def side(self) -> Side:
        """Which tower."""
        return cast(Side, self.config.side)

    @property
    def kind(self) -> str:
        """As declared: text is still text here."""
        return self.config.kind

    @property
    def column(self) -> str:
        """Name of its value in the tables that `prepare` makes of the source's views."""
        return f"feature_{self.name}"

    @property
    def weights_column(self) -> str:
        """Name of its weights there."""
        return f"weights_{self.name}"

    @property
    def table(self) -> str:
        """The engine's table that is made of its relation."""
        return {EVENTS: "read_events", ITEMS: "catalog", USERS: "read_users"}[self.relation]

    @property
    def selected(self) -> str:
        """SQL of what it takes of its relation, under the names of those tables."""
        weights = f", {self.weights} AS {self.weights_column}" if self.weights else ""
        return f"{self.value} AS {self.column}{weights}"

    @property
    def has_table(self) -> bool:
        """Whether its values are rows of an embedding table of its own."""
        return self.kind in ("id", "categorical", "hour", "weekday")

    @property
    def hashed(self) -> bool:
        """Whether hashes say which rows, rather than a vocabulary."""
        return self.config.hash_buckets is not None

    @property
    def has_vocabulary(self) -> bool:
        """Whether a vocabulary says which rows."""
        return self.has_table and not self.hashed

    @property
    def multi_valued(self) -> bool:
        """Whether a row has a list of values."""
        return self.has_table and self.value_type.endswith("[]")

    @property
    def per_event(self) -> bool:
        """Whether a query feature has a column of its own for every event, rather than one for its user."""
        column = self.config.column or self.name
        return self.relation == EVENTS and self.kind != "history" and column != "user_id"


def resolve(connection: Connection, config: PreparedConfig) -> tuple[list[Input], list[str]]:
    """Finds each declared feature's column.

    Returns:
        The features that the source has, in declared order, and a line for each optional one it lacks.

    Raises:
        UserError: the source has no such column, or one of another type.
    """
    inputs, notes = [], []
    for name, feature in config.features.items():
        found = _find(connection, name, feature)
        if found is not None:
            inputs.append(found)
        else:
            column = feature.column or _default(name, feature)
            notes.append(f"feature {name}: left out, the source has no column {column}")
    return inputs, notes


def _default(name: str, feature: FeatureConfig) -> str:
    return TIMESTAMP if feature.kind in TIME_VALUES else name


def _find(connection: Connection, name: str, feature: FeatureConfig) -> Input | None:
    """The feature's input; None for an optional one without a column."""
    if feature.kind in ("history", "audience"):
        return Input(name, feature, EVENTS if feature.kind == "history" else ITEMS)
    column = feature.column or _default(name, feature)
    relations = (EVENTS, USERS) if feature.side == "query" else (ITEMS,)
    if feature.kind in TIME_VALUES:
        relations = (EVENTS,)
    there = {relation: columns(connection, relation) for relation in relations}
    if feature.side == "candidate" and not there[ITEMS]:
        there[ITEMS] = {"item_id": columns(connection, EVENTS)["item_id"]}
    holders = [relation for relation in relations if column in there[relation]]
    if column == "user_id":
        holders = [EVENTS]
    if not holders:
        if feature.optional:
            return None
        if feature.kind in TIME_VALUES and column == TIMESTAMP:
            raise UserError(f"data.features.{name}.kind", feature.kind, "events with times",
                            f"set data.columns.timestamp=..., or data.features.{name}.optional=true")  # fmt: skip
        listed = sorted({column for types in there.values() for column in types} - {"seq", "input_row"})
        sources = "items" if feature.side == "candidate" else "events or users"
        raise UserError(f"data.features.{name}.column", column, f"a column of the {sources}: " + ", ".join(listed),
                        f"set data.features.{name}.column=... or data.features.{name}.optional=true")  # fmt: skip
    if len(holders) > 1:
        raise UserError(f"data.features.{name}.column", column, "a column of the events or of the users, not of both",
                        "rename one of them in the source")  # fmt: skip
    value, value_type = _value(name, feature, column, there[holders[0]][column])
    weights = find_weights(name, feature, column, value_type, there[holders[0]])
    return Input(name, feature, holders[0], value, value_type, weights)


def _value(name: str, feature: FeatureConfig, column: str, column_type: str) -> tuple[str, str]:
    """SQL and type of the value that the pipeline goes on with."""
    sql, scalar = quoted(column), column_type.split("(")[0]
    is_list = column_type.endswith("]")
    match feature.kind:
        case "id" if feature.side == "candidate" and column != "item_id":
            raise UserError(f"data.features.{name}.column", column, "item_id, for the candidate side's id",
                            f"set data.features.{name}.kind=categorical")  # fmt: skip
        case "id" if column_type == "VARCHAR" or column_type in INTEGERS:
            return cast_id(sql, column_type)
        case "hour" | "weekday" if column == TIMESTAMP or column_type in INTEGERS:
            return _TIME_PARTS[feature.kind].replace(TIMESTAMP, sql), "BIGINT"
        case "numeric" if scalar in NUMBERS:
            # Beyond float32 is as good as infinite, and refused as such later.
            large = f"CAST({sql} AS DOUBLE)"
            bounded = f"CASE WHEN abs({large}) > 3.4e38 THEN 'Infinity'::FLOAT ELSE CAST({large} AS FLOAT) END"
            return f"CASE WHEN NOT isnan({large}) THEN {bounded} END", "FLOAT"
        case "text" if column_type == "VARCHAR":
            return sql, "VARCHAR"
        case "vector" if is_list and column_type.split("[")[0].split("(")[0] in NUMBERS and column_type.count("[") == 1:
            return f"CAST({sql} AS FLOAT[])", "FLOAT[]"
        case "categorical" if feature.separator is not None and column_type == "VARCHAR":
            return f"list_filter({parts_of(sql, feature.separator)}, lambda x: x <> '')", "VARCHAR[]"
        case "categorical" if feature.separator is None and is_list and column_type.count("[") == 1:
            element = "BIGINT" if column_type.split("[")[0] in INTEGERS else "VARCHAR"
            return f"list_filter(CAST({sql} AS {element}[]), lambda x: x IS NOT NULL)", f"{element}[]"
        case "categorical" if feature.separator is None and not is_list:
            return cast_id(sql, column_type)
    expected = {"id": "integers or strings", "numeric": "numbers", "text": "strings", "vector": "lists of numbers",
                "categorical": "strings" if feature.separator else "plain values or lists of them"}  # fmt: skip
    raise UserError(f"data.features.{name}.column", f"{column} ({column_type})",
                    f"a column of {expected.get(feature.kind, 'integer timestamps')} for kind {feature.kind}",
                    f"set data.features.{name}.kind or another column")  # fmt: skip


def cast_id(sql: str, column_type: str) -> tuple[str, str]:
    """SQL and type of an id as int64 or string."""
    target = "BIGINT" if column_type in INTEGERS else "VARCHAR"
    return f"CAST({sql} AS {target})", target
