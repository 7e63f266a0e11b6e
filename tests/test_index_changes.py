"""Changing an index: whatever the order of additions, deletions and compactions, it answers as one built afresh."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from core.errors import UserError
from index import exact, plaid
from tests.index_cases import ENCODER, corpus, questions, snapshot

DIM = 16
WHOLE = corpus(320, dim=DIM, rows=(2, 9), topics=12)
POOL = dict(WHOLE[:160])
POOL["doc-7"] = POOL["doc-90"] = np.zeros((0, DIM), np.float32)
AGAIN = {i: v for i, (_, v) in zip(POOL, WHOLE[160:])}
"""What a document that was deleted comes back with."""

IDS = list(POOL)
QUERIES = questions([(i, v) for i, v in POOL.items() if len(v)], 12, 9)
KINDS = {"plaid-4": (plaid.Index, {"nbits": 4}), "plaid-8": (plaid.Index, {"nbits": 8}), "exact": (exact.Index, {})}
kinds = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Several blocks where a real corpus has many; and no test here asks what a power cut leaves."""
    monkeypatch.setattr("os.fsync", lambda fd: None)
    monkeypatch.setattr("index.stream.BLOCK_DOCS", 7)
    monkeypatch.setattr("index.stored.COPY_ROWS", 60)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """The first n documents of the pool, built once."""
    root = tmp_path_factory.mktemp("start")

    def folder(kind: str, n: int) -> Path:
        path = root / f"{kind}-{n}"
        if not path.exists():
            index, options = KINDS[kind]
            index.build(path, [(i, POOL[i]) for i in IDS[:n]], dim=DIM, encoder=ENCODER, **options)
        return path

    return folder


@pytest.fixture
def copy(start, tmp_path):
    """A copy of such an index, opened."""
    numbers = itertools.count()

    def opened(kind: str, n: int = 50):
        path = tmp_path / f"{kind}-{next(numbers)}"
        shutil.copytree(start(kind, n), path)
        return KINDS[kind][0].open(path)

    return opened


def answers(index, allowed=None) -> list:
    """Rankings of every effort, ids and scores."""
    k = min(20, len(index))
    if not isinstance(index, plaid.Index):
        return [index.search(QUERIES, k), index.search(QUERIES, k, allowed)]
    few = {"n_probe": 2, "n_candidates": k}  # candidates are chosen although there are few documents
    return [
        index.search(QUERIES, k, only, effort=effort, **knobs)
        for only in (None, allowed)
        for effort, knobs in (("fast", few), ("balanced", {}), ("balanced", few), ("exhaustive", {}))
    ]


def fresh(index, live: dict, path: Path):
    """The live documents' original vectors, indexed anew with the same codec."""
    if isinstance(index, plaid.Index):
        return plaid.Index.build(path, live.items(), dim=DIM, encoder=ENCODER, codec_from=index.path)
    return exact.Index.build(path, live.items(), dim=DIM, encoder=ENCODER)


def check(index, live: dict) -> None:
    """What an index says about itself is true."""
    assert list(index.ids()) == list(live) and len(index) == len(live)
    facts = index.stats()
    assert facts["documents"] == len(live) and facts["vectors"] == sum(map(len, live.values()))
    assert facts["documents_without_vectors"] == sum(len(v) == 0 for v in live.values())
    assert [(i, len(v)) for i, v in index.vectors()] == [(i, len(v)) for i, v in live.items()]
    stored = sum(len(s) for s in index.segments)
    assert facts["deleted"] == stored - len(live) and facts["segments"] == len(index.segments)
    files = [p for p in index.path.rglob("*") if p.is_file() and p.name != "manifest.json"]
    assert facts["bytes"] == sum(p.stat().st_size for p in files)
    assert index.verify() == []
    missing = [i for i in IDS if i not in live]
    found = index.find([*live, *missing])
    assert (found[: len(live)] >= 0).all() and (np.diff(found[: len(live)]) > 0).all()
    assert (found[len(live) :] == -1).all()


def agreement(truth, index, k: int) -> float:
    """Share of the k best documents that are among the true ones; one whose true score is below the last by no more
    than 8 bits may change it, 0.01 for every query row, is as good."""
    hits = 0
    for whole, ranking in zip(truth.search(QUERIES, len(truth)), index.search(QUERIES, k, effort="exhaustive")):
        scores = dict(zip(whole.ids, whole.scores))
        hits += sum(scores[i] >= whole.scores[k - 1] - 0.01 * QUERIES.mask.shape[1] for i in ranking.ids)
    return hits / k / len(QUERIES)


def compare(index, live: dict, folder: Path, fits: bool) -> None:
    """fits: the codec is of documents like these."""
    again = fresh(index, live, folder / "fresh")
    if not live:
        return
    allowed = set(list(live)[::3])
    assert answers(index, allowed) == answers(again, allowed)
    truth = exact.Index.build(folder / "truth", live.items(), dim=DIM, encoder=ENCODER)
    k = min(20, len(live))
    if isinstance(index, exact.Index):
        assert index.search(QUERIES, k) == truth.search(QUERIES, k)
    elif index.codec.nbits == 8 and fits:
        assert agreement(truth, index, k) >= 0.99


numbers = st.lists(st.integers(0, 10**6), min_size=1, max_size=25)
operations = st.lists(
    st.one_of(
        st.tuples(st.just("add"), numbers),
        st.tuples(st.just("delete"), numbers),
        st.tuples(st.sampled_from(["compact", "reopen", "rebuild", "delete all"]), st.just([])),
    ),
    min_size=1,
    max_size=7,
)
PAST = [
    ("delete", [3]),
    ("add", [0, 1, 2]),
    ("delete", [0]),
    ("add", [0]),
    ("compact", []),
    ("add", [5]),
    ("reopen", []),
]


@kinds
@given(size=st.sampled_from([9, 60]), plan=operations)
@example(size=60, plan=PAST)
@example(size=9, plan=[("delete all", []), ("compact", []), ("compact", []), ("add", [1, 2, 3]), ("compact", [])])
@example(size=9, plan=[("add", [4]), ("delete", [9]), ("add", [4]), ("delete", [9]), ("add", [4])])
def test_any_sequence_of_changes_answers_as_a_fresh_index(start, kind, size, plan):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "i"
        shutil.copytree(start(kind, size), path)
        index = KINDS[kind][0].open(path)
        live = {i: POOL[i] for i in IDS[:size]}
        for what, picks in plan:
            if what == "add":
                spare = [i for i in IDS if i not in live]
                chosen = list(dict.fromkeys(spare[p % len(spare)] for p in picks)) if spare else []
                new = {i: (AGAIN if n % 2 else POOL)[i] for n, i in enumerate(chosen)}
                if not new:
                    continue
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    report = index.add(new.items())
                assert report["documents"] == len(new) and report["vectors"] == sum(map(len, new.values()))
                live.update(new)
            elif what == "delete" and live:
                chosen = list(dict.fromkeys(list(live)[p % len(live)] for p in picks))
                assert index.delete(chosen) == len(chosen)
                live = {i: v for i, v in live.items() if i not in chosen}
            elif what == "delete all":
                assert index.delete(list(live)) == len(live)
                live = {}
            elif what in ("compact", "rebuild"):
                index.compact() if what == "compact" else index.rebuild(keep_codec=True)
                assert len(index.segments) == bool(live) and index.stats()["deleted"] == 0
            elif what == "reopen":
                index = type(index).open(path)
            check(index, live)
        check(type(index).open(path), live)
        if live:
            compare(index, live, Path(folder), fits=size == 60)


@kinds
def test_changes_that_are_mistakes_change_nothing(copy, kind):
    index = copy(kind)
    before = snapshot(index.path)
    with pytest.raises(UserError, match="id 'doc-3' is in the index already; delete it first"):
        index.add([(i, POOL[i]) for i in ("doc-60", "doc-3")])
    with pytest.raises(UserError, match="id 'doc-60' stands twice"):
        index.add([("doc-60", POOL["doc-60"])] * 2)
    with pytest.raises(UserError, match="no documents were given"):
        index.add([])
    with pytest.raises(UserError, match=r"shape \(2, 3\), the index wants \[n, 16\]"):
        index.add([("x", np.ones((2, 3)))])
    with pytest.raises(UserError, match="UTF-8 cannot write"):
        index.add([("\ud800", POOL["doc-60"])])
    with pytest.raises(UserError, match=r"id 'nobody' is not in the index \(50 documents\); nothing was deleted"):
        index.delete(["doc-1", "nobody", "doc-2"])
    with pytest.raises(UserError, match="is not in the index"):
        index.delete(["\ud800"])
    with pytest.raises(UserError, match=r"got the string 'doc-1'; write \['doc-1'\]"):
        index.delete("doc-1")
    with pytest.raises(UserError, match="id 5 of type int"):
        index.delete([5])
    assert index.delete([]) == 0
    index.compact()  # one segment, nothing deleted
    assert snapshot(index.path) == before
    assert index.delete(iter(["doc-1", "doc-1"])) == 1
    with pytest.raises(UserError, match="id 'doc-1' is not in the index"):
        index.delete(["doc-1"])


@kinds
def test_a_document_that_was_deleted_comes_back_with_other_vectors(copy, kind):
    index = copy(kind)
    index.delete(["doc-5"])
    index.add([("doc-5", AGAIN["doc-5"])])
    assert index.ids()[-1] == "doc-5" and len(index) == 50 and index.find(["doc-5"]).tolist() == [50]
    stored = dict(index.vectors())["doc-5"].astype(np.float32)
    assert stored.shape == AGAIN["doc-5"].shape and np.abs(stored - AGAIN["doc-5"]).max() < 0.4


@kinds
def test_documents_without_vectors_are_added_and_come_last(copy, kind):
    index = copy(kind)
    assert index.add([("bare", np.zeros((0, DIM)))])["vectors"] == 0
    assert index.verify() == [] and index.stats()["documents_without_vectors"] == 2
    for ranking in index.search(QUERIES, 51):
        assert ranking.ids[-2:] == ("doc-7", "bare")
    index.delete(["doc-7"])
    index.compact()
    assert {r.ids[-1] for r in index.search(QUERIES, 50)} == {"bare"}


@kinds
def test_an_index_may_become_empty_and_be_filled_again(copy, kind):
    index = copy(kind)
    index.delete(index.ids())
    for _ in range(2):
        assert len(index) == 0 and index.ids() == [] and list(index.vectors()) == []
        with pytest.raises(UserError, match="holds no documents any more; add some"):
            index.search(QUERIES, 1)
        index.compact()
        assert index.segments == [] and [p.name for p in index.path.glob("seg-*")] == []
        index = type(index).open(index.path)
    live = {i: POOL[i] for i in IDS[40:60]}
    index.add(live.items())
    check(index, live)
    assert [r.ids for r in index.search(QUERIES, 20)] == [
        r.ids for r in type(index).open(index.path).search(QUERIES, 20)
    ]


# -- readers -----------------------------------------------------------------------------------------------------------


def change(index) -> None:
    index.add([(i, POOL[i]) for i in IDS[50:80]])
    index.delete(IDS[10:30])
    index.compact()


@pytest.mark.parametrize("loops", ["compiled", "plain"])
@pytest.mark.parametrize("small", [1 << 18, 0], ids=["read", "mapped"])
@kinds
def test_a_reader_keeps_what_it_opened(copy, monkeypatch, kind, small, loops):
    monkeypatch.setattr("index.mapped.SMALL", small)
    for module in ("index.plaid_search", "index.exact"):
        monkeypatch.setattr(f"{module}.compiled", lambda: loops == "compiled")
    index = copy(kind)
    twin = copy(kind)
    index.delete(["doc-2"])
    twin.delete(["doc-2"])
    reader, busy = type(index).open(index.path), type(index).open(index.path)
    allowed = set(IDS[20:45])
    wanted = answers(twin, allowed)
    assert answers(busy, allowed) == wanted
    change(index)
    assert not (index.path / "seg-00000").exists()
    for old in (reader, busy):  # the reader has never searched before
        assert answers(old, allowed) == wanted and len(old) == 49
        assert old.ids() == twin.ids() and old.stats() == twin.stats()
        for (i, a), (j, b) in zip(old.vectors(), twin.vectors()):
            assert i == j and np.array_equal(a, b)
    now = type(index).open(index.path)
    assert now.ids() == [*IDS[:2], *IDS[3:10], *IDS[30:80]] and answers(now) == answers(index)


@kinds
def test_a_writer_keeps_what_it_wrote_when_another_one_compacts(copy, kind):
    index, twin = copy(kind), copy(kind)
    for one in (index, twin):
        one.add([(i, POOL[i]) for i in IDS[50:70]])
        one.delete(IDS[:5])
    type(index).open(index.path).compact()
    assert answers(index) == answers(twin)
    index.delete(IDS[5:8])  # sees the compaction first
    assert len(index.segments) == 1 and len(index) == 62 and index.verify() == []


@kinds
def test_opening_while_the_index_changes(copy, monkeypatch, kind):
    """The manifest is read, then everything it names is compacted away before it is opened."""
    index = copy(kind)
    kind_, read, seen = type(index), exact.Index.open.__func__.__globals__["read_manifest"], []

    def slow(path, format_):
        manifest = read(path, format_)
        if not seen:
            seen.append(1)
            monkeypatch.setattr("index.stored.read_manifest", read)
            change(index)
            monkeypatch.setattr("index.stored.read_manifest", slow)
        return manifest

    monkeypatch.setattr("index.stored.read_manifest", slow)
    opened = kind_.open(index.path)
    monkeypatch.setattr("index.stored.read_manifest", read)
    assert seen and opened.ids() == index.ids() and answers(opened) == answers(index)


def test_hundreds_of_small_segments_need_few_open_files(copy):
    index = copy("plaid-4", 9)
    for i in IDS[9:49]:
        index.add([(i, POOL[i])])
    assert len(index.segments) == 41
    before = len(os.listdir("/proc/self/fd"))
    many = plaid.Index.open(index.path)
    answers(many)
    assert len(os.listdir("/proc/self/fd")) - before < 10


def test_files_of_an_index_that_is_not_used_any_more_are_closed(copy, monkeypatch):
    monkeypatch.setattr("index.mapped.SMALL", 0)
    index = copy("plaid-4")
    before = len(os.listdir("/proc/self/fd"))
    opened = plaid.Index.open(index.path)
    answers(opened)
    assert len(os.listdir("/proc/self/fd")) > before + 5
    del opened
    assert len(os.listdir("/proc/self/fd")) == before


# -- another codec -----------------------------------------------------------------------------------------------------


def drifted(index):
    """Two thirds are of other topics than the codec is of."""
    with pytest.warns(UserWarning, match="rebuild"):
        index.add([(f"new-{i}", v) for i, v in corpus(100, dim=DIM, rows=(2, 9), seed=5, topics=5, noise=0.1)])
    index.delete(IDS[:3])
    return index


def test_rebuild_fits_a_new_codec(copy):
    index, kept = drifted(copy("plaid-4")), drifted(copy("plaid-4"))
    (index.path / "job.json").write_text("{}")
    reader, late, wanted = plaid.Index.open(index.path), plaid.Index.open(index.path), answers(kept)
    centroids = index.codec.centroids
    kept.rebuild()
    assert (kept.path / "codebook.json").read_bytes() == (late.path / "codebook.json").read_bytes()
    index.rebuild(keep_codec=False)
    assert index.ids() == kept.ids() and index.verify() == [] and len(index.segments) == 1
    assert index.codec.centroids.shape != centroids.shape or not np.array_equal(index.codec.centroids, centroids)
    assert (index.path / "job.json").read_text() == "{}"
    assert sorted(p.name for p in index.path.parent.iterdir()) == sorted([index.path.name, kept.path.name])
    opened = plaid.Index.open(index.path)
    assert answers(opened) == answers(index) and opened.manifest == index.manifest
    assert opened.manifest["options"] == kept.manifest["options"]
    assert answers(reader) == wanted  # an old reader is not disturbed, and never mixes the codecs
    # An old writer works with the new codec.
    late.add([("late", POOL["doc-0"])])
    assert np.allclose(dict(late.vectors())["late"], POOL["doc-0"], atol=0.4)
    twin = fresh(late, {i: v for i, v in opened.vectors()} | {"late": POOL["doc-0"]}, index.path.parent / "twin")
    assert twin.find(["late"]) == late.find(["late"])
    assert np.array_equal(dict(twin.vectors())["late"], dict(late.vectors())["late"])


def test_rebuild_of_an_exact_index_is_a_compaction(copy):
    index, twin = copy("exact"), copy("exact")
    change_ = [(i, POOL[i]) for i in IDS[50:60]]
    index.add(change_)
    twin.add(change_)
    index.rebuild(keep_codec=False)
    twin.compact()
    assert snapshot(index.path) == snapshot(twin.path)


def test_a_rebuild_that_did_not_end_goes_on(copy, monkeypatch):
    index, whole = drifted(copy("plaid-4")), drifted(copy("plaid-4"))
    whole.rebuild(keep_codec=False)
    before, state = answers(index), snapshot(index.path)
    place = index.path.with_name(index.path.name + ".new")

    def fail(*_):
        raise KeyboardInterrupt

    for target in ("index.plaid_build.fit_buckets", "index.plaid_build.finish", "index.stored.replace_folder"):
        with monkeypatch.context() as patch:
            patch.setattr(target, fail)
            with pytest.raises(KeyboardInterrupt):
                index.rebuild(keep_codec=False)
        assert snapshot(index.path) == state and answers(plaid.Index.open(index.path)) == before
    assert plaid.Index.committed(place) == 147 or (place / "manifest.json").is_file()
    index.delete(["doc-40"])  # what was begun is not of this state any more
    index.rebuild(keep_codec=False)
    whole.delete(["doc-40"])
    assert index.ids() == whole.ids() and index.verify() == [] and not place.exists()


def test_a_rebuild_killed_between_its_two_renames(copy):
    index = copy("plaid-4")
    wanted = answers(index)
    os.replace(index.path, index.path.with_name(f".{index.path.name}.old"))
    opened = plaid.Index.open(index.path)
    assert answers(opened) == wanted
    opened.delete(["doc-1"])


def test_rebuild_leaves_the_work_of_others(copy):
    index = copy("plaid-4")
    place = index.path.with_name(index.path.name + ".new")
    plaid.Index.build(place, POOL.items(), dim=DIM, encoder={})
    with pytest.raises(UserError, match="holds another index"):
        index.rebuild(keep_codec=False)
    assert len(plaid.Index.open(place)) == 160


def test_rebuild_of_nothing(copy):
    index = copy("plaid-4")
    index.delete(index.ids())
    with pytest.raises(UserError, match="no documents"):
        index.rebuild(keep_codec=False)
    index.add([("doc-1", POOL["doc-1"])])


# -- drift -------------------------------------------------------------------------------------------------------------


def test_add_reports_how_well_the_codec_fits(tmp_path):
    docs = corpus(700, dim=DIM, rows=(3, 12))
    index = plaid.Index.build(tmp_path / "i", docs[:500], dim=DIM, encoder=ENCODER, nbits=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = index.add(docs[500:])
    assert report["documents"] == 200 and report["advice"] is None
    assert 0.7 < report["drift"] < 1.6 and report["drift"] == report["distance"] / report["built_distance"]
    codes = np.concatenate([v for _, v in docs[500:]]).astype(np.float16).astype(np.float32)
    rows = index.codec.centroids.numpy()
    nearest = ((codes[:, None] - rows[None]) ** 2).sum(-1).min(1)
    assert report["distance"] == pytest.approx(nearest.mean(), rel=0.02)
    with pytest.warns(UserWarning, match=r"times as far from their centroids .* rebuild\(keep_codec=False\)"):
        other = index.add([(f"other-{i}", v) for i, v in corpus(50, dim=DIM, seed=77)])
    assert other["drift"] > 2 and "rebuild(keep_codec=False)" in other["advice"]
    index.rebuild(keep_codec=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        index.add([(f"more-{i}", v) for i, v in docs[:20]])


def test_nothing_drifts_without_a_codec_or_vectors(copy):
    assert copy("exact").add([("x", POOL["doc-60"])]) == {
        "documents": 1,
        "vectors": len(POOL["doc-60"]),
        "distance": None,
        "built_distance": None,
        "drift": None,
        "advice": None,
    }
    report = copy("plaid-8").add([("x", np.zeros((0, DIM)))])
    assert report["drift"] is None and report["distance"] is None and report["built_distance"] > 0
