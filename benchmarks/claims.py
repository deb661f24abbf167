"""What two towers do that matrix factorisation cannot: five claims, each beside it in as many epochs and dimensions.

    python benchmarks/claims.py ML_100K OUT       # the folder as GroupLens ships it; writes OUT/claims.txt too

On MovieLens where it has what the claim needs, else on made-up shoppers (trainer/data/generated.py). Every figure is of
test rows, of the epoch that is best on validation. What OUT holds already is not made again.
"""

import argparse
import os
import time
from collections.abc import Mapping, Sequence
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
# matrix factorisation as it does best on validation: by a cosine on the one, by the plain product on the other
COSINE = ("model.normalize=true", "model.loss.temperature=0.1", "optimizer.embedding_learning_rate=0.1")
MOVIELENS = {
    MF: ("experiment=movielens_100k", "model=matrix_factorization", *COSINE),
    TWO_TOWER: ("experiment=movielens_100k",),
}
SHOPPERS = {MF: ("experiment=generated", "model=matrix_factorization"), TWO_TOWER: ("experiment=generated",)}
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
    found = {
        name: [bench.train(data, f"{number}-{seed}", *overrides, f"run.seed={seed}")[1] for seed in range(bench.seeds)]
        for number, (name, overrides) in enumerate(models.items())
    }
    return table("1. Side features lift warm recall (MovieLens, each user's last event)", METRICS,
                 beside_popularity(found, [f"warm/{name}" for name in METRICS]))  # fmt: skip


def beside_popularity(found: Mapping[str, Sequence[Mapping[str, float]]], names: Sequence[str]) -> dict[str, list[str]]:
    """Cells of each model, from its metrics by seed, after those of the list that everybody gets."""
    [first, *_] = next(iter(found.values()))
    popularity = {"popularity": [f"{first[f'popularity/{name}']:.4f}" for name in names]}
    return popularity | {
        model: [mean_and_spread([metrics[name] for metrics in by_seed]) for name in names]
        for model, by_seed in found.items()
    }


def new_items(bench: Bench) -> str:
    """Claim 2, of items."""
    data = bench.prepare_movielens("new_items", "data.split.by=item")
    new = int((Catalog(data, read_schema(data)).counts_before("test") == 0).sum())
    found = {
        name: [bench.train(data, name, *overrides, TRAINED_UNKNOWN_ID)[1]] for name, overrides in MOVIELENS.items()
    }
    rows = {"chance": [f"{10 / new:.4f}", "", ""]}
    rows |= beside_popularity(found, ("cold/recall@10", "cold/ndcg@10", "recall@100"))
    return table(f"2a. New items get useful lists (MovieLens, all events of {new} items held out)",
                 (f"recall@10 of these {new}", "ndcg@10", "recall@100 of all items"), rows)  # fmt: skip


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
    recall = f"recall@{crosses.ITEMS_OF_A_GROUP}"
    found = {
        model: [bench.train(data, model, "experiment=generated", f"model={model}", f"run.monitor=val/{recall}")[1]]
        for model in ("matrix_factorization", "factorization_machine", "two_tower", "dssm")
    }
    rows = beside_popularity(found, [recall]) | {"one who knows the rule": [f"{crosses.best_recall():.4f}"]}
    return table("3. What only a product of two features explains (benchmarks/crosses.py)", (recall,), rows)


def visits_and_transfer(bench: Bench) -> str:
    """Claims 4 and 5, of the same runs: where time splits the events, test rows are of old users and of new ones."""
    data = prepare(bench.out / "shoppers" / "data", "data=generated", "data.users=6000", "data.items=2000",
                   "data.events_per_user=40", "data.split={by: time, validation: 0.02, test: 0.1}")  # fmt: skip
    test, schema = HeldOutRows.read(data), read_schema(data)
    [category] = [feature for feature in schema.features if feature.name == "category"]
    category_N = Catalog(data, schema).sparse(category, np.arange(schema.num_items)).values
    user_Q, time_Q, kind_Q = test.column("user_id"), test.column("timestamp"), category_N[test.target_Q]
    old = np.flatnonzero(user_Q > 0)  # for whom matrix factorisation has a list of their own
    before, after = (old[places] for places in turns(user_Q[old], time_Q[old], kind_Q[old]))
    visits, transfer = {}, {}
    for name, overrides in SHOPPERS.items():
        run, _ = bench.train(data, name, *overrides, TRAINED_UNKNOWN_ID)
        export(run)
        lists = Lists.read(run, test)
        visits[name] = _visit(lists, before, after)
        transfer[name] = _transfer(lists)
    return "\n\n".join([
        table(f"4. Three events of another kind change the list, without training ({len(after)} times, shoppers)",
              ("recall@10 before", "after", "kept of 10 items"), visits),
        table("5. A new user lands near old ones of the same segment, one of 8 (shoppers)",
              ("cosine: same", "others", "same of nearest 10", "recall@10: 1st event", "later", "old users"), transfer),
    ])  # fmt: skip


def _visit(lists: Lists, before: np.ndarray, after: np.ndarray) -> list[str]:
    recalls = [(lists.ranks(query, of_q=after) <= 10).mean() for query in (before, after)]
    tops = [lists.top(10, query, of_q=after) for query in (before, after)]
    kept = np.mean([len(np.intersect1d(*pair)) for pair in zip(*tops, strict=True)])
    return [*(f"{recall:.4f}" for recall in recalls), f"{kept:.1f}"]


def _transfer(lists: Lists) -> list[str]:
    """Old users are where their queries are on average, new ones where their first is, which knows no event yet."""
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
