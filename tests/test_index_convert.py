"""Making our index of colbert-ai's: the same numbers, whatever happens meanwhile."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from core.errors import UserError
from core.tokens import TokenBatch
from index import convert as room
from index import open_index
from index.codec import Codec, fit_buckets
from index.colbert_ai import ColbertAIIndex
from index.convert import beside, convert, convert_in_place
from index.ivf import InvertedLists
from index.kmeans import assign, kmeans
from runs import convert_index
from tests.index_cases import ENCODER, corpus, questions, run_killed, snapshot

DOCS = corpus(300)
QUERIES = questions(DOCS, 6, 9)


def written(path: Path, docs=DOCS, nbits: int = 2, chunks: int = 3) -> Path:
    """``docs`` as colbert-ai would write them: the files that its IndexSaver and CollectionIndexer leave."""
    path.mkdir(parents=True)
    rows = torch.from_numpy(np.concatenate([v for _, v in docs]))
    centroids = kmeans(rows.numpy(), 64, seed=0, iterations=3, unit=True).half().float()
    codes = assign(rows, centroids)
    codec = Codec(centroids, *fit_buckets(rows - centroids[codes], nbits), unit=True)
    lengths = [len(v) for _, v in docs]
    torch.save(centroids.half(), path / "centroids.pt")
    torch.save((codec.cutoffs, codec.weights), path / "buckets.pt")
    torch.save(torch.tensor(0.1), path / "avg_residual.pt")
    edges = np.linspace(0, len(docs), chunks + 1).astype(int)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    for i, (a, b) in enumerate(pairwise(edges)):
        here = slice(int(starts[a]), int(starts[b]))
        torch.save(codes[here].int().clone(), path / f"{i}.codes.pt")
        torch.save(codec.compress(rows[here], codes[here]), path / f"{i}.residuals.pt")
        (path / f"doclens.{i}.json").write_text(json.dumps(lengths[a:b]))
    owner = torch.repeat_interleave(torch.arange(len(docs)), torch.tensor(lengths))
    lists = [owner[codes == cell].unique() for cell in range(64)]
    torch.save((torch.cat(lists).int(), torch.tensor([len(x) for x in lists])), path / "ivf.pid.pt")
    config = {"nbits": nbits, "query_maxlen": 5, "doc_maxlen": 12, "dim": 32, "checkpoint": "checkpoint"}
    facts = {"config": config, "num_chunks": chunks, "num_embeddings": len(rows), "num_partitions": 64}
    (path / "metadata.json").write_text(json.dumps(facts))
    return path


@pytest.mark.parametrize("nbits", [1, 2, 4, 8])
def test_the_same_numbers(tmp_path, nbits):
    theirs = ColbertAIIndex(written(tmp_path / "theirs", nbits=nbits))
    index = convert(theirs.path, tmp_path / "ours")
    assert index.verify() == [] and index.ids() == list(theirs.ids())
    for (id_, ours), (pid, expected) in zip(index.vectors(), theirs.vectors(), strict=True):
        assert id_ == pid and np.array_equal(ours, expected)
    lists = InvertedLists.read(index.segments[0], 64)
    pids, lengths = theirs.ivf
    assert lists.positions.tolist() == pids.tolist() and np.diff(lists.starts).tolist() == lengths.tolist()
    assert index.manifest["options"] == {"nbits": nbits, "query_maxlen": 5}
    raw = [theirs.codec.centroids[theirs.codes.long()], theirs.codec.decompress(theirs.codes, theirs.residuals, False)]
    away = float((raw[1] - raw[0]).square().sum(1).mean())
    assert json.loads((index.path / "codebook.json").read_text())["distance"] == pytest.approx(away, rel=0.1)


def test_it_is_an_index_like_any_other(tmp_path, capsys):
    source = written(tmp_path / "theirs")
    theirs = ColbertAIIndex(source)
    index = convert(source, tmp_path / "ours")
    wanted = theirs.search(QUERIES, 10, effort="exhaustive")
    for got in (index.search(QUERIES, 10, effort="exhaustive"), index.search(QUERIES, 10, effort="balanced")):
        assert [r.ids for r in got] == [r.ids for r in wanted]
    assert index.search(QUERIES, 5, effort="fast")
    index.delete(["3", "4"])
    index.add([("new", DOCS[3][1]), ("none", np.zeros((0, 32), np.float32))])
    assert len(index.segments) == 2
    ours = open_index(index.path, encoder={"family": "other"})
    assert "cannot be checked" in capsys.readouterr().err
    assert len(ours) == 300 and ours.verify() == []
    queries = TokenBatch.pad([torch.from_numpy(DOCS[i][1]) for i in (3, 4, 5)])
    before = ours.search(queries, 20, effort="colbert")
    assert before[0].ids[0] == "new" and before[2].ids[0] == "5"
    assert not {i for r in before for i in r.ids} & {"3", "4", "none"}
    only = ours.search(QUERIES, 20, {"new", "7", "8", "none"}, effort="colbert", n_probe=64, threshold=-1.0)
    assert {i for r in only for i in r.ids} == {"new", "7", "8"}
    with pytest.raises(UserError, match="'3' is not in the index"):
        ours.search(QUERIES, 20, {"3"}, effort="colbert")
    ours.compact()
    after = open_index(index.path).search(queries, 20, effort="colbert")
    assert [r.ids for r in after] == [r.ids for r in before]


def test_the_preset_on_an_index_of_our_own(tmp_path):
    from index.plaid import Index

    index = Index.build(tmp_path / "i", DOCS, dim=32, encoder=ENCODER, nbits=8)
    wide = index.search(QUERIES, 10, effort="colbert", n_probe=10**6, threshold=-9.0, n_candidates=4 * len(DOCS))
    queries = TokenBatch(QUERIES.embeddings, QUERIES.mask)
    exhaustive = index.search(queries, 10, effort="exhaustive")
    assert np.mean([len(set(a.ids) & set(b.ids)) / 10 for a, b in zip(wide, exhaustive)]) > 0.97
    for ranking in wide:
        assert list(ranking.scores) == sorted(ranking.scores, reverse=True)


# ---- in its place


def test_in_place(tmp_path, capsys):
    source = written(tmp_path / "theirs")
    before = snapshot(source)
    (tmp_path / "collection.tsv").write_text("".join(f"{id_}\tsome text\twith tabs\n" for id_, _ in DOCS))
    convert_index.run([str(source), "--ids", str(tmp_path / "collection.tsv")])
    new, old = beside(source)
    assert snapshot(old) == before and not new.exists()
    index = open_index(source)
    assert index.ids() == [id_ for id_, _ in DOCS]
    assert "300 documents" in capsys.readouterr().out
    mine = snapshot(source)
    convert_index.run([str(source)])  # once more: nothing is left to do
    assert snapshot(source) == mine and snapshot(old) == before


def test_killed_between_the_two_renames(tmp_path, monkeypatch):
    source = written(tmp_path / "theirs")
    real, calls = room.os.rename, []

    def killed(a, b):
        calls.append((a, b))
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(a, b)

    monkeypatch.setattr(room.os, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        convert_in_place(source)
    assert not source.exists()
    monkeypatch.undo()
    assert len(convert_in_place(source)) == 300
    assert ColbertAIIndex(beside(source)[1]).verify() == []


def test_what_is_in_the_way(tmp_path):
    source = written(tmp_path / "theirs")
    beside(source)[1].mkdir()
    with pytest.raises(UserError, match=r"theirs\.colbert-ai'.*exists already"):
        convert_in_place(source)
    convert_index.run([str(source), "--out", str(tmp_path / "out")])
    convert_index.run([str(source), "--out", str(tmp_path / "out")])  # the same again is no error
    (tmp_path / "ids").write_text("".join(f"{id_}\n" for id_, _ in DOCS))
    with pytest.raises(UserError, match="already holds a complete index"):
        convert_index.run([str(source), "--out", str(tmp_path / "out"), "--ids", str(tmp_path / "ids")])


# ---- kills and damage


@pytest.mark.parametrize("step", ["append", "finish", "manifest"])
def test_a_killed_conversion_goes_on(tmp_path, monkeypatch, step):
    source = written(tmp_path / "theirs")
    code = """
import sys
from index import convert, plaid_build, stream
convert.BLOCK_DOCS = 40
step, calls = sys.argv[3], []
if step == "append":
    real = convert.SegmentWriter.append
    convert.SegmentWriter.append = lambda *a: die() if len(calls) == 4 else calls.append(real(*a))
else:
    setattr(convert.plaid_build, {"finish": "complete", "manifest": "finish"}[step], die)
convert.convert(sys.argv[1], sys.argv[2])
"""
    run_killed(code, source, tmp_path / "ours", step)
    monkeypatch.setattr(room, "BLOCK_DOCS", 40)
    read = []
    real = ColbertAIIndex.chunk
    monkeypatch.setattr(ColbertAIIndex, "chunk", lambda self, n: read.append(n) or real(self, n))
    convert(source, tmp_path / "ours")
    # 4 blocks of 40, 40, 20 and 40 documents were written: the first chunk is not read again.
    assert read == ({"append": [1, 2]}.get(step, []))
    convert(source, tmp_path / "whole")
    assert snapshot(tmp_path / "ours") == snapshot(tmp_path / "whole")


FILES = ["metadata.json", "centroids.pt", "buckets.pt", "doclens.1.json", "1.codes.pt", "2.residuals.pt"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["truncated", "missing", "swapped"])
def test_a_damaged_source_is_named_and_nothing_is_swapped(tmp_path, name, damage):
    source = written(tmp_path / "theirs")
    file = source / name
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    elif damage == "missing":
        file.unlink()
    else:
        other = written(tmp_path / "other", corpus(280, seed=3), nbits=4)
        if name == "centroids.pt":
            torch.save(torch.zeros(8, 32).half(), file)
        elif name == "metadata.json":
            file.write_text(json.dumps({**json.loads(file.read_text()), "num_embeddings": 5}))
        else:
            shutil.copyfile(other / name, file)
    before = snapshot(source)
    with pytest.raises(UserError) as error:
        convert_index.run([str(source)])
    named = {"doclens.1.json": "codes.pt", "centroids.pt": "codes.pt"}.get(name, name) if damage == "swapped" else name
    assert named in str(error.value), error.value
    assert snapshot(source) == before and not beside(source)[1].exists()
    assert not (beside(source)[0] / "manifest.json").exists()


@pytest.mark.parametrize(("lines", "message"), [
    ([f"d{i}" for i in range(299)], "299 ids, the index holds 300"),
    ([f"d{i}" for i in range(301)], "301 ids"),
    ([f"d{i}" for i in range(299)] + ["d5"], r"'d5' twice \(again in line 300\)"),
    ([f"d{i}" for i in range(299)] + [""], "empty id"),
])  # fmt: skip
def test_wrong_ids(tmp_path, lines, message):
    source = written(tmp_path / "theirs")
    (tmp_path / "ids.txt").write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=message):
        convert_index.run([str(source), "--ids", str(tmp_path / "ids.txt")])
    with pytest.raises(UserError, match="there is no ids file"):
        convert_index.run([str(source), "--ids", str(tmp_path / "none.txt")])
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n" * 300)
    with pytest.raises(UserError, match="not UTF-8"):
        convert_index.run([str(source), "--ids", str(tmp_path / "latin.txt")])
    assert not any(place.exists() for place in beside(source))


def test_no_source(tmp_path):
    with pytest.raises(UserError, match="there is no folder"):
        convert_index.run([str(tmp_path / "none")])
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(UserError, match="its build did not end"):
        convert_index.run([str(tmp_path)])
    ours = tmp_path / "ours"
    convert(written(tmp_path / "theirs"), ours)
    with pytest.raises(UserError, match="nothing to convert"):
        convert_index.run([str(ours)])
