"""What two towers do that matrix factorisation cannot: five claims, each beside it in as many epochs and dimensions.

    python benchmarks/claims.py ML_100K OUT       # the folder as GroupLens ships it; writes OUT/claims.txt too

On MovieLens where it has what the claim needs, else on made-up shoppers (trainer/data/generated.py). Every figure is of
test rows, of the epoch that is best on validation. What OUT holds already is not made again.
"""

import argparse
import os
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import crosses
import numpy as np
from exported import HeldOutRows, Lists
from runs import METRICS, at_once, export, mean_and_spread, prepare, show, table, train
from shoppers import alike, means_of_users, turns

from trainer.data.catalog import Catalog
from trainer.data.schema import read_schema

MF, TWO_TOWER = "matrix_factorization", "two_tower"
# what does best on validation: a cosine, and a higher learning rate than that of tables under layers
COSINE = ("model=matrix_factorization", "model.normalize=true", "model.loss.temperature=0.1",
          "optimizer.embedding_learning_rate=0.1")  # fmt: skip
MOVIELENS = {MF: ("experiment=movielens_100k", *COSINE), TWO_TOWER: ("experiment=movielens_100k",)}
SHOPPERS = {MF: ("experiment=generated", *COSINE), TWO_TOWER: ("experiment=generated",)}
# the share that the two-tower has anyway: without it, nothing would train the row of users whom training lacks
TRAINED_UNKNOWN_ID = "model.id_dropout=0.1"


@dataclass(frozen=True)
class Bench:
    """What the claims are measured with."""

    movielens: str
    out: Path
    epochs: int
    seeds: int
    """Of the first claim, whose differences are the smallest."""

    def prepare_movielens(self, name: str, *overrides: str) -> Path:
        return prepare(self.out / name / "data", "data=movielens", f"data.source={self.movielens}", *overrides)

    def train(self, data: Path, name: str, *overrides: str) -> tuple[Path, dict[str, float]]:
        """A run beside its data, and its metrics."""
        run = data.parent / name
        epochs = f"run.epochs={self.epochs}", f"run.patience={self.epochs}"
        return run, train(run, data, *overrides, *epochs)


def side_features(bench: Bench) -> str:
    """Claim 1."""
    data = bench.prepare_movielens("warm")
    known = [feature.name for feature in read_schema(data).side("query") if feature.kind != "history"]
    two_tower = MOVIELENS[TWO_TOWER]
    models = {
        MF: MOVIELENS[MF],
        "two_tower of ids alone": (*two_tower, "model.query.features=[user_id]", "model.candidate.features=[item_id]"),
        "... and side features": (*two_tower, f"model.query.features=[{','.join(known)}]"),
        "... and the history": two_tower,
    }
    rows = {}
    for number, (name, overrides) in enumerate(models.items()):
        found = [
            bench.train(data, f"{number}-{seed}", *overrides, f"run.seed={seed}")[1] for seed in range(bench.seeds)
        ]
        # told apart only where there are cold items too
        values = [[metrics.get(f"warm/{name}", metrics[name]) for metrics in found] for name in METRICS]
        rows |= {"popularity": [f"{found[0][f'popularity/{name}']:.4f}" for name in METRICS]} if not rows else {}
        rows[name] = [mean_and_spread(value) for value in values]
    return table("1. Side features lift warm recall (MovieLens, each user's last event)", METRICS, rows)


def new_items(bench: Bench) -> str:
    """Claim 2, of items."""
    data = bench.prepare_movielens("new_items", "data.split.by=item")
    new = int((Catalog(data, read_schema(data)).counts_before("test") == 0).sum())
    columns = ("cold/recall@10", "cold/recall@100", "cold/ndcg@10", "recall@100")
    rows = {"chance": [f"{10 / new:.4f}", f"{100 / new:.4f}", "", ""]}
    for name, overrides in MOVIELENS.items():
        _, metrics = bench.train(data, name, *overrides, TRAINED_UNKNOWN_ID)
        rows[name] = [f"{metrics[column]:.4f}" for column in columns]
    named = (*(f"{column.removeprefix('cold/')} of the {new}" for column in columns[:3]), "recall@100 of all items")
    return table(f"2a. New items get useful lists (MovieLens, all events of {new} items held out)", named, rows)


def new_users(bench: Bench) -> str:
    """Claim 2, of users: each event of theirs is a query that knows those before it."""
    data = bench.prepare_movielens("new_users", "data.split.by=user")
    test = HeldOutRows.read(data)
    everyone = np.arange(len(test.seen_Q))
    seen_Q = np.array([len(seen) for seen in test.seen_Q])
    kinds = {"first event": seen_Q == 0, "2nd to 10th": (seen_Q > 0) & (seen_Q < 10), "later": seen_Q >= 10}
    counts_N = Catalog(data, read_schema(data)).counts_before("test").astype(float)
    lists = {"popularity": Lists(np.ones((len(seen_Q), 1)), counts_N[:, None], test)}
    for name, overrides in MOVIELENS.items():
        run, _ = bench.train(data, name, *overrides, TRAINED_UNKNOWN_ID)
        export(run)
        lists[name] = Lists.read(run, test)
    rows = {}
    for name, of_model in lists.items():
        hit_Q = of_model.ranks(everyone) <= 10
        rows[name] = [f"{hit_Q[kind].mean():.4f}" for kind in kinds.values()]
    users = len(set(test.column("raw_user_id").tolist()))
    return table(f"2b. New users get useful lists (MovieLens, {users} users held out, recall@10 of their events)",
                 tuple(kinds), rows)  # fmt: skip


def crosses_of_features(bench: Bench) -> str:
    """Claim 3."""
    source = bench.out / "crosses" / "source"
    crosses.write(source, users=10_000, events_per_user=10)
    data = prepare(bench.out / "crosses" / "data", "--config-dir", str(source), "data=crosses")
    k = crosses.ITEMS_OF_A_GROUP
    rows = {}
    for model in ("matrix_factorization", "factorization_machine", "two_tower", "dssm"):
        _, metrics = bench.train(data, model, "experiment=generated", f"model={model}", f"run.monitor=val/recall@{k}")
        rows |= {"popularity": [f"{metrics[f'popularity/recall@{k}']:.4f}"], model: [f"{metrics[f'recall@{k}']:.4f}"]}
    rows["one who knows the rule"] = [f"{crosses.best_recall():.4f}"]
    return table("3. What only a product of two features explains (benchmarks/crosses.py)", (f"recall@{k}",), rows)


def visits_and_transfer(bench: Bench) -> str:
    """Claims 4 and 5, of the same runs: where time splits the events, test rows are of old users and of new ones."""
    data = prepare(bench.out / "shoppers" / "data", "data=generated", "data.users=6000", "data.items=2000",
                   "data.events_per_user=40", "data.split={by: time, validation: 0.02, test: 0.1}")  # fmt: skip
    test, schema = HeldOutRows.read(data), read_schema(data)
    [category] = [feature for feature in schema.features if feature.name == "category"]
    category_N = Catalog(data, schema).sparse(category, np.arange(schema.num_items)).values
    visits, transfer = {}, {}
    for name, overrides in SHOPPERS.items():
        run, _ = bench.train(data, name, *overrides, TRAINED_UNKNOWN_ID)
        export(run)
        lists = Lists.read(run, test)
        visits[name] = _visit(lists, category_N)
        transfer[name] = _transfer(lists)
    return "\n\n".join([
        table("4. Three events of another kind change the list, with no retraining (generated shoppers)",
              ("recall@10 before", "and after", "of 10 items, kept"), visits),
        table("5. A new user lands near old ones of the same segment (generated shoppers)",
              ("cosine, same segment", "others", "same of 10 nearest", "recall@10, 1st event", "later", "old users"),
              transfer),
    ])  # fmt: skip


def _visit(lists: Lists, category_N: np.ndarray) -> list[str]:
    """Of old users, for whom matrix factorisation has a list of their own."""
    test, kind_Q = lists.rows, category_N[lists.rows.target_Q]
    old = np.flatnonzero(test.column("user_id") > 0)
    found = turns(test.column("user_id")[old], test.column("timestamp")[old], kind_Q[old])
    before, after = (old[places] for places in found)
    recalls = [(lists.ranks(query, of_q=after) <= 10).mean() for query in (before, after)]
    tops = [lists.top(10, query, of_q=after) for query in (before, after)]
    kept = np.mean([len(np.intersect1d(*pair)) for pair in zip(*tops, strict=True)])
    return [*(f"{recall:.4f}" for recall in recalls), f"{kept:.1f}"]


def _transfer(lists: Lists) -> list[str]:
    """Old users have a row of their own, and are where their queries are on average; new ones where their first is."""
    test = lists.rows
    user_Q, segment_Q, is_old_Q = test.column("user_id"), test.column("segment"), test.column("user_id") > 0
    is_first_Q = np.array([len(seen) == 0 for seen in test.seen_Q]) & ~is_old_Q
    _, any_query_V = np.unique(user_Q[is_old_Q], return_index=True)
    same_UV = segment_Q[is_first_Q][:, None] == segment_Q[is_old_Q][any_query_V]
    near = alike(lists.query_QD[is_first_Q], means_of_users(lists.query_QD[is_old_Q], user_Q[is_old_Q]), same_UV, 10)
    hit_Q = lists.ranks(np.arange(len(user_Q))) <= 10
    recalls = [hit_Q[of].mean() for of in (is_first_Q, ~is_first_Q & ~is_old_Q, is_old_Q)]
    return [f"{value:.4f}" for value in (*near, *recalls)]


CLAIMS = (side_features, new_items, new_users, crosses_of_features, visits_and_transfer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("movielens", help="folder of MovieLens 100K")
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3, help="of the first claim")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="commands that run at a time")
    arguments = parser.parse_args()
    began = time.perf_counter()
    bench = Bench(arguments.movielens, arguments.out, arguments.epochs, arguments.seeds)
    tables = at_once(arguments.jobs, [partial(claim, bench) for claim in CLAIMS])
    show("\n\n".join(tables), arguments.out / "claims.txt", began)


if __name__ == "__main__":
    main()
