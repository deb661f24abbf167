import math
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfTransformer

from tests.shop import IDS, candidate, catalog, events_of, prepare_shop, query, rows, sequences, vocabulary
from trainer.config import FeatureConfig, PrepareConfig, TabularConfig
from trainer.data.catalog import Catalog
from trainer.data.weights import TfIdf
from trainer.errors import UserError
from trainer.prepare import prepare

Bag = list[tuple[int, float]]

BAGS = st.lists(st.lists(st.tuples(st.integers(0, 5), st.sampled_from([0, 1, 1.5, 2, 7]))), min_size=1, max_size=6)


def flat(bags: list[Bag]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    pairs = [pair for bag in bags for pair in bag]
    offsets = np.cumsum([0, *map(len, bags)])
    return np.array([row for row, _ in pairs], np.int32), np.array([count for _, count in pairs], float), offsets


def matrix(bags: list[Bag], columns: int = 6) -> np.ndarray:
    counts = np.zeros((len(bags), columns))
    for number, bag in enumerate(bags):
        for row, count in bag:
            counts[number, row] += count
    return counts


@given(first=BAGS, second=BAGS)
def test_tf_idf_equals_that_of_sklearn(first: list[Bag], second: list[Bag]) -> None:
    tf_idf = TfIdf(6)
    tf_idf.fit(*flat(first))
    tf_idf.fit(*flat(second))
    found, weights, offsets = tf_idf(*flat(second))
    expected = TfidfTransformer(sublinear_tf=True).fit(matrix(first + second)).transform(matrix(second)).toarray()
    bags = [list(zip(found[a:b], weights[a:b], strict=True)) for a, b in pairwise(offsets)]
    np.testing.assert_allclose(matrix(bags), expected, rtol=1e-12)
    assert [[row for row, _ in bag] for bag in bags] == [np.flatnonzero(bag).tolist() for bag in expected]


ITEMS = {
    "item_id": [1, 2, 3, 4, 5],
    "words": [["b", "a"], ["a", None, "rare"], None, ["b", "a", "b"], ["b"]],
    "counts": [[2, 1], [3, 9, 1], None, [1, 4, 0], [0]],
}


def by_item(folder: Path, *names: str) -> dict[int, tuple[Any, ...]]:
    return {row["raw_item_id"]: tuple(row[name] for name in names) for row in catalog(folder)}


def test_given_weights_stay_as_they_are(tmp_path: Path) -> None:
    features = {"words": candidate("categorical", weight_column="counts", min_count=2)}
    schema = prepare_shop(tmp_path, events_of(1, 2, events=5), ITEMS, features=features)
    index = vocabulary(tmp_path, "words")
    a, b = index["a"], index["b"]
    assert by_item(tmp_path, "words", "words_weight") == {
        1: ([b, a], [2, 1]), 2: ([a, 0], [3, 1]), 3: ([], []), 4: ([b, a, b], [1, 4, 0]), 5: ([b], [0])
    }  # fmt: skip
    feature = next(feature for feature in schema.features if feature.name == "words")
    assert feature.weighted
    read = Catalog(tmp_path / "out", schema)
    chosen = np.array([row["raw_item_id"] for row in catalog(tmp_path)]).argsort()[[3, 2, 0]]
    lists = read.sparse(feature, chosen)
    assert lists.values.tolist() == [b, a, b, b, a] and lists.lengths.tolist() == [3, 0, 2]
    assert lists.weights.dtype == np.float32 and lists.weights.tolist() == [1, 4, 0, 2, 1]


@pytest.mark.parametrize("settings", [{"min_count": 2}, {"hash_buckets": 2}])
def test_tf_idf_of_the_catalogue(tmp_path: Path, settings: dict[str, int]) -> None:
    features = {"words": candidate("categorical", weight_column="counts")}
    prepare_shop(tmp_path, events_of(1, events=5), ITEMS, features={"words": candidate("categorical", **settings)})
    table_rows = by_item(tmp_path, "words")  # with those out of the vocabulary, or sharing a hash, as they are
    shutil.rmtree(tmp_path / "out")
    features = {"words": candidate("categorical", weight_column="counts", weighting="tf_idf", **settings)}
    prepare_shop(tmp_path, events_of(1, events=5), ITEMS, features=features)
    kept = {1: [2, 1], 2: [3, 1], 3: [], 4: [1, 4, 0], 5: [0]}
    bags = [list(zip(table_rows[item][0], kept[item], strict=True)) for item in kept]
    expected = TfidfTransformer(sublinear_tf=True).fit_transform(matrix(bags, 3)).toarray()
    for item, weights in zip(kept, expected, strict=True):
        found, given_ = by_item(tmp_path, "words", "words_weight")[item]
        assert found == np.flatnonzero(weights).tolist()
        assert given_ == pytest.approx(weights[found].tolist(), rel=1e-6)


def test_queries_have_weighted_features_too(tmp_path: Path) -> None:
    events = events_of(1, 2, events=5)
    events |= {
        "seen_words": [["a"], ["a", "b"], [], ["b"], ["c", "b"]] * 2,
        "counts": [[1], [2, 3], [], [4], [5, 6]] * 2,
    }
    users = {"user_id": [1], "likes": [["x", "y"]], "how_much": [[0.5, 0.25]]}
    features = {
        "words": query("categorical", column="seen_words", weight_column="counts", weighting="tf_idf"),
        "likes": query("categorical", weight_column="how_much"),
    }
    schema = prepare_shop(tmp_path, events, None, users, features, layouts=["event", "sequence"])
    assert {feature.name for feature in schema.features if feature.weighted} == {"words", "likes"}
    index = vocabulary(tmp_path, "words")
    trained = matrix([[(index["a"], 1)], [(index["a"], 2), (index["b"], 3)], []] * 2, 3)
    fitted = TfidfTransformer(sublinear_tf=True).fit(trained)  # of each user, the last two events are held out

    def weights(bag: list[tuple[int, float]]) -> list[float]:
        return pytest.approx([value for value in fitted.transform(matrix([bag], 3)).toarray()[0] if value], rel=1e-6)

    rare = weights([(index["b"], 6), (0, 5)])
    (last, other) = sorted(rows(tmp_path, "test"), key=lambda row: row["raw_user_id"])
    assert last["words"] == other["words"] == [0, index["b"]]
    assert last["words_weight"] == other["words_weight"] == rare
    assert (last["likes_weight"], other["likes_weight"]) == ([0.5, 0.25], [])
    expected = [weights([(index["a"], 1)]), weights([(index["a"], 2), (index["b"], 3)]), []]
    found = sequences(tmp_path)
    assert [row["words_weight"] for row in found] == [expected, expected]
    assert [len(row["likes"]) for row in found] == [len(row["likes_weight"]) for row in found]


def test_strings_of_values_and_of_weights(tmp_path: Path) -> None:
    pa.csv.write_csv(pa.table(events_of(1)), tmp_path / "events.csv")
    lines = ["item_id,tags,scores,size,sizes", "1,a|b,1.5| 2,s,1", "2,|b,7|3,s,2", "3,,,,", "4,c,0,m|l,3|4"]
    (tmp_path / "items.csv").write_text("\n".join(lines) + "\n")
    features = {
        "tags": candidate("categorical", separator="|", weight_column="scores"),
        "size": candidate("categorical", separator="|", weight_column="sizes"),
    }
    config = TabularConfig(dir=str(tmp_path / "out"), source=str(tmp_path), events="events.csv", items="items.csv",
                           features=IDS | features)  # fmt: skip
    prepare(PrepareConfig(data=config))
    assert by_item(tmp_path, "tags_weight", "size_weight") == {
        1: ([1.5, 2], [1]), 2: ([3], [2]), 3: ([], []), 4: ([0], [3, 4])
    }  # fmt: skip


def with_counts(*counts: Any) -> dict[str, Any]:
    return {"item_id": [1, 2, 3, 4], "words": [["a"], ["a", "b"], None, []], "counts": list(counts)}


NUMBER = {"item_id": [1, 2, 3, 4], "words": ["a", "b", "c", "d"], "counts": [1.0, 2.0, 3.0, 4.0]}
SOUND = with_counts([1.0], [1.0, 2.0], None, [])
ERRORS: dict[str, tuple[dict[str, Any], FeatureConfig, str]] = {
    "fewer": (with_counts([1.0], [1.0], [], []), candidate("categorical", weight_column="counts"),
              r"words.weight_column=counts, with more or fewer weights than values in 1 items \(such as item_id 2\) "
              r"\(first: .*row 2, .*\): expected one for each value"),
    "more": (with_counts([1.0], [1.0, 2.0], [3.0], []), candidate("categorical", weight_column="counts"),
             r"with more or fewer weights than values in 1 items \(such as item_id 3\)"),
    "null": (with_counts([1.0], [None, 2.0], [], []), candidate("categorical", weight_column="counts"),
             r"with weights that are no numbers in 1 items \(such as item_id 2\).*row 2.*: expected finite float32"),
    "infinite": (with_counts([1e39], [1.0, 2.0], [], []), candidate("categorical", weight_column="counts"),
                 r"with weights that are no numbers in 1 items \(such as item_id 1\)"),
    "NaN": (with_counts([math.nan], [1.0, 2.0], [], []), candidate("categorical", weight_column="counts"),
            r"with weights that are no numbers in 1 items \(such as item_id 1\)"),
    "negative": (with_counts([1.0], [1.0, -0.5], [], []), candidate("categorical", weight_column="counts"),
                 r"with weights below 0 in 1 items \(such as item_id 2\).*: expected weights from 0"),
    "no counts": (with_counts([0.0], [1.0, 0.5], [], []),
                  candidate("categorical", weight_column="counts", weighting="tf_idf"),
                  r"with counts that are neither 0 nor from 1 in 1 items \(such as item_id 2\).*: expected counts"),
    "single values": (NUMBER, candidate("categorical", weight_column="counts"),
                      r"words.weight_column=counts: expected a list of values in words, a weight for each"),
    "no column": (SOUND, candidate("categorical", weight_column="score"),
                  r"weight_column=score \(absent\): expected a column of lists of numbers beside words: counts"),
    "no lists": (SOUND, candidate("categorical", weight_column="item_id"),
                 r"weight_column=item_id \(BIGINT\): expected a column of lists of numbers"),
    "tf_idf of nothing": (SOUND, candidate("categorical", weighting="tf_idf"),
                          r"words.weighting=tf_idf: expected a column of counts to make weights of"),
    "weighting": (SOUND, candidate("categorical", weight_column="counts", weighting="bm25"),
                  r"words.weighting=bm25: expected one of given, tf_idf"),
    "kind": (SOUND, candidate("numeric", weight_column="counts"),
             r"words.weight_column=counts: expected kind categorical for it, not numeric"),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_errors(tmp_path: Path, name: str) -> None:
    items, feature, message = ERRORS[name]
    with pytest.raises(UserError, match=message):
        prepare_shop(tmp_path, events_of(1), items, features={"words": feature})
    assert not (tmp_path / "out").exists()


def test_the_name_of_the_weights_is_taken(tmp_path: Path) -> None:
    features = {"words": candidate("categorical", weight_column="counts"), "words_weight": candidate("numeric")}
    with pytest.raises(UserError, match=r"words_weight=words_weight: expected a name that the weights of words do not"):
        prepare_shop(tmp_path, events_of(1), SOUND, features=features)
