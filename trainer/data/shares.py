"""How rows that are read once, in order, are shared out over processes."""


def share_of_rank(num_rows: int, rank: int, world_size: int) -> range:
    """The contiguous stretch of rows that falls to a rank; stretches differ by one row at most."""
    return range(num_rows * rank // world_size, num_rows * (rank + 1) // world_size)


def steps_of_all(num_rows: int, batch_size: int, world_size: int = 1) -> int:
    """Batches that every rank takes to get through its share, though its own rows may run out before the last."""
    return -(-num_rows // (batch_size * world_size))
