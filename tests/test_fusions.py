"""The comparison's own logic: which runs there are, and exact search with shared rows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from fusions import plan
from fusions.exact import Corpus, distinct_rows
from fusions.teacher import teacher_scores

from core.maxsim import maxsim
from core.tokens import TokenBatch
from tests import tiny

ROOT = Path(__file__).resolve().parents[1]


def vectors(lengths: list[int], dim: int = 8, seed: int = 0) -> list[torch.Tensor]:
    made = torch.Generator().manual_seed(seed)
    return [normalize(torch.randn(n, dim, generator=made), dim=-1) for n in lengths]


def test_exact_search_is_maxsim_whatever_the_blocks(monkeypatch):
    documents, queries = vectors([3, 1, 5, 3, 3, 9, 1, 5], seed=1), vectors([4, 2, 7, 4], seed=2)
    queries[3][:2] = queries[0][:2]  # shared rows
    truth = maxsim(TokenBatch.pad(queries), TokenBatch.pad(documents))
    for document_rows, query_rows in ((4096, 512), (6, 3), (1, 1)):
        monkeypatch.setattr("fusions.exact.DOCUMENT_ROWS", document_rows)
        monkeypatch.setattr("fusions.exact.QUERY_ROWS", query_rows)
        corpus = Corpus((f"d{i}", d.numpy()) for i, d in enumerate(documents))
        assert torch.allclose(corpus.scores(queries), truth, atol=1e-5)
        for ranking, scores in zip(corpus.search(queries, 3), truth):
            assert ranking.ids == tuple(f"d{i}" for i in scores.argsort(descending=True)[:3].tolist())
            assert ranking.scores == pytest.approx(scores.sort(descending=True).values[:3].tolist(), abs=1e-5)


def test_equal_documents_come_in_the_order_of_the_corpus_and_empty_ones_last():
    [document] = vectors([3])
    items = [("empty", np.zeros((0, 8), np.float32)), *((f"d{i}", document.numpy()) for i in range(5))]
    [ranking] = Corpus(items).search([document[:2]], 4)
    assert ranking.ids == ("d0", "d1", "d2", "d3")
    [everything] = Corpus(items).search([-document[:2]], 6)
    assert everything.ids[-1] == "empty"


def test_distinct_rows():
    rows = torch.tensor([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    found, index = distinct_rows(rows)
    assert found.tolist() == [[1, 2], [3, 4], [5, 6]] and index.tolist() == [0, 1, 0, 1, 2]
    assert torch.equal(found[index], rows)


def configs(root: Path) -> Path:
    """cfgs/fusions with tiny towers in place of the real ones, FlagFacts alone."""
    text, vision = tiny.text_tower(root / "text", colbert=False), tiny.vision_tower(root / "vision", side=7)
    (root / "configs").mkdir()
    for name in ("flagfacts", "arms"):
        made = (ROOT / "cfgs/fusions" / f"{name}.yaml").read_text()
        for real, small in {
            "ckpts/minilm-l6": str(text), "ckpts/dinov2-small": str(vision), "global_layer: 11": "global_layer: -1",
            "patch_layer: 11": "patch_layer: -2", "name: flagfacts": f"name: flagfacts\n  root: {ROOT}/data/flagfacts",
        }.items():  # fmt: skip
            made = made.replace(real, small)
        (root / "configs" / f"{name}.yaml").write_text(made)
    return root / "configs"


def test_the_smoke_run_trains_judges_and_reports(tmp_path):
    arms = ["mire_legacy", "mire_clean_pre", "preflmr", "plus_gate", "plus_teacher"]
    page = tmp_path / "page.md"
    blocks = ["arms-flagfacts", "pairs-flagfacts", "cost"]
    page.write_text("\n".join(f"<!-- {b} -->\nold\n<!-- /{b} -->" for b in blocks))
    command = [sys.executable, "benchmarks/compare_fusions.py", "--smoke", "--configs", str(configs(tmp_path))]
    command += ["--out", str(tmp_path / "out"), "--data", "flagfacts", "--processes", "1", "--docs", str(page)]

    def go() -> str:
        made = subprocess.run([*command, "--arms", *arms], cwd=ROOT, capture_output=True, text=True)
        assert made.returncode == 0, made.stderr[-2000:]
        return made.stdout

    assert go().count("Success@5") == len(arms)
    found = json.loads((tmp_path / "out/results.json").read_text())["flagfacts"]
    # mire_legacy_64 is judged on mire_legacy's weights without a run of its own.
    assert set(found["arms"]) == {*arms, "mire_legacy_64"}
    assert [(p["ours"], p["theirs"]) for p in found["pairs"]] == [("mire_legacy_64", "mire_legacy")]
    rows = {name: arm["query_rows"] for name, arm in found["arms"].items()}
    assert rows["mire_legacy_64"] > rows["mire_legacy"]  # tiny towers spell words: questions fill more than 28 places
    assert rows["mire_legacy"] == rows["mire_clean_pre"]  # masked rows never count
    assert rows["preflmr"] == 28 + 32 + 49  # of the question, of the image, of its patches
    text = page.read_text()
    assert "old" not in text and "`plus_gate`" in text
    assert page.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "Success@5" not in go(), "finished runs were run again"


def test_phase_a_takes_its_share_of_the_steps_and_sees_visual_rows_only(tmp_path):
    made = plan.load(configs(tmp_path), tmp_path / "out", ["flagfacts"])
    first, second = made.phases("flagfacts", "mire_clean_pre", 2)
    [whole] = made.phases("flagfacts", "mire_clean", 2)
    assert first["train"]["steps"] + second["train"]["steps"] == whole["train"]["steps"]
    assert first["model"]["train"]["rows"] == ["global", "pooled"] and "rows" not in second["model"]["train"]
    assert {"text", "linear"} <= set(first["model"]["frozen"]) and "linear" not in second["model"]["frozen"]
    assert second["run"]["init"] == first["run"]["out"]


def test_arms_that_judge_anothers_weights_are_no_runs(tmp_path):
    made = plan.load(configs(tmp_path), tmp_path / "out", ["flagfacts"])
    runs = made.runs([1, 2])
    assert ("flagfacts", "mire_legacy_64", 1) not in runs and ("flagfacts", "mire_legacy", 1) in runs
    assert [seed for *_, seed in runs] == sorted(seed for *_, seed in runs)
    assert all(made.arm(a.weights_of) for a in made.arms.values() if a.weights_of)


def test_a_passage_teaches_that_its_likes_are_better_wrong_answers():
    torch.manual_seed(0)
    rows = normalize(torch.randn(4, 5, 8), dim=-1)
    rows[2, :4] = rows[0, :4]  # the second query's positive shares four rows of five with the first's
    mask = torch.ones(4, 5, dtype=torch.bool)
    mask[0, 4] = False  # a row that does not count
    scores = teacher_scores(TokenBatch(rows, mask), nways=2)
    assert scores.shape == (2, 4)
    assert scores[0, 0].item() == pytest.approx(1) and scores[0, 2].item() == pytest.approx(1)
    assert scores[0, 1] < 0.9 and scores[0, 3] < 0.9
    assert scores[1, 2].item() == pytest.approx(1)
