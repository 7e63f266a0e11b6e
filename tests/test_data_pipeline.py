"""The papers' data sets through every stage, with tiny towers: features, training, index, judgement."""

from __future__ import annotations

import json

import pytest

import train_retrieval
from runs import evaluate_retrieval, run_indexer, run_visual_embedder
from tests.data_cases import CASES
from tests.test_pipeline import make_config


@pytest.mark.parametrize(("name", "metrics"), [
    ("okvqa", ["PseudoSuccess@1", "PseudoSuccess@5"]),  # judged by answers alone, passages in a file of lines
    ("remuq", ["Success@1", "Success@5"]),  # pictures in one large file, passages in a CSV
])  # fmt: skip
def test_every_stage(name, metrics, tmp_path):
    data = {"name": name, **CASES[name](tmp_path / "data")}
    config = make_config(tmp_path, data=data, eval={"k": 5, "metrics": metrics, "valid_queries": 2})
    words = ["--config_path", str(config)]
    run_visual_embedder.run(words)
    train_retrieval.run(words)
    run_indexer.run(words)
    evaluate_retrieval.run(words)
    (row,) = json.loads((tmp_path / "run" / "report.json").read_text())["test"].values()
    assert row["queries"] == 4
    assert row[metrics[1]] > 0, "of twelve passages five are looked at: none found would be a mistake"
