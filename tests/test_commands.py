"""What the commands do beside the straight way: signals, another job's index, limits, original flags and configs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

import train_retrieval
from core.errors import UserError
from runs import (
    convert_checkpoint,
    doctor,
    evaluate_retrieval,
    indexing,
    report,
    run_indexer,
    run_visual_embedder,
)
from runs import search as search_command
from runs.settings import load
from tests import tiny
from tests.test_pipeline import finished, make_config  # noqa: F401 (a fixture)


def config_args(config, *more) -> list[str]:
    return ["--config_path", str(config), *map(str, more)]


# ---- training


def test_a_stopped_run_exits_with_130(finished, tmp_path, monkeypatch, capsys):  # noqa: F811
    _, config = finished
    for stopped, status in ((True, 130), (False, None)):
        outcome = SimpleNamespace(stopped=stopped, step=2, total=4)
        monkeypatch.setattr("training.loop.fit", lambda *a, outcome=outcome, **k: outcome)
        assert train_retrieval.run(config_args(config, f"run.out={tmp_path / 'r'}")) == status
        assert ("stopped by a signal after step 2 of 4" in capsys.readouterr().out) == stopped


def test_limit_caps_the_batch_and_caching_stops_before_training(finished, tmp_path, capsys):  # noqa: F811
    _, config = finished
    out = tmp_path / "r"
    train_retrieval.run(["--config_path", str(config), "--limit", "3", f"run.out={out}"])
    assert "train.batch_size is 3 here" in capsys.readouterr().out
    train_retrieval.run(config_args(config, "--caching", f"run.out={tmp_path / 'other' / 'r'}"))
    assert (tmp_path / "other" / "text_states").is_dir() and not (tmp_path / "other" / "r" / "checkpoints").exists()


def test_a_missing_tracker_is_noticed_before_anything_is_computed(finished, tmp_path, monkeypatch):  # noqa: F811
    _, config = finished
    args = config_args(config, "train.trackers=[wandb]", f"run.out={tmp_path / 'r'}")
    monkeypatch.setitem(sys.modules, "wandb", None)
    computed = []
    monkeypatch.setattr("runs.training.visual_features", lambda *a: computed.append(a))
    with pytest.raises(UserError, match="asks for wandb, which is missing; pip install wandb"):
        train_retrieval.run(args)
    assert not computed
    train_retrieval.run([*args, "--caching"])  # tracks nothing
    assert computed


def test_check_says_what_data_there_is(finished, capsys):  # noqa: F811
    _, config = finished
    train_retrieval.run(config_args(config, "--check"))
    assert "{'train': 18, 'valid': 6} queries, 24 passages" in capsys.readouterr().out
    train_retrieval.run(config_args(config, "--check", "data.path=gone.json"))
    assert "not here yet: gone.json" in capsys.readouterr().out


# ---- indexing


def moved(root: Path, out: Path) -> Path:
    """The run's retriever with other document vectors."""
    import torch

    from models import from_pretrained
    from runs.common import best_checkpoint

    model = from_pretrained(best_checkpoint(root / "run"))
    with torch.no_grad():
        model.text.linear.weight.add_(torch.randn(model.text.linear.weight.shape))
    model.save_pretrained(out)
    return out


def test_overwrite_keeps_the_old_index_until_the_new_is_complete(finished, tmp_path, monkeypatch):  # noqa: F811
    root, config = finished
    place, other = tmp_path / "index", moved(root, tmp_path / "other")
    monkeypatch.setattr("index.stream.BLOCK_DOCS", 4)
    base = config_args(config, f"index.path={place}")
    run_indexer.run(base)
    before = (place / "manifest.json").read_bytes()
    run_indexer.run([*base, "--overwrite"])
    assert (place / "manifest.json").read_bytes() == before, "the same job needs no new build"

    real = indexing.encode_corpus

    def killed(*args, **kwargs):
        for position, item in enumerate(real(*args, **kwargs)):
            if position == 10:
                raise KeyboardInterrupt
            yield item

    monkeypatch.setattr(indexing, "encode_corpus", killed)
    again = [*base, "--checkpoint", str(other), "--overwrite"]
    with pytest.raises(KeyboardInterrupt):
        run_indexer.run(again)
    assert (place / "manifest.json").read_bytes() == before
    skipped = []
    monkeypatch.setattr(
        indexing, "encode_corpus", lambda *a, skip, **k: skipped.append(skip) or real(*a, skip=skip, **k)
    )
    run_indexer.run(again)
    assert skipped == [8], "the two complete blocks of the killed build were not used"
    assert (place / "manifest.json").read_bytes() != before and not place.with_name("index.new").exists()


def test_an_unfinished_index_of_another_job(finished, tmp_path, monkeypatch):  # noqa: F811
    root, config = finished
    place, other = tmp_path / "index", moved(root, tmp_path / "other")
    base = config_args(config, f"index.path={place}")
    run_indexer.run(base)
    (place / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"unfinished.*--overwrite"):
        run_indexer.run([*base, "--checkpoint", str(other)])
    run_indexer.run([*base, "--checkpoint", str(other), "--overwrite"])
    with pytest.raises(UserError, match=r"other index\.options.*--overwrite"):
        run_indexer.run([*base, "--checkpoint", str(other), "index.options.nbits=4"])


# ---- evaluating


def test_answers_that_the_index_lacks_are_named(finished, tmp_path):  # noqa: F811
    root, config = finished
    small = tmp_path / "small.json"
    small.write_text(json.dumps(json.loads((root / "train.json").read_text())[6:]))
    place = f"index.path={tmp_path / 'index'}"
    run_indexer.run(config_args(config, place, f"data.path={small}", "data.test_path=null"))
    with pytest.raises(UserError, match=r"does not hold '.*', the answer of query.*run_indexer"):
        evaluate_retrieval.run(config_args(config, place))


def test_questions_need_no_feature_cache(finished, tmp_path):  # noqa: F811
    root, config = finished
    evaluate_retrieval.run(config_args(config, "data.modality=question", f"visual.cache={tmp_path / 'none'}",
                                       "eval.ablations=[]", f"run.out={tmp_path / 'q'}", "--checkpoint", root / "run",
                                       "--index", root / "run" / "index"))  # fmt: skip
    assert list(json.loads((tmp_path / "q" / "report.json").read_text())["test"]) == ["question"]


@pytest.mark.parametrize("family", ["mire", "colbert"])
def test_vid2r_as_published(finished, tmp_path, monkeypatch, family):  # noqa: F811
    """The README's two lines: one JSON list is corpus and queries, numbered by its long questions."""
    from models import from_pretrained
    from models.originals import save_original
    from runs import original_evaluation
    from runs.common import best_checkpoint

    root, _ = finished
    rows = json.loads((root / "train.json").read_text())
    rows[0]["question"] = "too short"
    Path(tmp_path / "vid2r.json").write_text(json.dumps(rows))
    monkeypatch.chdir(tmp_path)
    if family == "mire":
        flag, weights = "--mire_ckpt", str(save_original(from_pretrained(best_checkpoint(root / "run")), "original"))
    else:
        flag, weights = "--colbert_ckpt", str(tiny.text_tower(tmp_path / "colbert"))
    asked = []
    real = original_evaluation.query_encoder
    monkeypatch.setattr(original_evaluation, "query_encoder", lambda r: asked.append(r.config.eval) or real(r))
    index = ["--exp_name", "vid2r", flag, weights, "--dataset_name", "vid2r", "--all_blocks_file", "vid2r.json"]
    run_indexer.run([*index, "--max_doc_len", "20"])
    judge = ["--dataset_name", "vid2r", flag, weights, "--index_name", "vid2r.nbits=2", "--anno_file", "vid2r.json",
             "--image_dir", str(root / "images"), "--save_path", "results/vid2r.json", "--save_pairs"]  # fmt: skip
    evaluate_retrieval.run(judge)
    assert json.loads(Path("results/vid2r.json").read_text())["Success@100"] == 1.0
    evaluate_retrieval.run([*judge, "--legacy_metrics"])
    assert json.loads(Path("results/vid2r.json").read_text())["R@100"] == 1.0
    pairs = json.loads(Path("results/vid2r_docs.json").read_text())
    assert [p["question_id"] for p in pairs] == [str(i) for i in range(1, 24)]
    assert asked[0].query_maxlen == 64 and asked[0].doc_maxlen == 20
    other = str(tiny.text_tower(tmp_path / "other", seed=3))
    with pytest.raises(UserError, match="another checkpoint"):
        evaluate_retrieval.run([*judge, "--checkpoint", other])
    Path("vid2r.json").write_text(json.dumps(rows * 2))
    with pytest.raises(UserError, match=r"does not hold '25', the answer of query '25'"):
        evaluate_retrieval.run(judge)


# ---- limits of the others


def test_limit_everywhere(finished, tmp_path, capsys):  # noqa: F811
    root, config = finished
    first = evaluate_ids(root)[:2]
    search_command.run(["--limit", "2", "--run", str(root / "run"), "which bird"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line[:2].strip().isdigit()]
    assert {line[2] for line in lines} == set(first)
    report.run(["--limit", "1", "--out", str(tmp_path), str(root / "run"), "nothing"])
    assert "examples of 'test': 6 of 6 queries" in capsys.readouterr().out
    doctor.run(["--limit", "1"])
    assert "nothing to limit" in capsys.readouterr().out
    convert_checkpoint.run(["--limit", "1", "--check", "nothing.pth", str(tmp_path / "out")])
    out = capsys.readouterr().out
    assert "nothing to limit" in out and "missing: nothing.pth" in out
    run_indexer.run(config_args(config, "--limit", "3", f"index.path={tmp_path / 'i'}"))
    with pytest.raises(SystemExit):
        run_indexer.run(config_args(config, "--limit", "0"))


def evaluate_ids(root: Path) -> list[str]:
    from index import open_index

    return list(open_index(root / "run" / "index").ids())


# ---- configs


@pytest.mark.parametrize(("change", "message"), [
    ("train=5", "train: got 5, wants a mapping"),
    ("run=foo", "run: got 'foo', wants a mapping"),
    ("train.out=x", r"write run\.out=x"),
    ("train.device=cpu", r"write run\.device=cpu"),
    ("index.options.nbit=2", r"index\.options\.nbit: unknown; the options of 'plaid' are nbits"),
    ("index.options.nbits=two", r"index\.options\.nbits: got 'two'"),
    ("eval.metrics=[Success@5]", r"'Success@5' but eval\.k is 3"),
    ("eval.metrics=[Hits@1]", r"metric 'Hits@1' is not known"),
])  # fmt: skip
def test_config_errors(finished, change, message):  # noqa: F811
    with pytest.raises(UserError, match=message):
        load(str(finished[1]), [change])


def original(root: Path) -> dict:
    """mire_train_vid2r.yaml with its published values, on tiny towers."""
    return {
        "experiment": {"exp_name": "InBatch", "description": "mire-vid2r-base", "path_suffix": "mire/vid2r/base"},
        "wandb_config": {"enabled": True, "experiment_name": "${experiment.description}"},
        "logger_config": {"logger_out_dir": "logger/${experiment.path_suffix}", "logger_out_file_name": "train.log"},
        "data_config": {
            "dataset_name": "vid2r", "image_size": "224, 224", "hard_neg_num": 0, "in_batch_neg_num": 0,
            "shuffle_cand": True, "returns": None, "nways": 1,
            "vid2r": {"data_path": "data/vid2r/ViD2R_all.json", "img_dir": "data/vid2r/images", "image_cached": True,
                      "valid_samples": 512},
        },
        "dataloader_config": {"num_workers": 0, "train_batch_size": 128, "valid_batch_size": 128},
        "trainer_config": {
            "gradient_accumulation_steps": 1, "eval_steps": 500, "early_stop": 5, "weight_decay": 0.0,
            "num_train_epochs": 5, "learning_rate": 1e-4, "warmup_steps": 300, "frozen": True, "linear_frozen": True,
            "pretrained_checkpoint": "", "print_freq": 10,
        },
        "evaluator": {"enable_eval": True, "eval_freq": 1, "print_freq": 10},
        "model": {
            "short_name": "mire", "gather_embeddings": True, "hidden_size": 768, "num_tokens": 16, "num_heads": 12,
            "colbert_checkpoint": str(root / "text"), "vision_model_name": str(root / "vision"), "pretraining": True,
        },
        "ckpt_config": {"ckpt_dir": "ckpts/x", "resume_training": False, "ckpt_name": ""},
        "seed": 2024,
        "dist_config": {"dist_url": "env://"},
    }  # fmt: skip


def test_a_whole_original_config(tmp_path, capsys):
    path = tmp_path / "original.yaml"
    path.write_text(yaml.safe_dump(original(tmp_path)))
    cfg = load(str(path), ["trainer_config.learning_rate=2e-4", "model.dim=16"])
    assert (cfg.train.batch_size, cfg.train.epochs, cfg.train.lr, cfg.train.warmup_steps) == (128, 5, 2e-4, 300)
    assert cfg.train.gather is False and cfg.train.clip is None and cfg.train.false_negatives == "keep"
    assert cfg.model.num_heads == 12 and cfg.model.dim == 16 and cfg.model.train.rows == ["global", "pooled"]
    assert set(cfg.model.frozen) == {"text", "linear", "vision"} and cfg.model.fresh == ["fusion"]
    assert cfg.data.path.endswith("ViD2R_all.json") and cfg.data.valid_samples == 512
    assert cfg.run.out == "experiments/mire/vid2r/base" and cfg.run.init is None
    assert "model.gather_embeddings" in capsys.readouterr().err


@pytest.mark.parametrize(("section", "key", "value", "message"), [
    ("data_config", "nwayz", 3, "not known: data_config.nwayz"),
    ("trainer_config", "learning_rate", "fast", "learning_rate is 'fast'; write a number"),
    (None, "data_config", None, "dataset_name is missing"),
    (None, "data_config", 3, "data_config is 3; write a mapping"),
    ("data_config", "vid2r", {"data_path": "x", "colour": 1}, "data.colour: unknown key"),
])  # fmt: skip
def test_wrong_original_configs(tmp_path, section, key, value, message):
    raw = original(tmp_path)
    (raw[section] if section else raw)[key] = value
    (tmp_path / "o.yaml").write_text(yaml.safe_dump(raw))
    with pytest.raises(UserError, match=message):
        load(str(tmp_path / "o.yaml"))


# ---- features


def test_a_killed_embedder_keeps_all_but_the_last_shard(tmp_path, monkeypatch):
    import dataset
    from core import features
    from core.store import Store
    from models.towers import images

    config = make_config(tmp_path)
    monkeypatch.setattr(features, "COMMIT_IMAGES", 5)
    real, order = images.read_bytes, [ref.id for ref in dataset.build(load(str(config)).data).images()]

    def killed(ref):
        if ref.id == order[17]:
            raise KeyboardInterrupt
        return real(ref)

    monkeypatch.setattr(images, "read_bytes", killed)
    with pytest.raises(KeyboardInterrupt):
        run_visual_embedder.run(config_args(config))
    assert len(Store(tmp_path / "features")) == 15


def test_a_retriever_without_vision_has_no_features(tmp_path):
    with pytest.raises(UserError, match="'colbert' has no vision tower"):
        run_visual_embedder.run(config_args(make_config(tmp_path, "colbert")))


def test_doctor_without_a_requirements_file(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "__file__", "/nowhere/runs/doctor.py")
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda name: ["torch>=2", 'wandb; extra == "wandb"'])
    assert [name for name, _ in doctor.requirements()] == ["torch"]
