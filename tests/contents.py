"""What a checkpoint holds, all of it, in one process: for comparison in tests only."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

from trainer.runtime import saved_model

_COUNTS = ("val_loop", "_batches_that_stepped")


def contents(path: Path) -> dict[str, Any]:
    """Tables, layers and the tables' optimizer state in full; and under `rest` what Lightning keeps."""
    state: dict[str, Any] = {}
    _load_state_dict(
        state, storage_reader=dcp.FileSystemReader(path), planner=_EmptyStateDictLoadPlanner(), no_dist=True
    )
    return _flat(state) | _flat({"rest": saved_model.load_rest(path)})


def assert_same_contents(one: Path, other: Path) -> None:
    """Every tensor bit for bit, and every number, name and count, but for how often validation has run."""
    first, second = (
        {name: value for name, value in contents(path).items() if not any(count in name for count in _COUNTS)}
        for path in (one, other)
    )
    assert first.keys() == second.keys(), first.keys() ^ second.keys()
    different = [name for name, value in first.items() if not _same(value, second[name])]
    assert not different, different


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return bool(one == other)


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        parts: Any = value.items()
    elif isinstance(value, list | tuple):
        parts = enumerate(value)
    else:
        return {prefix: value}
    return {name: part for key, item in parts for name, part in _flat(item, f"{prefix}/{key}").items()}
