import gc
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tests.commands import environment
from trainer.data.prefetch import DEPTH, Prefetch

Threads = Callable[[], list[threading.Thread]]


@pytest.fixture
def threads() -> Threads:
    """Those of this test: others of the process may have left some."""
    before = threading.enumerate()
    return lambda: [t for t in threading.enumerate() if t.name == "prefetch" and t not in before]


def numbers(made: list[int]) -> Iterator[int]:
    while True:
        made.append(len(made))
        yield made[-1]


def test_batches_come_in_order_and_errors_where_they_would(threads: Threads) -> None:
    def three_then_error() -> Iterator[int]:
        yield from (1, 2, 3)
        raise ValueError("the fourth")

    ahead = Prefetch(three_then_error())
    assert [next(ahead) for _ in range(3)] == [1, 2, 3]
    with pytest.raises(ValueError, match="the fourth"):
        next(ahead)
    assert [*Prefetch(iter([1, 2]))] == [1, 2]
    assert not threads()


def test_no_more_than_so_many_are_made_ahead(threads: Threads) -> None:
    made: list[int] = []
    ahead = Prefetch(numbers(made))
    assert next(ahead) == 0
    while len(made) < 1 + DEPTH + 1:  # taken, ready, in hand
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(made) == 1 + DEPTH + 1
    ahead.close()
    ahead.close()
    assert not threads() and next(ahead, None) is None


def test_what_nobody_has_any_more_ends(threads: Threads) -> None:
    """As where Lightning calls `iter` to see whether it can."""
    iter(Prefetch(numbers([])))
    assert not threads()


def test_a_thread_that_collects_its_own_iterator_ends(threads: Threads) -> None:
    def collecting() -> Iterator[int]:
        while True:
            gc.collect()
            yield 0

    gc.disable()
    try:
        ring: list[object] = [Prefetch(collecting())]
        ring.append(ring)
        (thread,) = threads()
        del ring
        for _ in range(100):
            gc.collect()  # here, if the thread is waiting by now
            thread.join(0.1)
            if not thread.is_alive():
                return
    finally:
        gc.enable()
    pytest.fail("the thread goes on")


LEFT_OPEN = """
import time
from trainer.data.prefetch import Prefetch

def batches():
    while True:
        time.sleep(0.3)
        print("made", flush=True)
        yield 0

ahead = Prefetch(batches())
"""


def test_the_thread_ends_before_the_interpreter() -> None:
    """With the batch in hand: a thread that Python stops amid Arrow's C++ takes the process down."""
    result = subprocess.run(
        [sys.executable, "-c", LEFT_OPEN], env=environment(), capture_output=True, text=True, timeout=60
    )
    assert (result.returncode, result.stdout) == (0, "made\n"), result.stderr
