"""A folder that another engine wrote after docs/prepared_folder.md: all of it is checked, then it is completed.

The engine gives features.json, events/, vocabulary/ and the items as catalog/part-*.parquet; added here are
catalog.arrow, with every item's training events counted, and schema.json.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tqdm import tqdm

from trainer.config import ForeignConfig
from trainer.data.catalog_file import write_catalog
from trainer.data.contract import catalog_columns, event_columns, list_parts, sequence_columns
from trainer.data.engine import within_limits
from trainer.data.footers import footer_checksums
from trainer.data.foreign_ids import check_ids
from trainer.data.prepared_files import fingerprint
from trainer.data.row_groups import RowGroups, one_array
from trainer.data.schema import (
    DECLARATION,
    HISTORY_AGE,
    ITEM_ROW,
    RAW_ITEM_ID,
    SEEN,
    SPLITS,
    TARGETS,
    TRAIN_COUNT,
    VALIDATION_COUNT,
    Feature,
    Schema,
    check_features,
)
from trainer.errors import UserError

_REMEDY = "write it after docs/prepared_folder.md"


def complete_folder(config: ForeignConfig, memory_limit: str) -> Schema:
    """Checks every row of config.dir, then writes catalog.arrow and, last, schema.json.

    Args:
        config: The folder.
        memory_limit: What DuckDB may hold in memory while it looks for duplicate ids.

    Raises:
        UserError: something is not as the contract has it, or the folder is complete already.
    """
    folder = Path(config.dir)
    if (folder / "schema.json").exists():
        remedy = f"train on it; to check it again, rm {folder}/schema.json"
        raise UserError("data.dir", folder, "a folder that is not complete yet", remedy)
    with within_limits(memory_limit, folder):
        return _complete(folder, memory_limit)


def _complete(folder: Path, memory_limit: str) -> Schema:
    schema = _declared(folder)
    schema, items, splits, sequences = _open(folder, schema)
    train_count, validation_count = np.zeros((2, schema.num_items), np.int64)
    for split, rows in splits.items():
        for number, table in enumerate(_read(rows, f"events/{split}")):
            if split == "train":
                np.add.at(train_count, one_array(table, ITEM_ROW).to_numpy(), 1)
            else:
                _check_seen(folder, split, number, table, schema)
            if split == "validation":
                np.add.at(validation_count, list_parts(one_array(table, TARGETS))[0].to_numpy(), 1)
            _check_ages(folder, split, number, table)
    in_sequences = np.zeros(schema.num_items, np.int64)
    for table in _read(sequences, "sequences"):
        np.add.at(in_sequences, _positives(table), 1)
    if not splits["train"].num_rows:
        train_count = in_sequences
    schema = replace(schema, num_events=schema.num_events | {"train": int(train_count.sum())})
    check_ids(folder, schema, train_count if splits["train"].num_rows else None, memory_limit)
    partial = folder / "catalog.arrow.partial"
    counts = {TRAIN_COUNT: train_count, VALIDATION_COUNT: validation_count}
    write_catalog(partial, _catalog_batches(_read(items, "catalog"), schema, counts))
    os.replace(partial, folder / "catalog.arrow")
    schema = replace(schema, fingerprint=fingerprint(folder), footers=footer_checksums(folder))
    (folder / "schema.json.partial").write_text(schema.to_json())
    os.replace(folder / "schema.json.partial", folder / "schema.json")
    return schema


def _declared(folder: Path) -> Schema:
    """What features.json says, with nothing counted yet."""
    path = folder / DECLARATION
    if not path.is_file():
        raise UserError("data.dir", folder, f"a folder with {DECLARATION}", _REMEDY)
    try:
        content = json.loads(path.read_text())
        features = tuple(_feature(feature) for feature in content["features"])
        check_features(features)
        for name in ("user_id_type", "item_id_type"):
            if content[name] not in ("int64", "string"):
                raise ValueError(f"{name}={content[name]} is neither int64 nor string")
        length = int(content.get("sequence_length", 0))
        beside = {name: content.get(name, False) for name in ("timestamps", "sample_weights")}
        if not all(isinstance(value, bool) for value in beside.values()):
            raise ValueError("timestamps and sample_weights are true or false")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(str(path), "unfit", f"features and types of ids as the contract has them ({error})",
                        _REMEDY) from None  # fmt: skip
    return Schema(features, 0, {}, 0, length, content["user_id_type"], content["item_id_type"], "", **beside)


def _feature(stated: dict[str, Any]) -> Feature:
    known = {entry.name for entry in fields(Feature)}
    needed = {"name", "side", "kind"} | ({"mean", "std"} if stated.get("kind") == "numeric" else set())
    for wrong, names in (("unknown", stated.keys() - known), ("missing", needed - stated.keys())):
        if names:
            raise ValueError(f"feature {stated.get('name', '?')}: {wrong} {', '.join(sorted(names))}")
    return Feature(**stated)


def _open(folder: Path, schema: Schema) -> tuple[Schema, RowGroups, dict[str, RowGroups], RowGroups]:
    """Opens all files and counts their rows: the schema, the items, the splits and the sequences.

    Raises:
        UserError: files are missing, or their footers show that they break the contract.
    """
    strays = [
        path for path in sorted(folder.glob("*/**/*.parquet")) if not path.is_dir() and not _is_part(folder, path)
    ]
    if strays:
        raise UserError(str(strays[0]), "a name that is not read", "files named part-*.parquet", "rename or remove it")
    columns = {
        name: column for name, column in catalog_columns(schema).items() if name not in (TRAIN_COUNT, VALIDATION_COUNT)
    }
    items = RowGroups(folder / "catalog", columns)
    schema = replace(schema, num_items=items.num_rows)
    splits = {split: RowGroups(folder / "events" / split, event_columns(schema, split)) for split in SPLITS}
    sequences = RowGroups(folder / "sequences", sequence_columns(schema))
    found = {"catalog": items, "events/test": splits["test"]}
    found["events/train"] = splits["train"] if splits["train"].num_rows else sequences
    for name, rows in found.items():
        if not rows.num_rows:
            raise UserError("data.dir", folder, f"rows in {folder / name}/part-*.parquet", _REMEDY)
    num_events = {split: rows.num_rows for split, rows in splits.items()}
    return replace(schema, num_events=num_events, num_sequences=sequences.num_rows), items, splits, sequences


def _is_part(folder: Path, path: Path) -> bool:
    return path.name.startswith("part-") or path.parent == folder / "vocabulary"


def _read(rows: RowGroups, name: str) -> Iterator[pa.Table]:
    """Every row group, checked as it is read, behind a progress bar."""
    with tqdm(range(len(rows.sizes)), desc=name, unit="row group", disable=not rows.num_rows) as groups:
        for group in groups:
            yield rows.read(group)


def _check_seen(folder: Path, split: str, row_group: int, table: pa.Table, schema: Schema) -> None:
    """What a user has seen is at least what their history holds."""
    for feature in schema.side("query"):
        if feature.kind == "history":
            before, seen = (np.diff(list_parts(one_array(table, name))[1]) for name in (feature.name, SEEN))
            if (seen < before).any():
                row = int(np.argmax(seen < before))
                where = f"{folder / 'events' / split} row group {row_group} column {SEEN} row {row}"
                expected = f"all that the user did before, so at least the {before[row]} of {feature.name}"
                raise UserError(where, f"a list of {seen[row]}", expected, _REMEDY)


def _check_ages(folder: Path, split: str, row_group: int, table: pa.Table) -> None:
    """A history is told from its oldest event on, so its ages fall."""
    if HISTORY_AGE not in table.column_names:
        return
    ages, offsets = list_parts(one_array(table, HISTORY_AGE))
    rises = np.diff(ages.to_numpy()) > 0
    rises[offsets[(offsets > 0) & (offsets < len(ages))] - 1] = False  # from one row to the next
    if rises.any():
        row = int(np.searchsorted(offsets, np.argmax(rises), side="right")) - 1
        where = f"{folder / 'events' / split} row group {row_group} column {HISTORY_AGE} row {row}"
        raise UserError(where, "ages that rise", "those of a history from its oldest event to its newest", _REMEDY)


def _positives(table: pa.Table) -> NDArray[np.int64]:
    """Items of all events of sequences but the first of each, which only leads to the others."""
    values, offsets = list_parts(one_array(table, ITEM_ROW))
    items = np.delete(values.to_numpy(), offsets[:-1])
    return items[items >= 0]


def _catalog_batches(
    tables: Iterator[pa.Table], schema: Schema, counts: dict[str, NDArray[np.int64]]
) -> Iterator[pa.RecordBatch]:
    """The items in the columns that prepare would write."""
    start = 0
    for table in tables:
        columns = {RAW_ITEM_ID: one_array(table, RAW_ITEM_ID)}
        columns |= {name: pa.array(count[start : start + len(table)]) for name, count in counts.items()}
        for feature in schema.side("candidate"):
            column = one_array(table, feature.name)
            if feature.kind == "vector":  # few engines know lists of a fixed size
                column = pa.FixedSizeListArray.from_arrays(list_parts(column)[0], feature.dim)
            columns[feature.name] = column
            if feature.weighted:
                columns[feature.weight_column] = one_array(table, feature.weight_column)
        start += len(table)
        yield pa.record_batch(columns)
