"""YAML keys of the original MIRe and Ret-XKnow configs, mapped onto ours. Dead keys are named once and ignored."""

from __future__ import annotations

import sys
from collections.abc import Mapping
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
    "model.short_name": ("model.name", str),
    "model.colbert_checkpoint": ("model.text_tower", str),
    "model.vision_model_name": ("model.vision.tower", str),
    "model.num_tokens": ("model.num_tokens", int),
    "model.num_heads": ("model.num_heads", int),
}

ELSEWHERE = {"model.pretraining", "trainer_config.frozen", "data_config.dataset_name", "experiment.description",
             "experiment.exp_name"}  # fmt: skip
"""Keys that ``adapt_yaml`` reads itself."""

BLOCKS = {"vid2r", "vl_ict", "okvqa", "okvqa_gs", "remuq", "m2kr", "aokvqa", "infoseek", "fvqa", "webqa"}
"""Blocks of data_config, one per data set; ``dataset_name`` chooses one, the data section's class judges its keys."""

PUBLISHED = {"train.gather": False, "train.clip": None, "train.false_negatives": "keep"}
"""What the originals did without a key for it, where our default is another."""

DEAD = {
    "data_config.image_size", "data_config.hard_neg_num", "data_config.in_batch_neg_num", "data_config.shuffle_cand",
    "data_config.returns", "trainer_config.eval_steps", "trainer_config.early_stop", "trainer_config.print_freq",
    "trainer_config.linear_frozen", "evaluator.enable_eval", "evaluator.eval_freq", "model.gather_embeddings",
    "model.hidden_size", "logger_config.logger_out_dir", "logger_config.logger_out_file_name",
    "dataloader_config.valid_batch_size", "wandb_config.experiment_name", "ckpt_config.ckpt_dir",
    "ckpt_config.resume_training", "ckpt_config.ckpt_name", "dist_config.dist_url", "dist_config.gpu_id",
    "dist_config.distributed_mode",
}  # fmt: skip
"""Keys that the originals never read, or that this project decides by itself (it always resumes, for one)."""


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
    _phase(out, bool(flat.get("model.pretraining", False)), bool(flat.get("trainer_config.frozen", False)))
    if out.get("run", {}).get("init"):
        _put(out, "model.fresh", [])  # the checkpoint holds every weight
    out["data"] = _data(data)
    print(f"note: an original config was adapted; without effect here: {', '.join(sorted(dead))}", file=sys.stderr)
    return out


def is_original(raw: Mapping[str, Any]) -> bool:
    return bool(SECTIONS & set(raw))


def is_original_key(path: str) -> bool:
    """Whether a dotted path is one of the originals' and none of ours."""
    return path.split(".")[0] in SECTIONS or path in {*MAP, *ELSEWHERE, *DEAD} - {"model.num_tokens", "model.num_heads"}


_WANTS = {int: "a whole number", float: "a number"}


def _mapping(raw: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = {} if raw.get(key) is None else raw[key]
    if not isinstance(value, Mapping):
        raise UserError(f"{key} is {value!r}; write a mapping of keys.")
    return value


def _phase(out: dict, pretraining: bool, frozen: bool) -> None:
    rows = ["global", "pooled"] if pretraining else ["global", "pooled", "text"]
    lengths = {"query_maxlen": 40, "doc_maxlen": 400} if pretraining else {"query_maxlen": 32, "doc_maxlen": 180}
    temperature = {"train": 0.3 if pretraining else 0.8, "valid": 0.3 if pretraining else 1.0}
    for stage, value in temperature.items():
        _put(out, f"model.{stage}", {**lengths, "rows": rows, "temperature": value})
    _put(out, "model.eval", {"query_maxlen": 64, "doc_maxlen": 384, "mask_punctuation": False})
    _put(out, "model.frozen", ["vision", "text", "linear"] if frozen else ["vision"])


def _data(config: Mapping[str, Any]) -> dict:
    name = config.get("dataset_name")
    if name is None:
        raise UserError("data_config.dataset_name is missing; write the name of the data set, such as vid2r.")
    block = _mapping(config, name if name in config or name != "okvqa_gs" else "okvqa")
    names = {"data_path": "path", "img_dir": "image_dir", "valid_data_path": "valid_path", "image_cached": None,
             "image_size": None}  # fmt: skip
    out = {"name": name}
    for key, value in block.items():
        target = names.get(key, key)
        if target is not None:
            out[target] = value
    return out


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
