"""The order of events, and which of them train and which are held out."""

from trainer.checks import require_one_of
from trainer.config import SplitConfig
from trainer.data.engine import Connection, columns, first_row
from trainer.data.schema import SPLITS
from trainer.errors import UserError

_KNOWN = "(FROM read_events SEMI JOIN catalog USING (item_id))"  # events of items that the catalogue has


def check_split(config: SplitConfig) -> None:
    """Raises a UserError for what can be seen without data."""
    require_one_of("data.split.by", config.by, ("leave_one_out", "time", "user"))
    if config.by != "leave_one_out":
        for name, share in (("validation", config.validation), ("test", config.test)):
            if not 0 < share < 1:
                raise UserError(f"data.split.{name}", share, "a share in (0, 1)", f"set data.split.{name}=0.1")
        if config.validation + config.test >= 1:
            raise UserError("data.split.validation", config.validation, "shares that leave something to train on",
                            "set data.split.validation=0.1 data.split.test=0.1")  # fmt: skip


def order_events(connection: Connection, config: SplitConfig, seed: int) -> None:
    """Makes the engine's tables `users` and `events`.

    users(user_id, num_events, num_known, start) numbers all events, one user's after another's; events is read_events
    with item_row (-1 for an unknown item), `position` among the user's events from 0, and `split`, null for an unknown
    item.

    Raises:
        UserError: a split by time of events without timestamps.
    """
    connection.execute("""
        CREATE TABLE users AS
        SELECT user_id, count(*) AS num_events, count(item_row) AS num_known,
               CAST(sum(count(*)) OVER (ORDER BY user_id) - count(*) AS BIGINT) AS start
        FROM read_events LEFT JOIN catalog USING (item_id) GROUP BY user_id ORDER BY user_id""")
    order = "timestamp, seq" if "timestamp" in columns(connection, "read_events") else "seq"
    connection.execute(f"""
        CREATE TABLE events AS
        SELECT * EXCLUDE (num_known, known_position),
               CASE WHEN item_row >= 0 THEN {_split_expression(connection, config, seed)} END AS split
        FROM (
            SELECT read_events.* EXCLUDE (item_id), coalesce(item_row, -1) AS item_row, num_known, start,
                   row_number() OVER past - 1 AS position, count(item_row) OVER past - 1 AS known_position
            FROM read_events JOIN users USING (user_id) LEFT JOIN catalog USING (item_id)
            WINDOW past AS (PARTITION BY user_id ORDER BY {order} ROWS UNBOUNDED PRECEDING)
        )""")


def _split_expression(connection: Connection, config: SplitConfig, seed: int) -> str:
    """SQL of the split of an event whose item is known.

    Raises:
        UserError: a split by time of events without timestamps.
    """
    if config.by == "leave_one_out":
        return """CASE WHEN num_known < 3 OR known_position < num_known - 2 THEN 'train'
                       WHEN known_position = num_known - 2 THEN 'validation' ELSE 'test' END"""
    if config.by == "user":
        place = user_place("user_id", seed)
        return f"""CASE WHEN {place} < {_double(config.test)} THEN 'test'
                        WHEN {place} < {_double(config.test + config.validation)} THEN 'validation' ELSE 'train' END"""
    if "timestamp" not in columns(connection, "read_events"):
        raise UserError("data.split.by", "time", "events with timestamps", "set data.split.by=leave_one_out")
    (count,) = first_row(connection, f"SELECT count(*) FROM {_KNOWN}")
    test = count - round(count * config.test)
    validation = test - round(count * config.validation)
    return f"""CASE WHEN (timestamp, seq) < {_nth(connection, validation)} THEN 'train'
                    WHEN (timestamp, seq) < {_nth(connection, test)} THEN 'validation' ELSE 'test' END"""


def user_place(user_id: str, seed: int) -> str:
    """SQL of a user's place in [0, 1], which says what is held out: a function of the seed and the id alone.

    It is the lower 64 bits of the MD5 of the text SEED:user:ID over 2^64, in Python's terms:

        int.from_bytes(hashlib.md5(f"{seed}:user:{user_id}".encode()).digest()[8:], "little") / 2**64
    """
    return f"CAST(md5_number_lower('{seed}:user:' || {user_id}) AS DOUBLE) / {_double(2.0**64)}"


def _double(number: float) -> str:
    """SQL of exactly this number; a literal with a point would be a decimal."""
    return f"CAST('{number!r}' AS DOUBLE)"


def _nth(connection: Connection, place: int) -> str:
    """SQL of the (timestamp, seq) of the event, of known items, at a place in time; beyond all past the last."""
    query = f"SELECT timestamp, seq FROM {_KNOWN} ORDER BY timestamp, seq LIMIT 1 OFFSET {place}"
    found = connection.execute(query).fetchall()
    timestamp, seq = found[0] if found else first_row(connection, "SELECT max(timestamp) + 1, 0 FROM read_events")
    return f"({timestamp}, {seq})"


def count_splits(connection: Connection) -> dict[str, int]:
    """Events of each split.

    Raises:
        UserError: a split is empty.
    """
    found = dict(connection.execute("SELECT split, count(*) FROM events GROUP BY split").fetchall())
    counts = {split: found.get(split, 0) for split in SPLITS}
    for split, count in counts.items():
        if count == 0:
            raise UserError("data.split", counts, f"at least one event to go to {split}",
                            "give more events: leave_one_out holds out only those of users with three or more; "
                            "by time or by user, larger shares")  # fmt: skip
    return counts
