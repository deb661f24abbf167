"""Reading ahead in a thread: Arrow decodes and numpy gathers outside the interpreter's lock."""

import queue
import threading
from collections.abc import Iterator
from typing import TypeVar

Batch = TypeVar("Batch")

DEPTH = 4
"""Batches held ready: enough to ride over the decoding of a row group."""


def prefetch(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches, made up to DEPTH ahead by a thread that ends with the iterator.

    Raises:
        BaseException: whatever `batches` raises, where the batch it could not make would have come.
    """
    ready: queue.Queue[tuple[Batch | None, BaseException | None]] = queue.Queue(DEPTH)
    closed = threading.Event()

    def put(entry: tuple[Batch | None, BaseException | None]) -> None:
        while not closed.is_set():
            try:
                return ready.put(entry, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for batch in batches:
                put((batch, None))
                if closed.is_set():
                    return
            put((None, None))
        except BaseException as error:  # noqa: BLE001 - handed to the consumer, who raises it
            put((None, error))

    threading.Thread(target=work, daemon=True, name="prefetch").start()
    try:
        while True:
            batch, error = ready.get()
            if error is not None:
                raise error
            if batch is None:
                return
            yield batch
    finally:
        closed.set()
