"""Memory: a build does not grow with the corpus, opening touches nothing, a search touches what it reads."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from benchmarks.index_memory import resident_files, stream
from core.tokens import TokenBatch
from index import cpu, exact
from index import stream as blocks
from index.plaid import Index
from index.stream import Known
from tests.index_cases import ROOT

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@linux
@pytest.mark.parametrize("kind", ["plaid", "exact"] if os.environ.get("FULL_TESTS") else ["plaid"])
def test_building_does_not_grow_with_the_corpus(tmp_path, kind):
    """The benchmark at a small size: the growth that it prints must be small here too.

    The smaller corpus must fill what a build keeps in memory, or that would count as growth: for exact some 25 MB.
    """
    report = tmp_path / "memory.json"
    docs = {"plaid": (17_000, 51_000), "exact": (51_000, 153_000)}[kind]
    sizes = ["--docs", *map(str, docs), "--rows", "8", "--dim", "32", "--kind", kind, "--json", str(report)]
    command = [sys.executable, str(ROOT / "benchmarks" / "index_memory.py"), *sizes]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(report.read_text())
    assert found["results"][1]["vectors"] == 8 * docs[1]
    assert found["growth"] < 1.3, found


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    path = tmp_path_factory.mktemp("large") / "i"
    return Index.build(path, stream(40_000, 8, 64), dim=64, encoder={}, nbits=8, max_centroids=1024).path


@linux
def test_opening_touches_no_page_and_a_search_only_what_it_reads(large, monkeypatch):
    monkeypatch.setattr(cpu, "MAPPED_BYTES", 1 << 20)  # as for an index of more than 64 MB
    index = Index.open(large)
    assert resident_files(large) == 0
    size = index.stats()["bytes"]
    assert size > 20e6
    vectors = next(v for _, v in stream(1, 8, 64))
    query = TokenBatch(torch.from_numpy(vectors)[None], torch.ones(1, 8, dtype=torch.bool))
    assert index.search(query, 5, n_probe=1, n_candidates=5)[0].ids[0] == "document-0"
    # Codes, lists and tables of ids, a tenth of the whole; the kernel maps what it has cached in large runs.
    assert 0 < resident_files(large) < 0.15 * size
    assert index.find(["document-39999"]).tolist() == [39_999]
    assert resident_files(large) < 0.2 * size


def test_the_stream_is_held_block_by_block(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_ROWS", 40)
    alive, most = 0, 0

    class Counted(np.ndarray):
        def __del__(self):
            nonlocal alive
            alive -= 1

    def documents():
        nonlocal alive, most
        for i in range(300):
            vectors = np.full((4, 8), 0.5, np.float16).view(Counted)
            alive += 1
            most = max(most, alive)
            yield f"d{i}", vectors

    exact.Index.build(tmp_path / "i", documents(), dim=8, encoder={})
    assert most < 15


def test_known_ids_are_remembered_in_eight_bytes_each():
    known, rng = Known(), np.random.default_rng(0)
    seen: set[int] = set()
    for _ in range(200):
        new = rng.integers(0, 50_000, 97).astype(np.uint64)
        wanted = []
        for value in new.tolist():
            wanted.append(value in seen)
            seen.add(value)
        assert known.add(new).tolist() == wanted
    assert len(known._runs) < 20
