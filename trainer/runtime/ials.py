"""A baseline that knows who chose what: matrix factorisation by alternating least squares, from `implicit`."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from scipy import sparse
from torch import Tensor

from trainer.data.batch import QueryBatch
from trainer.data.catalog import Catalog
from trainer.data.interactions import training_interactions, user_of
from trainer.data.schema import Schema
from trainer.data.shares import share_of_rank
from trainer.errors import UserError
from trainer.runtime.evaluation import Evaluation, evaluate_scores
from trainer.runtime.processes import Processes
from trainer.runtime.scoring import DotProducts

# B queries on this rank, N items, F factors

FACTORS, ALPHA, REGULARIZATION, ITERATIONS, SEED = 64, 10.0, 1.0, 15, 0
"""Not tuned to the data: what is seen weighs ALPHA as much as what is not."""


def check_ials(schema: Schema) -> None:
    """Refuses what the baseline cannot be made of.

    Raises:
        UserError: `implicit` is not installed, or the data has no users.
    """
    if importlib.util.find_spec("implicit") is None:
        raise UserError("evaluate.baselines", "ials", "the package implicit, which is not installed",
                        "pip install '.[baselines]', or leave ials out")  # fmt: skip
    user_of(schema)


def evaluate_ials(
    data_dir: str | Path, schema: Schema, catalog: Catalog, split: str, processes: Processes,
    list_ks: Sequence[int] = (),
) -> Evaluation:  # fmt: skip
    """Evaluation of iALS (Hu et al. 2008, "Collaborative filtering for implicit feedback datasets").

    The first process factorises the training rows; all get the items' factors, whole. A query's user is what its items
    seen make of them, so that new users and later events count too.

    Args:
        data_dir: prepared folder.
        schema: of that folder.
        catalog: the items.
        split: whose queries will come.
        processes: this process's place.
        list_ks: as of evaluate_model.

    Raises:
        UserError: see `check_ials`; or the training rows cannot be read.
    """
    check_ials(schema)
    model = _model()
    factor_NF = torch.zeros((len(catalog), FACTORS), device=processes.device)
    if processes.is_first:
        model.fit(training_interactions(data_dir, schema, show_progress=True), show_progress=True)
        factor_NF.copy_(torch.from_numpy(model.item_factors))
    dist.broadcast(factor_NF, src=0)
    queries = _model()  # without the users of the first process
    queries.item_factors = factor_NF.cpu().numpy()
    rows = share_of_rank(len(catalog), processes.rank, processes.world_size)

    def query_embedding(batch: QueryBatch) -> Tensor:
        seen = _matrix(batch.seen_rows.cpu().numpy(), batch.seen_lengths.cpu().numpy(), len(catalog))
        return torch.from_numpy(queries.recalculate_user(np.arange(seen.shape[0]), seen)).to(processes.device)

    items = DotProducts(factor_NF[rows.start : rows.stop].clone())
    return evaluate_scores(query_embedding, items, catalog, split, processes, list_ks)


def _model() -> Any:
    from implicit.cpu.als import AlternatingLeastSquares

    return AlternatingLeastSquares(
        FACTORS, REGULARIZATION, ALPHA, iterations=ITERATIONS, num_threads=torch.get_num_threads(), random_state=SEED
    )


def _matrix(seen_rows: np.ndarray, lengths: np.ndarray, num_items: int) -> sparse.csr_matrix:
    """float32 [B, N], 1 where a query's user has seen an item."""
    query = np.repeat(np.arange(len(lengths)), lengths)
    pairs = np.unique(query[seen_rows >= 0] * num_items + seen_rows[seen_rows >= 0])
    query, item = np.divmod(pairs, num_items)
    return sparse.csr_matrix((np.ones(len(item), np.float32), (query, item)), shape=(len(lengths), num_items))
