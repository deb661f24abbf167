"""The run directory: what was trained, on what, with what; enough for evaluate and export.

RUN/config.yaml      the resolved TrainConfig
RUN/schema.json      features of the data it was trained on
RUN/order.json       digest of that data's row groups, which decide what rows a step takes
RUN/sharding.json    which rank holds how many rows of which table
RUN/checkpoints/     see checkpoint.py
RUN/stalls/          see watchdog.py
RUN/logs/            TensorBoard and CSV
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trainer.config import CheckpointConfig, TrainConfig, from_yaml, to_yaml
from trainer.data.order import TrainingOrder
from trainer.data.schema import Schema, read_schema
from trainer.errors import UserError
from trainer.runtime import checkpoint
from trainer.runtime.whole_files import write

CONFIG, SCHEMA, ORDER, SHARDING = "config.yaml", "schema.json", "order.json", "sharding.json"
STALLS = "stalls"

_OURS = (CONFIG, SCHEMA, ORDER, SHARDING, "logs", "checkpoints", "non_finite", STALLS)

# Fields that may differ between the first command and one that resumes the run.
_FREE = ("run.", "sharding.", "data.dir", "data.memory_gb")
_BOUND = ("run.seed", "run.monitor")
_BOUND_BY_SCHEDULE = ("run.epochs", "run.validate_every")  # which say when it ends


def claim(config: TrainConfig, schema: Schema, order: TrainingOrder) -> None:
    """Makes a run directory, or checks that it belongs to this very run; called by one process.

    Raises:
        UserError: it was trained with another configuration, on data with other features, or on other rows.
    """
    folder = Path(config.run.dir)
    order_text = json.dumps({"row_groups": order.fingerprint}) + "\n"
    if checkpoint.newest(folder) is None:  # nothing that another configuration could spoil
        there = [folder] if folder.is_file() else folder.glob("*")
        if any(path.name.removesuffix(".partial") not in _OURS for path in there):
            raise UserError("run.dir", folder, "a new or empty folder, or one of an earlier run", "name another")
        folder.mkdir(parents=True, exist_ok=True)
        write(folder, SCHEMA, schema.to_json())
        write(folder, ORDER, order_text)
        write(folder, CONFIG, to_yaml(config))
        return
    _refuse_other_schema("run.dir", folder, read_schema_of(folder), schema)
    if (folder / ORDER).read_bytes() != order_text.encode():
        raise UserError(
            "data.dir", config.data.dir, "the training rows of the run so far, in the same row groups: a step would "
            "mean other rows", "take back the files as they were, or train on these in a run.dir of its own",
        )  # fmt: skip
    before, now = flat(asdict(read_config(folder))), flat(asdict(config))
    bound = _BOUND if config.optimizer.schedule == "constant" else (*_BOUND, *_BOUND_BY_SCHEDULE)
    changed = [
        f"{name}={before.get(name)} (now {now.get(name)})"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name) and (name in bound or not name.startswith(_FREE))
    ]
    if changed:
        raise UserError(
            "run.dir", folder, "the configuration it was trained with: " + ", ".join(changed),
            "take these values back, or give the new configuration a run.dir of its own",
        )  # fmt: skip


def record_sharding(run_dir: str | Path, rows: list[dict[str, tuple[int, int]]]) -> None:
    """Writes which rows of each table every rank holds.

    Args:
        run_dir: run directory.
        rows: by rank, for every table the rows held of any part of it, and its rows in all.
    """
    tables = {
        table: {"num_embeddings": total, "rows_by_rank": [held.get(table, (0, total))[0] for held in rows]}
        for held in rows
        for table, (_, total) in held.items()
    }
    write(run_dir, SHARDING, json.dumps(tables, indent=2) + "\n")


def read_config(run_dir: str | Path) -> TrainConfig:
    """The configuration of a run.

    Raises:
        UserError: the folder is no run directory.
    """
    path = Path(run_dir) / CONFIG
    if not path.is_file():
        raise UserError("run.dir", run_dir, "a folder written by trainer.train, with its config.yaml", "train first")
    return from_yaml(path)


def read_schema_of(run_dir: str | Path) -> Schema:
    """The schema of the data a run was trained on.

    Raises:
        UserError: it is not there, or another version wrote it.
    """
    try:
        return Schema.from_json((Path(run_dir) / SCHEMA).read_text())
    except (FileNotFoundError, ValueError, TypeError, KeyError) as error:
        expected = f"a run of this version's trainer.train ({SCHEMA}: {error})"
        raise UserError("run.dir", run_dir, expected, "use the version that wrote it, or another run") from None


def check_there(run: CheckpointConfig) -> None:
    """Looks for a run, its checkpoint and its data, which takes no torch: what most often is wrong is told at once.

    Raises:
        UserError: one of them is not there.
    """
    settings = read_config(run.dir)
    checkpoint.find(run.dir, run.checkpoint)
    read_schema(run.data_dir or settings.data.dir, "run.data_dir")


def check_same_data(data_dir: str, schema: Schema, run_schema: Schema) -> None:
    """Refuses data whose features are not those of the run.

    Raises:
        UserError: they differ.
    """
    _refuse_other_schema("run.data_dir", data_dir, run_schema, schema)


def _refuse_other_schema(field: str, value: object, before: Schema, now: Schema) -> None:
    old, new = _by_name(before), _by_name(now)
    changed = [
        f"feature {name} is {'gone' if name in old['features'] else 'new'}"
        for name in sorted(old["features"].keys() ^ new["features"].keys())
    ]
    flat_old, flat_new = flat(old), flat(new)
    changed += [
        f"{name} was {flat_old[name]}, is {flat_new[name]}"
        for name in sorted(flat_old.keys() & flat_new.keys())
        if flat_old[name] != flat_new[name]
    ]
    if changed:
        raise UserError(
            field, value, "data with the features it was trained on; " + ", ".join(changed[:8]),
            "use the data of that run, or train anew in a run.dir of its own",
        )  # fmt: skip


def _by_name(schema: Schema) -> dict[str, Any]:
    return {
        "features": {feature.name: asdict(feature) for feature in schema.features},
        "num_items": schema.num_items,
        "fingerprint": schema.fingerprint,
    }


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves of nested dictionaries by their path, as `model.embedding_dim`."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return leaves
