"""Made-up shoppers with a planted structure that is worth learning, for the demo, the tests and the benchmarks.

Items lie in categories and styles; a bucket of both holds items of Zipf-like popularity. Category and style show in an
item's tags, price and title. A user's segment decides which categories they like, their age (loosely) which style.

A shopper's next item: the bucket's category is, in the same visit, mostly that of the item before or its companion
(phones, then cases); otherwise one of the user's own, or one of the hour's. The style is mostly the user's. No item is
bought twice. So ids alone can know tastes, but neither the visit nor the hour, and popularity knows nothing of either.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trainer.checks import require_positive
from trainer.config import GeneratedConfig
from trainer.data.engine import EVENTS, ITEMS, USERS, Connection, Source
from trainer.errors import UserError

CATEGORIES, STYLES, SEGMENTS, DAYPARTS = 24, 4, 8, 4
LIKED, SUGGESTED = 3, 2  # categories of a user, of a part of the day
SAME_VISIT = 0.8  # an event follows the one before within minutes
STAY, COMPANION = 0.6, 0.25  # in the same visit, the category is kept, or followed by its companion
FROM_HOUR = 0.4  # share of fresh starts that are what the hour suggests
OWN_STYLE = 0.8  # share of events in the user's style
ZIPF = 1.1  # exponent of popularity in a bucket
ATTEMPTS = 8  # draws of an item not bought yet, before the event is left out
CHUNK = 50_000  # users drawn at a time
WORDS = 12  # of a category or style, for titles
BEGIN, DAYS = 1_700_000_000, 300  # users arrive in the days after

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class World:
    """What does not depend on a user."""

    bucket: Ints
    """[items] category * STYLES + style."""
    by_bucket: Ints
    """[items] items sorted by bucket, in one the popular first."""
    cumulative: NDArray[np.float64]
    """[items + 1] popularity summed up along by_bucket."""
    bucket_start: Ints
    """[buckets + 1] where a bucket begins in by_bucket."""
    companion: Ints
    """[CATEGORIES] what one looks at after a category."""
    tastes: NDArray[np.float64]
    """[SEGMENTS, CATEGORIES] probability that a user of the segment begins there."""
    suggested: Ints
    """[DAYPARTS, SUGGESTED] the hour's categories."""


@dataclass(frozen=True)
class Users:
    """[users] of each."""

    segment: Ints
    age: Ints
    style: Ints
    liked: Ints
    """[users, LIKED] their categories."""


def make_world(items: int, rng: np.random.Generator) -> World:
    """Draws the items' buckets, and what ties the categories to one another, to segments and to hours."""
    buckets = CATEGORIES * STYLES
    size = np.arange(1.0, CATEGORIES + 1) ** -0.5
    size /= size.sum()
    category = rng.choice(CATEGORIES, items, p=size)
    bucket = category * STYLES + rng.integers(STYLES, size=items)
    bucket[:buckets] = np.arange(buckets)  # none is empty
    bucket = rng.permutation(bucket)
    by_bucket = np.argsort(bucket, kind="stable")
    start = np.searchsorted(bucket[by_bucket], np.arange(buckets + 1))
    rank = np.arange(items) - start[bucket[by_bucket]]
    tastes = rng.dirichlet(4.0 * size, SEGMENTS) + 0.2 * size  # a segment likes few, and no category has no friend
    return World(
        bucket=bucket,
        by_bucket=by_bucket,
        cumulative=np.concatenate([[0.0], np.cumsum((1.0 + rank) ** -ZIPF)]),
        bucket_start=start,
        companion=rng.permutation(CATEGORIES),
        tastes=tastes / tastes.sum(axis=1, keepdims=True),
        suggested=rng.permutation(CATEGORIES)[: DAYPARTS * SUGGESTED].reshape(DAYPARTS, SUGGESTED),
    )


def make_users(world: World, users: int, rng: np.random.Generator) -> Users:
    """Draws who the users are; a style goes with an age, loosely."""
    segment = rng.integers(SEGMENTS, size=users)
    age = rng.integers(18, 80, size=users)
    usual = (age - 18) * STYLES // 62
    style = np.where(rng.random(users) < 0.6, usual, rng.integers(STYLES, size=users))
    liked = np.stack([_draw_rows(world.tastes[segment], rng) for _ in range(LIKED)], axis=1)
    return Users(segment, age, style, liked)


def _draw_rows(probabilities: NDArray[np.float64], rng: np.random.Generator) -> Ints:
    """[rows] a column drawn from each row's probabilities [rows, columns]."""
    above = probabilities.cumsum(axis=1) > rng.random((len(probabilities), 1))
    above[:, -1] = True  # where the sum falls short of 1 by rounding
    return above.argmax(axis=1)


def shop(world: World, users: Users, lengths: Ints, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """Draws all users' events side by side, step by step.

    Args:
        world: The items and categories.
        users: The U users.
        lengths: [U] events of each.
        rng: The only source of chance.

    Returns:
        items [U, steps], -1 where there is no event, and their timestamps [U, steps] in seconds.
    """
    count, steps = len(lengths), int(lengths.max())
    items = np.full((count, steps), -1, np.int64)
    times = np.zeros((count, steps), np.int64)
    day, hour, second = rng.integers(DAYS, size=count), np.zeros(count, np.int64), np.zeros(count, np.int64)
    category = np.zeros(count, np.int64)
    for step in range(steps):
        new_visit = (rng.random(count) >= SAME_VISIT) | (step == 0) | (second > 3000)
        day += new_visit * (1 + rng.geometric(0.3, size=count))
        hour = np.where(new_visit, rng.integers(24, size=count), hour)
        second = np.where(new_visit, rng.integers(600, size=count), second + rng.integers(20, 200, size=count))
        times[:, step] = BEGIN // 86400 * 86400 + day * 86400 + hour * 3600 + second
        category = _next_category(world, users, category, hour, new_visit, rng)
        style = np.where(rng.random(count) < OWN_STYLE, users.style, rng.integers(STYLES, size=count))
        item = _draw_new(world, category * STYLES + style, items[:, :step], rng)
        items[:, step] = np.where(step < lengths, item, -1)
    return items, times


def _next_category(
    world: World, users: Users, category: Ints, hour: Ints, new_visit: NDArray[np.bool_], rng: np.random.Generator
) -> Ints:
    count = len(category)
    own = users.liked[np.arange(count), rng.integers(LIKED, size=count)]
    suggested = world.suggested[hour * DAYPARTS // 24, rng.integers(SUGGESTED, size=count)]
    fresh = np.where(rng.random(count) < FROM_HOUR, suggested, own)
    chance = rng.random(count)
    within = np.where(chance < STAY, category, np.where(chance < STAY + COMPANION, world.companion[category], fresh))
    return np.where(new_visit, fresh, within)


def _draw_new(world: World, bucket: Ints, past: Ints, rng: np.random.Generator) -> Ints:
    """[U] an item of each bucket [U] by popularity, none of the user's past [U, steps]; -1 where luck ran out."""
    low, high = world.cumulative[world.bucket_start[bucket]], world.cumulative[world.bucket_start[bucket + 1]]
    item = np.full(len(bucket), -1, np.int64)
    left = np.arange(len(bucket))
    for _ in range(ATTEMPTS):
        mark = low[left] + rng.random(len(left)) * (high - low)[left]
        place = np.searchsorted(world.cumulative, mark, side="right") - 1
        drawn = world.by_bucket[np.minimum(place, world.bucket_start[bucket[left] + 1] - 1)]
        new = ~(past[left] == drawn[:, None]).any(axis=1)
        item[left[new]] = drawn[new]
        left = left[~new]
    return item


def read_generated(config: GeneratedConfig, connection: Connection) -> Source:
    """Leaves the three source tables in the connection.

    Raises:
        UserError: too few users, items or events to have any structure.
    """
    require_positive("data.users", config.users)
    for name, value, least in (("items", config.items, 200), ("events_per_user", config.events_per_user, 3)):
        if value < least:
            raise UserError(f"data.{name}", value, f"at least {least}", f"set data.{name}={least}")
    rng = np.random.default_rng(config.seed)
    world = make_world(config.items, rng)
    _store(connection, ITEMS, item_table(world, rng))
    seq = 0
    for first in range(0, config.users, CHUNK):
        count = min(CHUNK, config.users - first)
        users = make_users(world, count, rng)
        lengths = 3 + rng.poisson(config.events_per_user - 3, size=count)
        items, times = shop(world, users, lengths, rng)
        user, step = np.nonzero(items >= 0)
        ids = 1_000_000 + first + np.arange(count)
        _store(connection, USERS, user_table(users, ids))
        events = {
            "user_id": ids[user],
            "item_id": item_names(items[user, step]),
            "timestamp": times[user, step],
            "seq": seq + np.arange(len(user)),
        }
        seq += len(user)
        _store(connection, EVENTS, pa.table(events))
    return Source()


def _store(connection: Connection, name: str, rows: pa.Table) -> None:
    """Appends rows to a table, which the first ones create."""
    connection.register("generated_rows", rows)
    connection.execute(f"CREATE TABLE IF NOT EXISTS {name} AS SELECT * FROM generated_rows LIMIT 0")
    connection.execute(f"INSERT INTO {name} SELECT * FROM generated_rows")
    connection.unregister("generated_rows")


def item_names(items: Ints) -> pa.Array:
    """Ids such as item-000123."""
    return pa.array(np.char.add("item-", np.char.zfill(items.astype(str), 6)))


def item_table(world: World, rng: np.random.Generator) -> pa.Table:
    """The items as a shop would list them: category, tags, price and title follow from the bucket, with some noise."""
    category, style = np.divmod(world.bucket, STYLES)
    count = len(category)
    price = np.exp(rng.normal(2.5 + 0.8 * style, 0.4) + 0.02 * category)
    words = np.array([_word(index) for index in range((CATEGORIES + STYLES) * WORDS)]).reshape(-1, WORDS)
    title = words[CATEGORIES + style, rng.integers(WORDS, size=count)]
    for _ in range(2):
        title = np.char.add(np.char.add(title, " "), words[category, rng.integers(WORDS, size=count)])
    title = np.char.add(np.char.add(title, " "), rng.integers(1000, size=count).astype(str))
    noise = rng.integers(10, size=count)
    tags = [[f"style-{a}", f"tag-{b}"] if keep else [f"tag-{b}"]
            for a, b, keep in zip(style, noise, rng.random(count) < 0.8, strict=True)]  # fmt: skip
    return pa.table({
        "item_id": item_names(np.arange(count)),
        "category": pa.array(np.char.add("category-", category.astype(str))),
        "tags": pa.array(tags, pa.list_(pa.string())),
        "price": price.round(2),
        "title": pa.array(title),
    })  # fmt: skip


def _word(index: int) -> str:
    """A pronounceable made-up word, another one for each index."""
    consonants, vowels = "bdfgklmnprstvz", "aeiou"
    syllables = []
    for _ in range(3):
        index, consonant = divmod(index * 31 + 7, len(consonants))
        syllables.append(consonants[consonant] + vowels[index % len(vowels)])
    return "".join(syllables)


def user_table(users: Users, ids: Ints) -> pa.Table:
    """The users as a shop would know them."""
    return pa.table({
        "user_id": ids,
        "segment": pa.array(np.char.add("segment-", users.segment.astype(str))),
        "age": users.age,
    })  # fmt: skip
