"""BM25 over passages, by bm25s: what mines TriviaWiki's hard negatives and what its benchmark compares with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from core.errors import UserError

INSTALL = "pip install -r requirements-triviawiki.txt"


class BM25:
    """Lucene's BM25 over lowercased words of two characters or more, without English stop words.

    stem: words are cut to their English Snowball stem. k1, b: saturation and length normalisation.
    """

    def __init__(self, texts: Sequence[str], k1: float = 0.9, b: float = 0.4, stem: bool = True) -> None:
        try:
            import bm25s
            import Stemmer
        except ImportError as error:
            raise UserError(f"BM25 needs bm25s and PyStemmer ({error.name} is missing); {INSTALL}.") from None
        self._tokenize = bm25s.tokenize
        self._stemmer = Stemmer.Stemmer("english") if stem else None
        self._model = bm25s.BM25(k1=k1, b=b, method="lucene")
        self._model.index(self._words(texts), show_progress=False)
        self._count = len(texts)

    def rank(self, queries: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """(positions [Q, k] of the best passages, their scores [Q, k]), best first; k is at most their number."""
        k = min(k, self._count)
        found = self._model.retrieve(self._words(queries), k=k, show_progress=False, n_threads=1)
        return np.asarray(found.documents), np.asarray(found.scores)

    def _words(self, texts: Sequence[str]):
        return self._tokenize(list(texts), stopwords="en", stemmer=self._stemmer, show_progress=False)
