"""Reading a checkpoint into tables that may have more rows than it, over any number of ranks."""

from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, ReadItem
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from trainer.errors import UserError
from trainer.runtime import saved_model


def read_rows_of_both(wanted: dict[str, Any], path: str) -> None:
    """Fills tensors in place, each rank its own shards of them; rows that the checkpoint lacks stay as they are.

    Args:
        wanted: nested as the checkpoint is, with the tensors to fill; what else it has is not read.
        path: of the checkpoint.

    Raises:
        UserError: it is damaged, or has not what is wanted.
    """
    try:
        dcp.load(wanted, checkpoint_id=path, planner=_RowsOfBoth())
    except dcp.CheckpointException as error:
        found = saved_model.reasons(error)
        raise UserError("start.checkpoint", path, f"a sound checkpoint ({found})", "start from another") from None


class _RowsOfBoth(dcp.DefaultLoadPlanner):
    """Reads the rows that the saved table has into those of one that may have more."""

    def create_local_plan(self) -> LoadPlan:
        """As the base class does, which asks for equal sizes."""
        assert self.metadata is not None
        items: list[ReadItem] = []
        for name, value in self.state_dict.items():
            saved = self.metadata.state_dict_metadata.get(name)
            size = value.size()
            if not isinstance(saved, TensorStorageMetadata):
                raise ValueError(f"{name} is not in it")
            if saved.size[1:] != size[1:] or saved.size[:1] > size[:1]:
                raise ValueError(f"{name} is {[*saved.size]} there, not {[*size]} or less")
            items += create_read_items_for_chunk_list(name, saved, _chunks(value))
        return LoadPlan(items)


def _chunks(value: Tensor | ShardedTensor) -> list[ChunkStorageMetadata]:
    if isinstance(value, ShardedTensor):
        parts = [part.metadata for part in value.local_shards()]
        return [ChunkStorageMetadata(torch.Size(p.shard_offsets), torch.Size(p.shard_sizes)) for p in parts]
    return [ChunkStorageMetadata(torch.Size([0] * value.dim()), value.size())]
