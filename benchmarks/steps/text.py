"""The text case's peer: what sentence-transformers gets, and the quality of both after the same samples."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from peers import runner

from core.files import write_json
from steps import race
from steps.arms import FIRST, WARM, Ours
from steps.setting import Options
from steps.worker import Process

NAME = "sentence-transformers"
SCRIPT = Path(__file__).resolve().parents[1] / "peers" / "run_sentence_transformers.py"
LR, PROJECTION_LR, WARMUP = 5e-5, 2e-4, 0.1
"""Of cfgs/triviawiki_colbert.yaml."""


def start_peer(options: Options, venvs: Path, wheels: Path | None, turns: int, steps: int, quality: int) -> Process:
    """Its process, with our start weights in its own layout and the texts of every turn's batches."""
    from models.multivector import save_sentence_transformers

    python = runner.python_of(NAME, venvs, wheels)
    arm, home = Ours(options), Path(options.home)
    stage = arm.retriever.config.train
    arm.retriever.config = arm.retriever.config.model_copy(update={"eval": stage})
    save_sentence_transformers(arm.retriever, home / "peer-start")
    texts, flops = {}, []
    for turn in range(turns):
        batches = arm.batches(turn, WARM + steps)
        texts[str(turn)] = rows_of(batches, options.nways)
        flops.append(arm.flops(batches[WARM:]))
    if quality:
        texts["quality"] = rows_of(arm.batches(0, quality), options.nways)
    write_json(home / "peer-texts.json", texts)
    given = {
        "model": str(home / "peer-start"), "texts": str(home / "peer-texts.json"), "work": str(home / "peer-work"),
        "scale": 1 / stage.temperature, "device": options.device, "batch": options.batch, "threads": options.threads,
        "flops": flops, "first": min(FIRST, options.batch), "clock": options.clock,
    }  # fmt: skip
    log = home / f"text-{NAME}.log"
    command = [str(python), str(SCRIPT), NAME, json.dumps(given)]
    return Process(NAME, command, log, race.environment(options.threads, options.device))


def rows_of(batches: list, nways: int) -> list[list[str]]:
    """[question, positive, negatives] of every example, in order."""
    return [[e.query.text, e.positive.text, *(d.text for d in e.negatives[: nways - 1])] for b in batches for e in b]


def quality(options: Options, peer: Process, steps: int) -> dict:
    """Train both from the same weights on the same samples; our evaluation judges both on questions of dev."""
    from models.originals import load_original
    from training.loop import fit

    arm, out = Ours(options), Path(options.home) / "quality"
    shutil.rmtree(out, ignore_errors=True)
    judge = judge_of(arm.made.dataset)
    found = {"start": judge(arm.retriever)}
    config = arm.config(steps, 0).model_copy(
        update={"lr": LR, "lr_scale": {"text.linear": PROJECTION_LR / LR}, "warmup_steps": round(WARMUP * steps),
                "schedule": "linear", "out": str(out)}
    )  # fmt: skip
    fit(arm.retriever, arm.made.dataset, config)
    found["ours"] = judge(arm.retriever)
    race.say(f"quality after {steps} steps, ours: {found['ours']}")
    order = {"warmup": round(WARMUP * steps), "lr": LR, "projection_lr": PROJECTION_LR}
    peer.ask("quality", steps=steps, out=str(out / "peer"), **order)
    found[NAME] = judge(load_original(out / "peer"))
    return {"steps": steps, "samples": steps * options.batch, "dev": found}


def judge_of(data, queries: int = 400, documents: int = 1000):
    """A function from a retriever to its metrics on dev questions, by exact MaxSim over some of the passages."""
    from types import SimpleNamespace

    from runs.training import validation

    room = SimpleNamespace(valid_queries=queries, valid_documents=documents)
    validate = validation(SimpleNamespace(eval=room), data, None, None)

    def judge(retriever) -> dict[str, float]:
        import torch

        retriever.stage = "eval"
        with torch.no_grad():
            return {name: round(value, 4) for name, value in validate(retriever.eval()).items()}

    return judge
