"""Every command of the README. Local ones run (the quickstart as --smoke); hub, GPU and multi-node ones are parsed and
dry-run with --check against tiny local towers."""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import train_retrieval
from tests import tiny

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def commands(kind: str) -> list[str]:
    """Command lines of the blocks that say ``bash <kind>``."""
    blocks = re.findall(rf"```bash {kind}\n(.*?)```", TEXT, re.S)
    return [line for block in blocks for line in block.strip().splitlines()]


def test_every_bash_block_says_how_it_is_tested():
    assert set(re.findall(r"```bash([^\n]*)", TEXT)) == {" run", " check"}
    assert len(commands("run")) >= 8 and len(commands("check")) >= 8


def arguments(line: str):
    """(module name, arguments) of a python command line, behind torch.distributed.run if that starts it."""
    words = shlex.split(line)
    assert words[0] == "python", line
    if "train_retrieval.py" in words:
        return "train_retrieval", words[words.index("train_retrieval.py") + 1 :]
    if "torch.distributed.run" in words:
        words = words[words.index("torch.distributed.run") + 1 :]
    if "-m" in words:
        return words[words.index("-m") + 1], words[words.index("-m") + 2 :]
    return words[1], words[2:]


@pytest.mark.parametrize("line", commands("check"))
def test_commands_that_need_more_than_this_machine(line, tmp_path, monkeypatch, capsys):
    module, words = arguments(line)
    parsed = importlib.import_module(module).arguments().parse_intermixed_args(words)
    if "torch.distributed.run" in line:
        from torch.distributed.run import parse_args

        launch = shlex.split(line)[3:]
        found = parse_args(launch)
        assert found.training_script.removesuffix(".py") == module and found.module == (module != "train_retrieval")
    if not hasattr(parsed, "check"):  # a command whose arguments are all that can be checked before it works
        return
    if module != "train_retrieval":
        importlib.import_module(module).run([*words, "--check"])
        assert re.search("^(check: would|plan: )", capsys.readouterr().out, re.M)
        return
    text, vision = tiny.text_tower(tmp_path / "text", positions=512), tiny.vision_tower(tmp_path / "vision")
    if "fresh: [linear" in Path(parsed.config_path).read_text():
        text = tiny.text_tower(tmp_path / "plain", colbert=False, positions=512)
    changes = [f"model.text_tower={text}", f"model.vision.tower={vision}", "model.dim=16", "run.device=cpu",
               "model.vision.global_layer=-1", "model.vision.patch_layer=-2", "model.vision.grid=null"]  # fmt: skip
    if "name: flmr" in Path(parsed.config_path).read_text():
        lengths = [f"model.{s}.{k}_maxlen=32" for s in ("train", "eval") for k in ("query", "doc")]
        released = ROOT / "tests/golden/preflmr/hub_layout/checkpoint"
        changes = [f"run.init={released}", "model.num_tokens=6", "model.dim=16", "run.device=cpu", *lengths]
    elif "init:" in Path(parsed.config_path).read_text():
        made = tiny.retriever("mire", tmp_path / "init", num_tokens=16, num_heads=12, text_tower=str(text))
        made.save_pretrained(tmp_path / "init" / "m")
        changes += [f"run.init={tmp_path / 'init' / 'm'}"]
    train_retrieval.run([*words, *changes, "--check"])
    assert "trainable parameters" in capsys.readouterr().out


def test_the_quickstart_as_smoke_and_the_stages_on_what_it_made(tmp_path):
    """From the towers to the report. Only the sizes differ from the real thing."""
    env = {**os.environ, "OUT": str(tmp_path / "quick"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        ["bash", "scripts/quickstart.sh", "--smoke"], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    report = json.loads((tmp_path / "quick" / "report.json").read_text())
    assert set(report) == {"test", "test_artwork", "test_country"}
    kinds = {"image+question", "question", "image", "image+question, no image", "image+question, no question"}
    for split, rows in report.items():
        assert set(rows) == kinds, split
        assert {"Success@1", "Success@5", "Success@10", "MRR@10", "nDCG@10", "queries", "ms per query"} <= set(
            rows["image+question"]
        )
    assert (tmp_path / "quick" / "report.png").stat().st_size > 5000
    local = [line for line in commands("run") if line.startswith("python")]
    reuse = [f"run.out={tmp_path / 'quick' / 'image+question'}", f"visual.cache={tmp_path / 'quick' / 'features'}",
             "data.limit=8", "train.steps=4", "train.batch_size=8", "train.warmup_steps=1", "train.eval_every=2",
             "eval.valid_queries=8"]  # fmt: skip
    for line in local:
        words = shlex.split(line)[1:]
        if "--config_path" in words:
            words += reuse
        if "--run" in words:
            words[words.index("--run") + 1] = str(tmp_path / "quick" / "image+question")
        done = subprocess.run([sys.executable, *words], cwd=ROOT, env=env, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"


def test_the_two_commands_are_the_first():
    assert commands("run")[:2] == ["bash scripts/quickstart.sh", "bash scripts/test.sh"]
    assert "scripts/test.sh" in (ROOT / ".ci" / "run").read_text()


ROOMS = "core|models|dataset|training|index|evaluation|runs|docs|cfgs|tests|scripts|benchmarks|data/flagfacts"
PAGES = [ROOT / "README.md", *sorted(p for p in (ROOT / "docs").glob("*.md") if p.name != "LOG.md")]  # a log is history


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_files_that_a_page_names_exist(page):
    for name in re.findall(
        rf"(?<![\w/])((?:{ROOMS})/[\w./]*\w\.(?:py|sh|md|yaml|png|svg|json|txt))\b", page.read_text()
    ):
        assert name == "models/foo.py" or (ROOT / name).exists(), name
