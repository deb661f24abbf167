"""The weights of a categorical's values: where the source has them, and tf-idf."""

import numpy as np
from numpy.typing import NDArray

from trainer.checks import require_one_of
from trainer.config import FeatureConfig
from trainer.data.engine import NUMBERS, literal, quoted
from trainer.errors import UserError

Bags = tuple[NDArray[np.int32], NDArray, NDArray[np.int64]]
"""Table rows of all bags end to end; what belongs to each, a count or a weight; where each bag begins [bags + 1]."""


def check_weighting(where: str, feature: FeatureConfig) -> None:
    """Raises a UserError for weights that are misdeclared, whatever the source has."""
    require_one_of(f"{where}.weighting", feature.weighting, ("given", "tf_idf"))
    if feature.weighting != "given" and feature.weight_column is None:
        raise UserError(f"{where}.weighting", feature.weighting, "a column of counts to make weights of",
                        f"set {where}.weight_column")  # fmt: skip


def find_weights(name: str, feature: FeatureConfig, column: str, value_type: str, there: dict[str, str]) -> str:
    """SQL of the weights of those values of a list that are kept; empty where none are declared.

    Args:
        name: of the feature.
        feature: its declaration.
        column: with its values.
        value_type: DuckDB type of what is made of those.
        there: DuckDB type of each column beside it.

    Raises:
        UserError: the values are no lists, or the weights are not there or no numbers.
    """
    if feature.weight_column is None:
        return ""
    where, weight_column, separator = f"data.features.{name}", feature.weight_column, feature.separator
    if not value_type.endswith("[]"):
        raise UserError(f"{where}.weight_column", weight_column, f"a list of values in {column}, a weight for each",
                        f"write {column} as a list, or set {where}.separator")  # fmt: skip
    values, weights = quoted(column), quoted(weight_column)
    kind = there.get(weight_column, "absent")
    scalar = kind.removesuffix("[]").split("(")[0]
    if separator is not None and (kind == "VARCHAR" or (scalar in NUMBERS and not kind.endswith("]"))):
        # In CSV a column is one of numbers where no row has two of them; a blank has no parts.
        values, weights = (
            parts_of(f"nullif(trim(CAST({sql} AS VARCHAR)), '')", separator) for sql in (values, weights)
        )
    elif separator is not None or scalar not in NUMBERS or kind.count("]") != 1:
        expected = "strings or numbers" if separator is not None else "lists of numbers"
        raise UserError(f"{where}.weight_column", f"{weight_column} ({kind})",
                        f"a column of {expected} beside {column}: {', '.join(sorted(there))}",
                        f"set {where}.weight_column")  # fmt: skip
    kept = "x[1] <> ''" if separator is not None else "x[1] IS NOT NULL"
    pairs = f"list_zip({values}, list_transform({weights}, lambda x: TRY_CAST(x AS DOUBLE)))"
    return f"""CASE WHEN coalesce(len({values}), 0) = coalesce(len({weights}), 0)
                    THEN coalesce(list_transform(list_filter({pairs}, lambda x: {kept}), lambda x: x[2]), []) END"""


def parts_of(sql: str, separator: str) -> str:
    """SQL of the parts of a string, null where that is."""
    return f"list_transform(string_split({sql}, {literal(separator)}), lambda x: trim(x))"


class TfIdf:
    """Weights for the table rows in bags of them, as sklearn's TfidfTransformer(sublinear_tf=True) has them.

    What counts as a term is a table row: values that share one, out of the vocabulary or by their hash, are one term,
    whose count in a bag is the sum of theirs. So the out-of-vocabulary row, which many bags hold, weighs little, where
    each of its rare values by itself would outweigh all others.

    Args:
        table_rows: Rows of the table.
    """

    def __init__(self, table_rows: int) -> None:
        self._bags = 0
        self._bags_with = np.zeros(table_rows, np.int64)

    def fit(self, rows: NDArray[np.int32], counts: NDArray, offsets: NDArray[np.int64]) -> None:
        """Takes bags into account, given as in `__call__`."""
        rows, _, offsets = self._merged(rows, counts, offsets)
        self._bags += len(offsets) - 1
        terms, bags = np.unique(rows, return_counts=True)
        self._bags_with[terms] += bags

    def __call__(self, rows: NDArray[np.int32], counts: NDArray, offsets: NDArray[np.int64]) -> Bags:
        """Merges equal rows of a bag, leaves out those that count 0, and makes weights of length 1 of the others.

        Args:
            rows: [values] table rows of all bags end to end.
            counts: [values] how often each is in its bag: 0, or 1 and more.
            offsets: [bags + 1] where each bag begins.

        Returns:
            rows, in rising order in each bag, weights and offsets.
        """
        rows, counts, offsets = self._merged(rows, counts, offsets)
        idf = np.log((1 + self._bags) / (1 + self._bags_with[rows])) + 1
        weights = (1 + np.log(counts)) * idf
        bag = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        length = np.sqrt(np.bincount(bag, weights**2, len(offsets) - 1))
        return rows, weights / length[bag], offsets

    def _merged(self, rows: NDArray[np.int32], counts: NDArray, offsets: NDArray[np.int64]) -> Bags:
        bags, table_rows = len(offsets) - 1, len(self._bags_with)
        bag = np.repeat(np.arange(bags, dtype=np.int64), np.diff(offsets))
        terms, place = np.unique((bag * table_rows + rows)[counts > 0], return_inverse=True)
        bag, rows = np.divmod(terms, table_rows)
        merged = np.concatenate([[0], np.cumsum(np.bincount(bag, minlength=bags))])
        summed = np.bincount(place, counts[counts > 0], len(terms)).astype(np.float64)
        return rows.astype(np.int32), summed, merged.astype(np.int64)
