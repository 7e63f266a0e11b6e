"""The commands, one after the other, on a tiny data set and tiny towers: what they make, reuse and refuse."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import train_retrieval
from core.errors import UserError
from runs import evaluate_retrieval, run_indexer, run_visual_embedder, search
from tests import tiny

ROOT = Path(__file__).parent.parent


def make_data(root: Path, records: int = 24) -> dict:
    """ViD2R-style records: a coloured picture and a question; the passage names the colour."""
    rng = random.Random(0)
    colors = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 50, 220)}
    rows = []
    for i in range(records):
        name, color = list(colors.items())[i % 3]
        tiny.image(root / "images", f"{i}.png", tuple(min(255, c + rng.randrange(20)) for c in color))
        rows.append({"image": f"{i}.png", "id": f"r{i}", "question": "which bird lives in this country",
                     "document": f"the {name} bird number {i} eats fish, and lives in the snow."})  # fmt: skip
    (root / "train.json").write_text(json.dumps(rows))
    (root / "test.json").write_text(json.dumps(rows[:6]))
    return {"name": "vid2r", "path": str(root / "train.json"), "image_dir": str(root / "images"),
            "test_path": str(root / "test.json"), "valid_samples": 6}  # fmt: skip


def make_config(root: Path, model: str = "mire", **changes) -> Path:
    frozen = ["text", "vision"] if model == "mire" else ["text"]
    config = {
        "run": {"out": str(root / "run"), "device": "cpu"},
        "data": make_data(root),
        "model": tiny.model_section(model, root / "towers", frozen=frozen),
        "visual": {"cache": str(root / "features"), "batch_size": 5},
        "train": {"steps": 4, "batch_size": 4, "lr": 1e-3, "eval_every": 2, "cache_text_states": True},
        "index": {"name": "plaid", "options": {"nbits": 2}},
        "eval": {"k": 3, "metrics": ["Success@1", "Success@3", "MRR@3"], "ablations": ["no image", "no question"]},
        **changes,
    }
    (root / "config.yaml").write_text(yaml.safe_dump(config))
    return root / "config.yaml"


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, Path]:
    """A run that went through every stage; tests only read it."""
    root = tmp_path_factory.mktemp("pipeline")
    config = make_config(root)
    run_visual_embedder.run(["--config_path", str(config)])
    train_retrieval.run(["--config_path", str(config)])
    run_indexer.run(["--config_path", str(config)])
    evaluate_retrieval.run(["--config_path", str(config)])
    return root, config


def test_what_the_stages_leave(finished):
    root, _ = finished
    run = root / "run"
    report = json.loads((run / "report.json").read_text())
    kinds = {"image+question", "image+question, no image", "image+question, no question"}
    assert set(report) == {"test"} and set(report["test"]) == kinds
    for row in report["test"].values():
        assert row["queries"] == 6 and 0 <= row["Success@3"] <= 1 and row["ms per query"] > 0
        low, high = row["Success@3 95%"]
        assert low <= row["Success@3"] <= high
    for suffix in (".trec", ".qrels", ".jsonl", ".examples.json"):
        assert len(list((run / "runs").glob(f"*{suffix}"))) == 3
    best = json.loads((run / "checkpoints" / "best.json").read_text())
    folder = run / "checkpoints" / best["folder"]
    facts = json.loads((folder / "provenance.json").read_text())
    assert facts["config"]["data"]["name"] == "vid2r" and facts["versions"] and facts["train"]["steps"] == 4
    assert (run / "config.yaml").is_file() and (run / "metrics.jsonl").is_file()
    assert list(run.glob("*.png")), "no loss curve"


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_training_from_the_caches_equals_training_from_pixels(finished, tmp_path):
    """Without any cache the losses are the same, up to the caches' half precision."""
    root, config = finished
    extra = [f"run.out={tmp_path / 'other'}", "visual.cache=null", "train.cache_text_states=false"]
    train_retrieval.run(["--config_path", str(config), *extra])
    cached, computed = losses(root / "run"), losses(tmp_path / "other")
    assert len(cached) == 4 and cached == pytest.approx(computed, rel=1e-2)
    assert cached[0] == pytest.approx(computed[0], rel=2e-3)
    assert len(set(cached)) == 4


def test_a_second_run_reuses_everything(finished, capsys):
    root, config = finished
    times = {p: p.stat().st_mtime_ns for p in root.rglob("*") if p.is_file() and p.suffix in (".safetensors", ".npy")}
    assert times
    run_visual_embedder.run(["--config_path", str(config)])
    train_retrieval.run(["--config_path", str(config)])
    run_indexer.run(["--config_path", str(config)])
    evaluate_retrieval.run(["--config_path", str(config), "--reuse"])
    out = capsys.readouterr().out
    assert ", 0 encoded now" in out and "index was complete" in out and "report was complete" in out
    assert times == {p: p.stat().st_mtime_ns for p in times}, "something complete was written again"


def test_search_with_image_question_or_both(finished, capsys):
    root, _ = finished
    image = str(root / "images" / "0.png")
    for query in (["which bird", "--image", image], ["which bird"], ["--image", image]):
        search.run([*query, "--run", str(root / "run"), "-k", "2"])
        lines = [line for line in capsys.readouterr().out.splitlines() if line[:3].strip().isdigit()]
        assert [line.split()[0] for line in lines] == ["1", "2"]
    with pytest.raises(UserError, match="the query is empty"):
        search.run(["--run", str(root / "run")])
    search.run(["which bird", "--run", str(root / "run"), "-k", "1000", "--json"])
    found = json.loads(capsys.readouterr().out)["results"]
    assert [hit["rank"] for hit in found] == list(range(1, len(found) + 1)) and len(
        {hit["id"] for hit in found}
    ) == len(found)
    with pytest.raises(UserError, match="-k 0"):
        search.run(["which bird", "--run", str(root / "run"), "-k", "0"])
    with pytest.raises(UserError, match="is not a run's folder"):
        search.run(["which bird", "--run", str(root / "nothing")])


def test_an_index_of_another_checkpoint_is_refused(finished, tmp_path):
    import torch

    from models import from_pretrained
    from runs.common import best_checkpoint

    root, config = finished
    model = from_pretrained(best_checkpoint(root / "run"))
    with torch.no_grad():
        model.text.linear.weight.add_(1.0)
    model.save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match="text"):
        evaluate_retrieval.run(["--config_path", str(config), "--checkpoint", str(tmp_path / "other")])
    before = (root / "run" / "index" / "manifest.json").read_bytes()
    with pytest.raises(UserError, match="--overwrite"):
        run_indexer.run(["--config_path", str(config), "--checkpoint", str(tmp_path / "other")])
    assert (root / "run" / "index" / "manifest.json").read_bytes() == before, "what was built is lost"


def test_config_errors_name_key_and_remedy(finished, tmp_path):
    _, config = finished
    for override, message in [
        ("model.num_tokns=3", "did you mean 'model.num_tokens'"),
        ("train.lr=fast", "train.lr: got 'fast'"),
        ("data.name=nothing", "known data sets are"),
        ("index.name=nothing", "known indexes are .*exact, .*plaid"),
        ("model.name=nothing", "known retrievers are"),
        ("data.path=nothing.json run.out={new}", "'nothing.json' does not exist"),
    ]:
        with pytest.raises(UserError, match=message):
            train_retrieval.run(["--config_path", str(config), *override.format(new=tmp_path / "r").split()])


def test_a_checkpoint_of_another_family_is_refused(finished, tmp_path):
    _, config = finished
    tiny.retriever("colbert", tmp_path / "t").save_pretrained(tmp_path / "colbert")
    with pytest.raises(UserError, match=r"is a 'colbert', the YAML says model.name 'mire'"):
        run_indexer.run(["--config_path", str(config), "--checkpoint", str(tmp_path / "colbert")])
    with pytest.raises(UserError, match="does not fit the model section"):
        train_retrieval.run(
            ["--config_path", str(config), f"run.init={tmp_path / 'colbert'}", f"run.out={tmp_path / 'r'}"]
        )


def test_phase_b_starts_from_phase_a(finished, tmp_path, capsys):
    root, config = finished
    train_retrieval.run(["--config_path", str(config), f"run.init={root / 'run'}", f"run.out={tmp_path / 'b'}",
                         "model.frozen=[vision]", "model.fresh=[]", "train.cache_text_states=false"])  # fmt: skip
    import torch

    from models import from_pretrained
    from runs.common import best_checkpoint

    a, b = (from_pretrained(best_checkpoint(x)).state_dict() for x in (root / "run", tmp_path / "b"))
    moved = {k for k in a if not torch.equal(a[k], b[k])}
    assert any(k.startswith("text.trunk.") for k in moved) and any(k.startswith("fusion.") for k in moved)
    assert not any(k.startswith("vision.") for k in moved)


def test_broken_images_stop_or_are_listed_by_choice(tmp_path, capsys):
    config = make_config(tmp_path)
    (tmp_path / "images" / "4.png").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"'4\.png' cannot be decoded"):
        run_visual_embedder.run(["--config_path", str(config)])
    run_visual_embedder.run(["--config_path", str(config), "visual.on_error=skip"])
    out = capsys.readouterr().out
    assert "skipped: image '4.png'" in out and "23 images" in out
    with pytest.raises(UserError, match=r"'4\.png' is not in the store"):
        train_retrieval.run(
            ["--config_path", str(config), "visual.on_error=skip", "train.epochs=2", "train.steps=null"]
        )


def test_the_original_flags(finished, tmp_path, monkeypatch, capsys):
    """run_indexer and evaluate_retrieval as the original README calls them, on an original .pth."""
    from models import from_pretrained
    from models.originals import save_original
    from runs.common import best_checkpoint

    root, _ = finished
    monkeypatch.chdir(tmp_path)
    pth = save_original(from_pretrained(best_checkpoint(root / "run")), tmp_path / "original")
    rows = json.loads((root / "test.json").read_text())
    with open("blocks.jsonl", "w") as handle:
        for row in rows:
            handle.write(json.dumps({"id": row["id"], "text": row["document"]}) + "\n")
            row["positive"] = row["id"]
    Path("anno.json").write_text(json.dumps(rows))
    run_indexer.run(["--exp_name", "vid2r", "--n_bits", "4", "--n_ranks", "4", "--all_blocks_file", "blocks.jsonl",
                     "--mire_ckpt", str(pth), "--max_doc_len", "24", "--dataset_name", "vid2r", "--image_dir", "x",
                     "--kmeans_niters", "2"])  # fmt: skip
    assert Path("experiments/vid2r/indexes/vid2r.nbits=4/manifest.json").is_file()
    evaluate_retrieval.run(
        [
            "--mire_ckpt",
            str(pth),
            "--index_name",
            "vid2r.nbits=4",
            "--anno_file",
            "anno.json",
            "--all_blocks_file",
            "blocks.jsonl",
            "--image_dir",
            str(root / "images"),
            "--save_pairs",
            "--legacy_metrics",
            "--save_path",
            "results/x.json",
            "--dataset_name",
            "vid2r",
            "--use_instruction",
        ]
    )
    result = json.loads(Path("results/x.json").read_text())
    assert list(result) == ["P@1", "MRR", "P@5", "R@5", "R@10", "R@20", "R@50", "R@100"] and result["R@100"] == 1.0
    pairs = json.loads(Path("results/x_docs.json").read_text())
    assert len(pairs) == 6 and len(pairs[0]["passages"]) == 5
    err = capsys.readouterr().err
    assert "--n_ranks=4 is accepted and ignored" in err


def test_the_original_embedder_flags(finished, tmp_path):
    root, _ = finished
    run_visual_embedder.run(
        [
            "--model_name",
            str(root / "towers" / "vision"),
            "--data_path",
            str(root / "test.json"),
            "--image_dir",
            str(root / "images"),
            "--batch_size",
            "4",
            "--out",
            str(tmp_path / "f"),
        ]
    )
    from core.store import Store

    assert len(Store(tmp_path / "f")) == 6 and Store(tmp_path / "f").get(["0.png"])[0].shape == (10, 24)


@pytest.mark.parametrize("stage", ["train", "index"])
def test_a_killed_stage_goes_on_where_it_was(finished, tmp_path, stage):
    """SIGKILL while it works; the same command then ends where an undisturbed one ends."""
    root, config = finished
    command = {
        "train": [sys.executable, "train_retrieval.py", "--config_path", str(config), f"run.out={tmp_path / 'run'}",
                  "train.steps=40", "train.save_every=2", "train.eval_every=40", "train.eval_first=false"],
        "index": [sys.executable, "-m", "runs.run_indexer", "--config_path", str(config), "--checkpoint",
                  str(root / "run"), f"index.path={tmp_path / 'index'}"],
    }[stage]  # fmt: skip
    watched = tmp_path / ("run/checkpoints/latest.json" if stage == "train" else "index")
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    end = time.time() + 120
    while not watched.exists() and process.poll() is None and time.time() < end:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert watched.exists()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if stage == "train":
        assert json.loads(watched.read_text())["step"] == 40
        steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
        seen = [s["step"] for s in steps if "loss" in s]
        assert seen == sorted(set(seen)) and seen[-1] == 40, "a step is missing or stands twice"
    else:
        from index.plaid import Index

        assert Index.open(tmp_path / "index").verify() == []
        assert list(Index.open(tmp_path / "index").ids()) == list(Index.open(root / "run" / "index").ids())


def test_two_processes_of_torchrun_equal_one(finished, tmp_path):
    """The README's launch line: two processes with batch 2 take the steps of one process with batch 4."""
    _, config = finished
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "train_retrieval.py"]
    words = ["--config_path", str(config), f"run.out={tmp_path / 'two'}", "train.batch_size=2"]
    done = subprocess.run(run + words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    train_retrieval.run(["--config_path", str(config), f"run.out={tmp_path / 'one'}"])
    two, one = losses(tmp_path / "two"), losses(tmp_path / "one")
    assert len(two) == 4 and two == pytest.approx(one, rel=1e-3)


def test_two_processes_judge_with_half_of_the_index_each(finished, tmp_path):
    root, config = finished
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    words = ["-m", "runs.evaluate_retrieval", "--config_path", str(config), f"run.out={tmp_path}"]
    places = ["--checkpoint", str(root / "run"), "--index", str(root / "run" / "index")]
    done = subprocess.run(run + words + places, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    for name in sorted(p.name for p in (root / "run" / "runs").glob("*.trec")):
        two, one = ((folder / "runs" / name).read_text().splitlines() for folder in (tmp_path, root / "run"))
        assert one and [line.split()[:5] for line in two] == [line.split()[:5] for line in one]
