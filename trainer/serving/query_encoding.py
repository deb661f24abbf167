"""From queries, as JSON has them, to the tensors that the exported program takes.

What is unknown or missing is what `prepare` makes of it:

    id, categorical     the value; hour and weekday as the functions below have them. Missing, null or not in the
                        vocabulary: the out-of-vocabulary row. Of hashed ones, one never seen has the row of its hash
    several values      a list, and where they are weighted, another under NAME_weight, of weights as in the prepared
                        folder. Missing, null or empty: zeros; nulls among them are left out
    history             item ids, the oldest first, of which the newest count: as many as the feature's length. An
                        unknown or null one is an unknown item. Missing, null or empty: what training knew as none
    history_age         where the model knows times: for each event of the history, how many seconds ago it was
    numeric             missing, null or NaN: the mean of the training rows
    vector              numbers; of a text those that its encoder makes. Missing or null: zeros
    outside             of tables that are not inside: numbers, the row. Missing or null: the out-of-vocabulary row

All else is refused: a name that the model does not read, a value of another type, a number that is not finite.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from trainer.data.schema import Feature
from trainer.errors import UserError
from trainer.serving.columns import Column, History, Numeric, Query, Several, Single, Vector
from trainer.serving.vocabulary import Rows, Unfit

_SHOWN = 80
"""Characters of a wrong value in a message."""


class QueryEncoder:
    """Encodes queries.

    Args:
        features: of the query, in the tower's order.
        rows: of the tables that are inside, by name.
        item_rows: of the items, where an encoder sees the history event by event; or None.
        outside: for each feature whose table is not inside, the row of a missing one.
        has_ages: whether the model knows how long ago a history's events were.
    """

    def __init__(
        self, features: Sequence[Feature], rows: Mapping[str, Rows], item_rows: Rows | None,
        outside: Mapping[str, Sequence[float]], has_ages: bool,
    ) -> None:  # fmt: skip
        self._columns = [_column(feature, rows, item_rows, outside, has_ages) for feature in features]
        self.names = [name for column in self._columns for name in column.names]
        """Keys that a query may have."""

    def __call__(self, queries: Sequence[Query]) -> dict[str, Tensor]:
        """Inputs of B queries by name: see QueryProgram.forward.

        Raises:
            UserError: a ValueError, which names query, feature and value, and says what is expected.
        """
        for number, query in enumerate(queries):
            self._refuse_others(number, query)
        inputs: dict[str, Tensor] = {}
        for column in self._columns:
            inputs |= column.inputs([_parsed(column, number, query) for number, query in enumerate(queries)])
        return inputs

    def _refuse_others(self, number: int, query: Query) -> None:
        if not isinstance(query, Mapping):
            raise UserError(f"query {number}", _shown(query), "features by name", "give a dict")
        for name, value in query.items():
            if name not in self.names:
                raise UserError(f"query {number}: {name}", _shown(value), f"names among {', '.join(self.names)}",
                                "leave it out, or correct its name")  # fmt: skip


def _column(
    feature: Feature, rows: Mapping[str, Rows], item_rows: Rows | None, outside: Mapping[str, Sequence[float]],
    has_ages: bool,
) -> Column:  # fmt: skip
    if feature.name in outside:
        return Vector(feature.name, outside[feature.name])
    match feature.kind:
        case "numeric":
            return Numeric(feature)
        case "vector":
            return Vector(feature.name, [0.0] * feature.dim, half=feature.dtype == "float16")
        case "history":
            return History(feature, rows[feature.table] if item_rows is None else item_rows, has_ages)
    return (Several if feature.is_list else Single)(feature, rows[feature.table])


def _parsed(column: Column, number: int, query: Query) -> Any:
    try:
        return column.parse(query)
    except Unfit as unfit:
        where = f"query {number}: {unfit.name or column.names[0]}"
        raise UserError(where, _shown(unfit.value), unfit.expected, "correct it, or leave it out") from None


def _shown(value: Any) -> str:
    told = repr(value)
    return told if len(told) <= _SHOWN else f"{told[:_SHOWN]}..."


def hour(timestamp: float) -> int:
    """0 to 23, UTC, of seconds after 1970: the value of a feature that prepare declared as kind hour."""
    return int(timestamp // 3600 % 24)


def weekday(timestamp: float) -> int:
    """0 for Monday to 6, UTC, of seconds after 1970: the value of one declared as kind weekday."""
    return int((timestamp // 86400 + 3) % 7)
