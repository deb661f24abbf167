"""Hashed ids: rows of an embedding table without a vocabulary."""

from trainer.data.engine import Connection, first_row


def hashed_row(value: str, buckets: int) -> str:
    """SQL of the table row, an INTEGER from 1 to `buckets`, of a value that is SQL too; null where that is null.

    The row is 1 + hash % buckets, whatever else is in the data. The hash is the lower 64 bits of the MD5 of the value's
    text in UTF-8 (an integer's is decimal), in Python's terms:

        int.from_bytes(hashlib.md5(str(value).encode()).digest()[8:], "little")
    """
    return f"CAST(1 + md5_number_lower(CAST({value} AS VARCHAR)) % {buckets} AS INTEGER)"


def describe_collisions(connection: Connection, values: str, buckets: int) -> str:
    """How many values share their row with another, in words.

    Args:
        connection: The engine.
        values: Query whose column `value` has all occurrences.
        buckets: Rows that the values are hashed to.
    """
    distinct = f"SELECT DISTINCT value FROM ({values}) WHERE value IS NOT NULL"
    row_sizes = f"SELECT count(*) AS size FROM ({distinct}) GROUP BY {hashed_row('value', buckets)}"
    seen, sharing = first_row(
        connection, f"SELECT coalesce(sum(size), 0), coalesce(sum(size) FILTER (size > 1), 0) FROM ({row_sizes})"
    )
    return f"{seen:,} values in {buckets:,} rows; {100 * sharing / max(seen, 1):.1f} % share a row with another"
