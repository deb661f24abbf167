"""The model: one collection of embedding tables under two towers."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from trainer.config import ModelConfig, TrainConfig
from trainer.data.batch import RetrievalBatch
from trainer.data.schema import Feature, Schema
from trainer.errors import UserError
from trainer.model.history import AttentionPooling, CausalTransformer, ItemMean
from trainer.model.temperature import Temperature
from trainer.model.tower import Tower

# R rows, Q queries, U items, K interests, D embedding dim


class TwoTower(nn.Module):
    """Query and item embeddings whose dot product is the score.

    The tables come into being on the meta device, without memory: whoever shards them gives each rank its rows. What a
    list looks up is summed, by its weights if any, where it lies; so the item table serves both the candidate's id and
    the mean of the query's history in one call. An encoder that sees a history event by event is given the
    embeddings of the batch's items instead, and nothing more is looked up for it.

    Args:
        features: inputs of both towers.
        config: widths, layers, normalisation.
        max_events: the most events that a query has seen in training; positions beyond are not trained.
        has_times: whether the time between events is known.

    Raises:
        UserError: see Tower; no feature is looked up, table_dims names a table that none has, or an encoder has no
            history to encode or a longer one than max_events.
    """

    def __init__(
        self, features: Sequence[Feature], config: ModelConfig, max_events: int = 0, has_times: bool = False
    ) -> None:
        super().__init__()
        self.history_name, encoder = _encoder(features, config, max_events, has_times)
        looked_up = [f for f in features if f.is_sparse and f.name != self.history_name]
        tables = _tables(looked_up, config)
        widths = {feature: table.embedding_dim for table in tables for feature in table.feature_names}
        if self.history_name is not None:
            widths[self.history_name] = config.embedding_dim
        self.id_tables = frozenset(f.table for f in features if f.kind in ("id", "history", "audience"))
        is_weighted = any(feature.weighted for feature in looked_up)
        # weights, where any list has them, are those of a mean for the others; see data/assembly.py
        self._averaged = [feature for feature in looked_up if feature.is_list and not is_weighted]
        longest = {feature.name: float(feature.length if feature.is_list else 1) for feature in looked_up}
        self.most_values = {table.name: [longest[name] for name in table.feature_names] for table in tables}
        self.embeddings = EmbeddingBagCollection(tables=tables, device=torch.device("meta"), is_weighted=is_weighted)
        self.query_tower, self.candidate_tower = (
            Tower(side, [feature for feature in features if feature.side == side], widths, tower,
                  config.embedding_dim, config.normalize)
            for side, tower in (("query", config.query), ("candidate", config.candidate))
        )  # fmt: skip
        self.encoder, self._embedding_dim = encoder, config.embedding_dim
        self._of_event = frozenset(feature.name for feature in features if feature.per_event)
        self.temperature = Temperature(config.loss.temperature, config.loss.learn_temperature)

    def forward(self, batch: RetrievalBatch, sparse_features: Any = None) -> tuple[Tensor | None, Tensor | None]:
        """Embeddings of queries, float32 [Q, D] or [Q, K, D], and of items, [U, D]; None where there are none.

        Args:
            batch: all that the towers see.
            sparse_features: the batch's, in another form that the tables take.
        """
        embedded = self.look_up(batch, sparse_features)
        item_UD = None
        if batch.item_dense is not None:
            of_items = {name: embedded[name][: len(batch.item_row)] for name in self.candidate_tower.sparse_names}
            item_UD = self.candidate_tower(of_items, batch.item_dense)
        query_QD = None if batch.query_dense is None else self._query(embedded, batch, item_UD)
        return query_QD, item_UD

    def compile_towers(self) -> None:
        """Has torch.compile make them at their first call, for any number of rows; parameters and names stay."""
        for tower in (self.query_tower, self.candidate_tower):
            tower.compile(dynamic=True)

    def look_up(self, batch: RetrievalBatch, sparse_features: Any = None) -> dict[str, Tensor]:
        """What the tables have for each feature: float32 [slots, its width], of a list the mean or the weighted sum.

        The mean is formed here, for towers that run. With PoolingType.MEAN TorchRec would divide, where a table is
        row_wise, all that is looked up by a matrix of as many numbers, and the list of a table_wise one twice.

        Args:
            batch: whose features are looked up.
            sparse_features: as in `forward`.
        """
        features = batch.sparse_features
        looked_up = self.embeddings(features if sparse_features is None else sparse_features)
        embedded: dict[str, Tensor] = looked_up.to_dict()
        length_of = dict(zip(features.keys(), features.lengths().view(len(features.keys()), -1), strict=True))
        for feature in self._averaged:
            if (batch.query_dense if feature.side == "query" else batch.item_dense) is not None:
                embedded[feature.name] = embedded[feature.name] / length_of[feature.name].clamp(min=1)[:, None]
        return embedded

    def _query(self, embedded: Mapping[str, Tensor], batch: RetrievalBatch, item_UD: Tensor | None) -> Tensor:
        assert batch.query_dense is not None
        inputs = {}
        for name in self.query_tower.sparse_names:
            if name == self.history_name:
                inputs[name] = self._encode(batch, item_UD)
            elif batch.query_row is None or name in self._of_event:
                inputs[name] = embedded[name][: len(batch.query_dense)]
            else:
                inputs[name] = embedded[name][batch.query_row]
        return self.query_tower(inputs, batch.query_dense)

    def _encode(self, batch: RetrievalBatch, item_UD: Tensor | None) -> Tensor:
        assert self.encoder is not None and batch.history is not None and batch.query_dense is not None
        if item_UD is None:  # nobody here has a history
            item_UD = batch.query_dense.new_zeros(0, self._embedding_dim)
        return self.encoder(item_UD, batch.history, batch.query_row is None)


def make_model(schema: Schema, features: Sequence[Feature], config: TrainConfig) -> TwoTower:
    """The model of a run, untrained.

    Args:
        schema: of the prepared folder.
        features: chosen from it.
        config: of the run.
    """
    most = max((feature.length for feature in features if feature.kind == "history"), default=0)
    max_events = schema.sequence_length - 1 if config.data.layout == "sequence" else most
    return TwoTower(features, config.model, max_events, schema.timestamps)


def dense_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """All that is no table, by name, of a TwoTower or of what shards one."""
    return {name: parameter for name, parameter in model.named_parameters() if "embeddings." not in name}


def _encoder(
    features: Sequence[Feature], config: ModelConfig, max_events: int, has_times: bool
) -> tuple[str | None, nn.Module | None]:
    """What sees a history event by event, and the history's name."""
    if config.history.encoder == "mean":
        return None, None
    history = next((feature for feature in features if feature.kind == "history"), None)
    if history is None:
        names = [feature.name for feature in features if feature.side == "query"]
        raise UserError("model.history.encoder", config.history.encoder, f"a history among the query's {names}",
                        "name it in model.query.features, or prepare the data with one")  # fmt: skip
    if config.history.encoder == "item_mean":
        return history.name, ItemMean()
    if history.length > max_events:
        raise UserError("model.history.encoder", config.history.encoder,
                        f"training rows with the {history.length} events of a history, not {max_events}: those "
                        "beyond would have positions that nothing trains",
                        f"prepare with data.sequence_length={history.length + 1}, or a shorter history")  # fmt: skip
    kind = AttentionPooling if config.history.encoder == "attention" else CausalTransformer
    return history.name, kind(config.embedding_dim, config.history, max_events, has_times)


def _tables(features: Sequence[Feature], config: ModelConfig) -> list[EmbeddingBagConfig]:
    """One table for all features that share it.

    Raises:
        UserError: no feature is looked up, or table_dims names a table that none has.
    """
    by_table: dict[str, list[Feature]] = {}
    for feature in features:
        by_table.setdefault(feature.table, []).append(feature)
    if not by_table:
        raise UserError("model.query.features", "nothing that is looked up", "an id or a categorical in either tower",
                        "add one")  # fmt: skip
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
            data_type=DataType.FP16 if config.table_dtype == "float16" else DataType.FP32,
            pooling=PoolingType.SUM,
            # runtime/initialization.py fills the rows, so that they do not depend on how they are sharded
            init_fn=lambda weight: weight,
        )
        for table, sharing in by_table.items()
    ]


def _default_dim(sharing: Sequence[Feature], config: ModelConfig) -> int:
    return config.categorical_dim if sharing[0].kind == "categorical" else config.embedding_dim
