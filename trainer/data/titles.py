"""What people call the items: DIR/titles.parquet of a prepared folder, for lists that somebody reads; no model does."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from trainer.config import PreparedConfig
from trainer.data.engine import ITEMS, Connection, columns, quoted, reading, stream
from trainer.errors import UserError

_FILE, _BATCH = "titles.parquet", 1 << 16
Titles = dict[int | str, str]


def check_title(connection: Connection, config: PreparedConfig) -> None:
    """Refuses a title that is no column of the items.

    Raises:
        UserError: there is none of that name.
    """
    there = sorted(columns(connection, ITEMS))
    if config.title is not None and config.title not in there:
        raise UserError("data.title", config.title, f"a column of the items: {', '.join(there) or 'there are none'}",
                        "name one of them, or set data.title=null")  # fmt: skip


def write_titles(connection: Connection, folder: Path, config: PreparedConfig) -> None:
    """Writes the title of each item of the catalogue that has one, in the catalogue's order; no file without a column.

    Args:
        connection: with the source's items and the catalogue.
        folder: to be written to.
        config: which names the column.
    """
    if config.title is None:
        return
    titled = f"""
        SELECT catalog.item_id, title FROM catalog JOIN (
            SELECT CAST(item_id AS VARCHAR) AS id, CAST({quoted(config.title)} AS VARCHAR) AS title FROM {ITEMS}
        ) ON id = CAST(catalog.item_id AS VARCHAR)
        WHERE title IS NOT NULL ORDER BY item_row"""
    kind = pa.string() if columns(connection, "catalog")["item_id"] == "VARCHAR" else pa.int64()
    schema = pa.schema({"item_id": kind, "title": pa.string()})
    with reading("data.title", config.title), pq.ParquetWriter(folder / _FILE, schema) as writer:
        for batch in stream(connection, titled, _BATCH):
            writer.write_batch(batch.cast(schema))


def read_titles(data_dir: str | Path, ids: Sequence[int | str]) -> Titles:
    """Titles of some items, by the user's own ids; none for those that have none.

    Raises:
        UserError: the file is there and cannot be read.
    """
    path = Path(data_dir) / _FILE
    if not path.exists():
        return {}
    try:
        found = ds.dataset(path).to_table(["item_id", "title"], filter=ds.field("item_id").isin(pa.array(ids)))
        return dict(zip(found["item_id"].to_pylist(), found["title"].to_pylist(), strict=True))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(str(path), "unreadable", f"columns item_id and title ({error})",
                        "write it anew, or remove it: lists then have ids alone") from None  # fmt: skip
