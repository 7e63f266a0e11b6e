"""The compressed index: codec, candidates, efforts, and builds that end with the same bytes."""

from __future__ import annotations

import itertools
import os
import platform
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch

from core.errors import UserError
from core.tokens import TokenBatch
from index import cpu, exact, plain, threads
from index.codec import Codec, fit_buckets, pack_bits, unpack_bits
from index.common import key_positions
from index.ivf import InvertedLists, row_numbers
from index.kmeans import Assigner, assign, centroids_for, kmeans
from index.plaid import EFFORTS, Index
from index.plaid_search import Searcher
from tests.index_cases import ENCODER, ROOT, corpus, overlap, questions, run_killed, snapshot

DOCS = corpus(2000, rows=(5, 16), topics=300)
QUERIES = questions(DOCS, 8, 40)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    root = tmp_path_factory.mktemp("plaid")
    indexes = {
        n: Index.build(root / str(n), DOCS, dim=32, encoder=ENCODER, nbits=n, max_centroids=512) for n in (1, 2, 4, 8)
    }
    indexes["exact"] = exact.Index.build(root / "exact", DOCS, dim=32, encoder=ENCODER)
    return indexes


@pytest.mark.parametrize("nbits", [1, 2, 4, 8])
@pytest.mark.parametrize("dim", [1, 7, 16])
def test_bits_come_back(nbits, dim):
    values = torch.randint(0, 2**nbits, (9, dim), dtype=torch.uint8, generator=torch.Generator().manual_seed(nbits))
    packed = pack_bits(values, nbits)
    assert packed.shape == (9, -(-dim * nbits // 8)) and packed.dtype == torch.uint8
    assert torch.equal(unpack_bits(packed, nbits, dim), values.long())
    assert pack_bits(values[:0], nbits).shape == (0, packed.shape[1])


def test_bit_order():
    assert pack_bits(torch.tensor([[1, 2, 3, 0]], dtype=torch.uint8), 2).tolist() == [[0b10011100]]
    assert pack_bits(torch.tensor([[1, 8]], dtype=torch.uint8), 4).tolist() == [[0b10000001]]
    assert pack_bits(torch.tensor([[1]], dtype=torch.uint8), 8).tolist() == [[0b10000000]]
    assert pack_bits(torch.tensor([[1, 0, 0, 0, 0, 0, 1, 1]], dtype=torch.uint8), 1).tolist() == [[0b10000011]]


@pytest.mark.parametrize("unit", [True, False])
def test_more_bits_rebuild_better(unit):
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(3000, 24, generator=generator)
    vectors = torch.nn.functional.normalize(vectors, dim=-1) if unit else 5 * vectors
    centroids = kmeans(vectors.numpy(), 64, seed=0, iterations=3, unit=unit)
    codes = assign(vectors, centroids)
    errors = [(vectors - centroids[codes]).square().mean()]
    for nbits in (1, 2, 4, 8):
        codec = Codec(centroids, *fit_buckets(vectors - centroids[codes], nbits), unit)
        rebuilt = codec.decompress(codes, codec.compress(vectors, codes))
        errors.append((vectors - rebuilt).square().mean())
        assert not unit or torch.allclose(rebuilt.norm(dim=-1), torch.ones(3000), atol=1e-5)
    assert all(b < 0.6 * a for a, b in itertools.pairwise(errors)), errors


def test_assign_is_the_nearest_and_kmeans_is_seeded(monkeypatch):
    points = torch.randn(500, 8, generator=torch.Generator().manual_seed(0)) * 3
    rows = points.numpy()
    centroids = kmeans(rows, 16, seed=1, iterations=4, unit=False)
    assert torch.equal(assign(points, centroids), torch.cdist(points, centroids).argmin(1))
    assert torch.equal(centroids, kmeans(rows, 16, seed=1, iterations=4, unit=False))
    assert not torch.equal(centroids, kmeans(rows, 16, seed=2, iterations=4, unit=False))
    monkeypatch.setattr("index.kmeans.BLOCK_BYTES", 1)
    assert torch.equal(assign(points, centroids), torch.cdist(points, centroids).argmin(1))


@pytest.mark.parametrize("dim, k", [(8, 1), (24, 7), (130, 64)])
def test_integer_assignment_is_near_enough(dim, k):
    """One byte per dimension may send a point to the other of two equally good centroids, not to a worse one."""
    generator = torch.Generator().manual_seed(0)
    points, centroids = torch.randn(700, dim, generator=generator), torch.randn(k, dim, generator=generator)
    found = torch.from_numpy(Assigner(centroids)(points.numpy())).long()
    nearest = torch.cdist(points, centroids)
    chosen = nearest.gather(1, found[:, None])[:, 0]
    assert (chosen <= 1.02 * nearest.amin(1)).all() and (found == nearest.argmin(1)).float().mean() > 0.95


def test_a_lost_centroid_restarts():
    points = torch.cat([torch.zeros(50, 4), torch.eye(4)])
    found = kmeans(points.numpy(), 5, seed=0, iterations=30, unit=False)
    assert torch.isfinite(found).all() and len(found.unique(dim=0)) >= 4


def test_number_of_centroids():
    assert centroids_for(357_360, 249_000, 1 << 14) == 8192
    assert centroids_for(60_000_000, 249_000, 1 << 14) == 16384
    assert centroids_for(1000, 1000, 1 << 14) == 256  # 505 rounded down, and below half of the sample
    assert centroids_for(1, 1, 1 << 14) == 1
    assert centroids_for(357_360, 249_000, 2500) == 2048


def test_eight_bits_rank_as_exact(built):
    truth = built["exact"].search(QUERIES, 100)
    assert overlap(truth, built[8].search(QUERIES, 100, effort="exhaustive"), 100) >= 0.99


def test_more_bits_and_more_effort_rank_better(built):
    truth = built["exact"].search(QUERIES, 100)
    shares = {n: overlap(truth, built[n].search(QUERIES, 100, effort="exhaustive"), 100) for n in (1, 2, 4, 8)}
    assert shares[1] < shares[2] < shares[4] < shares[8] and shares[2] > 0.75, shares
    efforts = [overlap(truth, built[4].search(QUERIES, 100, effort=e), 100) for e in ("fast", "balanced", "exhaustive")]
    assert efforts[0] <= efforts[1] + 0.01 and efforts[1] <= efforts[2] + 0.01 and efforts[0] > 0.75, efforts


def test_scores_are_maxsim_of_the_decompressed_vectors(built, tmp_path):
    again = exact.Index.build(tmp_path / "i", built[2].vectors(), dim=32, encoder={}, dtype="float32")
    truth = again.search(QUERIES, 2000)
    for effort in ("fast", "balanced", "exhaustive"):
        for row, ranking in zip(truth, built[2].search(QUERIES, 50, effort=effort)):
            known = dict(zip(row.ids, row.scores))
            assert np.allclose([known[i] for i in ranking.ids], ranking.scores, atol=1e-4)


@pytest.mark.parametrize("effort", ["fast", "balanced"])
def test_effort_does_not_depend_on_k(built, effort):
    few, many = built[2].search(QUERIES, 5, effort=effort), built[2].search(QUERIES, 128, effort=effort)
    assert [r.ids for r in few] == [r.ids[:5] for r in many]
    assert all(len(r.ids) == 128 for r in many)


def test_knobs_are_read(built):
    all_of_them = built[2].search(QUERIES, 20, n_probe=512, n_candidates=1999, threshold=-2.0)
    assert [r.ids for r in all_of_them] == [r.ids for r in built[2].search(QUERIES, 20, effort="exhaustive")]
    few = built[2].search(QUERIES, 20, n_probe=1, n_candidates=20)
    assert [r.ids for r in few] != [r.ids for r in all_of_them]


def test_the_threshold_keeps_lists_closed(built, monkeypatch):
    seen = []
    find = Searcher._candidates

    def counted(self, looks, masks, effort):
        found = find(self, looks, masks, effort)
        seen.append(sum(len(part) for parts in found.values() for part in parts))
        return found

    monkeypatch.setattr(Searcher, "_candidates", counted)
    counts = []
    for threshold in (None, -1.0, 0.5, 0.8):
        seen.clear()
        built[2].search(QUERIES, 5, n_probe=16, n_candidates=5, threshold=threshold)
        counts.append(sum(seen))
    assert counts[0] == counts[1] > 1.2 * counts[2] > counts[3] > 0
    # Too few documents behind open lists: they are opened after all.
    assert all(len(r.ids) == 300 for r in built[2].search(QUERIES, 300, n_candidates=300, threshold=0.99))


def test_lists_widen_until_there_are_enough_candidates(built):
    one = TokenBatch(QUERIES.embeddings[:2, :1], torch.ones(2, 1, dtype=torch.bool))
    assert all(len(r.ids) == 128 for r in built[2].search(one, 128, effort="fast"))
    assert EFFORTS["fast"].n_candidates == 128


def test_candidates_come_from_every_row(tmp_path):
    """32 rows ask for a crowd, the rows after them for one document: it must be found."""
    rng = np.random.default_rng(0)
    axes = np.eye(64, dtype=np.float32)
    docs = []
    for i in range(600):
        v = axes[:8] + 0.05 * rng.standard_normal((8, 64))
        docs.append((f"d{i}", (v / np.linalg.norm(v, axis=1, keepdims=True)).astype(np.float32)))
    docs.append(("lonely", axes[40:48]))
    built = Index.build(tmp_path / "i", docs, dim=64, encoder={}, nbits=4)
    rows = torch.from_numpy(np.concatenate([axes[:8].repeat(4, 0), axes[40:48].repeat(6, 0)]))[None]
    query = TokenBatch(rows, torch.ones(1, 80, dtype=torch.bool))
    knobs = {"n_probe": 1, "n_candidates": 4, "threshold": 0.3}
    assert built.search(query, 1, **knobs)[0].ids == ("lonely",)
    masked = TokenBatch(rows, torch.arange(80)[None] < 32)
    assert "lonely" not in built.search(masked, 4, **knobs)[0].ids


def test_vectors_of_other_lengths_keep_them(tmp_path, built):
    scales = np.random.default_rng(0).uniform(0.2, 5, size=len(DOCS))
    docs = [(id_, v * s) for (id_, v), s in zip(DOCS[:600], scales)]
    scaled = Index.build(tmp_path / "i", docs, dim=32, encoder={}, nbits=8)
    assert scaled.manifest["unit"] is False and built[2].manifest["unit"] is True
    rebuilt = dict(scaled.vectors())
    ratios = [np.linalg.norm(rebuilt[id_], axis=1) / np.linalg.norm(v, axis=1) for id_, v in docs]
    assert np.concatenate(ratios).min() > 0.8 and np.concatenate(ratios).max() < 1.2
    truth = exact.Index.build(tmp_path / "e", docs, dim=32, encoder={}).search(QUERIES, 20)
    assert overlap(truth, scaled.search(QUERIES, 20, effort="exhaustive"), 20) > 0.95
    assert overlap(truth, scaled.search(QUERIES, 20, n_candidates=200), 20) > 0.9  # approximate stages do run


def test_lists_hold_every_document_of_a_centroid_once(built):
    plaid = built[2]
    segment = plaid.segments[0]
    owner = np.repeat(np.arange(len(plaid)), segment.lengths)
    codes, lists = segment.array("codes"), InvertedLists.read(segment, plaid.stats()["centroids"])
    for cell in range(0, plaid.stats()["centroids"], 37):
        assert np.array_equal(lists.documents(np.array([cell])), np.unique(owner[codes == cell]))


def test_row_numbers():
    assert row_numbers(np.array([5, 0, 9]), np.array([2, 0, 3])).tolist() == [5, 6, 9, 10, 11]
    assert row_numbers(np.array([], int), np.array([], int)).tolist() == []


def test_size(built):
    per_vector = [built[n].stats()["bytes_per_vector"] for n in (1, 2, 4, 8)]
    # 32 dimensions; besides the residuals only the few bucket numbers depend on nbits.
    assert np.allclose(np.diff(per_vector), [4, 8, 16], atol=1)


def test_documents_of_one_vector_or_one_document(tmp_path):
    one = Index.build(tmp_path / "one", [("a", np.eye(8, dtype=np.float32)[:1])], dim=8, encoder={})
    query = TokenBatch(torch.eye(8)[None, :2], torch.ones(1, 2, dtype=torch.bool))
    for effort in ("fast", "balanced", "exhaustive"):
        assert one.search(query, 1, effort=effort)[0].ids == ("a",)


KILLED = """
from tests.index_cases import *
from index import plaid_build, stored, stream as blocks
from index.plaid import Index
blocks.BLOCK_DOCS, plaid_build.ENCODE_ROWS = 50, 400
docs = corpus(300)
stage = sys.argv[2]
stream = ((id_, v) if stage != "stream" or i < 130 else die() for i, (id_, v) in enumerate(docs))
if stage == "residuals":
    encode, seen = plaid_build.Coder.encode, []
    plaid_build.Coder.encode = lambda *a: die() if len(seen) == 2 else seen.append(0) or encode(*a)
if stage == "lists":
    plaid_build.ivf.write = die
if stage == "manifest":
    plaid_build.finish = die
Index.build(sys.argv[1], stream, dim=32, encoder=ENCODER)
"""


@pytest.mark.parametrize("stage, committed", [("stream", 100), ("residuals", 300), ("lists", 300), ("manifest", 300)])
def test_a_killed_build_goes_on_with_the_same_bytes(tmp_path, monkeypatch, stage, committed):
    monkeypatch.setattr("index.stream.BLOCK_DOCS", 50)
    monkeypatch.setattr("index.plaid_build.ENCODE_ROWS", 400)
    docs = corpus(300)
    whole = Index.build(tmp_path / "whole", docs, dim=32, encoder=ENCODER)
    run_killed(KILLED, tmp_path / "killed", stage)
    (tmp_path / "killed" / ".codebook.json.abc.tmp").write_text("half")  # killed in the middle of a write
    assert (tmp_path / "killed" / "codebook.json").is_file() == (stage != "stream")
    assert Index.committed(tmp_path / "killed") == committed
    rest = [(id_, v if i >= committed else None) for i, (id_, v) in enumerate(docs)]
    Index.build(tmp_path / "killed", iter(rest), dim=32, encoder=ENCODER)
    assert snapshot(tmp_path / "killed") == snapshot(whole.path)


@pytest.mark.parametrize("nbits", [1, 2, 4, 8])
@pytest.mark.parametrize("rows", [1, 33, 70])
@pytest.mark.parametrize("dim, unit", [(32, True), (18, False), (21, True), (128, True)])
def test_compiled_and_plain_loops_agree(tmp_path, monkeypatch, nbits, rows, dim, unit):
    """Every integer stage bit for bit, the last one to float32 rounding."""
    docs = corpus(250, dim=dim)
    docs[17] = ("doc-17", np.zeros((0, dim), np.float32))
    if not unit:
        docs = [(id_, v * (1 + i % 5)) for i, (id_, v) in enumerate(docs)]
    built = Index.build(tmp_path / "i", docs, dim=dim, encoder={}, nbits=nbits, max_centroids=64)
    query = questions(docs, 1, rows).embeddings[0].numpy()
    segment = built.segments[0]
    fast, slow = cpu.CpuCodec(built.codec), plain.PlainCodec(built.codec, torch.device("cpu"))
    first, last = 20, 240
    parts = [cpu.CpuPart(fast, segment, first, last), plain.PlainPart(slow, segment, first, last)]
    wanted = (np.arange(250) % 7 > 0).astype(np.uint8)
    for floor in (-(2**31), 500):
        answers = []
        for codec, part in zip((fast, slow), parts):
            look = codec.look(query)
            found = part.candidates(codec.opened(look, 3, floor), wanted)
            near = part.shortlist(look, found, 40)
            positions = np.sort(key_positions(near))
            fine = part.refine([look], [positions], 20)[0]
            exact = part.rescore(codec.floats(query), np.array([0, rows]), positions)
            assert np.allclose(part.close([look], [positions])[0], exact[:, 0], rtol=1e-5, atol=1e-5)
            scan = part.scan(codec.floats(query), np.array([0, rows]), first, last)
            answers.append((look.step, len(found), near.tolist(), fine.tolist(), exact, scan))
        (step, n, near, fine, exact, scan), other = answers
        assert (step, n, near, fine) == other[:4] and 0 < n < 220
        assert np.allclose(exact, other[4], rtol=1e-5, atol=1e-5) and np.allclose(scan, other[5], rtol=1e-5, atol=1e-5)


def test_without_numba_the_answers_are_the_same(built, monkeypatch):
    fast = [built[4].search(QUERIES, 50, effort=e) for e in ("fast", "balanced", "exhaustive")]
    monkeypatch.setattr("index.plaid_search.compiled", lambda: False)
    opened = Index.open(built[4].path)
    for effort, wanted in zip(("fast", "balanced", "exhaustive"), fast):
        for a, b in zip(opened.search(QUERIES, 50, effort=effort), wanted):
            assert set(a.ids) == set(b.ids) and np.allclose(a.scores, b.scores, atol=1e-4)
    assert type(opened._searcher.codecs[0]).__name__ == "PlainCodec"


def test_a_build_without_numba_gives_the_same_lists_and_residuals(tmp_path, monkeypatch):
    docs = corpus(200)
    whole = Index.build(tmp_path / "a", docs, dim=32, encoder={}, nbits=2)
    for module in ("ivf", "plaid_build"):  # the assignment itself may differ in ties
        monkeypatch.setattr(f"index.{module}.compiled", lambda: False)
    monkeypatch.setattr("index.ivf.PLACE_ENTRIES", 100)  # many walks
    monkeypatch.setattr("index.ivf.WALK_ROWS", 333)
    other = Index.build(tmp_path / "b", docs, dim=32, encoder={}, nbits=2)
    assert snapshot(other.path) == snapshot(whole.path)


def test_threads_change_nothing(built):
    one = [built[4].search(QUERIES, 50, effort=e) for e in ("fast", "exhaustive")]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert [built[4].search(QUERIES, 50, effort=e) for e in ("fast", "exhaustive")] == one
        single = [built[4].search(QUERIES.select([i]), 50, effort="fast")[0] for i in range(len(QUERIES))]
        assert single == one[0]
    finally:
        torch.set_num_threads(before)


def test_queries_share_documents_and_nothing_else(built, monkeypatch):
    """Each answer is what the query finds alone, wherever the work is cut; a document is read once for all of them."""
    way = {"n_probe": 3, "n_candidates": 20}
    read, fetch = [], cpu.scoring.fetch
    monkeypatch.setattr(cpu, "MAPPED_BYTES", 0)
    monkeypatch.setattr(cpu.scoring, "fetch", lambda *a: read.extend(a[4].tolist()) or fetch(*a))
    alone = [built[4].search(QUERIES.select([i]), 20, **way)[0] for i in range(len(QUERIES))]
    apart = len(read)
    read.clear()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert built[4].search(QUERIES, 20, **way) == alone
        assert len(read) < apart and max(Counter(read).values()) == 2  # once to refine, once to score
        monkeypatch.setattr(cpu, "PAIRS", 7)
        torch.set_num_threads(3)
        assert built[4].search(QUERIES, 20, **way) == alone
        monkeypatch.setattr("index.plaid_search.BATCH", 2)
        assert built[4].search(QUERIES, 20, **way) == alone
    finally:
        torch.set_num_threads(before)


def test_an_error_in_a_thread_is_raised():
    before = torch.get_num_threads()

    def fail(item):
        raise KeyError(item) if item == 3 else ValueError(item)

    try:
        torch.set_num_threads(2)
        with pytest.raises(KeyError):
            threads.run(lambda i: fail(i) if i == 3 else i, range(5))
        assert threads.run(lambda i: threads.count(), range(3)) == [1, 1, 1]
    finally:
        torch.set_num_threads(before)


def test_buckets_make_the_squared_error_small():
    values = torch.randn(40_000, 1, generator=torch.Generator().manual_seed(0))
    for nbits, known in ((1, 0.3634), (2, 0.1175), (4, 0.00950)):  # Max 1960, table I, for a normal distribution
        cutoffs, weights = fit_buckets(values, nbits)
        error = (values - weights[torch.bucketize(values, cutoffs)]).square().mean()
        assert abs(float(error) / known - 1) < 0.05, (nbits, float(error))


def test_residuals_read_document_by_document_are_those_of_the_map(built, monkeypatch):
    """As is done for large indexes."""
    ways = [{"effort": "fast"}, {"effort": "balanced"}, {"n_probe": 1, "n_candidates": 30}]
    mapped = [built[4].search(QUERIES, 30, **way) for way in ways]
    monkeypatch.setattr(cpu, "MAPPED_BYTES", 0)
    calls, fetch = [], cpu.scoring.fetch
    monkeypatch.setattr(cpu.scoring, "fetch", lambda *a: calls.append(len(a[4])) or fetch(*a))
    assert [built[4].search(QUERIES, 30, **way) for way in ways] == mapped
    assert calls and max(calls) <= 2000


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="names an x86 processor")
def test_an_older_processor_gives_the_same_answers(tmp_path):
    """Compiled for one without AVX-512: the same tests of the loops, in a process of its own."""
    here = "test_compiled_and_plain_loops_agree or test_residuals_read or test_threads_change"
    chosen = f"({here}) and not (128-True or 33-)"
    environment = {
        **os.environ,
        "NUMBA_CPU_NAME": "haswell",
        "NUMBA_CPU_FEATURES": "+avx2,+fma,+f16c,+bmi,+bmi2,+lzcnt,+popcnt",
        "NUMBA_CACHE_DIR": str(tmp_path),
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", chosen]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout or "[100%]" in done.stdout


def rows_of(*vectors: np.ndarray) -> TokenBatch:
    return TokenBatch(torch.from_numpy(np.stack(vectors)).float()[None], torch.ones(1, len(vectors), dtype=torch.bool))


def differences(index: Index, query: TokenBatch, k: int) -> float:
    """How far scores of a search are from those of the exhaustive one."""
    whole = index.search(query, len(index), effort="exhaustive")[0]
    known = dict(zip(whole.ids, whole.scores))
    found = index.search(query, k, n_probe=999, n_candidates=k)[0]
    return max(abs(known[i] - s) for i, s in zip(found.ids, found.scores))


def test_an_outlier_dimension_does_not_hide_the_best_vector(tmp_path):
    """All other entries of such a row round to zero as integers, all in the same direction."""
    rng, docs = np.random.default_rng(0), []
    for i in range(150):
        a = rng.choice([-1.0, 1.0], 128) / 128**0.5
        a[0] = 0.1
        b = rng.standard_normal(128)
        b -= a * (a @ b)
        b /= np.linalg.norm(b)
        b[0] = 0.135
        docs.append((f"d{i}", np.stack([v / np.linalg.norm(v) for v in (a, b)]).astype(np.float32)))
    built = Index.build(tmp_path / "i", docs, dim=128, encoder={}, nbits=8)
    row = 0.49 / 126 * np.sign(docs[0][1][0])
    row[0] = 1
    assert differences(built, rows_of(*[row] * 8), 30) < 1e-4
    # Vectors much shorter than those of the build round more coarsely.
    built.add((f"short-{i}", 0.1 * v) for i, (_, v) in enumerate(docs))
    unit = rng.standard_normal((20, 128))
    assert differences(built, rows_of(*unit / np.linalg.norm(unit, axis=1, keepdims=True)), 80) < 1e-4


def test_many_rows_of_many_dimensions_do_not_overflow(tmp_path):
    signs = np.sign(np.random.default_rng(0).standard_normal((60, 1, 1024))).astype(np.float32) / 32
    built = Index.build(tmp_path / "i", [(f"d{i}", s) for i, s in enumerate(signs)], dim=1024, encoder={}, nbits=8)
    query = rows_of(*[signs[7, 0]] * 832)
    for loops in (True, False):
        opened = Index.open(built.path)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("index.plaid_search.compiled", lambda loops=loops: loops)
            assert opened.search(query, 5, n_probe=999, n_candidates=5)[0].ids[0] == "d7"


def test_a_query_of_zeros_and_an_autocast_on_the_plain_loops(built, monkeypatch):
    wanted = built[2].search(QUERIES, 20, effort="fast")
    monkeypatch.setattr("index.plaid_search.compiled", lambda: False)
    opened = Index.open(built[2].path)
    zeros = TokenBatch(torch.zeros(2, 3, 32), torch.ones(2, 3, dtype=torch.bool))
    assert opened.search(zeros, 2, effort="exhaustive")[1].ids == ("doc-0", "doc-1")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = opened.search(QUERIES, 20, effort="fast")
    assert [set(r.ids) for r in found] == [set(r.ids) for r in wanted]


def test_few_allowed_documents_are_all_looked_at(built, monkeypatch):
    """Instead of opening more and more lists until they are found."""
    monkeypatch.setattr(cpu.CpuCodec, "opened", lambda *a: pytest.fail("lists were opened"))
    allowed = {id_ for id_, _ in DOCS[::7]}
    truth = built[4].search(QUERIES, 30, allowed, effort="exhaustive")
    assert overlap(truth, built[4].search(QUERIES, 30, allowed, n_candidates=80), 30) > 0.95


@pytest.mark.parametrize("knob", [{"threshold": float("nan")}, {"threshold": float("inf")}, {"n_probe": 2.5}])
def test_bad_knobs_are_a_sentence(built, knob):
    with pytest.raises(UserError, match=f"{next(iter(knob))}="):
        built[2].search(QUERIES, 3, **knob)
