"""Imports of torch and what is upon it, which are most of the time from a command to its first step."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def first_imports() -> Iterator[None]:
    """Around imports of a command: they leave a million objects that live as long as the process.

    Python's collector goes through all of them again and again while they come, at every later collection, and when
    the process ends: a third of the time of a command that does nothing else. So it rests meanwhile, and what is there
    then is set aside. In a process that has torch already, which is somebody else's, nothing changes.

    Among it are tracebacks of what libraries tried to import and did without, and in them the frame of the function
    that imports here. What that function has in its variables is never let go of: so it is to hold no model, and call
    what does.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()
