"""Indexes that colbert-ai wrote, with the numbers it computed on them. Every case below GOLDEN_DIR is found."""

from __future__ import annotations

import json
import os
import re
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from core.errors import UserError
from core.tokens import TokenBatch
from index import open_index
from index.codec import pack_bits, unpack_bits
from index.colbert_ai import ColbertAIIndex
from index.colbert_ai_search import Parameters, _prune, candidates, search
from index.convert import convert

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


@pytest.fixture(scope="module", params=["as it lies", "converted"])
def opened(request, case, tmp_path_factory):
    """The case, and its index through ``open_index``."""
    if request.param == "as it lies":
        return *case[:3], open_index(case[3].path)
    place = tmp_path_factory.mktemp("converted") / "index"
    convert(case[3].path, place)
    return *case[:3], open_index(place)


def _given(parameters: Parameters) -> dict:
    return {"n_probe": parameters.ncells, "threshold": parameters.centroid_score_threshold,
            "n_candidates": parameters.ndocs}  # fmt: skip


def test_the_preset_ranks_as_colbert_ai(opened):
    facts, expected, tensors, index = opened
    queries, compared = TokenBatch.pad(list(tensors["query_emb"])), 0
    for name, entry in expected["search"].items():
        if not (isinstance(entry, dict) and "results" in entry) or "pids_given" in name:
            continue
        options = _options(name, entry, facts)
        given = {} if re.fullmatch(r"k\d+", name) else _given(options["parameters"])
        if "filter" in name:
            given["allowed_ids"] = {str(pid) for pid in range(0, len(index), 2)}
        got = index.search(queries, entry["k"], effort="colbert", **given)
        for ranking, wanted in zip(got, entry["results"], strict=True):
            _same(([int(i) for i in ranking.ids], list(ranking.scores)), wanted["pids"], wanted["scores"])
        compared += 1
    assert compared >= 5
    for name, entry in expected["search"].items():
        if name.startswith("longq"):
            k, searcher = map(int, re.search(r"k(\d+)_on_k(\d+)_searcher", name).groups())
            long = TokenBatch.pad([tensors["longq_emb"][0]])
            ranking = index.search(long, k, effort="colbert", **_given(Parameters.for_k(searcher)))[0]
            _same(([int(i) for i in ranking.ids], list(ranking.scores)), entry["pids"], entry["scores"])


def test_masked_rows_and_settings_count(opened):
    *_, tensors, index = opened
    queries = tensors["query_emb"]
    wider = torch.cat([queries, torch.randn(len(queries), 5, queries.shape[2])], 1)
    masked = TokenBatch(wider, torch.arange(wider.shape[1]).expand(wider.shape[:2]) < queries.shape[1])
    plain = TokenBatch.pad(list(queries))
    assert index.search(masked, 10, effort="colbert") == index.search(plain, 10, effort="colbert")
    assert index.search(plain, 10, effort="colbert", n_probe=8) != index.search(plain, 10, effort="colbert")
    assert [len(r.ids) for r in index.search(plain, 10, effort="colbert", n_candidates=8)] == [2] * len(queries)
    assert index.search(plain, 10, {"7"}, effort="colbert", n_probe=10**6)[0].ids == ("7",)
    with pytest.raises(UserError, match="n_probe=0 opens no list"):
        index.search(plain, 10, effort="colbert", n_probe=0)
    with pytest.raises(UserError, match="n_candidates=3 leaves none"):
        index.search(plain, 10, effort="colbert", n_candidates=3)
    with pytest.raises(UserError, match="effort 'quick' is unknown"):
        index.search(plain, 10, effort="quick")


def test_the_preset_looks_at_the_first_rows_only(opened, monkeypatch):
    """Candidates of a long query come from its first query_maxlen rows; a longer maxlen finds others."""
    *_, tensors, index = opened
    long = TokenBatch.pad([tensors["longq_emb"][0]])
    assert long.embeddings.shape[1] > 32
    before = index.search(long, 50, effort="colbert", n_probe=1)
    if hasattr(index, "config"):
        monkeypatch.setattr(index, "query_maxlen", 1)
    else:
        monkeypatch.setitem(index.manifest["options"], "query_maxlen", 1)
    assert index.search(long, 50, effort="colbert", n_probe=1) != before


def test_an_index_as_it_lies_follows_the_protocol(case, capsys):
    *_, tensors, theirs = case
    index = open_index(theirs.path, encoder={"family": "colbert"}, device="cpu")
    assert "cannot be checked" in capsys.readouterr().err
    assert list(index.ids()) == [str(i) for i in range(len(index))] and index.manifest["encoder"] == {}
    assert index.find(["0", "12", "00", "x", "-1", str(len(index))]).tolist() == [0, 12, -1, -1, -1, -1]
    found = dict(index.vectors())
    assert list(found) == list(index.ids())
    assert torch.equal(torch.from_numpy(found["5"]), index.decompress([5]))
    assert index.verify() == [] and index.stats()["vectors"] == len(index.codes)
    queries = TokenBatch.pad(list(tensors["query_emb"]))
    exhaustive = index.search(queries, 5, effort="exhaustive")
    truth = torch.stack([index.exact_scores(q, floor=None) for q in tensors["query_emb"]]).topk(5)
    assert [r.ids for r in exhaustive] == [tuple(map(str, row)) for row in truth.indices.tolist()]


@pytest.mark.parametrize("name", ["centroids.pt", "buckets.pt", "0.codes.pt", "0.residuals.pt", "ivf.pid.pt"])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
def test_verify_names_a_damaged_file(case, tmp_path, name, damage):
    folder = copied(case[3].path, tmp_path / "index")
    spoil(folder / name, damage)
    if name != "centroids.pt" or damage != "missing":
        assert any(name in problem for problem in open_index(folder).verify())
    assert any(name in problem for problem in ColbertAIIndex(folder).verify())


def copied(source: Path, dest: Path) -> Path:
    dest.mkdir(parents=True)
    for file in source.iterdir():
        (dest / file.name).write_bytes(file.read_bytes())
    return dest


def spoil(file: Path, damage: str) -> None:
    data = file.read_bytes()
    if damage == "missing":
        file.unlink()
    elif damage == "truncated":
        file.write_bytes(data[: len(data) // 2])
    else:
        with zipfile.ZipFile(file) as archive:  # the middle of its largest tensor; between them there is padding
            largest = max(archive.infolist(), key=lambda i: i.file_size)
        head = largest.header_offset
        start = head + 30 + sum(struct.unpack("<HH", data[head + 26 : head + 30]))
        middle = start + largest.file_size // 2
        file.write_bytes(data[:middle] + bytes([data[middle] ^ 16]) + data[middle + 1 :])


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
