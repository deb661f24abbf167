"""Damages files at random, the way disks, networks and people do."""

import numpy as np


def damage(content: bytes, rng: np.random.Generator) -> bytes:
    """The content with one to three things wrong."""
    for _ in range(rng.integers(1, 4)):
        content = _DAMAGES[rng.integers(len(_DAMAGES))](content, rng)
    return content


def _span(content: bytes, rng: np.random.Generator) -> tuple[int, int]:
    start = int(rng.integers(0, max(1, len(content))))
    return start, start + int(rng.integers(1, max(2, min(len(content) // 4, 4096))))


def _flip(content: bytes, rng: np.random.Generator) -> bytes:
    damaged = bytearray(content)
    for place in rng.integers(0, len(content), rng.integers(1, 5)) if content else []:
        damaged[place] ^= 1 << int(rng.integers(8))
    return bytes(damaged)


def _cut(content: bytes, rng: np.random.Generator) -> bytes:
    return content[: int(rng.integers(0, max(1, len(content))))]


def _delete(content: bytes, rng: np.random.Generator) -> bytes:
    start, stop = _span(content, rng)
    return content[:start] + content[stop:]


def _zero(content: bytes, rng: np.random.Generator) -> bytes:
    start, stop = _span(content, rng)
    return content[:start] + bytes(len(content[start:stop])) + content[stop:]


def _insert(content: bytes, rng: np.random.Generator) -> bytes:
    start, stop = _span(content, rng)
    return content[:start] + rng.bytes(min(64, stop - start)) + content[start:]


def _repeat(content: bytes, rng: np.random.Generator) -> bytes:
    start, stop = _span(content, rng)
    return content[:stop] + content[start:]


def _flip_near_the_end(content: bytes, rng: np.random.Generator) -> bytes:
    """Where Parquet and Arrow files say what is in them."""
    return content[:-800] + _flip(content[-800:], rng)


_DAMAGES = (_flip, _cut, _delete, _zero, _insert, _repeat, _flip_near_the_end)
