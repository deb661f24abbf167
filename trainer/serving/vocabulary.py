"""Rows of ids: by a vocabulary, or by a hash."""

import hashlib
from collections.abc import Sequence
from numbers import Integral
from typing import Any, Literal, Protocol

Id = int | str


class Unfit(Exception):
    """A value that its feature cannot have.

    Args:
        value: what it is.
        expected: what it should be.
        name: of what holds it, where that is not the feature itself.
    """

    def __init__(self, value: Any, expected: str, name: str | None = None) -> None:
        self.value, self.expected, self.name = value, expected, name
        super().__init__(expected)


class Rows(Protocol):
    """Says which row of a table an id has."""

    def __call__(self, value: Any, /) -> int:
        """The row. Raises Unfit for a value of another type."""
        ...


class Vocabulary:
    """Ids numbered from 1; all others have row 0.

    Args:
        kind: type of the ids.
        ids: in the order of their rows.
    """

    def __init__(self, kind: Literal["int64", "string"], ids: Sequence[Id]) -> None:
        self.kind, self._rows = kind, {value: row for row, value in enumerate(ids, 1)}

    def __call__(self, value: Any) -> int:
        """Row of an id."""
        if self.kind == "int64" and not is_integer(value):
            raise Unfit(value, "an integer")
        if self.kind == "string" and not isinstance(value, str):
            raise Unfit(value, "a string")
        return self._rows.get(value, 0)


class Hash:
    """Ids by their hash, as trainer/data/hashing.py has it: one never seen has a row too.

    Args:
        buckets: rows besides row 0.
    """

    def __init__(self, buckets: int) -> None:
        self._buckets = buckets

    def __call__(self, value: Any) -> int:
        """Row of an id."""
        if not is_integer(value) and not isinstance(value, str):
            raise Unfit(value, "an integer or a string")
        digest = hashlib.md5(str(value).encode(), usedforsecurity=False).digest()
        return 1 + int.from_bytes(digest[8:], "little") % self._buckets


def is_integer(value: Any) -> bool:
    """Whether a value is an integer, of numpy too; True and False are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)
