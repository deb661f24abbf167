"""The pipeline that every source goes through, from raw events and items to the folder that schema.py describes.

It runs in DuckDB, which spills what does not fit its memory limit. Every order is either total or restored, so threads
never change the result.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from trainer.checks import require_one_of, require_positive
from trainer.config import PreparedConfig
from trainer.data.audiences import Audiences
from trainer.data.catalog_file import write_catalog
from trainer.data.declarations import check_declarations, is_user_id
from trainer.data.encoding import ColumnEncoder
from trainer.data.engine import SAMPLE_WEIGHT, Connection, Source, columns, first_row, open_engine, within_limits
from trainer.data.extension import Extended, open_extended
from trainer.data.footers import footer_checksums
from trainer.data.histories import Histories
from trainer.data.inputs import Input, resolve
from trainer.data.prepared_files import fingerprint, write_parts, write_vocabularies
from trainer.data.prepared_rows import catalog_batches, event_batches
from trainer.data.reading import RowCount, id_type, read_tables
from trainer.data.schema import TIMESTAMP, Feature, Schema
from trainer.data.sequences import count_trained_users, sequence_batches
from trainer.data.splits import check_split, count_splits, order_events
from trainer.data.titles import check_title, write_titles
from trainer.data.vocabulary import size_tables
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
    _check(config)
    extended = open_extended(config)
    target = Path(config.dir).absolute()
    _refuse_taken(target)
    partial = target.with_name(target.name + ".partial")
    _start(partial)
    engine = partial / "engine"
    engine.mkdir()
    try:
        with within_limits(memory_limit, target):
            with open_engine(engine, memory_limit) as connection, _Stages(7 + len(config.layouts)) as stages:
                prepared = _run(config, extended, connection, partial, engine, read, stages)
            shutil.rmtree(engine)
            (partial / "schema.json").write_text(prepared.schema.to_json())
            os.replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return prepared


def _check(config: PreparedConfig) -> None:
    """Raises a UserError for what can be seen without data."""
    require_one_of("data.unknown_items", config.unknown_items, ("error", "drop", "out_of_vocabulary"))
    require_positive("data.row_group_size", config.row_group_size)
    if not config.layouts or len(set(config.layouts)) < len(config.layouts):
        raise UserError("data.layouts", config.layouts, "one layout or two different", "set data.layouts=[event]")
    for layout in config.layouts:
        require_one_of("data.layouts", layout, ("event", "sequence"))
    if config.sequence_length < 2:
        raise UserError("data.sequence_length", config.sequence_length, "2 or more: a query and its positive",
                        "set data.sequence_length=200")  # fmt: skip
    check_split(config.split)
    check_declarations(config.features)


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
    extended: Extended,
    connection: Connection,
    folder: Path,
    engine: Path,
    read: Callable[[Connection], Source],
    stages: _Stages,
) -> Prepared:
    """Writes everything but schema.json into `folder`; `engine` is for what is not kept."""
    stages.begin("reading")
    source = read(connection)
    check_title(connection, config)
    inputs, left_out = resolve(connection, config)
    notes = [*source.notes, *left_out, *extended.check_inputs(connection, inputs)]
    rows, told = read_tables(connection, config, source, inputs)
    notes += told
    stages.begin("ordering")
    notes += order_events(connection, config.split, config.seed)
    num_events = count_splits(connection, config.split)
    if "sequence" in config.layouts:
        notes += count_trained_users(connection)
    stages.begin("vocabularies")
    table_rows, told = size_tables(connection, inputs, extended, config.seed)
    vocabularies = [feature.name for feature in inputs if feature.has_vocabulary]
    write_vocabularies(connection, folder / "vocabulary", vocabularies)
    encoders = [ColumnEncoder(connection, one, _table_input(one, inputs), table_rows, engine) for one in inputs]
    told += [note for encoder in encoders for note in encoder.notes]
    extended.check_dims(encoder.feature() for encoder in encoders)
    stages.begin("catalogue")
    candidates = [encoder for encoder in encoders if encoder.input.side == "candidate"]
    audiences = _audiences(connection, encoders, config.seed, engine)
    num_items = write_catalog(folder / "catalog.arrow", catalog_batches(connection, candidates, audiences))
    write_titles(connection, folder, config)
    stages.begin("histories")
    histories = Histories.build(connection, engine)
    features, num_sequences = _write_rows(config, connection, folder, encoders, histories, stages)
    schema = Schema(
        features=tuple(extended.continued(feature) for feature in features),
        num_items=num_items,
        num_events=num_events,
        num_sequences=num_sequences,
        sequence_length=config.sequence_length if num_sequences else 0,
        user_id_type=id_type(connection, "read_events", "user_id"),
        item_id_type=id_type(connection, "catalog", "item_id"),
        fingerprint=fingerprint(folder),
        footers=footer_checksums(folder),
        timestamps=TIMESTAMP in columns(connection, "events"),
        sample_weights=SAMPLE_WEIGHT in columns(connection, "events"),
        extends=extended.fingerprints,
    )
    (num_users,) = first_row(connection, "SELECT count(*) FROM users WHERE num_known > 0")
    return Prepared(schema, num_users, rows, notes + told)


def _table_input(feature: Input, inputs: list[Input]) -> Input:
    """The feature whose embedding table it shares, or itself."""
    match feature.kind:
        case "history":
            return next(other for other in inputs if (other.side, other.kind) == ("candidate", "id"))
        case "audience":
            return next(other for other in inputs if is_user_id(other.name, other.config))
        case _:
            return feature


def _audiences(connection: Connection, encoders: list[ColumnEncoder], seed: int, engine: Path) -> Audiences | None:
    """Those of the feature of that kind, where there is one."""
    for encoder in encoders:
        if encoder.input.kind == "audience":
            user_id = next(other for other in encoders if is_user_id(other.input.name, other.input.config))
            return Audiences(connection, user_id, encoder.input.config.length, seed, engine)
    return None


def _write_rows(
    config: PreparedConfig,
    connection: Connection,
    folder: Path,
    encoders: list[ColumnEncoder],
    histories: Histories,
    stages: _Stages,
) -> tuple[tuple[Feature, ...], int]:
    """Writes the rows of queries in every layout.

    Returns:
        The schema's features and number of sequences.
    """
    queries = [encoder for encoder in encoders if encoder.input.side == "query"]
    rows = {}
    if "event" in config.layouts:
        rows["events/train"] = event_batches(connection, "train", queries, histories, config)
    if "sequence" in config.layouts:
        rows["sequences"] = sequence_batches(connection, queries, config)
    for split in ("validation", "test"):
        rows[f"events/{split}"] = event_batches(connection, split, queries, histories, config)
    features: tuple[Feature, ...] = ()
    num_rows = {}
    for name, batches in rows.items():
        stages.begin(name)
        num_rows[name] = write_parts(folder / name, batches)
        # Statistics are those of the training rows, so they are taken before other rows pass by.
        features = features or tuple(encoder.feature() for encoder in encoders)
    return features, num_rows.get("sequences", 0)
