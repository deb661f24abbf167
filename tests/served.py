"""A shop with every kind of feature, and runs of models on it with what serves them."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor

from tests.ranks import RankPool
from tests.shop import candidate, prepare_shop, query, rows
from tests.training import write_checkpoint
from trainer.config import (
    CONFIG_DIR,
    CheckpointConfig,
    EmbeddingExportConfig,
    ExportConfig,
    QueryTowerConfig,
    ServedTowerConfig,
    TrainConfig,
    register_configs,
    to_yaml,
    typed,
)
from trainer.data.schema import RAW_USER_ID, Schema
from trainer.model.two_tower import dense_parameters, make_model
from trainer.runtime import checkpoint, held_out_queries
from trainer.runtime.held_out_queries import HeldOutQueries
from trainer.runtime.loading import load_model, open_run
from trainer.runtime.processes import Processes
from trainer.runtime.query_tower_file import QueryTowerFile
from trainer.runtime.shard_files import write_shards
from trainer.runtime.sharding import shard
from trainer.runtime.shards import ItemShards
from trainer.serving.query_encoding import hour, weekday

USERS, ITEMS = 24, 20
NEVER = "never seen"
FEATURES = {
    "device": query("categorical"),
    "country": query("categorical", hash_buckets=7),
    "likes": query("categorical", weight_column="like_weights"),
    "words": query("categorical", separator="|"),
    "visits": query("numeric", log1p=True),
    "taste": query("vector", dtype="float16"),
    "hour": query("hour"),
    "weekday": query("weekday"),
    "category": candidate("categorical"),
    "price": candidate("numeric", log1p=True),
}
EVERY = "[user_id,history,device,country,likes,words,visits,taste,hour,weekday]"
SMALL = ["data.dir=given below", "run.dir=given below", "model.embedding_dim=8", "sharding.ids=row_wise"]
MODELS = {
    "two_tower": ["model=two_tower"],
    "dssm": ["model=dssm"],
    "sequence": ["model=sequence"],
    "multi_interest": ["model=multi_interest"],
    "factorization_machine": [
        "model=factorization_machine", "model.categorical_dim=8",
        "model.query.features=[user_id,device,likes,history,visits]",
    ],
    "matrix_factorization": ["model=matrix_factorization"],
    "item_mean": ["model=two_tower", "model.history.encoder=item_mean"],
    "attention": ["model=dssm", "model.history.encoder=attention", "model.history.interests=3"],
    "transformer": ["model=two_tower", "model.history.encoder=transformer", f"model.query.features={EVERY}"],
    "item_mean_without_weights": [
        "model=two_tower", "model.history.encoder=item_mean", "model.query.features=[history,words,hour]",
    ],
}  # fmt: skip


class Shop:
    """Events, items and users; and the queries of its test rows as a client would put them."""

    def __init__(self, folder: Path) -> None:
        rng = np.random.default_rng(0)
        words = ["a", "b", "c", "d", ""]
        self.users: dict[str, list[Any]] = {
            "user_id": [10 * user for user in range(1, USERS + 1)],
            "country": [None if user % 5 == 0 else f"land {user % 9}" for user in range(USERS)],
            "likes": [[words[k] for k in range(user % 4)] for user in range(USERS)],
            "like_weights": [[0.5 * k + 0.25 * user for k in range(user % 4)] for user in range(USERS)],
            "words": [None if user % 7 == 0 else "|".join(words[: 1 + user % 4]) for user in range(USERS)],
            "visits": [None if user % 6 == 0 else 3.7 * user for user in range(USERS)],
            "taste": [None if user % 8 == 0 else rng.normal(size=3).tolist() for user in range(USERS)],
        }
        events: dict[str, list[Any]] = {name: [] for name in ("user_id", "item_id", "timestamp", "device")}
        self.queries = {}
        for number, user in enumerate(self.users["user_id"]):
            own = [f"item-{item}" for item in rng.permutation(ITEMS - 3)[: 3 + number % 6]]
            own[:-1] = [NEVER if item == "item-2" else item for item in own[:-1]]
            if own[-1] == NEVER or len([item for item in own if item != NEVER]) < 3:
                own = ["item-0", NEVER, "item-1", "item-3"]
            times = (1_700_000_000 + np.cumsum(rng.integers(1, 10**6, len(own)))).tolist()
            devices = [None if time % 3 == 0 else ["phone", "desk"][time % 2] for time in times]
            for name, values in (("item_id", own), ("timestamp", times), ("device", devices)):
                events[name] += values
            events["user_id"] += [user] * len(own)
            words_of = self.users["words"][number]
            self.queries[user] = {
                "user_id": user,
                "device": devices[-1],
                "country": self.users["country"][number],
                "likes": self.users["likes"][number],
                "likes_weight": self.users["like_weights"][number],
                "words": words_of and [word for word in words_of.split("|") if word],
                "visits": self.users["visits"][number],
                "taste": self.users["taste"][number],
                "hour": hour(times[-1]),
                "weekday": weekday(times[-1]),
                "history": own[:-1],
                "history_age": [times[-1] - time for time in times[:-1]],
            }
        items = {
            "item_id": [f"item-{row}" for row in range(ITEMS)],
            "category": [f"kind {row % 4}" for row in range(ITEMS)],
            "price": [None if row == 5 else 1.5 * row for row in range(ITEMS)],
            "name": [None if row == 4 else f"The {row}th thing" for row in range(ITEMS)],
        }
        self.schema = prepare_shop(
            folder, events, items, self.users, FEATURES, unknown_items="out_of_vocabulary", title="name"
        )
        self.folder = folder / "out"
        self.rows = rows(folder, "test")
        assert len(self.rows) == USERS and any(-1 in row["history"] for row in self.rows)

    def asked(self, names: list[str]) -> list[dict[str, Any]]:
        """Queries of the test rows, of what a tower reads."""
        return [{name: self.queries[row[RAW_USER_ID]][name] for name in names} for row in self.rows]


def configured(name: str, shop: Shop, run_dir: Path) -> TrainConfig:
    register_configs()
    with initialize_config_dir(CONFIG_DIR, version_base="1.3"):
        config = typed(compose("train", [*SMALL, *MODELS[name]]), TrainConfig)
    config.data.dir, config.run.dir = str(shop.folder), str(run_dir)
    return config


def save(processes: Processes, config: TrainConfig, schema: Schema) -> None:
    """A checkpoint of a model whose every parameter says something."""
    torch.manual_seed(1)
    chosen = schema.select(config.model.query.features, config.model.candidate.features)
    config.optimizer.embedding_init_std = 0.5
    model = shard(make_model(schema, chosen, config), config.sharding, config.optimizer, 64, 0, processes)
    with torch.no_grad():
        for parameter in dense_parameters(model).values():
            parameter.add_(0.2 * torch.randn_like(parameter))
    write_checkpoint(model, Path(config.run.dir) / "checkpoints" / checkpoint.name(7))


def write(
    processes: Processes, run_dir: Path, settings: ServedTowerConfig
) -> tuple[list[str], Tensor]:  # what is told, and the model's own embeddings
    held_out_queries._CALLS = 20  # what is measured here says nothing
    config = QueryTowerConfig(CheckpointConfig(str(run_dir), checkpoint="last"), settings)
    run = open_run(config.run)
    file = QueryTowerFile(run, config)
    model = load_model(run, 64, processes)
    return file.write(model, processes), HeldOutQueries(run, "test").embed(model, processes.device)


def saved_run(ranks: RankPool, shop: Shop, name: str, run_dir: Path) -> Path:
    config = configured(name, shop, run_dir)
    (run_dir / "checkpoints").mkdir(parents=True)
    (run_dir / "config.yaml").write_text(to_yaml(config))
    (run_dir / "schema.json").write_text(shop.schema.to_json())
    ranks.run(2, save, config, shop.schema)
    return run_dir


def export_items(processes: Processes, run_dir: Path, settings: EmbeddingExportConfig) -> None:
    config = ExportConfig(CheckpointConfig(str(run_dir), checkpoint="last"), settings)
    run = open_run(config.run)
    write_shards(ItemShards(run, config), run, config, processes)
