"""MovieLens as GroupLens ships it: 100K, 1M and 10M, 20M and later, told apart by their files.

All releases are brought to the same columns, as far as they have them:

    events  user_id, item_id, timestamp       users  user_id, gender, age, occupation, zip_region
    items   item_id, title, genres (a list), year
"""

from pathlib import Path

from trainer.config import MovieLensConfig
from trainer.data.engine import EVENTS, ITEMS, USERS, Connection, Scan, Source, first_row, literal, reading
from trainer.errors import UserError

# In the order of the flags in 100K's u.item.
GENRES_100K = (
    *(
        "unknown",
        "Action",
        "Adventure",
        "Animation",
        "Children's",
        "Comedy",
        "Crime",
        "Documentary",
        "Drama",
        "Fantasy",
    ),
    *("Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)

_Scans = dict[str, dict[str, Scan]]
_SPLIT_GENRES = "string_split(genres, '|')"
_YEAR = r"\s*\((\d{4})\)\s*$"


def read_movielens(config: MovieLensConfig, connection: Connection) -> Source:
    """Leaves the source's views in the connection.

    Raises:
        UserError: the folder holds no release of MovieLens, or a file cannot be read.
    """
    folder = Path(config.source)
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    with reading("data.source", folder):
        if {"u.data", "u.item", "u.user"} <= there:
            scans = _read_100k(connection, folder)
        elif {"movies.dat"} <= there and {"ratings.dat", "interactions.csv"} & there:
            scans = _read_dat(connection, folder, there)
        elif {"ratings.csv", "movies.csv"} <= there:
            scans = _read_csv(connection, folder)
        else:
            held = ", ".join(sorted(there)[:10]) or "empty" if folder.is_dir() else "no such folder"
            raise UserError("data.source", f"{folder} ({held})", "a MovieLens folder: u.data, u.item and u.user, or "
                            "ratings.dat and movies.dat, or ratings.csv and movies.csv",
                            "unpack a release from grouplens.org/datasets/movielens and name its folder")  # fmt: skip
        notes = _add_unlisted_items(connection)
    return Source(notes, scans, "data.source")


def _read_100k(connection: Connection, folder: Path) -> _Scans:
    ratings = _text(folder / "u.data", "\t", ["user_id", "item_id", "rating", "timestamp"])
    flags = [f"flag{number}" for number in range(len(GENRES_100K))]
    names = ["item_id", "title", "released", "video_released", "url", *flags]
    genre = (f"CASE WHEN {flag} = '1' THEN {literal(name)} END" for flag, name in zip(flags, GENRES_100K, strict=True))
    genres = f"list_filter([{', '.join(genre)}], lambda x: x IS NOT NULL)"
    _make_items(connection, _text(folder / "u.item", "|", names), genres, "TRY_CAST(right(released, 4) AS INTEGER)")
    _make_users(connection, _text(folder / "u.user", "|", ["user_id", "age", "gender", "occupation", "zip"]))
    return _make_events(connection, folder / "u.data", ratings, "timestamp")


def _read_dat(connection: Connection, folder: Path, there: set[str]) -> _Scans:
    _make_items(connection, _text(folder / "movies.dat", "::", ["item_id", "title", "genres"]), _SPLIT_GENRES, "NULL")
    if "users.dat" in there:
        _make_users(connection, _text(folder / "users.dat", "::", ["user_id", "gender", "age", "occupation", "zip"]))
    if "ratings.dat" in there:
        ratings = _text(folder / "ratings.dat", "::", ["user_id", "item_id", "rating", "timestamp"])
        return _make_events(connection, folder / "ratings.dat", ratings, "timestamp")
    # 1M as published splits give it back: in order, without times
    interactions = folder / "interactions.csv"
    return _make_events(connection, interactions, f"read_csv({literal(str(interactions))}, header = true)", None)


def _read_csv(connection: Connection, folder: Path) -> _Scans:
    ratings, movies = (f"read_csv({literal(str(folder / name))}, header = true, delim = ',', quote = '\"')"
                       for name in ("ratings.csv", "movies.csv"))  # fmt: skip
    _make_items(connection, f"(SELECT movieId AS item_id, title, genres FROM {movies})", _SPLIT_GENRES, "NULL")
    events = f"(SELECT userId AS user_id, movieId AS item_id, timestamp FROM {ratings})"
    return _make_events(connection, folder / "ratings.csv", events, "timestamp")


def _text(path: Path, separator: str, names: list[str]) -> str:
    """SQL of a file without a header, all columns VARCHAR, nothing quoted; the old releases are in Latin-1."""
    encoding = "utf-8"
    with path.open("rb") as file:
        for line in file:
            if not line.isascii() and not _is_utf8(line):
                encoding = "latin-1"
                break
    kinds = ", ".join(f"{literal(name)}: 'VARCHAR'" for name in names)
    return (
        f"read_csv({literal(str(path))}, delim = {literal(separator)}, header = false, quote = '', escape = '', "
        f"encoding = '{encoding}', auto_detect = false, columns = {{{kinds}}})"
    )


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _make_events(connection: Connection, path: Path, source: str, timestamp: str | None) -> _Scans:
    """What is no integer is null here, which is refused when the events are read."""
    names = ["user_id", "item_id", *([] if timestamp is None else [timestamp])]
    rows = f"SELECT {', '.join(f'TRY_CAST({name} AS BIGINT) AS {name}' for name in names)} FROM {source}"
    connection.execute(f"CREATE VIEW {EVENTS} AS SELECT *, row_number() OVER () - 1 AS seq FROM ({rows})")
    return {EVENTS: {str(path): Scan(rows)}}


def _make_items(connection: Connection, source: str, genres: str, year: str) -> None:
    """The year is that of the title, "Toy Story (1995)", from which it is cut; `year` is for titles without one."""
    connection.execute(rf"""
        CREATE TABLE {ITEMS} AS
        SELECT CAST(item_id AS BIGINT) AS item_id,
               trim(regexp_replace(title, '{_YEAR}', '')) AS title,
               {genres} AS genres,
               coalesce(TRY_CAST(regexp_extract(title, '{_YEAR}', 1) AS INTEGER), {year}) AS year
        FROM {source}""")


def _make_users(connection: Connection, source: str) -> None:
    """The first digit of a US zip code is a region; Canadian codes begin with a letter."""
    connection.execute(f"""
        CREATE VIEW {USERS} AS
        SELECT CAST(user_id AS BIGINT) AS user_id, gender, CAST(age AS INTEGER) AS age, occupation,
               left(zip, 1) AS zip_region
        FROM {source}""")


def _add_unlisted_items(connection: Connection) -> list[str]:
    """Rated items that the movies lack come in with nothing but their id: a known benchmark keeps all its events."""
    connection.execute(f"""
        INSERT INTO {ITEMS} (item_id)
        SELECT DISTINCT item_id FROM {EVENTS} WHERE item_id NOT IN (SELECT item_id FROM {ITEMS}) ORDER BY item_id""")
    (added,) = first_row(connection, f"SELECT count(*) FROM {ITEMS} WHERE title IS NULL")
    return [f"{added} rated items are not among the movies: they have an id and nothing else"] if added else []
