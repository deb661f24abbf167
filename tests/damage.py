"""Damages files at random, the way disks, networks and people do."""

import random


def damage(content: bytes, rng: random.Random) -> bytes:
    """The content with one thing wrong, or three."""
    damaged = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 3))):
        if damaged:
            rng.choice(_DAMAGES)(damaged, rng)
    return bytes(damaged)


def _flip(content: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 1, 3, 20))):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)


def _overwrite(content: bytearray, rng: random.Random) -> None:
    begin, end = _span(content, rng)
    content[begin:end] = rng.choice((bytes(end - begin), rng.randbytes(end - begin), b'"' * (end - begin)))


def _cut(content: bytearray, rng: random.Random) -> None:
    del content[rng.randrange(len(content)) :]


def _delete(content: bytearray, rng: random.Random) -> None:
    begin, end = _span(content, rng)
    del content[begin:end]


def _duplicate(content: bytearray, rng: random.Random) -> None:
    begin, end = _span(content, rng)
    content[begin:begin] = content[begin:end]


def _insert(content: bytearray, rng: random.Random) -> None:
    place = rng.randrange(len(content) + 1)
    content[place:place] = rng.choice(
        (b"\n", b"\r", b"\r\n", b'"', b",", b"\x00", b"\xff", b"-", b"9" * 20, b"nan", b"\n\n")
    )


def _swap(content: bytearray, rng: random.Random) -> None:
    """Two spans, as if pages or lines had changed places."""
    first, second = sorted((_span(content, rng), _span(content, rng)))
    if first[1] <= second[0]:
        one, other = content[slice(*first)], content[slice(*second)]
        content[slice(*second)] = one
        content[slice(*first)] = other


def _swap_lines(content: bytearray, rng: random.Random) -> None:
    lines = bytes(content).splitlines(keepends=True)
    rng.shuffle(lines)
    content[:] = b"".join(lines)


def _end_of_file(content: bytearray, rng: random.Random) -> None:
    """In Parquet and Arrow, where the schema, the offsets and the statistics are."""
    place = rng.randrange(max(0, len(content) - 3000), len(content))
    content[place] ^= 1 << rng.randrange(8)


_DAMAGES = (
    _flip, _flip, _overwrite, _cut, _delete, _duplicate, _insert, _swap, _swap_lines, _end_of_file, _end_of_file
)  # fmt: skip


def _span(content: bytearray, rng: random.Random) -> tuple[int, int]:
    begin = rng.randrange(len(content))
    return begin, min(len(content), begin + rng.choice((1, 4, 30, 500, 5000)))
