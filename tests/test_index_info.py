"""runs.index_info, runs.run_indexer --plan and --backend: what an index is, will be, and who chose it."""

from __future__ import annotations

import functools
import json
import re

import numpy as np
import pytest

import index as room
from core.errors import UserError
from index import estimate, open_index
from index.estimate import Plan, advice, building_bytes, measure, parts, peak_memory, planned_bytes
from runs import evaluate_retrieval, index_info, run_indexer
from runs import search as search_command
from runs.settings import load
from tests.index_cases import ENCODER, cls, corpus, run_killed
from tests.test_index_convert import written
from tests.test_pipeline import finished, make_config  # noqa: F401 (a fixture)

DOCS = corpus(400, dim=32, rows=(8, 20), topics=2000, noise=1.0)
MEAN = sum(len(v) for _, v in DOCS) / len(DOCS)
ID_BYTES = sum(len(i) for i, _ in DOCS) / len(DOCS)
KINDS = [("plaid", {"nbits": 1}), ("plaid", {"nbits": 2}), ("plaid", {"nbits": 4, "max_centroids": 256}),
         ("plaid", {"nbits": 8}), ("exact", {}), ("exact", {"dtype": "float32"})]  # fmt: skip


def plan_of(name: str, options: dict) -> Plan:
    return Plan(len(DOCS), MEAN, 32, name, options, id_bytes=ID_BYTES)


# ---- estimates


@pytest.mark.parametrize(("name", "options"), KINDS)
def test_the_planned_bytes_are_the_built_ones(tmp_path, name, options):
    made = cls(name).build(tmp_path / "i", iter(DOCS), dim=32, encoder=ENCODER, **options)
    real, planned = parts(made.path), planned_bytes(plan_of(name, options))
    assert set(planned) == set(real)
    for part in set(real) - {"lists", "manifest", "codebook"}:
        assert planned[part] == real[part], part
    assert sum(planned.values()) == pytest.approx(sum(real.values()), rel=0.05)
    assert sum(real.values()) == pytest.approx(made.stats()["bytes"], rel=0.02)  # the manifest itself is not in there
    if name == "plaid":
        assert plan_of(name, options).centroids == made.stats()["centroids"]
        assert planned["codebook"] == pytest.approx(real["codebook"], rel=0.05)
        assert real["lists"] <= planned["lists"] < 1.5 * real["lists"]  # four topics a document: many share a list


def test_the_disk_while_building_is_what_lies_there_before_the_manifest(tmp_path):
    code = """
import sys
from index import plaid, plaid_build
from tests.index_cases import ENCODER, corpus
plaid_build.finish = die
docs = corpus(400, dim=32, rows=(8, 20), topics=2000, noise=1.0)
plaid.Index.build(sys.argv[1], iter(docs), dim=32, encoder=ENCODER, nbits=4)
"""
    run_killed(code, tmp_path / "i")
    there = sum(f.stat().st_size for f in (tmp_path / "i").rglob("*") if f.is_file())
    assert building_bytes(plan_of("plaid", {"nbits": 4})) == pytest.approx(there, rel=0.05)


def test_time_grows_with_the_work(tmp_path):
    small = Plan(1000, 20, 32, "plaid", {"nbits": 2})
    large = Plan(100_000, 20, 32, "plaid", {"nbits": 2})
    first, second = measure(small, tmp_path), measure(large, tmp_path)
    assert list(first) == list(second) == ["write vectors", "k-means", "compress", "lists and ids"]
    assert all(second[stage] > 5 * first[stage] > 0 for stage in first)
    assert list(measure(Plan(1000, 20, 32, "exact"), tmp_path)) == ["write vectors"]
    assert list(tmp_path.iterdir()) == []  # the probe leaves nothing


def test_memory_hardly_grows_with_the_corpus():
    few, many = (peak_memory(Plan(n, 80, 128), 10**8) for n in (20_000, 200_000))
    assert 10**8 < few < many <= few + 64 * 180_000


@pytest.mark.parametrize(("change", "message"), [
    ({"documents": 0}, "documents=0"),
    ({"dim": -1}, "dim=-1"),
    ({"options": {"nbits": 3}}, "nbits=3 is not offered"),
    ({"format": "faiss_flat"}, "another library"),
])  # fmt: skip
def test_plans_that_make_no_sense(change, message):
    with pytest.raises(UserError, match=message):
        Plan(**{"documents": 10, "vectors_per_document": 5, "dim": 8, **change})


# ---- --plan


def table(out: str) -> dict[str, str]:
    return {k.strip(): v.strip() for k, v in re.findall(r"^ +(\S.*?) {2,}(\S.*)$", out, re.M)}


def test_plan_without_a_model(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_indexer.run(["--plan", "--documents", "4000", "--vectors_per_document", "12.5", "--dim", "32", "--n_bits", "4"])
    out = capsys.readouterr().out
    assert "4000 documents, 50000 vectors of 32 dimensions, plaid, 4 bits, 2048 centroids" in out
    found = table(out)
    assert found["residuals"] == "0.80 MB" and found["codes"] == "0.10 MB"
    assert {"size", "disk to build", "time", "k-means", "memory, peak"} <= set(found)
    assert "--config_path measures it" in out and list(tmp_path.iterdir()) == []
    run_indexer.run(["--plan", "--documents", "300", "--backend", "auto", "--n_bits", "4"])
    out = capsys.readouterr().out
    assert "exact below 1000" in out and "vectors of 128 dimensions, exact" in out
    with pytest.raises(UserError, match="give --documents"):
        run_indexer.run(["--plan"])


def test_plan_of_a_run(finished, tmp_path, capsys):  # noqa: F811
    root, config = finished
    place = tmp_path / "index"
    words = ["--config_path", str(config), f"index.path={place}", "--plan"]
    run_indexer.run(words)
    out = capsys.readouterr().out
    built = open_index(root / "run" / "index").stats()
    assert f"plan: {built['documents']} documents, {built['vectors']} vectors of {built['dim']} dimensions" in out
    assert "encode (24 tried)" in out and not place.exists()
    planned = float(re.search(r"size +([\d.]+) MB", out)[1])
    assert planned == pytest.approx(sum(parts(root / "run" / "index").values()) / 1e6, abs=0.011)
    run_indexer.run([*words, "--documents", "5000"])
    assert "plan: 5000 documents" in capsys.readouterr().out


# ---- index_info


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return cls("plaid").build(tmp_path_factory.mktemp("info") / "i", iter(DOCS), dim=32, encoder=ENCODER, nbits=4)


def test_info_says_what_it_is(built, capsys):
    assert index_info.run([str(built.path)]) == 0
    out = capsys.readouterr().out
    vectors = sum(len(v) for _, v in DOCS)
    assert "kind       plaid\n" in out and "documents  400, 0 deleted, 0 without vectors, in 1 segment\n" in out
    assert f"vectors    {vectors} of 32 dimensions, 4 bits" in out and "integrity  not checked" in out
    assert re.search(r"residuals .* 16\.00 bytes a vector", out) and re.search(r"codes .* 2\.00 bytes", out)
    assert "advice" not in out
    assert index_info.run([str(built.path), "--json", "--verify"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["documents"] == 400 and facts["problems"] == [] and facts["parts"] == parts(built.path)
    assert facts["folder_bytes"] == sum(f.stat().st_size for f in built.path.rglob("*") if f.is_file())
    assert facts["encoder"] == ENCODER and re.fullmatch(r"[0-9a-f]{16}", facts["encoder_fingerprint"])


def test_info_after_changes_advises(tmp_path, capsys):
    made = cls("plaid").build(tmp_path / "i", iter(DOCS[:200]), dim=32, encoder=ENCODER)
    for start in range(200, 200 + estimate.MANY_SEGMENTS):
        made.add([DOCS[start]])
    made.delete([f"doc-{i}" for i in range(60)])
    index_info.run([str(tmp_path / "i")])
    out = capsys.readouterr().out
    assert "documents  148, 60 deleted, 0 without vectors, in 9 segments" in out
    assert "60 deleted documents (29%)" in out and "9 segments" in out
    made.compact()
    index_info.run([str(tmp_path / "i")])
    assert "advice" not in capsys.readouterr().out


def test_advice_has_a_threshold():
    facts = {"documents": 95, "deleted": 5, "segments": estimate.MANY_SEGMENTS, "format": "plaid"}
    assert advice(facts) == []
    assert len(advice({**facts, "documents": 45})) == 1
    assert len(advice({**facts, "segments": estimate.MANY_SEGMENTS + 1})) == 1


def test_verify_prints_every_problem_and_exits_with_1(tmp_path, capsys):
    made = cls("plaid").build(tmp_path / "i", iter(DOCS), dim=32, encoder=ENCODER)
    file = made.path / "seg-00000" / "residuals.bin"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    (made.path / "seg-00000" / "ids.bin").write_bytes(b"short")
    assert index_info.run([str(made.path)]) == 0
    capsys.readouterr()
    assert index_info.run([str(made.path), "--verify"]) == 1
    out = capsys.readouterr().out
    assert out.count("problem  ") == 2 and "residuals.bin has changed" in out and "ids.bin has 5 bytes" in out
    assert index_info.run([str(made.path), "--verify", "--json"]) == 1
    assert len(json.loads(capsys.readouterr().out)["problems"]) == 2


def test_info_of_other_kinds(tmp_path, capsys):
    theirs = written(tmp_path / "theirs")
    assert index_info.run([str(theirs), "--verify"]) == 0
    out = capsys.readouterr().out
    assert "kind       colbert_ai" in out and "convert_index" in out and "encoder    not known" in out
    made = cls("exact").build(tmp_path / "e", iter(DOCS), dim=32, encoder=ENCODER)
    index_info.run([str(made.path)])
    assert re.search(r"vectors +\d.* MB +64\.00 bytes a vector", capsys.readouterr().out)
    (theirs / "1.codes.pt").unlink()
    assert index_info.run([str(theirs), "--verify"]) == 1
    assert "1.codes.pt' is missing" in capsys.readouterr().out


def test_info_of_no_index(tmp_path):
    with pytest.raises(UserError, match="there is no index at"):
        index_info.run([str(tmp_path / "none")])
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UserError, match="holds no index"):
        index_info.run([str(tmp_path)])
    (tmp_path / "spec.json").write_text("{}")
    with pytest.raises(UserError, match="incomplete"):
        index_info.run([str(tmp_path)])


# ---- which index a run builds and searches


def test_auto_chooses_and_says_so(finished, tmp_path, capsys, monkeypatch):  # noqa: F811
    root, config = finished
    place = tmp_path / "index"
    words = ["--config_path", str(config), f"index.path={place}", "index.name=auto"]
    run_indexer.run(words)
    assert "auto: 24 documents, exact below 1000" in capsys.readouterr().out
    assert open_index(place).stats()["format"] == "exact"
    index_info.run([str(place)])
    assert "kind       exact (chosen automatically: 24 documents, exact below 1000)" in capsys.readouterr().out
    run_indexer.run(words)
    assert "index was complete" in capsys.readouterr().out
    evaluate_retrieval.run([*words, "--checkpoint", str(root / "run"), f"run.out={tmp_path / 'r'}"])
    assert "note:" not in capsys.readouterr().out
    monkeypatch.setattr(room, "AUTO_EXACT_BELOW", 20)
    with pytest.raises(UserError, match=r"another kind \(format: 'exact' there, 'plaid' now\)"):
        run_indexer.run(words)
    run_indexer.run([*words, "--overwrite"])
    facts = open_index(place).stats()
    assert facts["format"] == "plaid" and facts["nbits"] == 2  # index.options of the YAML


def test_backend_replaces_the_yaml(finished, tmp_path, capsys):  # noqa: F811
    root, config = finished
    place = tmp_path / "index"
    words = ["--config_path", str(config), f"index.path={place}"]
    run_indexer.run([*words, "--backend", "exact"])
    out = capsys.readouterr().out
    assert "index.options.nbits is an option of 'plaid' and left out with --backend exact" in out
    assert open_index(place).stats()["format"] == "exact"
    evaluate_retrieval.run([*words, "--checkpoint", str(root / "run"), f"run.out={tmp_path / 'r'}"])
    assert f"index.name is 'plaid', the index '{place}' is of format 'exact'" in capsys.readouterr().out
    search_command.run(["--run", str(root / "run"), "--index", str(place), "-k", "2", "which bird"])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines() if line[:2].strip().isdigit()] == [
        "1",
        "2",
    ]
    with pytest.raises(SystemExit):
        run_indexer.run([*words, "--backend", "annoy"])


@pytest.mark.parametrize(("change", "message"), [
    (["index.name=auto", "index.options.colour=1"], r"index\.options\.colour: unknown; the options of 'auto' are"),
    (["index.options.device=cpu"], r"index\.options\.device: unknown"),
    (["index.effort=slow"], r"index\.effort"),
    (["index.name=nothing"], r"known indexes are exact, faiss_flat, fast_plaid, plaid, auto"),
])  # fmt: skip
def test_wrong_sections(finished, change, message):  # noqa: F811
    with pytest.raises(UserError, match=message):
        load(str(finished[1]), change)
    assert load(str(finished[1]), ["index.effort=colbert", "index.name=auto"]).index.effort == "colbert"


def test_the_device_reaches_the_index(finished, tmp_path, monkeypatch):  # noqa: F811
    from index.plaid import Index
    from runs import indexing

    _, config = finished
    seen = []
    monkeypatch.setattr(indexing, "index_device", lambda device: f"{device}:0")

    def watched(real):
        @functools.wraps(real)  # whose signature says which options there are
        def call(cls, *args, device="none", **more):
            seen.append(device)
            return real(cls, *args, device=device, **more)

        return classmethod(call)

    for name in ("build", "open"):
        monkeypatch.setattr(Index, name, watched(getattr(Index, name).__func__))
    run_indexer.run(["--config_path", str(config), f"index.path={tmp_path / 'i'}", "--device", "cpu"])
    assert len(seen) >= 2 and set(seen) == {"cpu:0"}


def test_where_an_index_computes(monkeypatch):
    import torch

    from runs.indexing import index_device

    devices = [torch.device(d) for d in ("cpu", "mps", "cuda:1")]
    assert [index_device(d) for d in devices] == ["cpu", "cpu", "cuda"]  # alone: all GPUs
    monkeypatch.setattr("core.distributed.world", lambda: 2)
    assert [index_device(d) for d in devices] == ["cpu", "cpu", "cuda:1"]


def test_a_plan_is_near_the_truth_for_single_vectors(tmp_path):
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((3000, 1, 16)).astype(np.float32)
    docs = [(f"doc-{i:04d}", r / np.linalg.norm(r)) for i, r in enumerate(rows)]
    made = cls("plaid").build(tmp_path / "i", iter(docs), dim=16, encoder=ENCODER)
    planned = planned_bytes(Plan(3000, 1, 16, "plaid", {}, id_bytes=8))
    assert sum(planned.values()) == pytest.approx(sum(parts(made.path).values()), rel=0.05)
