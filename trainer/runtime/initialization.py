"""First values of table rows, which depend on the row alone and not on how the table is split.

With this, runs on any number of ranks start from the same model, and none of them ever holds a whole table.
"""

import zlib

import torch
from torch import Tensor

ROWS_PER_BLOCK = 4096


@torch.no_grad()
def initialize_rows(shard: Tensor, table: str, row: int, column: int, width: int, std: float, seed: int) -> None:
    """Fills a shard of a table from a normal distribution; the out-of-vocabulary row 0 starts at zero.

    Args:
        shard: [rows, columns], filled in place.
        table: name of the table.
        row: the shard's first row within the table.
        column: its first column.
        width: columns of the whole table.
        std: standard deviation.
        seed: of the run.
    """
    end = row + len(shard)
    for block in range(row // ROWS_PER_BLOCK, -(-end // ROWS_PER_BLOCK)):
        generator = torch.Generator().manual_seed(_block_seed(seed, table, block))
        values = torch.randn(ROWS_PER_BLOCK, width, generator=generator) * std
        if block == 0:
            values[0] = 0
        first = block * ROWS_PER_BLOCK
        begin, stop = max(row, first), min(end, first + ROWS_PER_BLOCK)
        shard[begin - row : stop - row] = values[begin - first : stop - first, column : column + shard.shape[1]]


def _block_seed(seed: int, table: str, block: int) -> int:
    return zlib.crc32(f"{seed}/{table}/{block}".encode())
