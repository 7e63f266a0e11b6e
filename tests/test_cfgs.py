"""Every YAML in cfgs: valid, the same recipe in both layouts, nothing in it that no code reads; and the pipelines."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

import dataset
import models
import train_retrieval
from core.config import load_yaml, validate
from core.errors import UserError
from core.legacy import DEAD, FAMILIES, MAP, adapt_yaml
from core.protocols import STAGES
from models.artifacts import check_compatible
from runs import evaluate_retrieval, run_indexer, run_visual_embedder
from runs.settings import load, schema
from tests import tiny
from tests.test_pipeline import make_config
from training.config import CHANGEABLE

ROOT = Path(__file__).resolve().parents[1]
CFGS = ROOT / "cfgs"
FLAT = sorted(
    p for p in CFGS.rglob("*.yaml") if "model" in yaml.safe_load(p.read_text()) and "reference" not in p.parts
)
REFERENCE = sorted((CFGS / "reference").glob("*.yaml"))
OTHER = {"fusions/arms.yaml", "fusions/tuned.yaml"}
"""YAMLs that are changes of a run and no run: the comparison's own tests read them."""

PUBLISHED = {"mire_vid2r", "mire_vid2r_large", "mire_okvqa_gs", "mire_remuq", "mire_evqa", "mire_infoseek",
             "mire_aokvqa", "mire_vl_ict", "sentmire_vid2r", "preflmr_vid2r", "xknow_vid2r", "xknow_okvqa",
             "xknow_okvqa_gs", "xknow_okvqa_gs_hard", "xknow_aokvqa"}  # fmt: skip


def name(path: Path) -> str:
    return str(path.relative_to(CFGS).with_suffix(""))


def published(path: Path) -> str:
    """The flat YAML's name of an original one."""
    return path.stem.replace("_train", "").replace("m2kr_", "")


def test_all_files_are_of_a_known_kind():
    assert {p.stem for p in FLAT if p.parent == CFGS} >= PUBLISHED
    assert {published(p) for p in REFERENCE} == PUBLISHED
    rest = {str(p.relative_to(CFGS)) for p in CFGS.rglob("*.yaml")} - {
        str(p.relative_to(CFGS)) for p in [*FLAT, *REFERENCE]
    }
    assert rest <= OTHER


@pytest.mark.parametrize("path", [*FLAT, *REFERENCE], ids=name)
def test_valid(path):
    load(str(path))


RUNS = [p for p in FLAT if p.parent == CFGS]
FLMR = {"flmr_wit", "flmr_okvqa", "preflmr_stage1", "preflmr_stage2_evqa", "preflmr_stage3", "preflmr_finetune_evqa"}


@pytest.mark.parametrize("path", RUNS, ids=name)
def test_the_command_stands_in_the_header(path):
    header = path.read_text().partition("\nrun:")[0]
    assert set(header.splitlines()) == {line for line in header.splitlines() if line.startswith("#") or not line}
    assert f"train_retrieval.py --config_path cfgs/{path.name}" in header
    assert set(re.findall(r"cfgs/[\w/]+\.yaml", header)) <= {f"cfgs/{p.relative_to(CFGS)}" for p in FLAT}


def test_a_phase_fits_the_one_it_starts_from():
    runs = {load_yaml(p)["run"]["out"]: p for p in RUNS}
    assert len(runs) == len(RUNS), "two YAMLs write to one folder"
    chains = {p: runs[init] for p in RUNS if (init := load_yaml(p)["run"].get("init")) in runs}
    assert {p.stem for p in chains} >= {"flmr_okvqa", "preflmr_stage2_evqa", "preflmr_stage3", "mire_evqa"}
    for path, first in chains.items():
        there, wanted = load(str(first)).model, load(str(path)).model
        check_compatible(there, wanted, f"{path.name}: run.init")
        assert wanted.fresh == []


def test_flmr_learns_as_published():
    """One cross-entropy over a batch's documents, towers of images frozen; the fine-tuning's numbers."""
    for path in (CFGS / f"{stem}.yaml" for stem in FLMR):
        cfg = load(str(path))
        assert cfg.model.name == "flmr" and "vision" in cfg.model.frozen and cfg.model.eval.doc_maxlen == 512
        assert cfg.train.nways == 1 or cfg.train.hard_negatives == "in_batch"
        assert getattr(cfg.data, "random_negatives", 0) == cfg.train.nways - 1
        assert cfg.index.options == {"nbits": 8}
    cfg = load(str(CFGS / "preflmr_finetune_evqa.yaml"))
    train = cfg.train.model_dump()
    told = {"batch_size": 8, "accumulation": 8, "lr": 5e-6, "warmup_steps": 100, "precision": "bf16", "seed": 42,
            "schedule": "constant", "gather": False, "nways": 5, "weight_decay": 0.01}  # fmt: skip
    assert {key: train[key] for key in told} == told and cfg.model.frozen == ["vision"]
    assert (cfg.model.train.query_maxlen, cfg.data.subset, cfg.train.metric) == (32, "EVQA", "Success@5")
    assert load(str(CFGS / "preflmr_stage1.yaml")).model.train.rows == ["global", "mapped"]
    assert load(str(CFGS / "flmr_wit.yaml")).model.train.rows == ["global"]


@pytest.mark.parametrize("path", REFERENCE, ids=name)
def test_every_dead_key_has_one_line_with_its_reason(path, capsys, monkeypatch):
    raw = load_yaml(path)
    adapt_yaml(raw)
    notes = [line for line in capsys.readouterr().err.splitlines() if line]
    keys = {f"{section}.{key}" for section, values in raw.items() if isinstance(values, dict) for key in values}
    dead = keys & set(DEAD)
    dead |= {f"data_config.{block}.image_size" for block, values in raw["data_config"].items()
             if isinstance(values, dict) and "image_size" in values}  # fmt: skip
    assert len(dead) > 15 and {line.split()[1] for line in notes} == dead and len(notes) == len(dead)
    assert all(line.split(" has no effect here: ")[1] for line in notes)
    monkeypatch.setenv("RANK", "1")
    adapt_yaml(raw)
    assert capsys.readouterr().err == "", "one process says it for all"


def recipe(raw: dict) -> dict:
    """What decides the weights, defaults filled in: not where things lie, nor how often something is measured."""
    kinds = {key: kind for key, kind in schema().items() if key in ("model", "train")}
    sections = validate({"model": raw["model"], "train": {**raw["train"], "out": ""}}, kinds)
    model, train = (sections[k].model_dump() for k in ("model", "train"))
    model["valid"] = model["valid"] or model["train"]
    model["frozen"] = sorted(model["frozen"])
    train = {k: v for k, v in train.items() if k not in CHANGEABLE - {"steps", "epochs"}}
    return {"model": model, "train": train, "data": raw["data"], "init": bool(raw["run"].get("init"))}


@pytest.mark.parametrize("path", REFERENCE, ids=name)
def test_the_original_layout_and_ours_are_the_same_recipe(path):
    theirs, ours = adapt_yaml(load_yaml(path)), load_yaml(CFGS / f"{published(path)}.yaml")
    assert recipe(theirs) == recipe(ours)
    cache = theirs.get("visual", {}).get("cache")  # only some of the originals asked for one, ours all do
    assert cache in (None, ours["visual"]["cache"])


def test_a_difference_would_be_seen():
    ours = load_yaml(CFGS / "mire_vid2r.yaml")
    for section, key, value in (("train", "lr", 2e-4), ("model", "num_tokens", 32), ("data", "valid_samples", 5)):
        assert recipe({**ours, section: {**ours[section], key: value}}) != recipe(ours)


def test_unknown_family():
    raw = load_yaml(REFERENCE[0])
    with pytest.raises(UserError, match=r"short_name is 'vista'; known are mire, sent_mire, xknow, preflmr"):
        adapt_yaml({**raw, "model": {**raw["model"], "short_name": "vista"}})


# ---- every key is read


def fields(cls: type[BaseModel]) -> set[str]:
    """Field names of a section and of the sections inside it."""
    found = set()
    for key, field in cls.model_fields.items():
        found.add(key)
        for kind in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                found |= fields(kind)
    return found


def reads(path: Path) -> set[str]:
    """Names that a file reads as attributes of something, outside of the config classes themselves; and those that a
    config class looks up to fill in other keys."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.ClassDef) and any(
            ast.unparse(base).split(".")[-1] in ("Strict", "Config", "Stage") for base in node.bases
        ):
            found.update(re.findall(r"""\braw\.get\(['"](\w+)['"]""", ast.unparse(node)))
            return
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            found.add(node.attr)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr":
            what = node.args[1]
            if isinstance(what, ast.Constant):
                found.add(str(what.value))
            elif ast.unparse(what) == "self.stage":  # the stage's own section
                found.update(STAGES)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return found


def section_of(which: str) -> tuple[type[BaseModel], list[Path]]:
    """A section's class, and the files that may read it."""

    def files(*rooms: str) -> list[Path]:
        return [p for room in (*rooms, "runs") for p in sorted((ROOT / room).rglob("*.py"))] + [
            ROOT / "train_retrieval.py"
        ]

    kind, _, name = which.partition(" ")
    if kind == "model":
        return models.module(name).Config, files("models", "core")
    if kind == "data":
        own = ROOT / "dataset" / f"{name}.py"
        shared = [ROOT / "dataset" / f"{helper}.py" for helper in dataset.HELPERS
                  if f"from dataset.{helper} import" in own.read_text(encoding="utf-8")]  # fmt: skip
        return dataset.module(name).Config, [own, *shared, *files()]
    return schema()[kind], files("training") if kind == "train" else files()


@pytest.mark.parametrize("section", [
    "run", "visual", "train", "index", "eval", *(f"model {m}" for m in models.names()),
    *(f"data {d}" for d in dataset.names())])  # fmt: skip
def test_every_key_of_every_section_is_read(section):
    cls, files = section_of(section)
    unread = fields(cls) - set().union(*map(reads, files))
    assert not unread, f"{section}: nothing reads {sorted(unread)}"


def test_a_key_that_nothing_reads_would_be_seen(tmp_path):
    (tmp_path / "m.py").write_text("class Config(Strict):\n    def check(self): return self.dead\nx = cfg.alive\n")
    assert reads(tmp_path / "m.py") == {"alive"}


def test_every_original_key_goes_to_one_of_ours():
    ours = {f"{s}.{f}" for s in ("run", "train") for f in schema()[s].model_fields}
    for model in FAMILIES.values():
        ours |= {f"model.{f}" for f in models.module(model).Config.model_fields}
    ours |= {"model.vision.tower"}
    assert {target for target, _ in MAP.values()} <= ours


# ---- the pipelines


@pytest.fixture
def script(tmp_path):
    """A pipeline run with a python that writes down its arguments, and refuses those that name ReMuQ: (status, stderr,
    calls). The calls are then made in this process, which spares starting Python a dozen times."""
    stub, log = tmp_path / "venv" / "bin" / "python", tmp_path / "calls.jsonl"
    stub.parent.mkdir(parents=True)
    stub.write_text(
        f"#!{sys.executable} -S\nimport json, sys\nopen({str(log)!r}, 'a').write(json.dumps(sys.argv[1:]) + '\\n')\n"
        "sys.exit(2 if any('remuq' in word for word in sys.argv) else 0)\n"
    )
    stub.chmod(0o755)
    listed = b"".join((ROOT / f).read_bytes() for f in ("requirements-quickstart.txt", "requirements.txt"))
    stamp = subprocess.run(["cksum"], input=listed, capture_output=True, check=True).stdout.split()[0].decode()
    (tmp_path / "venv" / f"installed-{stamp}").touch()

    def run(which: str, *words: str, **env: str):
        log.write_text("")
        full = {**os.environ, "NPROC": "1", "VENV": os.path.relpath(tmp_path / "venv", ROOT), **env}
        done = subprocess.run(["bash", f"scripts/{which}_inbatch.sh", *words], cwd=ROOT, env=full, capture_output=True,
                              text=True)  # fmt: skip
        return done.returncode, done.stderr, [json.loads(line) for line in log.read_text().splitlines()]

    return run


COMMANDS = {"runs.run_visual_embedder": run_visual_embedder.run, "train_retrieval.py": train_retrieval.run,
            "runs.run_indexer": run_indexer.run, "runs.evaluate_retrieval": evaluate_retrieval.run}  # fmt: skip


def replay(calls: list[list[str]]) -> None:
    for words in calls:
        words = words[1:] if words[0] == "-m" else words
        COMMANDS[words[0]](words[1:])


def test_pretraining_then_zero_shot_then_finetuning(script, tmp_path):
    """Phase A, its weights and its tower (grid 1) on another YAML's data, phase B. An absent data set costs no other
    result and is named."""
    config = make_config(tmp_path)
    changes = ["train.steps=2", "train.eval_every=2", "eval.ablations=[]", "model.vision.grid=1"]
    status, stderr, calls = script("pretrain_mire", "model.train.rows=[global,pooled]", *changes, CONFIG=str(config),
                                   OUT=str(tmp_path / "a"), ZERO_SHOT=f"cfgs/mire_remuq.yaml {config}")  # fmt: skip
    assert status == 1 and stderr.strip().endswith("for the reasons above: cfgs/mire_remuq.yaml")
    refused = [words for words in calls if "cfgs/mire_remuq.yaml" in words]
    assert len(refused) == 1 and len(calls) == 8
    replay([words for words in calls if words not in refused])
    assert (tmp_path / "a" / "report.json").is_file()
    assert (tmp_path / "a" / "zero_shot" / "config" / "report.json").is_file()
    assert not (tmp_path / "a" / "zero_shot" / "config" / "checkpoints").exists(), "nothing more was trained"
    status, stderr, calls = script("finetune_mire", f"run.init={tmp_path / 'a'}", "model.fresh=[]", *changes,
                                   CONFIG=str(config), OUT=str(tmp_path / "b"))  # fmt: skip
    assert status == 0 and len(calls) == 4, stderr
    replay(calls)
    assert (tmp_path / "b" / "report.json").is_file()


@pytest.mark.parametrize("which", ["pretrain_mire", "pretrain_xknow", "finetune_mire", "finetune_xknow"])
def test_check_makes_nothing(which, script, tmp_path, capsys):
    model = "ret_xknow" if "xknow" in which else "mire"
    config = make_config(tmp_path)
    raw = yaml.safe_load(config.read_text())
    raw["model"] = tiny.model_section(model, tmp_path / "towers", frozen=["text", "vision"])
    config.write_text(yaml.safe_dump(raw))
    status, stderr, calls = script(which, "--check", CONFIG=str(config), OUT=str(tmp_path / "out"), ZERO_SHOT="")
    assert status == 0 and all("--check" in words for words in calls), stderr
    replay(calls)
    out = capsys.readouterr().out
    assert out.count("check: ") == 4 and f"{model}: " in out
    assert not (tmp_path / "out").exists() and not (tmp_path / "features").exists()


def test_defaults_processes_and_wrong_words(script):
    for which, config in (("pretrain_mire", "mire_vid2r"), ("pretrain_xknow", "xknow_vid2r"),
                          ("finetune_mire", "mire_okvqa_gs"), ("finetune_xknow", "xknow_okvqa_gs")):  # fmt: skip
        calls = script(which, NPROC="2")[2]
        named = [word for words in calls for word in words if word.endswith(".yaml")]
        assert named[0] == f"cfgs/{config}.yaml" and all((ROOT / word).is_file() for word in named)
        assert f"run.out=experiments/{config}" in calls[1]
        assert calls[1][:4] == ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    status, stderr, calls = script("finetune_mire", "--chek")
    assert status == 2 and "usage: " in stderr and not calls
