"""Which retrieved passages hold an answer: every passage is read once, prepared once, and asked for all its questions.

What was once judged can be kept in a file. Its keys are made of the rule, the answers and the passage's text, nothing
else: whatever changes is judged again, whatever stays is not, for other metrics, other rankings and other models.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from core.answers import Answer, Rule
from core.errors import UserError
from core.files import atomic_file
from core.progress import progress
from core.protocols import Ranking
from core.records import Document

VERSION = 1
"""Of the rules in ``core.answers`` together; raise it when one of them judges otherwise than before."""

LONG = 100_000
"""Pairs from which on judging takes long enough to show how far it is."""


class Passages:
    """The passages that rankings name, out of a corpus, each read once.

    A corpus with ``get(id)`` (one that lies on disk) is asked for single passages when few of it are wanted; any other
    is gone through once, and only what is wanted is kept.
    """

    def __init__(self, corpus: Sequence[Document]) -> None:
        self.corpus = corpus
        self._found: dict[str, Document] = {}

    def __getitem__(self, id_: str) -> Document:
        return self._found[id_]

    def __contains__(self, id_: str) -> bool:
        """Whether it was fetched and found."""
        return id_ in self._found

    def fetch(self, ids: Iterable[str], also: Iterable[str] = ()) -> None:
        """Read what was not read yet. Of ``ids`` one that the corpus does not hold is a UserError, of ``also`` not."""
        needed = {id_ for id_ in ids if id_ not in self._found}
        wanted = needed.union(id_ for id_ in also if id_ not in self._found)
        single = getattr(self.corpus, "get", None)
        if wanted and single is not None and len(wanted) * 20 < len(self.corpus):
            found = ((id_, single(id_)) for id_ in sorted(wanted))
            self._found.update((id_, document) for id_, document in found if document is not None)
        elif wanted:
            self._found.update((d.id, d) for d in self.corpus if d.id in wanted)
        strange = needed - self._found.keys()
        if strange:
            raise UserError(
                f"the index answers with '{min(strange)}', which the passages of this data set do not hold "
                f"({len(strange)} such); index them anew (python -m runs.run_indexer --overwrite)."
            )


class Kept:
    """Judgements in a file: sorted keys and verdicts. Damaged files are made anew; the last of two writers wins, which
    loses judgements but never makes a wrong one."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.keys, self.verdicts = np.zeros(0, np.uint64), np.zeros(0, bool)
        if self.path.is_file():
            try:
                with np.load(self.path, allow_pickle=False) as found:
                    keys, verdicts = found["keys"], found["verdicts"]
                if keys.dtype != np.uint64 or verdicts.dtype != bool or keys.shape != verdicts.shape or keys.ndim != 1:
                    raise ValueError("other arrays")
                self.keys, self.verdicts = keys, verdicts
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
                print(f"note: '{self.path}' holds no judgements that can be read; it is made anew")

    def find(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(known, verdict) of each key; the verdict of an unknown one is False."""
        if not len(self.keys):
            return np.zeros(len(keys), bool), np.zeros(len(keys), bool)
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        known = self.keys[at] == keys
        return known, known & self.verdicts[at]

    def add(self, keys: np.ndarray, verdicts: np.ndarray) -> None:
        keys, first = np.unique(np.concatenate([self.keys, keys]), return_index=True)
        self.keys, self.verdicts = keys, np.concatenate([self.verdicts, verdicts])[first]
        with atomic_file(self.path) as handle:
            np.savez(handle, keys=self.keys, verdicts=self.verdicts)


def hits(
    rankings: Mapping[str, Ranking],
    answers: Mapping[str, Sequence[Answer]],
    passages: Passages,
    rule: Rule,
    depth: int | None = None,
    kept: Kept | None = None,
    text: Callable[[Document], str] = lambda document: document.text,
) -> dict[str, list[bool]]:
    """Query id -> whether the document of each rank holds an answer, for the first ``depth`` ranks (default: all).

    answers: of every query that has a ranking; one without answers is never hit.
    """
    qids = list(rankings)
    lengths = [len(rankings[qid].ids[:depth]) for qid in qids]
    numbers: dict[str, int] = {}
    docs = np.fromiter(
        (numbers.setdefault(doc, len(numbers)) for qid in qids for doc in rankings[qid].ids[:depth]),
        np.int64, count=sum(lengths),
    )  # fmt: skip
    queries = np.repeat(np.arange(len(qids)), lengths)
    passages.fetch(numbers)
    texts = [text(passages[doc]) for doc in numbers]
    verdicts = np.zeros(len(docs), bool)
    todo = np.arange(len(docs))
    if kept is not None:
        keys = _keys(rule, [answers[qid] for qid in qids], texts, queries, docs)
        known, verdicts = kept.find(keys)
        todo = np.flatnonzero(~known)
    asked: dict[int, Callable[[str], bool]] = {
        query: rule.test(answers[qids[query]]) for query in np.unique(queries[todo]).tolist()
    }
    for place, pairs in _by_passage(docs, todo):
        prepared = rule.text(texts[place])
        verdicts[pairs] = [asked[query](prepared) for query in queries[pairs].tolist()]
    if kept is not None and len(todo):
        kept.add(keys[todo], verdicts[todo])
    ends = np.cumsum(lengths)
    return {qid: verdicts[end - n : end].tolist() for qid, n, end in zip(qids, lengths, ends)}


def _by_passage(docs: np.ndarray, todo: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """(passage, the pairs to judge it for), each passage once."""
    if not len(todo):
        return
    order = todo[np.argsort(docs[todo], kind="stable")]
    places, starts = np.unique(docs[order], return_index=True)
    ends = [*starts[1:].tolist(), len(order)]
    rows = zip(places.tolist(), starts.tolist(), ends)
    if len(todo) >= LONG:
        rows = progress(rows, "judging", total=len(places), unit="passage")
    for place, start, end in rows:
        yield place, order[start:end]


def _keys(rule: Rule, answers: list, texts: list[str], queries: np.ndarray, docs: np.ndarray) -> np.ndarray:
    """A 64-bit key per pair. Two of a million pairs share one with a chance of about 3 in 100 million."""
    asked = np.array([_hash(f"{VERSION} {rule.name} {_spelled(a)}") for a in answers], np.uint64)
    read = np.array([_hash(text) for text in texts], np.uint64)
    if not len(docs):
        return np.zeros(0, np.uint64)
    mixed = asked[queries] * np.uint64(0x9E3779B97F4A7C15) ^ read[docs]
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # splitmix64
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))


def _spelled(answers: Iterable[Answer]) -> str:
    return json.dumps([a if isinstance(a, str) else [a.low, a.high] for a in answers])


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
