"""Indexes that colbert-ai wrote, with the numbers it computed on them. Every case below GOLDEN_DIR is found."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from core.errors import UserError
from index.codec import pack_bits, unpack_bits
from index.colbert_ai import ColbertAIIndex
from index.colbert_ai_search import Parameters, _prune, candidates, search

GOLDEN = Path(os.environ.get("GOLDEN_DIR", Path(__file__).parent / "golden"))


def _cases() -> list[Path]:
    folders = sorted(p.parent for p in GOLDEN.rglob("case.json"))
    systems = {f: json.loads((f / "case.json").read_text(encoding="utf-8")).get("system") for f in folders}
    return [f for f in folders if systems[f] == "colbert" and (f / "index").is_dir()]


@pytest.fixture(scope="module", params=_cases(), ids=lambda p: p.name)
def case(request):
    folder = request.param
    facts = json.loads((folder / "case.json").read_text(encoding="utf-8"))
    expected = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    return facts, expected, load_file(folder / "expected.safetensors"), ColbertAIIndex(folder / "index")


def test_there_is_a_case():
    assert _cases(), f"no colbert-ai case below '{GOLDEN}'; set GOLDEN_DIR"


def test_lengths_and_vectors(case):
    _, expected, tensors, index = case
    assert torch.equal(index.doclens, tensors["doclens"])
    # The names carry the number of passages: decompressed_5docs, decompressed_raw_5docs.
    names = [k for k in tensors if re.fullmatch(r"decompressed_(raw_)?\d+docs", k)]
    assert len(names) == 2
    for name in names:
        pids = expected[name.replace("raw_", "") + "_pids"]
        got = index.decompress(pids, normalise="raw" not in name)
        assert index.doclens[pids].tolist() == expected[name.replace("raw_", "") + "_lens"]
        torch.testing.assert_close(got, tensors[name], atol=2e-5, rtol=0)
    raw, unit = (index.decompress(pids, normalise=n) for n in (False, True))
    assert (raw - unit).abs().max() > 1e-3  # the two are told apart


def test_exact_scores(case):
    _, _, tensors, index = case
    queries, truth = tensors["query_emb"], tensors["index_exact_scores"]
    got = torch.stack([index.exact_scores(q) for q in queries])
    torch.testing.assert_close(got, truth, atol=1e-4, rtol=0)
    some = torch.tensor([3, 1, len(index) - 1])
    torch.testing.assert_close(index.exact_scores(queries[0], some), truth[0, some], atol=1e-4, rtol=0)


def test_the_floor_is_read(case):
    _, _, tensors, index = case
    query = -tensors["query_emb"][0]
    floored, plain = index.exact_scores(query), index.exact_scores(query, floor=None)
    assert (floored >= 0).all() and (plain < floored - 1).any()


def test_packed_bytes_are_what_our_packing_gives(case):
    index = case[3]
    nbits, dim = index.codec.nbits, index.codec.dim
    assert torch.equal(pack_bits(unpack_bits(index.residuals, nbits, dim).to(torch.uint8), nbits), index.residuals)
    rows = torch.arange(200)
    rebuilt = index.codec.decompress(index.codes[rows], index.residuals[rows], normalise=False)
    assert torch.equal(index.codec.compress(rebuilt, index.codes[rows].long()), index.residuals[rows])


def test_the_lists_are_those_of_the_codes(case):
    index = case[3]
    pids, lengths = index.ivf
    owner = torch.repeat_interleave(torch.arange(len(index)), index.doclens)
    for cell, found in enumerate(pids.split(lengths.tolist())):
        assert torch.equal(found, owner[index.codes == cell].unique())


def test_candidates(case):
    _, expected, tensors, index = case
    entries = {k: v for k, v in expected["search"].items() if k.startswith("candidates_k")}
    assert entries
    for name, lists in entries.items():
        chosen = Parameters.for_k(int(name.removeprefix("candidates_k")))
        for query, pids in zip(tensors["query_emb"], lists, strict=True):
            assert candidates(index, query, chosen.ncells, index.config["query_maxlen"])[0].tolist() == pids


def _options(name: str, entry: dict, facts: dict) -> dict:
    after = entry["config_after"]
    chosen = Parameters(after["ncells"], after["centroid_score_threshold"], after["ndocs"])
    if re.fullmatch(r"k\d+", name):
        assert chosen == Parameters.for_k(entry["k"])  # what a fresh searcher picks
    out = {"k": entry["k"], "parameters": chosen, "query_maxlen": after["query_maxlen"]}
    says = facts["search_results"].get(name, "")
    if "pids_given" in name:
        out["pids"] = range(*map(int, re.search(r"range\((\d+), *(\d+), *(\d+)\)", says).groups()))
    if "filter" in name:
        assert "keeps even pids" in says
        out["filter_fn"] = lambda pids: pids[pids % 2 == 0]
    return out


def _same(got, pids: list[int], scores: list[float]) -> None:
    assert len(got[0]) == len(pids)
    torch.testing.assert_close(torch.tensor(got[1]), torch.tensor(scores), atol=1e-4, rtol=0)
    for place, (a, b) in enumerate(zip(got[0], pids)):
        near = [s for s in scores if abs(s - scores[place]) < 1e-4]
        assert a == b or len(near) > 1, (place, a, b)


def test_search(case):
    facts, expected, tensors, index = case
    compared = set()
    for name, entry in expected["search"].items():
        if isinstance(entry, dict) and "results" in entry:
            for query, wanted in zip(tensors["query_emb"], entry["results"], strict=True):
                _same(search(index, query, **_options(name, entry, facts)), wanted["pids"], wanted["scores"])
        elif name.startswith("longq"):
            k, searcher = map(int, re.search(r"k(\d+)_on_k(\d+)_searcher", name).groups())
            got = search(index, tensors["longq_emb"][0], k, Parameters.for_k(searcher))
            _same(got, entry["pids"], entry["scores"])
        elif name.endswith("_flat"):
            k = int(re.search(r"k(\d+)", name).group(1))
            for number, query in enumerate(tensors["query_emb"]):
                rows = [row for row in entry if row[0] == number]
                assert [row[2] for row in rows] == list(range(1, len(rows) + 1))
                _same(search(index, query, k), [row[1] for row in rows], [row[3] for row in rows])
        else:
            assert name.startswith("candidates_k"), f"'{name}' is compared by no test"
            continue
        compared.add(name)
    assert len(compared) >= 3


def test_pruning_ties_go_to_the_larger_passage_number():
    index = ColbertAIIndex.__new__(ColbertAIIndex)
    index.codes, index.doclens = torch.tensor([0, 1, 0, 1, 2, 0, 1]), torch.tensor([2, 2, 1, 2])
    index.offsets = torch.tensor([0, 2, 4, 5, 7])  # passages 0, 1 and 3 have the same centroids
    similar = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.1, 0.1]])
    keep = torch.ones(3, dtype=torch.bool)
    assert _prune(index, similar, torch.arange(4), keep, 2).tolist() == [3, 1]
    keep[2] = False  # nothing is left of passage 2
    assert _prune(index, similar, torch.arange(4), keep, 4).tolist() == [3, 1, 0, 2]


def test_errors(tmp_path, case):
    with pytest.raises(UserError, match="holds no colbert-ai index"):
        ColbertAIIndex(tmp_path)
    (tmp_path / "metadata.json").write_text(json.dumps({"config": {"nbits": 2}, "num_chunks": 1}))
    with pytest.raises(UserError, match=r"buckets.pt' is missing"):
        _ = ColbertAIIndex(tmp_path).codec
