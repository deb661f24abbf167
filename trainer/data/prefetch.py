"""Reading ahead in a thread: Arrow decodes and numpy gathers outside the interpreter's lock."""

import queue
import threading
from collections.abc import Iterator
from typing import Generic, TypeVar

Batch = TypeVar("Batch")

DEPTH = 4
"""Batches held ready: enough to ride over the decoding of a row group."""


class Prefetch(Generic[Batch], Iterator[Batch]):
    """The same batches, made up to DEPTH ahead.

    What making a batch raises is raised where that batch would have come. Whoever stops before the end calls `close`:
    a thread that decodes while the interpreter shuts down brings the process down.
    """

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches = batches
        self._ready: queue.Queue[tuple[Batch | None, BaseException | None]] = queue.Queue(DEPTH)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True, name="prefetch")
        self._thread.start()

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
        self._closed.set()
        self._thread.join()

    def _work(self) -> None:
        try:
            for batch in self._batches:
                self._put((batch, None))
                if self._closed.is_set():
                    return
            self._put((None, None))
        except BaseException as error:
            self._put((None, error))

    def _put(self, entry: tuple[Batch | None, BaseException | None]) -> None:
        while not self._closed.is_set():
            try:
                return self._ready.put(entry, timeout=0.05)
            except queue.Full:
                continue
