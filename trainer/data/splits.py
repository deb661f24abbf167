"""The order of events, and which of them train and which are held out."""

from trainer.checks import require_one_of
from trainer.config import SplitConfig
from trainer.data.engine import Connection, columns, first_row
from trainer.data.schema import SPLITS
from trainer.errors import UserError


def check_split(config: SplitConfig) -> None:
    """Raises a UserError for what can be seen without data."""
    require_one_of("data.split.by", config.by, ("leave_one_out", "time"))
    if config.by == "time":
        for name, share in (("validation", config.validation), ("test", config.test)):
            if not 0 < share < 1:
                raise UserError(f"data.split.{name}", share, "a share in (0, 1)", f"set data.split.{name}=0.1")
        if config.validation + config.test >= 1:
            raise UserError("data.split.validation", config.validation, "shares that leave something to train on",
                            "set data.split.validation=0.1 data.split.test=0.1")  # fmt: skip


def order_events(connection: Connection, config: SplitConfig) -> None:
    """Makes the engine's tables `users` and `events`.

    users(user_id, num_events, start) numbers all events, one user's after another's; events is read_events with
    item_row, `position` among the user's events from 0, and `split`.

    Raises:
        UserError: a split by time of events without timestamps.
    """
    connection.execute("""
        CREATE TABLE users AS
        SELECT user_id, count(*) AS num_events,
               CAST(sum(count(*)) OVER (ORDER BY user_id) - count(*) AS BIGINT) AS start
        FROM read_events GROUP BY user_id ORDER BY user_id""")
    order = "timestamp, seq" if "timestamp" in columns(connection, "read_events") else "seq"
    connection.execute(f"""
        CREATE TABLE events AS
        SELECT *, {_split_expression(connection, config)} AS split
        FROM (
            SELECT read_events.* EXCLUDE (item_id), item_row, num_events, start,
                   row_number() OVER (PARTITION BY user_id ORDER BY {order}) - 1 AS position
            FROM read_events JOIN users USING (user_id) JOIN catalog USING (item_id)
        )""")


def _split_expression(connection: Connection, config: SplitConfig) -> str:
    """SQL of an event's split, from its timestamp, seq, position and num_events.

    Raises:
        UserError: a split by time of events without timestamps.
    """
    if config.by == "leave_one_out":
        return """CASE WHEN num_events < 3 OR position < num_events - 2 THEN 'train'
                       WHEN position = num_events - 2 THEN 'validation' ELSE 'test' END"""
    if "timestamp" not in columns(connection, "read_events"):
        raise UserError("data.split.by", "time", "events with timestamps", "set data.split.by=leave_one_out")
    (count,) = first_row(connection, "SELECT count(*) FROM read_events")
    test = count - round(count * config.test)
    validation = test - round(count * config.validation)
    return f"""CASE WHEN (timestamp, seq) < {_nth(connection, validation)} THEN 'train'
                    WHEN (timestamp, seq) < {_nth(connection, test)} THEN 'validation' ELSE 'test' END"""


def _nth(connection: Connection, place: int) -> str:
    """SQL of the (timestamp, seq) of the event at a place in the order of time; beyond all events past the last."""
    query = f"SELECT timestamp, seq FROM read_events ORDER BY timestamp, seq LIMIT 1 OFFSET {place}"
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
                            "by time, larger shares")  # fmt: skip
    return counts
