"""Text to vectors without a vocabulary: hashed words and character n-grams."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.preprocessing import normalize

BATCH = 4096


class TextHasher:
    """Signed counts of words, word pairs and character trigrams to pentagrams, hashed together into `dim` columns.

    Stateless: the same text has the same vector in every data set, so a new item needs no new fit.
    """

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self._vectorizers = [
            HashingVectorizer(n_features=dim, analyzer="word", ngram_range=(1, 2), norm="l2", dtype=np.float32),
            HashingVectorizer(n_features=dim, analyzer="char_wb", ngram_range=(3, 5), norm="l2", dtype=np.float32),
        ]

    def __call__(self, texts: Sequence[str | None]) -> NDArray[np.float32]:
        """float32 [len(texts), dim], each row of length 1, or all zeros where the text is None or has no words."""
        vectors = np.zeros((len(texts), self.dim), np.float32)
        for start in range(0, len(texts), BATCH):
            batch = [text or "" for text in texts[start : start + BATCH]]
            words, characters = (vectorizer.transform(batch) for vectorizer in self._vectorizers)
            vectors[start : start + BATCH] = normalize(words + characters).toarray()
        return vectors
