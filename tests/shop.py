"""A small shop's files: written, prepared and read back as plain Python."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from trainer.config import FeatureConfig, PrepareConfig, TabularConfig
from trainer.data.schema import Schema
from trainer.prepare import prepare

Columns = dict[str, Any]

IDS = {
    "user_id": FeatureConfig(side="query", kind="id"),
    "history": FeatureConfig(side="query", kind="history", length=3),
    "item_id": FeatureConfig(side="candidate", kind="id"),
}


def query(kind: str, **settings: Any) -> FeatureConfig:
    return FeatureConfig(side="query", kind=kind, **settings)


def candidate(kind: str, **settings: Any) -> FeatureConfig:
    return FeatureConfig(side="candidate", kind=kind, **settings)


def events_of(*users: int, events: int = 4) -> Columns:
    """That many events of each user, on items 1, 2, 3, ..., a minute apart."""
    rows = [(user, step) for user in users for step in range(events)]
    return {
        "user_id": [user for user, _ in rows],
        "item_id": [1 + step for _, step in rows],
        "timestamp": [60 * step for _, step in rows],
    }


def prepare_shop(
    folder: Path,
    events: Columns,
    items: Columns | None = None,
    users: Columns | None = None,
    features: dict[str, FeatureConfig] | None = None,
    memory_limit: str = "1GB",
    **settings: Any,
) -> Schema:
    """Writes the tables as Parquet into `folder` and prepares them into folder/out."""
    paths: dict[str, str | None] = {}
    for name, columns in (("events", events), ("items", items), ("users", users)):
        paths[name] = None if columns is None else f"{name}.parquet"
        if columns is not None:
            pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    config = TabularConfig(
        dir=str(folder / "out"),
        source=str(folder),
        events="events.parquet",
        items=paths["items"],
        users=paths["users"],
        features=IDS | (features or {}),
        **settings,
    )
    return prepare(PrepareConfig(data=config, memory_limit=memory_limit))


def rows(folder: Path, split: str) -> list[dict[str, Any]]:
    """The rows of a split, file after file."""
    parts = sorted((folder / "out" / "events" / split).glob("part-*.parquet"))
    return [row for part in parts for row in pq.read_table(part).to_pylist()]


def positives(row: dict[str, Any]) -> list[int]:
    """Catalogue rows of what a row's query is to find."""
    return row["targets"] if "targets" in row else [row["item_row"]]


def sequences(folder: Path) -> list[dict[str, Any]]:
    """The rows of the sequences, file after file."""
    parts = sorted((folder / "out" / "sequences").glob("part-*.parquet"))
    return [row for part in parts for row in pq.read_table(part).to_pylist()]


def catalog(folder: Path) -> list[dict[str, Any]]:
    """The rows of the catalogue."""
    with pa.memory_map(str(folder / "out" / "catalog.arrow")) as file:
        return pa.ipc.open_file(file).read_all().to_pylist()


def vocabulary(folder: Path, table: str) -> dict[int | str, int]:
    """Index by id."""
    return {
        row["id"]: row["index"] for row in pq.read_table(folder / "out" / "vocabulary" / f"{table}.parquet").to_pylist()
    }
