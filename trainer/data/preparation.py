"""The pipeline that every source goes through, from raw events and items to the folder that schema.py describes.

It runs in DuckDB, which spills what does not fit its memory limit. Every order is either total or restored, so threads
never change the result.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import duckdb
from tqdm import tqdm

from trainer.checks import require_one_of, require_positive
from trainer.config import PreparedConfig
from trainer.data.encoding import ColumnEncoder
from trainer.data.engine import Connection, Source, first_row, is_disk_full, open_engine, shortened
from trainer.data.histories import Histories
from trainer.data.inputs import resolve
from trainer.data.prepared_files import fingerprint, write_catalog, write_parts, write_vocabularies
from trainer.data.prepared_rows import catalog_batches, event_batches
from trainer.data.reading import RowCount, id_type, read_tables
from trainer.data.schema import SPLITS, Feature, Schema
from trainer.data.splits import check_split, count_splits, order_events
from trainer.data.vocabulary import build_vocabulary
from trainer.errors import UserError


@dataclass(frozen=True)
class Prepared:
    """What `prepare` tells when it is done."""

    schema: Schema
    num_users: int
    """Users with events."""
    rows: dict[str, RowCount]
    """What became of the rows that were read, of "users", "items" (where the source has them) and "events"."""
    notes: list[str]
    """A line for everything left out, dropped or missing."""


def prepare_folder(config: PreparedConfig, memory_limit: str, read: Callable[[Connection], Source]) -> Prepared:
    """Writes config.dir.

    Args:
        config: The features, split and sizes.
        memory_limit: What DuckDB may hold in memory.
        read: Leaves the source's views in the connection (see engine.py).

    Raises:
        UserError: the config or the data is not as it should be, or config.dir is taken.
    """
    require_one_of("data.unknown_items", config.unknown_items, ("error", "drop"))
    require_positive("data.row_group_size", config.row_group_size)
    check_split(config.split)
    target = Path(config.dir).absolute()
    _refuse_taken(target)
    partial = target.with_name(target.name + ".partial")
    _start(partial)
    engine = partial / "engine"
    engine.mkdir()
    try:
        with open_engine(engine, memory_limit) as connection, _Stages(5 + len(SPLITS)) as stages:
            prepared = _run(config, connection, partial, engine, read, stages)
        shutil.rmtree(engine)
        (partial / "schema.json").write_text(prepared.schema.to_json())
        os.replace(partial, target)
    except duckdb.OutOfMemoryException as error:
        raise UserError("memory_limit", memory_limit, "more memory for this data, or room on disk to spill to "
                        f"beside {target}", "raise memory_limit, or free space there") from error  # fmt: skip
    except (OSError, duckdb.Error) as error:
        if not is_disk_full(error):
            raise
        raise UserError("data.dir", target, f"room on its disk ({shortened(' '.join(str(error).split()))})",
                        "free space there, or set another data.dir") from error  # fmt: skip
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return prepared


def _refuse_taken(target: Path) -> None:
    if (target / "schema.json").exists():
        raise UserError("data.dir", target, "a folder not prepared yet", f"rm -r {target}, or another data.dir")
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise UserError("data.dir", target, "a new or an empty folder", "set another data.dir")


def _start(partial: Path) -> None:
    """Makes an empty folder, in place of what an interrupted run may have left there."""
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    except OSError as error:
        remedy = f"set another data.dir ({error.strerror})"
        raise UserError("data.dir", partial, "a place to write to", remedy) from error


class _Stages:
    """A progress bar that names what is going on."""

    def __init__(self, total: int) -> None:
        self._bar = tqdm(total=total, desc="prepare", bar_format="{desc}: {bar:20} {n}/{total} [{elapsed}]{postfix}")
        self._begun = False

    def begin(self, name: str) -> None:
        """Starts a stage; the one before it is done."""
        self._bar.update(self._begun)
        self._bar.set_postfix_str(name)
        self._begun = True

    def __enter__(self) -> "_Stages":
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self._bar.update(error is None)
        self._bar.close()  # so that an error has a line of its own


def _run(
    config: PreparedConfig,
    connection: Connection,
    folder: Path,
    engine: Path,
    read: Callable[[Connection], Source],
    stages: _Stages,
) -> Prepared:
    """Writes everything but schema.json into `folder`; `engine` is for what is not kept."""
    stages.begin("reading")
    source = read(connection)
    inputs, left_out = resolve(connection, config)
    rows, told = read_tables(connection, config, source, inputs)
    notes = [*source.notes, *left_out, *told]
    stages.begin("ordering")
    order_events(connection, config.split)
    num_events = count_splits(connection)
    stages.begin("vocabularies")
    table_rows = {}
    for feature in inputs:
        if feature.has_vocabulary:
            kept, rare = build_vocabulary(connection, feature, config.seed)
            table_rows[feature.name] = kept + 1
            if rare:
                least = feature.config.min_count
                times = "no occurrence" if least == 1 else f"fewer than {least} occurrences"
                notes.append(f"feature {feature.name}: {rare} values with {times} in training share row 0")
    write_vocabularies(connection, folder / "vocabulary", list(table_rows))
    item_table = next(feature.name for feature in inputs if (feature.side, feature.kind) == ("candidate", "id"))
    encoders = [ColumnEncoder(connection, feature, item_table, table_rows) for feature in inputs]
    stages.begin("catalogue")
    candidates = [encoder for encoder in encoders if encoder.input.side == "candidate"]
    num_items = write_catalog(folder / "catalog.arrow", catalog_batches(connection, candidates))
    stages.begin("histories")
    histories = Histories.build(connection, sum(num_events.values()), engine)
    queries = [encoder for encoder in encoders if encoder.input.side == "query"]
    features: tuple[Feature, ...] = ()
    for split in SPLITS:
        stages.begin(split)
        batches = event_batches(connection, split, queries, histories, config)
        write_parts(folder / "events" / split, batches)
        # Statistics are those of the training rows, so they are taken before the other splits pass by.
        features = features or tuple(encoder.feature() for encoder in encoders)
    schema = Schema(
        features=features,
        num_items=num_items,
        num_events=num_events,
        num_sequences=0,
        user_id_type=id_type(connection, "read_events", "user_id"),
        item_id_type=id_type(connection, "catalog", "item_id"),
        fingerprint=fingerprint(folder),
    )
    (num_users,) = first_row(connection, "SELECT count(*) FROM users")
    return Prepared(schema, num_users, rows, notes)
