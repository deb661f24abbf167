"""What a user reads when their input is wrong."""

import errno
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

PREEMPTED_NOTE = "TRAINER_PREEMPTED_NOTE"
"""Environment variable with the file to write to when a run is preempted."""
_SECONDS_FOR_THE_FIRST = 10
_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "make room, and give the same command again"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "allow this user to read and write there"),
    **dict.fromkeys(
        (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY),
        "name a path where no file is in a folder's place, nor a folder in a file's",
    ),
    **dict.fromkeys((errno.ENOENT, errno.ENAMETOOLONG, errno.ELOOP), "name a path that can be there"),
}
"""Of what the file system refuses."""
_NO_MEMORY = ("can't allocate memory", "CUDA out of memory")
"""What PyTorch says, whose error for it is a plain RuntimeError on a CPU."""


class UserError(ValueError):
    """A mistake in the user's configuration or data, told as field, value, expectation and remedy."""

    def __init__(self, field: str, value: object, expected: str, remedy: str) -> None:
        self.field, self.value, self.expected, self.remedy = field, value, expected, remedy
        super().__init__(f"{field}={value}: expected {expected}. Remedy: {remedy}.")


class Preempted(Exception):
    """The run was asked to end before its end; what it had trained is saved, and the same command goes on."""


class ContactLost(Exception):
    """Another rank answers no more."""


def name_ranks(ranks: Sequence[int]) -> str:
    """`rank 1`, or `ranks 0, 2, 5-7` for several in ascending order."""
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    told = [f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs]
    return f"rank{'s' if len(ranks) > 1 else ''} " + ", ".join(told)


@contextmanager
def user_errors() -> Iterator[None]:
    """Turns what a user is to know into one message on stderr (one a machine under torchrun) and an exit code.

    2 for a UserError; 75, which is EX_TEMPFAIL ("try again later"), for Preempted: a launcher is to start the same
    command again. torchrun makes 1 of either, so launch/torchrun.sh asks for the latter to be noted in a file.
    """
    try:
        yield
    except Preempted as preempted:
        note_preemption(str(preempted))
        if os.environ.get("RANK", "0") == "0":
            tell(f"preempted: {preempted}")
        sys.exit(os.EX_TEMPFAIL)
    except ContactLost as lost:
        what = f"rank {os.environ.get('RANK', 0)} has lost another, which has ended or whose machine is gone ({lost})"
        tell(f"error: {what}. Remedy: see what that one says; the same command goes on from the newest checkpoint.")
        sys.exit(1)
    except UserError as error:
        end_with(str(error))
    except OSError as error:
        if error.errno not in _REMEDIES:
            raise
        end_with(f"{error.filename or 'a file'}: {error.strerror}. Remedy: {_REMEDIES[error.errno]}.")
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(told in str(error) for told in _NO_MEMORY):
            raise
        end_with(f"out of memory ({str(error).splitlines()[0] if str(error) else 'no more to be had'}). Remedy: more "
                 "ranks, of which each then holds less, or smaller batches (data.global_batch_size, "
                 "*.batch_size_per_rank), tables (model.embedding_dim) or row groups (data.memory_gb).")  # fmt: skip
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if missing not in ("torchrec", "fbgemm_gpu"):
            raise
        end_with(f"{missing} is not installed. Remedy: on a GPU machine pip install 'two-tower-trainer[gpu]'; on "
                  "CPU pip install --no-deps torchrec==1.8.0, then pip install 'two-tower-trainer[cpu]'.")  # fmt: skip


def tell(line: str) -> None:
    """A line on stderr, in one write: print makes two of it where Python is unbuffered, and ranks' lines mix."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def note_preemption(told: str) -> None:
    """Leaves word for launch/torchrun.sh that the same command is to be started again."""
    if note := os.environ.get(PREEMPTED_NOTE):
        Path(note).write_text(f"{told}\n")


def end_with(message: str) -> NoReturn:
    """Prints one message on stderr, under torchrun the first process of a machine at once, and exits with code 2."""
    if os.environ.get("LOCAL_RANK", "0") != "0":
        # the first process mostly has the same to tell, and its end is ours: torchrun stops the others
        time.sleep(_SECONDS_FOR_THE_FIRST)
    tell(f"error: {message}")
    sys.exit(2)
