"""Data sets split as LightGCN ships them (Yelp2018, Gowalla, Amazon-book): a line is a user and their items.

train.txt and test.txt hold the same users; events have no time, and a user's order is that of the line.
"""

from pathlib import Path

from trainer.config import UserItemListsConfig
from trainer.data.engine import EVENTS, Connection, Source
from trainer.data.lines_of_words import INTEGER, first_unlike, read_lines, refuse
from trainer.errors import UserError

_FILES = ("train", "test")


def read_user_item_lists(config: UserItemListsConfig, connection: Connection) -> Source:
    """Leaves the events in the connection, with their split.

    Raises:
        UserError: a file is missing or cannot be read, or a line holds something else than integers.
    """
    folder = Path(config.source)
    for name in _FILES:
        path = folder / f"{name}.txt"
        if not path.is_file():
            raise UserError("data.source", folder, "a folder with train.txt and test.txt, each line a user id and the "
                            "ids of their items", f"write {path.name}, or name another folder")  # fmt: skip
        read_lines(connection, f"lines_{name}", path)
        unlike = first_unlike(INTEGER)
        refuse(connection, f"lines_{name}", path, f"{unlike} IS NOT NULL", unlike, "integers, the user's id first")
    parts = (f"SELECT {number} AS file, '{name}' AS split, * FROM lines_{name}" for number, name in enumerate(_FILES))
    connection.execute(f"""
        CREATE TABLE {EVENTS} AS
        SELECT user_id, CAST(item AS BIGINT) AS item_id, split,
               row_number() OVER (ORDER BY file, line, place) - 1 AS seq
        FROM (SELECT file, line, split, CAST(words[1] AS BIGINT) AS user_id, unnest(words[2:]) AS item,
                     generate_subscripts(words[2:], 1) AS place FROM ({" UNION ALL ".join(parts)}))""")
    connection.execute("DROP TABLE lines_train; DROP TABLE lines_test")
    return Source(setting="data.source")
