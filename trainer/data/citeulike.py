"""citeulike-a and -t: users' libraries of articles, and the words of each article (Wang, Chen and Li, IJCAI 2013).

    users.dat         a line a user: how many articles, then their ids; the user's id is the line's number, from 0
    mult.dat          a line an article, whose id is the line's number, from 0: how many words, then word:count
    vocabulary.dat    a line a word, numbered from 0
    cold_items.txt    if there: the ids of the articles that are to be cold; all events with them are test

Events have no time. Items have `words`, a list of strings, and beside it `counts`, a list of numbers.
"""

from pathlib import Path

from trainer.config import CiteULikeConfig
from trainer.data.engine import EVENTS, ITEMS, Connection, Source, first_row
from trainer.data.lines_of_words import INTEGER, first_unlike, read_lines, refuse
from trainer.errors import UserError

_USERS, _WORDS, _VOCABULARY, _COLD = "users.dat", "mult.dat", "vocabulary.dat", "cold_items.txt"


def read_citeulike(config: CiteULikeConfig, connection: Connection) -> Source:
    """Leaves events and items in the connection.

    Raises:
        UserError: a file is missing or cannot be read, or a line is not as described above; file and line are named.
    """
    folder = Path(config.source)
    missing = [name for name in (_USERS, _WORDS, _VOCABULARY) if not (folder / name).is_file()]
    if missing:
        raise UserError("data.source", f"{folder} without {', '.join(missing)}",
                        f"a folder with {_USERS}, {_WORDS} and {_VOCABULARY}", "name such a folder")  # fmt: skip
    _read_items(connection, folder)
    has_cold = (folder / _COLD).is_file()
    _read_events(connection, folder, has_cold)
    notes = _leave_out_unused(connection) if has_cold else []
    connection.execute("DROP TABLE lines_users; DROP TABLE lines_items; DROP TABLE lines_words")
    return Source(notes, setting="data.source")


def _read_items(connection: Connection, folder: Path) -> None:
    read_lines(connection, "lines_words", folder / _VOCABULARY)
    read_lines(connection, "lines_items", folder / _WORDS)
    (num_words,) = first_row(connection, "SELECT count(*) FROM lines_words")
    _check_count(connection, "lines_items", folder / _WORDS, "words")
    unlike = first_unlike(r"\d{1,9}:\d{1,9}", "words[2:]")
    expected = f"word:count, with words from 0 to {num_words - 1}, the lines of {_VOCABULARY}"
    refuse(connection, "lines_items", folder / _WORDS, f"{unlike} IS NOT NULL", unlike, expected)
    beyond = f"list_filter(words[2:], lambda word: CAST(split_part(word, ':', 1) AS BIGINT) >= {num_words})[1]"
    refuse(connection, "lines_items", folder / _WORDS, f"{beyond} IS NOT NULL", beyond, expected)
    connection.execute(f"""
        CREATE TABLE {ITEMS} AS
        SELECT line - 1 AS item_id, coalesce(names, []) AS words, coalesce(counts, []) AS counts
        FROM lines_items LEFT JOIN (
            SELECT item_id, list(text ORDER BY place) AS names, list(count ORDER BY place) AS counts
            FROM (SELECT line - 1 AS item_id, generate_subscripts(words[2:], 1) AS place,
                         CAST(split_part(unnest(words[2:]), ':', 1) AS BIGINT) AS word,
                         CAST(split_part(unnest(words[2:]), ':', 2) AS DOUBLE) AS count FROM lines_items)
            JOIN lines_words ON line = word + 1 GROUP BY item_id
        ) ON item_id = line - 1
        ORDER BY line""")


def _read_events(connection: Connection, folder: Path, has_cold: bool) -> None:
    read_lines(connection, "lines_users", folder / _USERS)
    _check_count(connection, "lines_users", folder / _USERS, "items")
    _check_ids(connection, "lines_users", folder / _USERS, "words[2:]")
    split, cold = "", ""
    if has_cold:
        read_lines(connection, "lines_cold", folder / _COLD)
        _check_ids(connection, "lines_cold", folder / _COLD, "words")
        connection.execute(
            "CREATE TABLE cold_items AS SELECT DISTINCT CAST(unnest(words) AS BIGINT) AS cold_id FROM lines_cold"
        )
        connection.execute("DROP TABLE lines_cold")
        split = ", CASE WHEN cold_id IS NULL THEN 'train' ELSE 'test' END AS split"
        cold = "LEFT JOIN cold_items ON cold_id = item_id"
    connection.execute(f"""
        CREATE TABLE {EVENTS} AS
        SELECT user_id, item_id, row_number() OVER (ORDER BY user_id, place) - 1 AS seq {split}
        FROM (SELECT line - 1 AS user_id, generate_subscripts(words[2:], 1) AS place,
                     CAST(unnest(words[2:]) AS BIGINT) AS item_id FROM lines_users) {cold}""")


def _check_count(connection: Connection, table: str, path: Path, what: str) -> None:
    refuse(connection, table, path, "text IS NULL OR words[1] <> CAST(len(words) - 1 AS VARCHAR)",
           f"coalesce(words[1], 'nothing') || ', then ' || greatest(coalesce(len(words), 0) - 1, 0) || ' {what}'",
           f"how many {what} follow, and those {what}")  # fmt: skip


def _check_ids(connection: Connection, table: str, path: Path, ids: str) -> None:
    (items,) = first_row(connection, "SELECT count(*) FROM lines_items")
    expected = f"item ids from 0 to {items - 1}, the lines of {_WORDS}"
    unlike = first_unlike(INTEGER, ids)
    refuse(connection, table, path, f"{unlike} IS NOT NULL", unlike, expected)
    beyond = f"list_filter({ids}, lambda word: CAST(word AS BIGINT) NOT BETWEEN 0 AND {items - 1})[1]"
    refuse(connection, table, path, f"{beyond} IS NOT NULL", beyond, expected)


def _leave_out_unused(connection: Connection) -> list[str]:
    """Items that nobody has and that are not named as cold: they would pass for cold ones, and be ranked with them."""
    unused = f"""FROM {ITEMS} WHERE item_id NOT IN (SELECT item_id FROM {EVENTS})
                 AND item_id NOT IN (SELECT cold_id FROM cold_items)"""
    (count,) = first_row(connection, f"SELECT count(*) {unused}")
    connection.execute(f"DELETE {unused}")
    connection.execute("DROP TABLE cold_items")
    return [f"left out {count:,} items that are in no line of {_USERS} and not in {_COLD}"] if count else []
