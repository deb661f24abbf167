"""The model: one collection of embedding tables under two towers."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from trainer.config import ModelConfig
from trainer.data.batch import RetrievalBatch
from trainer.data.schema import Feature
from trainer.errors import UserError
from trainer.model.tower import Tower

# B rows, D embedding dim


class TwoTower(nn.Module):
    """Query and candidate embeddings whose dot product is the score.

    The tables come into being on the meta device, without memory: whoever shards them gives each rank its rows. Every
    table averages what a row looks up in it, which leaves a single id as it is; so the item table serves both the
    candidate's id and the mean of the query's history in one call.

    Args:
        features: inputs of both towers.
        config: widths, layers, normalisation.
    """

    def __init__(self, features: Sequence[Feature], config: ModelConfig) -> None:
        super().__init__()
        tables = _tables(features, config)
        dims = {table.name: table.embedding_dim for table in tables}
        self.id_tables = frozenset(f.table for f in features if f.kind in ("id", "history"))
        self.embeddings = EmbeddingBagCollection(tables=tables, device=torch.device("meta"))
        self.query_tower, self.candidate_tower = (
            Tower(side, [feature for feature in features if feature.side == side], dims, tower,
                  config.embedding_dim, config.normalize)
            for side, tower in (("query", config.query), ("candidate", config.candidate))
        )  # fmt: skip

    def forward(self, batch: RetrievalBatch) -> tuple[Tensor | None, Tensor | None]:
        """Query and candidate embeddings, each float32 [B, D], or None where the batch has none of that side."""
        embedded = self.embeddings(batch.sparse_features).to_dict()
        query_BD = None if batch.query_dense is None else self.query_tower(embedded, batch.query_dense)
        candidate_BD = None if batch.candidate_dense is None else self.candidate_tower(embedded, batch.candidate_dense)
        return query_BD, candidate_BD


def _tables(features: Sequence[Feature], config: ModelConfig) -> list[EmbeddingBagConfig]:
    """One table for all features that share it.

    Raises:
        UserError: no feature is looked up, or table_dims names a table that none has.
    """
    by_table: dict[str, list[Feature]] = {}
    for feature in features:
        if feature.is_sparse:
            by_table.setdefault(feature.table, []).append(feature)
    if not by_table:
        names = [feature.name for feature in features]
        raise UserError("model.query.features", names, "an id or a categorical in either tower", "add one")
    for table, sharing in by_table.items():
        sizes = {feature.name: feature.num_embeddings for feature in sharing}
        if len(set(sizes.values())) > 1:
            expected = "one number for all features that share the table"
            raise UserError(f"num_embeddings of table {table}", sizes, expected, "prepare the data anew")
    for table in config.table_dims:
        if table not in by_table:
            raise UserError("model.table_dims", table, f"one of the tables {list(by_table)}", "correct or remove it")
    return [
        EmbeddingBagConfig(
            name=table,
            num_embeddings=sharing[0].num_embeddings,
            embedding_dim=config.table_dims.get(table, _default_dim(sharing, config)),
            feature_names=[feature.name for feature in sharing],
            pooling=PoolingType.MEAN,
            # runtime/initialization.py fills the rows, so that they do not depend on how they are sharded
            init_fn=lambda weight: weight,
        )
        for table, sharing in by_table.items()
    ]


def _default_dim(sharing: Sequence[Feature], config: ModelConfig) -> int:
    return config.categorical_dim if sharing[0].kind == "categorical" else config.embedding_dim
