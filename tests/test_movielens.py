"""The native formats: on lines made up here in their shape, and on the real files where those are."""

from pathlib import Path
from typing import Any

import duckdb
import pytest
import yaml

from tests.ranks import RankPool
from tests.shop import catalog, rows, vocabulary
from trainer.config import CONFIG_DIR, FeatureConfig, ModelConfig, MovieLensConfig, PrepareConfig
from trainer.data.assembly import BatchAssembler
from trainer.data.catalog import Catalog
from trainer.data.engine import EVENTS, ITEMS, USERS
from trainer.data.events import HeldOutReader
from trainer.data.movielens import read_movielens
from trainer.data.row_groups import open_events
from trainer.data.schema import Schema, read_schema
from trainer.errors import UserError
from trainer.prepare import prepare
from trainer.runtime.evaluation import evaluate_popularity
from trainer.runtime.processes import Processes

SHARED = Path(__file__).parent.parent.parent / "shared" / "data"


def shipped_features() -> dict[str, FeatureConfig]:
    declared = yaml.safe_load((Path(CONFIG_DIR) / "data" / "movielens.yaml").read_text())["features"]
    return {name: FeatureConfig(**settings) for name, settings in declared.items()}


def read(folder: Path) -> tuple[dict[str, list[dict[str, Any]]], list[str]]:
    """The source's views as lists of rows, and the notes."""
    connection = duckdb.connect()
    notes = read_movielens(MovieLensConfig(dir="", source=str(folder)), connection).notes
    views = [name for (name,) in connection.execute("SELECT table_name FROM information_schema.tables").fetchall()]
    return {name: connection.sql(f"SELECT * FROM {name}").to_arrow_table().to_pylist() for name in views}, notes


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_bytes(text.encode("latin-1"))


def test_100k(tmp_path: Path) -> None:
    flags = "|".join(["0", "0", "1", "1"] + ["0"] * 15)
    none = "|".join(["0"] * 19)
    write(
        tmp_path,
        u__data="7\t2\t3\t881250949\n7\t1\t5\t881250949\n",
        u__item=f'1|Caf\xe9 "au" Lait (1993)|01-Jan-1994||http://x|{flags}\n2|unknown|4-Feb-1971||http://y|{none}\n',
        u__user="7|24|M|technician|85711\n8|53|F|other|V3N4P\n",
    )
    views, notes = read(tmp_path)
    assert notes == []
    assert views[EVENTS] == [
        {"user_id": 7, "item_id": 2, "timestamp": 881250949, "seq": 0},
        {"user_id": 7, "item_id": 1, "timestamp": 881250949, "seq": 1},
    ]
    assert views[ITEMS] == [
        {"item_id": 1, "title": 'Caf\xe9 "au" Lait', "genres": ["Adventure", "Animation"], "year": 1993},
        {"item_id": 2, "title": "unknown", "genres": [], "year": 1971},
    ]
    assert views[USERS] == [
        {"user_id": 7, "gender": "M", "age": 24, "occupation": "technician", "zip_region": "8"},
        {"user_id": 8, "gender": "F", "age": 53, "occupation": "other", "zip_region": "V"},
    ]


MOVIES_DAT = "1::Toy Story (1995)::Animation|Children's\n3::M\xf4ther, The (1990) (1996)::Drama\n"
USERS_DAT = "1::F::1::10::48067\n"


def test_1m(tmp_path: Path) -> None:
    write(
        tmp_path, ratings__dat="1::3::5::978300760\n1::1::4::978302109\n", movies__dat=MOVIES_DAT, users__dat=USERS_DAT
    )
    views, _ = read(tmp_path)
    assert [tuple(row.values()) for row in views[EVENTS]] == [(1, 3, 978300760, 0), (1, 1, 978302109, 1)]
    assert views[ITEMS] == [
        {"item_id": 1, "title": "Toy Story", "genres": ["Animation", "Children's"], "year": 1995},
        {"item_id": 3, "title": "M\xf4ther, The (1990)", "genres": ["Drama"], "year": 1996},
    ]
    assert views[USERS] == [{"user_id": 1, "gender": "F", "age": 1, "occupation": "10", "zip_region": "4"}]


def test_1m_without_timestamps_and_with_a_movie_missing(tmp_path: Path) -> None:
    interactions = "user_id,item_id,position\n1,3,0\n1,9,1\n"
    write(tmp_path, interactions__csv=interactions, movies__dat=MOVIES_DAT, users__dat=USERS_DAT)
    views, notes = read(tmp_path)
    assert views[EVENTS] == [{"user_id": 1, "item_id": 3, "seq": 0}, {"user_id": 1, "item_id": 9, "seq": 1}]
    assert views[ITEMS][-1] == {"item_id": 9, "title": None, "genres": None, "year": None}
    assert notes == ["1 rated items are not among the movies: they have an id and nothing else"]


def test_10m_has_no_users(tmp_path: Path) -> None:
    write(tmp_path, ratings__dat="1::3::4.5::978300760\n", movies__dat=MOVIES_DAT)
    views, _ = read(tmp_path)
    assert USERS not in views
    assert len(views[EVENTS]) == 1


def test_20m_and_later(tmp_path: Path) -> None:
    write(
        tmp_path,
        ratings__csv="userId,movieId,rating,timestamp\n1,2,3.5,1112486027\n2,11,4.0,1112484676\n",
        movies__csv='movieId,title,genres\n2,Jumanji (1995),Adventure|Children\n11,"Kid, The ""x"" (1995) ",Comedy\n',
    )
    views, _ = read(tmp_path)
    assert USERS not in views
    assert views[EVENTS][0] == {"user_id": 1, "item_id": 2, "timestamp": 1112486027, "seq": 0}
    assert views[ITEMS][0] == {"item_id": 2, "title": "Jumanji", "genres": ["Adventure", "Children"], "year": 1995}
    assert views[ITEMS][1]["title"] == 'Kid, The "x"'


def test_utf_8_is_not_taken_for_latin_1(tmp_path: Path) -> None:
    write(tmp_path, ratings__dat="1::3::4.5::978300760\n")
    (tmp_path / "movies.dat").write_text("3::Caf\xe9 (1990)::Drama\n", "utf-8")
    assert read(tmp_path)[0][ITEMS][0]["title"] == "Caf\xe9"


@pytest.mark.parametrize("source", ["", "absent"])
def test_a_folder_without_movielens_is_refused(tmp_path: Path, source: str) -> None:
    with pytest.raises(
        UserError, match=r"data.source=.*expected a MovieLens folder: u.data, .*Remedy: unpack a release"
    ):
        read(tmp_path / source)


@pytest.mark.parametrize("ratings", ["1::x::5::978300760\n", "1::3\n", "\0\0\0\xff"])
def test_damaged_ratings_are_refused(tmp_path: Path, ratings: str) -> None:
    write(tmp_path, ratings__dat=ratings, movies__dat=MOVIES_DAT, users__dat=USERS_DAT)
    with pytest.raises(UserError, match=r"data.source=.*expected readable files"):
        read(tmp_path)


def prepare_shared(name: str, out: Path) -> Schema:
    if not (SHARED / name).is_dir():
        pytest.skip(f"{SHARED / name} is not there: the MovieLens files may not be redistributed")
    return prepare(
        PrepareConfig(data=MovieLensConfig(dir=str(out), source=str(SHARED / name), features=shipped_features()))
    )


def test_the_real_100k(tmp_path: Path) -> None:
    schema = prepare_shared("ml-100k", tmp_path / "out")
    assert read_schema(tmp_path / "out") == schema
    assert (schema.num_items, schema.num_events) == (1682, {"train": 98_114, "validation": 943, "test": 943})
    assert [feature.name for feature in schema.features] == list(shipped_features())
    sizes = {feature.name: feature.num_embeddings for feature in schema.features}
    assert (sizes["user_id"], sizes["gender"], sizes["occupation"], sizes["genres"]) == (944, 3, 22, 20)

    events = [tuple(map(int, line.split("\t"))) for line in (SHARED / "ml-100k" / "u.data").read_text().splitlines()]
    items = catalog(tmp_path)
    genres = {index: name for name, index in vocabulary(tmp_path, "genres").items()}
    toy_story = next(row for row in items if row["raw_item_id"] == 1)
    assert {genres[index] for index in toy_story["genres"]} == {"Animation", "Children's", "Comedy"}
    assert toy_story["year"] == 1995
    for row in rows(tmp_path, "test")[:50]:
        theirs = sorted((event for event in events if event[0] == row["raw_user_id"]), key=lambda event: event[3])
        seen = [items[place]["raw_item_id"] for place in row["seen"]]
        assert [*seen, *(items[place]["raw_item_id"] for place in row["targets"])] == [event[1] for event in theirs]
        assert [items[place]["raw_item_id"] for place in row["history"]] == seen[-50:]


def test_the_real_1m(tmp_path: Path, ranks: RankPool) -> None:
    schema = prepare_shared("ml-1m", tmp_path / "out")
    assert schema.num_events == {"train": 987_521, "validation": 6_040, "test": 6_040}
    assert {"hour", "weekday"} & {feature.name for feature in schema.features} == set()
    last = {}
    for line in (SHARED / "ml-1m" / "interactions.csv").read_text().splitlines()[1:]:
        user, item, _ = map(int, line.split(","))
        last[user] = item
    items, test = catalog(tmp_path), rows(tmp_path, "test")
    found = {row["raw_user_id"]: [items[place]["raw_item_id"] for place in row["targets"]] for row in test}
    assert found == {user: [item] for user, item in last.items()}

    metrics = ranks.run(1, popularity, tmp_path / "out", schema)[0]
    assert (round(metrics["recall@10"], 4), round(metrics["ndcg@10"], 4)) == (0.0363, 0.0178)  # known for these files


def popularity(processes: Processes, folder: Path, schema: Schema) -> dict[str, float]:
    items, files = Catalog(folder, schema), open_events(folder, schema, "test")
    evaluation = evaluate_popularity(items, "test", processes)
    assembler = BatchAssembler(schema, [schema.item_id], items, ModelConfig())
    for batch in HeldOutReader(files, assembler, 2048, range(6040), 3):
        evaluation.update(batch)
    return evaluation.metrics([10])
