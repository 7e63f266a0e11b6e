"""YAML keys of the original MIRe and Ret-XKnow configs, mapped onto ours. Each dead key gets a line with the reason."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from core.errors import UserError

SECTIONS = {"experiment", "wandb_config", "logger_config", "data_config", "dataloader_config", "trainer_config",
            "evaluator", "ckpt_config", "dist_config"}  # fmt: skip
"""Top-level keys by which an original config is recognised."""

MAP = {
    "experiment.path_suffix": ("run.out", lambda v: f"experiments/{v}"),
    "data_config.nways": ("train.nways", int),
    "dataloader_config.train_batch_size": ("train.batch_size", int),
    "dataloader_config.num_workers": ("train.num_workers", int),
    "trainer_config.gradient_accumulation_steps": ("train.accumulation", int),
    "trainer_config.num_train_epochs": ("train.epochs", int),
    "trainer_config.learning_rate": ("train.lr", float),
    "trainer_config.warmup_steps": ("train.warmup_steps", int),
    "trainer_config.weight_decay": ("train.weight_decay", float),
    "trainer_config.pretrained_checkpoint": ("run.init", lambda v: v or None),
    "evaluator.print_freq": ("train.log_every", int),
    "seed": ("train.seed", int),
    "wandb_config.enabled": ("train.trackers", lambda v: ["wandb"] if v else []),
    "wandb_config.experiment_name": ("train.run_name", str),
    "model.colbert_checkpoint": ("model.text_tower", str),
    "model.vision_model_name": ("model.vision.tower", str),
    "model.num_tokens": ("model.num_tokens", int),
    "model.num_heads": ("model.num_heads", int),
    "model.kernel_size": ("model.kernel_size", int),
}

ELSEWHERE = {"model.short_name", "model.pretraining", "trainer_config.frozen", "data_config.dataset_name",
             "experiment.description", "experiment.exp_name"}  # fmt: skip
"""Keys that ``adapt_yaml`` reads itself."""

FAMILIES = {"mire": "mire", "sent_mire": "mire", "xknow": "ret_xknow", "preflmr": "mire_preflmr"}
"""model.short_name -> model.name. SentMIRe is MIRe on another kind of text tower."""

VISUAL_ROWS = {"mire": ["global", "pooled"], "ret_xknow": ["global", "cell"], "mire_preflmr": ["global", "mapped"]}

BLOCKS = {"vid2r", "vl_ict", "okvqa", "okvqa_gs", "remuq", "m2kr", "aokvqa", "infoseek", "fvqa", "webqa"}
"""Blocks of data_config, one per data set; ``dataset_name`` chooses one, the data section's class judges its keys."""

BLOCK_OF = {"okvqa_gs": "okvqa", "evqa": "m2kr", "infoseek": "m2kr", "oven": "m2kr"}
"""dataset_name -> the block it reads when there is none of its own name."""

INFERENCE = {"query_maxlen": 64, "doc_maxlen": 384}
"""Lengths of every index, evaluation and demo of the originals."""

PUBLISHED = {"train.gather": False, "train.clip": None, "train.false_negatives": "keep"}
"""What the originals did without a key for it, where our default is another."""

BY_ANSWERS = {"okvqa", "okvqa_gs"}
"""Data sets whose test questions are judged by their answers alone: P@1, MRR@5, P@5, and R@5 to R@100 as published."""

ANSWER_METRICS = ["PseudoSuccess@1", "PseudoMRR@5", "PseudoPrecision@5", "PseudoSuccess@5", "PseudoSuccess@10",
                  "PseudoSuccess@20", "PseudoSuccess@50", "PseudoSuccess@100"]  # fmt: skip

_UNREAD = "the original never read it"
_FOLDER = "everything of a run is in run.out"
_RESUME = "a run that was killed goes on by itself (train.resume)"
_LAUNCH = "torchrun sets it"
DEAD = {
    "data_config.image_size": "the vision tower's image processor says it",
    "data_config.hard_neg_num": _UNREAD,
    "data_config.in_batch_neg_num": _UNREAD,
    "data_config.shuffle_cand": _UNREAD,
    "data_config.returns": _UNREAD,
    "trainer_config.eval_steps": f"{_UNREAD}; train.eval_every says how often to validate",
    "trainer_config.early_stop": _UNREAD,
    "trainer_config.print_freq": "evaluator.print_freq was the one that counted",
    "trainer_config.linear_frozen": "the original read it from another place; trainer_config.frozen freezes it too",
    "evaluator.enable_eval": _UNREAD,
    "evaluator.eval_freq": "train.eval_every says how often to validate, in steps",
    "model.gather_embeddings": f"{_UNREAD}; train.gather shares negatives between processes",
    "model.hidden_size": "the text tower says it",
    "logger_config.logger_out_dir": _FOLDER,
    "logger_config.logger_out_file_name": _FOLDER,
    "dataloader_config.valid_batch_size": "validation retrieves and has no batches of negatives",
    "ckpt_config.ckpt_dir": _FOLDER,
    "ckpt_config.resume_training": _RESUME,
    "ckpt_config.ckpt_name": _RESUME,
    "dist_config.dist_url": _LAUNCH,
    "dist_config.gpu_id": _LAUNCH,
    "dist_config.distributed_mode": _LAUNCH,
}
"""Keys that the originals never read, or that this project decides by itself: the reason for the warning."""


def adapt_yaml(raw: dict) -> dict:
    """An original config as one of ours; ours passes through untouched."""
    if not is_original(raw):
        return raw
    data = _mapping(raw, "data_config")
    flat = dict(_flatten({**raw, "data_config": {k: v for k, v in data.items() if k not in BLOCKS}}))
    out: dict[str, Any] = {}
    for key, value in PUBLISHED.items():
        _put(out, key, value)
    dead, unknown = [], []
    for key, value in flat.items():
        if key in MAP:
            target, convert = MAP[key]
            try:
                _put(out, target, convert(value))
            except (TypeError, ValueError):
                raise UserError(f"{key} is {value!r}; write {_WANTS.get(convert, 'a text')}.") from None
        elif key in DEAD:
            dead.append(key)
        elif key not in ELSEWHERE:
            unknown.append(key)
    if unknown:
        raise UserError(f"the original config has keys that are not known: {', '.join(unknown)}; remove them.")
    short = flat.get("model.short_name", "mire")
    if short not in FAMILIES:
        raise UserError(f"model.short_name is '{short}'; known are {', '.join(FAMILIES)}.")
    _phase(out, short, bool(flat.get("model.pretraining", False)), bool(flat.get("trainer_config.frozen", False)))
    if out.get("run", {}).get("init"):
        _put(out, "model.fresh", [])  # the checkpoint holds every weight
    out["data"], cached, unused = _data(data)
    dead += unused
    if out["data"]["name"] in BY_ANSWERS:
        out["eval"] = {"k": 100, "metrics": list(ANSWER_METRICS)}
    if out.get("train", {}).get("nways", 1) > 1:
        out["data"]["hard_negatives"] = out["train"]["nways"] - 1
    if cached:
        tower = out["model"].get("vision", {}).get("tower", "vision")
        _put(out, "visual.cache", f"experiments/features/{PurePosixPath(tower).name}")
    if os.environ.get("RANK", "0") == "0":
        for key in sorted(dead):
            reason = DEAD.get(key, DEAD["data_config.image_size"])  # a data set's block has an image_size too
            print(f"note: {key} has no effect here: {reason}", file=sys.stderr)
    return out


def is_original(raw: Mapping[str, Any]) -> bool:
    return bool(SECTIONS & set(raw))


def is_original_key(path: str) -> bool:
    """Whether a dotted path is one of the originals' and none of ours."""
    if path in MAP:
        return MAP[path][0] != path
    return path.split(".")[0] in SECTIONS or path in ELSEWHERE or path in DEAD


_WANTS = {int: "a whole number", float: "a number"}


def _mapping(raw: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = {} if raw.get(key) is None else raw[key]
    if not isinstance(value, Mapping):
        raise UserError(f"{key} is {value!r}; write a mapping of keys.")
    return value


def training_lengths(family: str, pretraining: bool) -> dict[str, int]:
    """Lengths of a training batch. Ret-XKnow has ColBERTv2's throughout."""
    if pretraining and family != "ret_xknow":
        return {"query_maxlen": 40, "doc_maxlen": 400}
    return {"query_maxlen": 32, "doc_maxlen": 180}


def _phase(out: dict, short: str, pretraining: bool, frozen: bool) -> None:
    """Rows, lengths, temperatures, precision and schedule, which the originals had in their code."""
    name = FAMILIES[short]
    rows = VISUAL_ROWS[name] if pretraining else [*VISUAL_ROWS[name], "text"]
    lengths = training_lengths(name, pretraining)
    temperature = {"train": 1.0, "valid": 1.0}
    if name == "mire":
        temperature = {"train": 0.3, "valid": 0.3} if pretraining else {"train": 0.8, "valid": 1.0}
    _put(out, "model.name", name)
    for stage, value in temperature.items():
        _put(out, f"model.{stage}", {**lengths, "rows": rows, "temperature": value})
    _put(out, "model.eval", {**INFERENCE, "mask_punctuation": False})
    _put(out, "model.frozen", ["vision", "text", "linear"] if frozen else ["vision"])
    if short == "sent_mire":
        _put(out, "train.precision", "bf16")
    if short == "xknow" and not pretraining:
        _put(out, "train.schedule", "linear")


_DATA_KEYS = {"data_path": "path", "img_dir": "image_dir", "valid_data_path": "valid_path", "img_tsv": "image_tsv",
              "img_lineidx": "image_lineidx", "kb_map_path": "kb_path", "val_kb_map_path": "valid_kb_path",
              "wiki_db_path": "passages", "image_cached": None, "image_size": None}  # fmt: skip


def _data(config: Mapping[str, Any]) -> tuple[dict, bool, list[str]]:
    """The ``data`` section, whether images were to come from a feature cache, and the block's dead keys."""
    name = config.get("dataset_name")
    if name is None:
        raise UserError("data_config.dataset_name is missing; write the name of the data set, such as vid2r.")
    place = name if name in config else BLOCK_OF.get(name, name)
    block = _mapping(config, place)
    kept = {_DATA_KEYS.get(key, key): value for key, value in block.items() if _DATA_KEYS.get(key, key)}
    dead = [f"data_config.{place}.image_size"] if "image_size" in block else []
    return {"name": "m2kr" if place == "m2kr" else name, **kept}, bool(block.get("image_cached")), dead


def _flatten(raw: Mapping[str, Any], prefix: str = ""):
    for key, value in raw.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{path}.")
        else:
            yield path, value


def _put(out: dict, path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for parent in parents:
        out = out.setdefault(parent, {})
    out[last] = value
