"""What a step frees stays with the process for the next one, where the C library is glibc.

Otherwise it gives blocks of some megabytes back to the system and asks for them again every step, and the system fills
each page with zeros anew: for the layers of a tower that takes longer than to compute them.
"""

import ctypes
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h
_KEPT = 256 << 20
"""Bytes at the end of the heap that may lie idle."""
_LARGE = 32 << 20
"""Bytes of a block that is given back as soon as it is free: it could leave a hole that nothing fills."""


def keep_freed_memory() -> None:
    """Has malloc keep what is freed, for as long as the process runs; does nothing with another C library."""
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(_TRIM_THRESHOLD, _KEPT)
        library.mallopt(_MMAP_THRESHOLD, _LARGE)
