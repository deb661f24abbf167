import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.text import BATCH, TextHasher


@given(texts=st.lists(st.text(max_size=20) | st.none(), max_size=5))
def test_rows_have_length_one_or_zero_and_do_not_depend_on_one_another(texts: list[str | None]) -> None:
    hasher = TextHasher(32)
    vectors = hasher(texts)
    assert vectors.shape == (len(texts), 32)
    assert vectors.dtype == np.float32
    for text, vector in zip(texts, vectors, strict=True):
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5) or not vector.any()
        assert np.array_equal(vector, hasher([text])[0])
        if text is None or not text.strip():
            assert not vector.any()


def test_similar_titles_are_nearer_than_others() -> None:
    one, two, misspelt, other = TextHasher(256)(["The Godfather", "The Godfather Part II", "Teh Godfathr", "Toy Story"])
    assert one @ two > 0.5
    assert one @ misspelt > 0.15
    assert abs(one @ other) < 0.1


def test_batches_are_joined_in_order() -> None:
    texts = [f"title {number}" for number in range(BATCH + 10)]
    vectors = TextHasher(16)(texts)
    assert np.array_equal(vectors[BATCH:], TextHasher(16)(texts[BATCH:]))
    assert np.array_equal(vectors[:3], TextHasher(16)(texts[:3]))
