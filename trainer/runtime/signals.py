"""SIGTERM and SIGUSR1: the machine is wanted back, or its time is over."""

import os
import signal
import threading
import time
from types import FrameType

from trainer.errors import note_preemption, tell

_SAME_EVENT = 0.25
"""Seconds within which a second signal is taken for the first: launchers pass on to their processes what these were
sent as well."""
_ASKED_BY = (signal.SIGTERM, signal.SIGUSR1)


class Signals:
    """Notes the first of these signals, for the training loop to save and leave; at a second one the process ends.

    While nothing is being trained there is nothing to save, and already the first ends the process. A thread listens,
    for Python's own handlers wait until the main thread comes back from a collective, which may be never.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        """Name of the first signal."""
        self._training = False
        self._handlers: dict[signal.Signals, object] = {}

    def __enter__(self) -> "Signals":
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        self._earlier_fd = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        self._handlers = {number: signal.getsignal(number) for number in _ASKED_BY}
        self.take_over()
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        signal.set_wakeup_fd(self._earlier_fd)
        os.close(self._writing)
        self._thread.join()
        os.close(self._reading)

    def take_over(self) -> None:
        """Puts these handlers in the place of any other, such as Lightning's."""
        for number in _ASKED_BY:
            signal.signal(number, _leave_it_to_the_thread)

    def training(self, now: bool) -> None:
        """Whether from now on there are steps to finish and a state to save."""
        self._training = now

    def _listen(self) -> None:
        first = 0.0
        while caught := os.read(self._reading, 1):
            number = caught[0]
            if number not in _ASKED_BY:
                continue
            if not self._training:
                note_preemption(signal.Signals(number).name)
                _end(number, os.EX_TEMPFAIL, "nothing is being trained")
            if self.received is None:
                self.received, first = signal.Signals(number).name, time.monotonic()
            elif time.monotonic() - first > _SAME_EVENT:
                _end(number, 128 + number, "it is the second signal")


def _leave_it_to_the_thread(number: int, frame: FrameType | None) -> None:
    """Python's part of a handler; the number has already been written to the pipe."""


def _end(number: int, code: int, reason: str) -> None:
    tell(f"{signal.Signals(number).name}: ended at once, for {reason}")
    os._exit(code)
