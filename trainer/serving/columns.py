"""Features of queries, each as the tensors that the exported program takes of it; made of values as JSON has them."""

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, Protocol

import torch
from torch import Tensor

from trainer.data.schema import HISTORY_AGE, Feature
from trainer.serving.vocabulary import Rows, Unfit, is_integer

# B queries, L values of a list

Query = Mapping[str, Any]
_LARGEST = 3.4e38
"""Beyond it `prepare` refuses a number as infinite."""


class Column(Protocol):
    """A feature.

    Attributes:
        names: keys of a query that it reads, the feature's own first.
    """

    names: list[str]

    def parse(self, query: Query) -> Any:
        """What a query says. Raises Unfit for what the feature cannot be."""
        ...

    def inputs(self, parsed: Sequence[Any]) -> dict[str, Tensor]:
        """Tensors of B queries, by name."""
        ...


class Single:
    """An id, or a categorical of one value."""

    def __init__(self, feature: Feature, rows: Rows) -> None:
        self.names, self._rows = [feature.name], rows

    def parse(self, query: Query) -> int:
        """Its row."""
        value = query.get(self.names[0])
        return 0 if value is None else self._rows(value)

    def inputs(self, parsed: Sequence[int]) -> dict[str, Tensor]:
        """int64 [B]."""
        return {self.names[0]: torch.tensor(parsed, dtype=torch.int64)}


class Several:
    """A categorical of several values, with weights or without."""

    def __init__(self, feature: Feature, rows: Rows) -> None:
        self.names = [feature.name] + ([feature.weight_column] if feature.weighted else [])
        self._feature, self._rows = feature, rows

    def parse(self, query: Query) -> tuple[list[int], list[float]]:
        """Rows, and their weights where they have such."""
        values = _listed(query.get(self.names[0]), self._feature.length)
        weights = [0.0] * len(values)
        if self._feature.weighted:
            name = self.names[1]
            weights = _listed(query.get(name), self._feature.length, name)
            for weight in weights:
                if not _is_finite(weight) or weight < 0:
                    raise Unfit(weight, "finite numbers from 0", name)
            if len(weights) != len(values):
                raise Unfit(weights, f"a weight for each of the {len(values)} values", name)
        pairs = [(value, float(weight)) for value, weight in zip(values, weights, strict=True) if value is not None]
        return [self._rows(value) for value, _ in pairs], [weight for _, weight in pairs]

    def inputs(self, parsed: Sequence[tuple[list[int], list[float]]]) -> dict[str, Tensor]:
        """int64 [B, L], the lengths and, if any, the weights."""
        name, length = self._feature.name, self._feature.length
        inputs = _padded(name, [rows for rows, _ in parsed], length)
        if self._feature.weighted:
            weights = [of_query + [0.0] * (length - len(of_query)) for _, of_query in parsed]
            inputs[f"{name}.weight"] = torch.tensor(weights, dtype=torch.float32)
        return inputs


class History:
    """Item ids, the oldest first, and how long ago the events were where the model knows times."""

    def __init__(self, feature: Feature, rows: Rows, has_ages: bool) -> None:
        self.names = [feature.name] + ([HISTORY_AGE] if has_ages else [])
        self._length, self._rows = feature.length, rows

    def parse(self, query: Query) -> tuple[list[int], list[int]]:
        """Rows and ages of the newest events."""
        items, ages = _listed(query.get(self.names[0])), list[int]()
        if HISTORY_AGE in self.names:
            ages = _listed(query.get(HISTORY_AGE), name=HISTORY_AGE)
            if not all(is_integer(age) and 0 <= age < 1 << 62 for age in ages) or ages != sorted(ages, reverse=True):
                raise Unfit(ages, "whole seconds from 0, the oldest event first", HISTORY_AGE)
            if len(ages) != len(items):
                raise Unfit(ages, f"the seconds since each of the {len(items)} events of the history", HISTORY_AGE)
        newest = items[-self._length :]
        return [0 if item is None else self._rows(item) for item in newest], ages[-self._length :]

    def inputs(self, parsed: Sequence[tuple[list[int], list[int]]]) -> dict[str, Tensor]:
        """int64 [B, L], the lengths and, if any, the ages."""
        inputs = _padded(self.names[0], [rows for rows, _ in parsed], self._length)
        for name in self.names[1:]:
            inputs[name] = _padded(name, [ages for _, ages in parsed], self._length)[name]
        return inputs


class Numeric:
    """A number."""

    def __init__(self, feature: Feature) -> None:
        self.names, self._log1p = [feature.name], feature.log1p

    def parse(self, query: Query) -> float:
        """NaN where missing."""
        value = query.get(self.names[0])
        if value is None:
            return math.nan
        if not isinstance(value, Real) or isinstance(value, bool):
            raise Unfit(value, "a number")
        number = float(value)
        if abs(number) > _LARGEST:
            raise Unfit(value, "a finite float32 number")
        if self._log1p and number <= -1:
            raise Unfit(value, "a number above -1, of which the model takes log(1 + x)")
        return number

    def inputs(self, parsed: Sequence[float]) -> dict[str, Tensor]:
        """float32 [B]."""
        return {self.names[0]: torch.tensor(parsed, dtype=torch.float32)}


class Vector:
    """Numbers: a vector, or the row of a table that is not inside.

    Args:
        name: of the feature.
        missing: what a missing one is.
        half: whether numbers are those of float16.
    """

    def __init__(self, name: str, missing: Sequence[float], half: bool = False) -> None:
        self.names, self._missing, self._half = [name], missing, half

    def parse(self, query: Query) -> Sequence[float]:
        """As many numbers as the missing one has."""
        value = query.get(self.names[0])
        if value is None:
            return self._missing
        numbers = _listed(value)
        if len(numbers) != len(self._missing) or not all(map(_is_finite, numbers)):
            raise Unfit(value, f"{len(self._missing)} finite numbers")
        return numbers

    def inputs(self, parsed: Sequence[Sequence[float]]) -> dict[str, Tensor]:
        """float32 [B, dim]."""
        vector_BC = torch.tensor(parsed, dtype=torch.float32)
        return {self.names[0]: vector_BC.half().float() if self._half else vector_BC}


def _is_finite(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and abs(float(value)) <= _LARGEST


def _listed(value: Any, most: int | None = None, name: str | None = None) -> list[Any]:
    """A list, or what numpy and torch have instead; none for null."""
    if value is None:
        return []
    found = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(found, list | tuple):
        raise Unfit(value, "a list", name)
    if most is not None and len(found) > most:
        raise Unfit(value, f"at most {most} values, as in training", name)
    return list(found)


def _padded(name: str, lists: Sequence[list[int]], length: int) -> dict[str, Tensor]:
    rows = [of_query + [0] * (length - len(of_query)) for of_query in lists]
    return {
        name: torch.tensor(rows, dtype=torch.int64),
        f"{name}.length": torch.tensor([len(of_query) for of_query in lists], dtype=torch.int64),
    }
