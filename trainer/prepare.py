"""Turns raw events and items into the folder that the other commands read.

python -m trainer.prepare data=movielens data.source=DIR data.dir=OUT
"""

from functools import partial
from typing import TYPE_CHECKING

import hydra
from omegaconf import DictConfig, OmegaConf

from trainer.config import (
    CONFIG_DIR,
    CiteULikeConfig,
    ForeignConfig,
    GeneratedConfig,
    MovieLensConfig,
    PrepareConfig,
    TabularConfig,
    UserItemListsConfig,
    register_configs,
    run_command,
    typed,
)
from trainer.data.schema import Feature, Schema
from trainer.errors import UserError, user_errors

if TYPE_CHECKING:
    from trainer.data.reading import RowCount

register_configs()

_SOURCES = "movielens, user_item_lists, citeulike, tabular, generated or foreign"


def prepare(config: PrepareConfig) -> Schema:
    """Writes config.data.dir and prints what it holds.

    Raises:
        UserError: the config or the data is not as it should be; nothing is left behind.
    """
    # Not needed to print --help or to refuse a typo.
    from trainer.data.citeulike import read_citeulike
    from trainer.data.foreign import complete_folder
    from trainer.data.generated import read_generated
    from trainer.data.movielens import read_movielens
    from trainer.data.preparation import prepare_folder
    from trainer.data.tabular import read_tabular
    from trainer.data.user_item_lists import read_user_item_lists

    match config.data:
        case ForeignConfig() as data:
            schema = complete_folder(data, config.memory_limit)
            print(f"items     {schema.num_items:,}")
            _print_schema(schema)
            print(f"completed {data.dir}")
            return schema
        case MovieLensConfig() as data:
            read = partial(read_movielens, data)
        case UserItemListsConfig() as data:
            read = partial(read_user_item_lists, data)
        case CiteULikeConfig() as data:
            read = partial(read_citeulike, data)
        case TabularConfig() as data:
            read = partial(read_tabular, data)
        case GeneratedConfig() as data:
            read = partial(read_generated, data)
        case other:
            raise UserError("data", other, f"a source: {_SOURCES}", "set data")
    prepared = prepare_folder(data, config.memory_limit, read)
    for name, count in (("users", prepared.num_users), ("items", prepared.schema.num_items)):
        print(f"{name:<10}" + (_describe_rows(prepared.rows[name]) if name in prepared.rows else f"{count:,}"))
    print("events    " + _describe_rows(prepared.rows["events"]))
    _print_schema(prepared.schema)
    for note in prepared.notes:
        print(f"note      {note}")
    print(f"written   {data.dir}")
    return prepared.schema


def _print_schema(schema: Schema) -> None:
    print("events    " + ", ".join(f"{count:,} {split}" for split, count in schema.num_events.items()))
    if schema.num_sequences:
        print(f"sequences {schema.num_sequences:,} of up to {schema.sequence_length} events")
    for feature in schema.features:
        print(f"feature   {feature.side:<10}{feature.name:<16}{_describe(feature)}")


def _describe_rows(rows: "RowCount") -> str:
    told = f"{rows.read:,} read, {rows.kept:,} kept"
    return told + (f", {rows.dropped:,} dropped: {rows.dropped:,} {rows.why}" if rows.dropped else "")


def _describe(feature: Feature) -> str:
    match feature.kind:
        case "numeric":
            log = "log1p, " if feature.log1p else ""
            return f"numeric     {log}mean {feature.mean:.4g}, std {feature.std:.4g}"
        case "vector":
            return f"vector      dim {feature.dim}"
        case _:
            several = ", several values a row" if feature.multi_valued else ""
            several += ", weighted" if feature.weighted else ""
            return f"{feature.kind:<12}table {feature.table}, {feature.num_embeddings:,} rows{several}"


@hydra.main(version_base="1.3", config_path=CONFIG_DIR, config_name="prepare")
def main(config: DictConfig) -> None:
    """The command."""
    with user_errors():
        if OmegaConf.is_missing(config, "data"):
            raise UserError("data", "???", _SOURCES, "add data=... to the command line")
        prepare(typed(config, PrepareConfig))


if __name__ == "__main__":
    run_command(main)
