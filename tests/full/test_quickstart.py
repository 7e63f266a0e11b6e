"""The quickstart at its real size reaches what it promises. About a quarter of an hour on two cores."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_floors(tmp_path):
    out = tmp_path / "quickstart"
    env = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"} | {"OUT": str(out)}
    subprocess.run(["bash", "scripts/quickstart.sh"], cwd=ROOT, env=env, check=True)
    report = json.loads((out / "report.json").read_text())
    both, question, image = (report["test"][k] for k in ("image+question", "question", "image"))
    assert both["Success@5"] >= 0.90 and both["Success@1"] >= 0.70
    assert report["test_artwork"]["image+question"]["Success@5"] >= 0.65
    assert question["Success@5"] <= 0.05 and image["Success@5"] <= 0.25
    assert all(report[split]["image+question"]["queries"] > 700 for split in ("test", "test_artwork", "test_country"))
