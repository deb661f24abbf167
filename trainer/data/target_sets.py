"""Splits that ask one query a user, with all that is held out of theirs as its targets: random, item and given.

What a user has in train comes before their query of validation, and both before that of test: events are put in this
order, so that histories and what is seen are what stands before a query, as in any other split.
"""

from trainer.config import SplitConfig
from trainer.data.engine import Connection, columns, double, first_row, place_of

_DRAWABLE = "(item_row IS NOT NULL AND given = 'train')"


def order_target_sets(connection: Connection, config: SplitConfig, seed: int) -> list[str]:
    """Makes the engine's table `events`, as splits.py describes it, from read_events, users and catalog.

    A held-out event whose item is unknown, or had by the user before, in an earlier split or in this one, is no target:
    it comes last, in nobody's history, and has no split. `timestamp` is that of the latest event up to here.

    Returns:
        A line for everything that is not asked.
    """
    drawn = _assign(connection, config, seed)
    has_time = "timestamp" in columns(connection, "assigned")
    order = "timestamp, seq" if has_time else "seq"
    connection.execute(f"""
        CREATE TABLE events AS
        SELECT * EXCLUDE (given, stage, number, size),
               CASE WHEN stage IN (1, 2) AND number = 1 AND position > 0 THEN size ELSE 0 END AS num_targets
        FROM (
            SELECT * {"REPLACE (max(timestamp) OVER past AS timestamp)" if has_time else ""},
                   row_number() OVER past - 1 AS position,
                   row_number() OVER (PARTITION BY user_id, stage ORDER BY {order}) AS number,
                   count(*) OVER (PARTITION BY user_id, stage) AS size
            FROM (
                SELECT * EXCLUDE (again) REPLACE (CASE WHEN NOT again THEN split END AS split),
                       CASE WHEN again THEN 3 ELSE {_stage("split")} END AS stage
                FROM (
                    SELECT *, {_stage("coalesce(split, given)")} > 0 AND (split IS NULL OR row_number() OVER (
                        PARTITION BY user_id, item_row ORDER BY {_stage("split")}, {order}) > 1) AS again
                    FROM assigned
                )
            )
            WINDOW past AS (PARTITION BY user_id ORDER BY stage, {order} ROWS UNBOUNDED PRECEDING)
        )""")
    notes = _describe(connection, config, drawn)
    connection.execute("DROP TABLE assigned")
    return notes


def _stage(split: str) -> str:
    return f"CASE {split} WHEN 'validation' THEN 1 WHEN 'test' THEN 2 ELSE 0 END"


def _assign(connection: Connection, config: SplitConfig, seed: int) -> dict[str, float]:
    """Makes the table `assigned`: events with their split, as given or as drawn from what is given as train.

    Returns:
        The share that was drawn of each split.
    """
    is_given = config.by == "given"
    drawn = {} if is_given else {"test": config.test}
    given = "split" if is_given else "'train'"
    if not config.validation:
        given = f"replace({given}, 'validation', 'train')"
    elif not is_given or not first_row(connection, "SELECT count(*) FROM read_events WHERE split = 'validation'")[0]:
        drawn["validation"] = config.validation
    place, share = _places(rule_of(config), seed)
    bound, cases = "0", ""
    for split, size in drawn.items():
        bound += f" + {share.format(double(size))}"
        cases += f"WHEN {_DRAWABLE} AND place < {bound} THEN '{split}' "
    connection.execute(f"""
        CREATE TABLE assigned AS
        SELECT * EXCLUDE (item_id, drawable_events, place) REPLACE (coalesce(item_row, -1) AS item_row),
               CASE WHEN item_row IS NULL THEN NULL {cases} ELSE given END AS split
        FROM (
            SELECT *, {place} AS place, count(*) OVER (PARTITION BY user_id, {_DRAWABLE}) AS drawable_events
            FROM (
                SELECT read_events.* {"EXCLUDE (split)" if is_given else ""}, start, item_row,
                       {given} AS given
                FROM read_events JOIN users USING (user_id) LEFT JOIN catalog USING (item_id)
            )
        )""")
    return drawn


def rule_of(config: SplitConfig) -> str:
    """How what is not given is drawn: random or item."""
    return config.validation_by if config.by == "given" else config.by


def _places(rule: str, seed: int) -> tuple[str, str]:
    """SQL of an event's place among those that can be drawn, and of how far a share reaches."""
    if rule == "item":
        return place_of("item", "item_id", seed), "{}"
    order = f"md5_number_lower('{seed}:event:' || seq), seq"
    place = f"row_number() OVER (PARTITION BY user_id, {_DRAWABLE} ORDER BY {order}) - 1"
    return place, "floor(drawable_events * {} + 1e-9)"  # a tenth of ten is one, whatever the rounding


def _describe(connection: Connection, config: SplitConfig, drawn: dict[str, float]) -> list[str]:
    notes = []
    for split, share in drawn.items():
        if rule_of(config) == "random":
            query = f"""
                SELECT count(*) FROM (SELECT user_id FROM assigned WHERE item_row >= 0 AND given = 'train'
                                      GROUP BY user_id HAVING count(*) FILTER (split = '{split}') = 0)"""
            (users,) = first_row(connection, query)
            told = f"{users:,} users have too few events for {share:g} of them to be held out for {split}"
            notes += [f"split: {told}"] if users else []
        else:
            (items,) = first_row(connection, f"SELECT count(DISTINCT item_row) FROM assigned WHERE split = '{split}'")
            notes.append(f"split: all events of {items:,} items are held out for {split}")
    for split in ("validation", "test"):
        alone = f"SELECT count(*) FROM events WHERE split = '{split}' AND position = 0"
        (users,) = first_row(connection, alone)
        notes += [f"split: {users:,} users with events in {split} have none before and are not asked"] if users else []
    (again,) = first_row(connection, "SELECT count(*) FROM events WHERE split IS NULL AND item_row >= 0")
    return notes + ([f"split: {again:,} held-out events are of items that their users have had before: no targets"]
                    if again else [])  # fmt: skip
