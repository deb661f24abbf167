import itertools
from collections import Counter

import duckdb
import numpy as np
import pytest

from trainer.config import GeneratedConfig
from trainer.data import generated
from trainer.data.engine import EVENTS, ITEMS, USERS, Connection
from trainer.data.generated import World, make_users, make_world, read_generated, shop
from trainer.errors import UserError


def generate(**settings: int) -> Connection:
    connection = duckdb.connect()
    read_generated(GeneratedConfig(dir="", **settings), connection)
    return connection


def test_sizes_ids_and_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generated, "CHUNK", 400)  # the users come in three portions
    connection = generate(users=1000, items=3000, events_per_user=12)
    events = connection.execute(f"SELECT user_id, item_id, timestamp, seq FROM {EVENTS}").fetchall()
    users = {user for (user,) in connection.execute(f"SELECT user_id FROM {USERS}").fetchall()}
    items = {item for (item,) in connection.execute(f"SELECT item_id FROM {ITEMS}").fetchall()}
    assert (len(users), len(items)) == (1000, 3000)
    assert {user for user, _, _, _ in events} == users
    assert {item for _, item, _, _ in events} <= items
    assert len({(user, item) for user, item, _, _ in events}) == len(events)  # nothing is bought twice
    assert [seq for _, _, _, seq in events] == list(range(len(events)))
    assert 11 < len(events) / 1000 <= 12.5
    for (user, _, before, _), (other, _, after, _) in itertools.pairwise(events):
        assert user != other or before < after


def test_the_seed_decides() -> None:
    def drawn(seed: int) -> list[tuple[object, ...]]:
        connection = generate(users=200, items=300, seed=seed)
        tables = (connection.execute(f"SELECT * FROM {name}").fetchall() for name in (EVENTS, ITEMS, USERS))
        return [row for table in tables for row in table]

    assert drawn(0) == drawn(0)
    assert drawn(0) != drawn(1)


def oracle(world: World, users: generated.Users, last: np.ndarray, hour: np.ndarray) -> np.ndarray:
    """[users, items] probability of the next item, of one who knows everything but whether the visit goes on."""
    rows = np.arange(len(last))
    fresh = np.zeros((len(last), generated.CATEGORIES))
    for liked in users.liked.T:
        fresh[rows, liked] += (1 - generated.FROM_HOUR) / generated.LIKED
    for suggested in world.suggested[hour * generated.DAYPARTS // 24].T:
        fresh[rows, suggested] += generated.FROM_HOUR / generated.SUGGESTED
    within = fresh * (1 - generated.STAY - generated.COMPANION)
    category = world.bucket[last] // generated.STYLES
    within[rows, category] += generated.STAY
    within[rows, world.companion[category]] += generated.COMPANION
    categories = generated.SAME_VISIT * within + (1 - generated.SAME_VISIT) * fresh
    styles = np.full((len(last), generated.STYLES), (1 - generated.OWN_STYLE) / generated.STYLES)
    styles[rows, users.style] += generated.OWN_STYLE
    buckets = (categories[:, :, None] * styles[:, None, :]).reshape(len(last), -1)
    popularity = np.diff(world.cumulative)
    share = np.empty(len(world.bucket))
    totals = np.zeros(buckets.shape[1])
    np.add.at(totals, world.bucket[world.by_bucket], popularity)
    share[world.by_bucket] = popularity / totals[world.bucket[world.by_bucket]]
    return buckets[:, world.bucket] * share


def recall_at_10(scores: np.ndarray, seen: list[np.ndarray], target: np.ndarray) -> float:
    scores = scores.copy()
    for row, items in enumerate(seen):
        scores[row, items] = -np.inf
    rank = (scores >= scores[np.arange(len(target)), target][:, None]).sum(axis=1)
    return float((rank <= 10).mean())


def test_there_is_something_to_learn_that_neither_popularity_nor_taste_alone_tells() -> None:
    rng = np.random.default_rng(0)
    world = make_world(5000, rng)
    users = make_users(world, 2000, rng)
    items, times = shop(world, users, np.full(2000, 20), rng)
    last_step = 19 - (items[:, ::-1] >= 0).argmax(axis=1)
    rows = np.arange(2000)
    target, hour = items[rows, last_step], times[rows, last_step] % 86400 // 3600
    seen = [row[:step][row[:step] >= 0] for row, step in zip(items, last_step, strict=True)]
    before = np.array([items_seen[-1] for items_seen in seen])
    counts = Counter(np.concatenate(seen).tolist())
    popularity = np.tile([float(counts[item]) for item in range(5000)], (2000, 1))
    # Any item in place of the last one: taste and hour are known, the visit is not.
    shuffled = rng.permutation(world.by_bucket)[:2000]

    everything = recall_at_10(oracle(world, users, before, hour), seen, target)
    no_history = recall_at_10(oracle(world, users, shuffled, hour), seen, target)
    popular = recall_at_10(popularity, seen, target)
    assert 0.28 < everything < 0.42
    assert no_history < 0.7 * everything
    assert popular < 0.4 * no_history
    # Zipf-like: the most popular hundredth of the items has more than ten times its share.
    top = sum(count for _, count in counts.most_common(50))
    assert top > 0.1 * sum(counts.values())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"users": 0}, r"data.users=0: expected a number above 0"),
        ({"items": 100}, r"data.items=100: expected at least 200"),
        ({"events_per_user": 2}, r"data.events_per_user=2: expected at least 3"),
    ],
)
def test_errors(settings: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        generate(**settings)
