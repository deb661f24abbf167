"""Reading ahead in a thread: Arrow decodes and numpy gathers outside the interpreter's lock."""

import queue
import threading
import weakref
from collections.abc import Iterator
from typing import Generic, TypeVar

Batch = TypeVar("Batch")

DEPTH = 4
"""Batches held ready: enough to ride over the decoding of a row group."""

_Ready = queue.Queue[tuple[Batch | None, BaseException | None]]


class Prefetch(Generic[Batch], Iterator[Batch]):
    """The same batches, made up to DEPTH ahead.

    What making a batch raises is raised where that batch would have come. The thread ends with the batches, when
    `close` is called, when nobody has the iterator any more (Lightning drops one to see whether it can be made), and at
    the latest before the interpreter shuts down: Python ends a thread that comes out of Arrow after that by unwinding
    it, which Arrow's C++ does not allow, so that the process aborts.
    """

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._ready = _Ready[Batch](DEPTH)
        self._closed = threading.Event()
        work = (batches, self._ready, self._closed)  # which do not lead back here: what nobody has can be given up
        thread = threading.Thread(target=_make, args=work, daemon=True, name="prefetch")
        self._end = weakref.finalize(self, _end, thread, self._closed)
        thread.start()

    def __next__(self) -> Batch:
        if self._closed.is_set():
            raise StopIteration
        batch, error = self._ready.get()
        if error is not None or batch is None:
            self.close()
            raise error or StopIteration
        return batch

    def close(self) -> None:
        """Ends the thread; at most the batch in hand is still made."""
        self._end()


def _make(batches: Iterator[Batch], ready: "_Ready[Batch]", closed: threading.Event) -> None:
    """The thread's work."""
    try:
        for batch in batches:
            _put((batch, None), ready, closed)
            if closed.is_set():
                return
        _put((None, None), ready, closed)
    except BaseException as error:
        _put((None, error), ready, closed)


def _put(entry: tuple[Batch | None, BaseException | None], ready: "_Ready[Batch]", closed: threading.Event) -> None:
    while not closed.is_set():
        try:
            return ready.put(entry, timeout=0.05)
        except queue.Full:
            continue


def _end(thread: threading.Thread, closed: threading.Event) -> None:
    closed.set()
    if thread is not threading.current_thread():  # in which the garbage collector may run too
        thread.join()
