"""Vectors handed to LanceDB, Qdrant and JSON lines, searched there and compared with our exhaustive search."""

from __future__ import annotations

import importlib
import json
import sys

import numpy as np
import pytest

from core.errors import UserError
from index import export as room
from index import open_index
from index.exact import Index as Exact
from index.plaid import Index as Plaid
from runs import export_index
from tests.index_cases import ENCODER, corpus, questions, run_killed, snapshot

DOCS = corpus(150, dim=16)
DOCS[7] = ("doc-7", np.zeros((0, 16), np.float32))
DOCS[8] = ('an "odd"\tid é', DOCS[8][1])
QUERIES = questions(DOCS, 8, 6)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    made = Plaid.build(tmp_path_factory.mktemp("export") / "index", iter(DOCS), dim=16, encoder=ENCODER, nbits=4)
    made.delete(["doc-20", "doc-21"])
    return open_index(made.path)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(room, "BATCH_ROWS", 100)  # several batches


def handed(index, to: str, out) -> None:
    export_index.run(["--index", str(index.path), "--to", to, "--out", str(out)])
    assert out.is_dir() and not out.with_name(out.name + ".new").exists()


def rows(b: int) -> np.ndarray:
    return QUERIES.embeddings[b][QUERIES.mask[b]].numpy()


def same(found: list[tuple[str, float]], ranking) -> None:
    """The same ids but for ties, and the same scores."""
    assert [s for _, s in found] == pytest.approx(list(ranking.scores), abs=1e-4)
    wanted = dict(zip(ranking.ids, ranking.scores))
    assert all(abs(wanted.get(i, ranking.scores[-1]) - s) < 1e-4 for i, s in found)
    assert len({i for i, _ in found} & set(wanted)) >= len(wanted) - 1


def test_json_lines(index, tmp_path, capsys):
    handed(index, "jsonl", tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out" / "documents.jsonl").read_text().splitlines()]
    wanted = [(id_, v) for id_, v in index.vectors() if len(v)]
    assert [line["id"] for line in lines] == [id_ for id_, _ in wanted] and 'an "odd"\tid é' in dict(wanted)
    for line, (_, vectors) in zip(lines, wanted, strict=True):
        assert np.array_equal(np.array(line["vectors"], np.float32), vectors)
    assert "exported: 147 documents" in (out := capsys.readouterr().out) and "1 without vectors left out" in out


def test_lancedb(index, tmp_path):
    lancedb = importlib.import_module("lancedb")
    handed(index, "lancedb", tmp_path / "out")
    table = lancedb.connect(str(tmp_path / "out")).open_table("documents")
    assert table.count_rows() == 147
    stored = {row["id"]: np.array(row["vectors"], np.float32) for row in table.to_arrow().to_pylist()}
    assert all(np.array_equal(stored[id_], vectors) for id_, vectors in index.vectors() if len(vectors))
    for b, ranking in enumerate(index.search(QUERIES, 10, effort="exhaustive")):
        query = rows(b)
        hits = table.search(query, vector_column_name="vectors").distance_type("cosine").limit(10).to_list()
        # Its distance is a constant minus MaxSim: 1 in version 0.24, the number of the query's rows in 0.40.
        constant = ranking.scores[0] + hits[0]["_distance"]
        assert min(abs(constant - 1), abs(constant - len(query))) < 1e-4
        same([(hit["id"], constant - hit["_distance"]) for hit in hits], ranking)


def test_qdrant(index, tmp_path):
    qdrant = importlib.import_module("qdrant_client")
    handed(index, "qdrant", tmp_path / "out")
    client = qdrant.QdrantClient(path=str(tmp_path / "out"))
    try:
        assert client.count("documents").count == 147
        for b, ranking in enumerate(index.search(QUERIES, 10, effort="exhaustive")):
            hits = client.query_points("documents", query=rows(b).tolist(), limit=10).points
            same([(hit.payload["id"], hit.score) for hit in hits], ranking)
    finally:
        client.close()


def test_vectors_of_other_lengths(tmp_path, capsys):
    """Qdrant compares by the dot product, as we do; of LanceDB's cosine there is a note."""
    qdrant = importlib.import_module("qdrant_client")
    long = [(id_, v * (1 + i % 5)) for i, (id_, v) in enumerate(DOCS[:60])]
    index = Exact.build(tmp_path / "i", iter(long), dim=16, encoder=ENCODER)
    handed(index, "qdrant", tmp_path / "q")
    client = qdrant.QdrantClient(path=str(tmp_path / "q"))
    hits = client.query_points("documents", query=rows(0).tolist(), limit=5).points
    same([(hit.payload["id"], hit.score) for hit in hits], index.search(QUERIES, 5)[0])
    client.close()
    assert "cosine" not in capsys.readouterr().err
    importlib.import_module("lancedb")
    handed(index, "lancedb", tmp_path / "l")
    assert "cosine only" in capsys.readouterr().err


def test_limit(index, tmp_path):
    export_index.run(["--index", str(index.path), "--to", "jsonl", "--out", str(tmp_path / "o"), "--limit", "9"])
    assert len((tmp_path / "o" / "documents.jsonl").read_text().splitlines()) == 8  # the eighth has no vectors


def test_a_killed_export_leaves_no_output(index, tmp_path):
    code = """
import sys
from index import export, open_index
export.BATCH_ROWS, made = 100, []
real = export._batches
def killed(index):
    for n, batch in enumerate(real(index)):
        if n == 2:
            die()
        yield batch
export._batches = killed
export.export(open_index(sys.argv[1]), "jsonl", sys.argv[2])
"""
    run_killed(code, index.path, tmp_path / "out")
    assert not (tmp_path / "out").exists() and (tmp_path / "out.new").is_dir()
    handed(index, "jsonl", tmp_path / "out")
    handed(index, "jsonl", tmp_path / "whole")
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "whole")


@pytest.mark.parametrize(
    ("to", "module"), [("lancedb", "lancedb"), ("lancedb", "pyarrow"), ("qdrant", "qdrant_client")]
)
def test_a_missing_library_is_one_sentence(index, tmp_path, monkeypatch, to, module):
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    with pytest.raises(UserError, match=r"needs .*install it with: pip install"):
        export_index.run(["--index", str(index.path), "--to", to, "--out", str(tmp_path / "out")])
    assert list(tmp_path.iterdir()) == []


def test_errors(index, tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="exists already"):
        export_index.run(["--index", str(index.path), "--to", "jsonl", "--out", str(tmp_path / "there")])
    with pytest.raises(UserError, match="there is no index at"):
        export_index.run(["--index", str(tmp_path / "none"), "--to", "jsonl", "--out", str(tmp_path / "o")])
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "spec.json").write_text("{}")
    with pytest.raises(UserError, match="incomplete"):
        export_index.run(["--index", str(tmp_path / "unfinished"), "--to", "jsonl", "--out", str(tmp_path / "o")])
    with pytest.raises(UserError, match="cannot export to 'csv'"):
        room.export(index, "csv", tmp_path / "o")
    nothing = Exact.build(tmp_path / "e", [DOCS[7]], dim=16, encoder=ENCODER)
    with pytest.raises(UserError, match="no document with vectors"):
        room.export(nothing, "jsonl", tmp_path / "o")
    assert not (tmp_path / "o").exists()
