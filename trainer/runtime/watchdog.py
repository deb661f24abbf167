"""Ends a job in which nothing moves any more: ranks that wait for one that has stalled would wait for ever.

RUN/stalls/TIME-rank-R.txt   how far rank R had come, where it stands, and the stacks of all its threads
"""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType, TracebackType

from trainer.errors import name_ranks

STALLED = os.EX_SOFTWARE
"""Exit code (70) of every rank of a job that has stalled."""

_STDERR = 2  # not sys.stderr, whose lock the main thread may hold
_PACKAGE = Path(__file__).parent.parent
_GRACE = 30.0  # seconds: as long a network file system may take until it shows what other machines wrote
_SPARE = 30.0  # seconds for what should take none: writing files and the message


class Watchdog:
    """Watches, for the duration of a block, that the main thread makes progress; where it does not, ends the process.

    Ranks that stall together tell together: each writes its stacks, the first of them says in one message where all
    of them stand, then every one exits with code STALLED, whatever its main thread is stuck in. A rank without a file
    gives no sign of life. A process that is suspended as a whole, and later continued, has not stalled meanwhile.

    Args:
        folder: where the stacks go; one that all ranks see.
        rank: of this process.
        world_size: processes in all.
        seconds: without a beat, after which the job is ended; the message comes at most half as long, or 30, later.
    """

    def __init__(self, folder: str | Path, rank: int, world_size: int, seconds: float) -> None:
        self._folder, self._rank, self._world_size, self._seconds = Path(folder), rank, world_size, seconds
        self._grace, self._interval = min(_GRACE, seconds / 2), min(1.0, seconds / 10)
        self._reached, self._beats = "the start", 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="watchdog")

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def beat(self, reached: str) -> None:
        """Notes progress.

        Args:
            reached: what is done now, such as "step 12", for the message.
        """
        self._reached = reached
        self._beats += 1

    def _watch(self) -> None:
        seen, looks = self._beats, 0
        # looks are counted, not the clock: it goes on while a process is suspended
        while not self._over.wait(self._interval):
            seen, looks = self._beats, looks + 1 if seen == self._beats else 0
            if looks * self._interval >= self._seconds:
                self._end()

    def _end(self) -> None:
        # needs neither the interpreter nor the file system, of which the run's may be what hangs
        faulthandler.dump_traceback_later(2 * self._grace + _SPARE, exit=True, file=_STDERR)
        try:
            own = self._write()
            standing = self._wait_for_others(own)
            if self._rank == min(standing):
                self._print(message(standing, self._world_size, self._seconds, own))
            else:
                time.sleep(self._grace)  # when one rank ends, torchrun ends the others, of which one is to speak
        except OSError as error:
            self._print(f"error: run.stall_seconds={self._seconds:g}: nothing has moved for as long on rank "
                        f"{self._rank}, and its stacks cannot be written ({error})")  # fmt: skip
            faulthandler.dump_traceback(_STDERR)
        finally:
            os._exit(STALLED)

    def _write(self) -> Path:
        path = self._folder / f"{time.strftime('%Y%m%d-%H%M%S')}-rank-{self._rank}.txt"
        self._folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        with partial.open("w") as file:
            file.write(f"after {self._reached}: {_place()}\n\n")
            file.flush()
            faulthandler.dump_traceback(file)
        return partial.rename(path)

    def _wait_for_others(self, own: Path) -> dict[int, str]:
        """First lines of the files of this stall, by rank, when all are there or a grace is over."""
        end = time.monotonic() + self._grace
        while len(standing := self._standing(own)) < self._world_size and time.monotonic() < end:
            time.sleep(self._interval)
        return standing

    def _standing(self, own: Path) -> dict[int, str]:
        # files of an earlier stall of the run are older by `seconds` at least
        since = own.stat().st_mtime - self._seconds / 2
        recent = [path for path in self._folder.glob("*-rank-*.txt") if path.stat().st_mtime > since]
        return {int(path.stem.rpartition("-")[2]): path.read_text().partition("\n")[0] for path in recent}

    @staticmethod
    def _print(text: str) -> None:
        os.write(_STDERR, f"\n{text}\n".encode())  # a progress bar leaves its line open


def message(standing: Mapping[int, str], world_size: int, seconds: float, own: Path) -> str:
    """What the user reads of a stall.

    Args:
        standing: of the ranks that have written their stacks, how far they came and where they stand.
        world_size: ranks in all.
        seconds: for which nothing has moved.
        own: one of the files with stacks.
    """
    alike: dict[str, list[int]] = {}
    for rank in sorted(standing):
        alike.setdefault(standing[rank], []).append(rank)
    lines = [f"{name_ranks(ranks)} {place}" for place, ranks in alike.items()]
    silent = [rank for rank in range(world_size) if rank not in standing]
    if silent:
        several = "give no sign: their processes are stopped, or their machines gone"
        one = "gives no sign: its process is stopped, or its machine gone"
        lines.append(f"{name_ranks(silent)} {several if len(silent) > 1 else one}")
    return "\n  ".join(
        [
            f"error: run.stall_seconds={seconds:g}: nothing has moved for as long. Where the ranks stand:",
            *lines,
            f"Stacks of all threads: {own.parent}/{own.name.partition('-rank-')[0]}*. Remedy: see what the rank does "
            "that waits for no other; the same command resumes. Raise run.stall_seconds if a sound run pauses so long.",
        ]
    )


def _place() -> str:
    """The main thread's place in this package; of a reader that it waits for, that too."""
    frames = sys._current_frames()
    place = _innermost(frames[threading.main_thread().ident or 0])
    if "prefetch.py" in place:
        readers = [frames[thread.ident or 0] for thread in threading.enumerate()
                   if thread.name == "prefetch" and thread.ident in frames]  # fmt: skip
        busy = [reader for reader in map(_innermost, readers) if "prefetch.py" not in reader]
        place += "".join(f", for its reader in {reader}" for reader in busy)
    return place


def _innermost(frame: FrameType) -> str:
    here: FrameType | None = frame
    while here is not None and not here.f_code.co_filename.startswith(f"{_PACKAGE}{os.sep}"):
        here = here.f_back
    here = here or frame
    path = Path(here.f_code.co_filename)
    shown = path.relative_to(_PACKAGE.parent) if path.is_relative_to(_PACKAGE) else path
    return f"{here.f_code.co_name} ({shown}:{here.f_lineno})"
