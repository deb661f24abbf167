"""The order of events, and which of them train and which are held out."""

from trainer.checks import require_one_of
from trainer.config import SplitConfig
from trainer.data.engine import Connection, columns, double, first_row, place_of
from trainer.data.schema import SPLITS
from trainer.data.target_sets import order_target_sets
from trainer.errors import UserError

TARGET_SETS = ("random", "item", "given")
"""Splits with one query a user and several targets."""

_KNOWN = "(FROM read_events SEMI JOIN catalog USING (item_id))"  # events of items that the catalogue has


def check_split(config: SplitConfig) -> None:
    """Raises a UserError for what can be seen without data."""
    require_one_of("data.split.by", config.by, ("leave_one_out", "time", "user", *TARGET_SETS))
    require_one_of("data.split.validation_by", config.validation_by, ("random", "item"))
    if not 0 <= config.validation < 1:
        raise UserError("data.split.validation", config.validation, "a share in [0, 1)",
                        "set data.split.validation=0.1, or 0 for none")  # fmt: skip
    if config.by in ("leave_one_out", "given"):
        return
    if not 0 < config.test < 1:
        raise UserError("data.split.test", config.test, "a share in (0, 1)", "set data.split.test=0.1")
    if config.validation + config.test >= 1:
        raise UserError("data.split.validation", config.validation, "shares that leave something to train on",
                        "set data.split.validation=0.1 data.split.test=0.1")  # fmt: skip


def order_events(connection: Connection, config: SplitConfig, seed: int) -> list[str]:
    """Makes the engine's tables `users` and `events`.

    users(user_id, num_events, num_known, start) numbers all events, one user's after another's; events is read_events
    with item_row (-1 for an unknown item), `position` among the user's events from 0, `split`, null for an unknown
    item, and `num_targets`: how many events, from a held-out one on, its query has for targets; 0 for one that has no
    query of its own.

    Returns:
        A line for everything that is not asked.

    Raises:
        UserError: a split by time of events without timestamps.
    """
    connection.execute("""
        CREATE TABLE users AS
        SELECT user_id, count(*) AS num_events, count(item_row) AS num_known,
               CAST(sum(count(*)) OVER (ORDER BY user_id) - count(*) AS BIGINT) AS start
        FROM read_events LEFT JOIN catalog USING (item_id) GROUP BY user_id ORDER BY user_id""")
    if config.by in TARGET_SETS:
        return order_target_sets(connection, config, seed)
    order = "timestamp, seq" if "timestamp" in columns(connection, "read_events") else "seq"
    connection.execute(f"""
        CREATE TABLE events AS
        SELECT * EXCLUDE (num_known, known_position),
               CASE WHEN item_row >= 0 THEN {_split_expression(connection, config, seed)} END AS split,
               CAST(split IN ('validation', 'test') AS BIGINT) AS num_targets
        FROM (
            SELECT read_events.* EXCLUDE (item_id), coalesce(item_row, -1) AS item_row, num_known, start,
                   row_number() OVER past - 1 AS position, count(item_row) OVER past - 1 AS known_position
            FROM read_events JOIN users USING (user_id) LEFT JOIN catalog USING (item_id)
            WINDOW past AS (PARTITION BY user_id ORDER BY {order} ROWS UNBOUNDED PRECEDING)
        )""")
    return []


def _split_expression(connection: Connection, config: SplitConfig, seed: int) -> str:
    """SQL of the split of an event whose item is known.

    Raises:
        UserError: a split by time of events without timestamps.
    """
    if config.by == "leave_one_out":
        last_but_one = "validation" if config.validation else "train"
        return f"""CASE WHEN num_known < 3 OR known_position < num_known - 2 THEN 'train'
                        WHEN known_position = num_known - 2 THEN '{last_but_one}' ELSE 'test' END"""
    if config.by == "user":
        place = place_of("user", "user_id", seed)
        return f"""CASE WHEN {place} < {double(config.test)} THEN 'test'
                        WHEN {place} < {double(config.test + config.validation)} THEN 'validation' ELSE 'train' END"""
    if "timestamp" not in columns(connection, "read_events"):
        raise UserError("data.split.by", "time", "events with timestamps", "set data.split.by=leave_one_out")
    (count,) = first_row(connection, f"SELECT count(*) FROM {_KNOWN}")
    test = count - round(count * config.test)
    validation = test - round(count * config.validation)
    return f"""CASE WHEN (timestamp, seq) < {_nth(connection, validation)} THEN 'train'
                    WHEN (timestamp, seq) < {_nth(connection, test)} THEN 'validation' ELSE 'test' END"""


def _nth(connection: Connection, place: int) -> str:
    """SQL of the (timestamp, seq) of the event, of known items, at a place in time; beyond all past the last."""
    query = f"SELECT timestamp, seq FROM {_KNOWN} ORDER BY timestamp, seq LIMIT 1 OFFSET {place}"
    found = connection.execute(query).fetchall()
    timestamp, seq = found[0] if found else first_row(connection, "SELECT max(timestamp) + 1, 0 FROM read_events")
    return f"({timestamp}, {seq})"


def count_splits(connection: Connection, config: SplitConfig) -> dict[str, int]:
    """Training events, and queries of each held-out split.

    Raises:
        UserError: a split is empty that should not be.
    """
    rows = "SELECT split, count(*) FROM events WHERE split = 'train' OR num_targets > 0 GROUP BY split"
    found = dict(connection.execute(rows).fetchall())
    counts = {split: found.get(split, 0) for split in SPLITS}
    for split, count in counts.items():
        if count == 0 and (split != "validation" or config.validation):
            raise UserError("data.split", counts, f"at least one event to go to {split}",
                            "give more events: leave_one_out holds out only those of users with three or more; "
                            "by other splits, larger shares")  # fmt: skip
    return counts
