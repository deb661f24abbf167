"""What a user reads when their input is wrong."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """A mistake in the user's configuration or data, told as field, value, expectation and remedy."""

    def __init__(self, field: str, value: object, expected: str, remedy: str) -> None:
        self.field, self.value, self.expected, self.remedy = field, value, expected, remedy
        super().__init__(f"{field}={value}: expected {expected}. Remedy: {remedy}.")


@contextmanager
def user_errors() -> Iterator[None]:
    """Turns a UserError into one message on stderr (of the first process of a machine) and exit code 2."""
    try:
        yield
    except UserError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
