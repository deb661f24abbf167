"""What all ranks must have alike, told field by field before the first collective that would hang on it."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from trainer.config import TrainConfig
from trainer.data.catalog import Catalog
from trainer.data.order import TrainingOrder
from trainer.data.schema import Schema
from trainer.errors import UserError, name_ranks
from trainer.runtime.gather import gather_objects
from trainer.runtime.run_directory import flat

_OF_MACHINE = ("run.threads", "data.dir", "data.memory_gb")
_ABSENT = "absent"
_TOLD = 8  # fields; all of the schema differ where the data is another
_SHOWN = 80  # characters of a value


def fields(config: TrainConfig, schema: Schema, catalog: Catalog, order: TrainingOrder) -> dict[str, Any]:
    """What of a run must be the same on every rank, by the name that the user knows it by.

    Machines may see the data under different paths and have memory and cores of their own.
    """
    of_schema = asdict(schema) | {"features": {feature.name: asdict(feature) for feature in schema.features}}
    row_groups = f"{order.num_rows} in {len(order.row_group_sizes)} row groups {order.fingerprint[:8]}"
    return {
        **{name: value for name, value in flat(asdict(config)).items() if name not in _OF_MACHINE},
        "training rows": row_groups,
        **flat(of_schema, "schema.json "),
        **flat(catalog.checksums(), "catalog.arrow "),
    }


def check_alike(local: Mapping[str, Any]) -> None:
    """Refuses to go on where ranks disagree.

    Raises:
        UserError: on every rank, naming the fields and who has which value.
    """
    mine = {name: str(value) for name, value in local.items()}
    if len(set(gather_objects(hashlib.sha256(json.dumps(mine, sort_keys=True).encode()).hexdigest()))) == 1:
        return
    everyone = gather_objects(mine)
    names = dict.fromkeys(name for ranks in everyone for name in ranks)
    different = [name for name in names if len({ranks.get(name, _ABSENT) for ranks in everyone}) > 1]
    if different:
        told = [(name, _by_value([ranks.get(name, _ABSENT) for ranks in everyone])) for name in different[:_TOLD]]
        more = f"; and {len(different) - _TOLD} more" if len(different) > _TOLD else ""
        raise UserError(
            told[0][0], "; ".join([told[0][1], *(f"{name}={values}" for name, values in told[1:])]) + more,
            "the same on every rank", "start every machine with the same command, and let all see the same files",
        )  # fmt: skip


def _by_value(values: list[str]) -> str:
    """`32 on rank 1, 64 on ranks 0, 2, 3`: the fewest first, since they are likely the ones to correct."""
    ranks: dict[str, list[int]] = {}
    for rank, value in enumerate(values):
        ranks.setdefault(value, []).append(rank)
    return ", ".join(
        f"{value[:_SHOWN]} on {name_ranks(those)}" for value, those in sorted(ranks.items(), key=lambda of: len(of[1]))
    )
