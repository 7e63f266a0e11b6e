"""The exact index: the numbers of core.maxsim, whatever the chunks, the budget and the interruptions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from core.tokens import TokenBatch
from index.common import rank_keys, split_keys
from index.exact import Index
from index.packed import packed_scores, segment_max
from index.segment import SegmentWriter
from tests.index_cases import ENCODER, corpus, oracle, questions, run_killed, snapshot

DOCS = corpus(157, rows=(1, 20))
DOCS[40] = ("doc-40", np.zeros((0, 32), np.float32))
QUERIES = questions(DOCS, 7, 11)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("block_docs", [4, 10, 1000])
@pytest.mark.parametrize("loops", ["compiled", "plain"])
def test_scores_are_those_of_maxsim(tmp_path, monkeypatch, dtype, block_docs, loops):
    monkeypatch.setattr("index.stream.BLOCK_DOCS", block_docs)
    monkeypatch.setattr("index.exact.compiled", lambda: loops == "compiled")
    built = Index.build(tmp_path / "i", DOCS, dim=32, encoder=ENCODER, dtype=dtype)
    truth = oracle(DOCS, QUERIES, dtype)
    for row, ranking in zip(truth, built.search(QUERIES, 156)):
        where = [int(i.split("-")[1]) for i in ranking.ids]
        assert sorted(where) == [i for i in range(157) if i != 40]
        assert torch.allclose(row[where], torch.tensor(ranking.scores), atol=1e-4)


@pytest.mark.parametrize("rows", [1, 100, 1 << 30])
def test_pieces_and_waves_change_nothing(tmp_path, monkeypatch, rows):
    built = Index.build(tmp_path / "i", DOCS, dim=32, encoder=ENCODER)
    allowed = [set(built.ids()[i::3]) for i in range(7)]
    cases = (None, allowed, allowed[0])
    whole = [built.search(QUERIES, 30, wanted) for wanted in cases]
    monkeypatch.setattr("index.exact.SCAN_ROWS", rows)
    monkeypatch.setattr("index.common.WAVE", 2)
    assert [built.search(QUERIES, 30, wanted) for wanted in cases] == whole


def test_many_query_rows_are_taken_in_parts(tmp_path, monkeypatch):
    built = Index.build(tmp_path / "i", DOCS, dim=32, encoder=ENCODER)
    whole = built.search(QUERIES, 5)
    monkeypatch.setattr("index.exact.QUERY_ROWS", 22)  # two queries at a time
    assert [r.ids for r in built.search(QUERIES, 5)] == [r.ids for r in whole]


def test_half_precision_queries_and_an_autocast_around_do_not_change_the_sum(tmp_path):
    built = Index.build(tmp_path / "i", DOCS, dim=32, encoder=ENCODER)
    plain = built.search(QUERIES, 10)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert built.search(QUERIES, 10) == plain
    half = built.search(TokenBatch(QUERIES.embeddings.half(), QUERIES.mask), 10)
    assert np.allclose([r.scores for r in half], [r.scores for r in plain], atol=2e-2)


def test_the_stream_is_read_once_and_block_by_block(tmp_path, monkeypatch):
    monkeypatch.setattr("index.stream.BLOCK_DOCS", 50)
    seen = []

    def stream():
        for item in DOCS:
            seen.append(SegmentWriter.committed(tmp_path / "i" / "seg-00000"))
            yield item

    Index.build(tmp_path / "i", stream(), dim=32, encoder=ENCODER)
    assert len(seen) == 157 and (seen[0], seen[51], seen[156]) == (0, 50, 150)


def test_the_caller_may_reuse_its_buffer(tmp_path):
    buffer = np.zeros((2, 4), np.float16)

    def stream():
        for i in range(4):
            buffer[:] = i
            yield f"d{i}", buffer

    got = dict(Index.build(tmp_path / "i", stream(), dim=4, encoder={}).vectors())
    assert [got[f"d{i}"].max() for i in range(4)] == [0, 1, 2, 3]


KILLED = """
from tests.index_cases import *
from index import stream as blocks
from index.exact import Index
blocks.BLOCK_DOCS = 20
docs = corpus(157, rows=(1, 20))
stream = ((id_, v) if i < 71 else die() for i, (id_, v) in enumerate(docs))
Index.build(sys.argv[1], stream, dim=32, encoder=ENCODER)
"""


def test_a_killed_build_goes_on_with_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr("index.stream.BLOCK_DOCS", 20)
    docs = corpus(157, rows=(1, 20))
    whole = Index.build(tmp_path / "whole", docs, dim=32, encoder=ENCODER)
    run_killed(KILLED, tmp_path / "killed")
    segment = tmp_path / "killed" / "seg-00000"
    (segment / ".offsets.npy.abc.tmp").write_text("half")  # killed in the middle of a write
    with open(segment / "vectors.bin", "ab") as handle:
        handle.write(b"rows without their line in the journal")
    assert Index.committed(tmp_path / "killed") == 60
    rest = [(id_, v if i >= 60 else None) for i, (id_, v) in enumerate(docs)]  # need not be encoded again
    Index.build(tmp_path / "killed", rest, dim=32, encoder=ENCODER)
    assert snapshot(tmp_path / "killed") == snapshot(whole.path)


def test_keys_order_as_scores_then_positions():
    scores = torch.tensor([0.0, -0.0, 1e-45, -1e-45, 3.5, -3.5, torch.finfo(torch.float32).min, 3.5, 1e30])
    positions = torch.tensor([5, 3, 9, 0, 2**32 - 1, 7, 1, 4, 8])
    keys = rank_keys(scores, positions)
    wanted = sorted(range(9), key=lambda i: (-float(scores[i]), int(positions[i])))
    assert keys.argsort(descending=True).tolist() == wanted
    back, where = split_keys(keys)
    assert torch.equal(back, scores) and torch.equal(where, positions)


def test_segment_max_and_packed_scores():
    lengths = torch.tensor([2, 0, 3])
    values = torch.tensor([[1.0, -5], [2, -6], [-1, 4], [-3, 5], [-2, 0]])
    low = torch.finfo(torch.float32).min
    assert segment_max(values, lengths).tolist() == [[2, -5], [low, low], [-1, 5]]
    query = torch.eye(2)[None]
    assert packed_scores(query, values, lengths)[0].tolist() == [-3, low, 4]
