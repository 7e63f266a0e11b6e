"""What the ColBERT-family runners share: kinds of fields and the grammar of dotted names."""

from __future__ import annotations

import re

from torch import Tensor

PHASES = {"pretraining", "finetune"}
MODES = {"train": True, "eval": False, "eval_acc": False}
OPTIONS = {"frozen", "no_ib", "doc_images"}


def kind(name: str, value: Tensor) -> str:
    """Which tolerance a tensor has, from its last telling word."""
    if not value.is_floating_point():
        return "exact"
    words = re.split(r"[._]", name)
    if "accuracy" in words:
        return "exact"
    if "score" in words or "scores" in words or "maxsim" in words:
        return "score"
    if words[-1] in ("loss", "ibloss") or name.endswith("eval_from_features"):
        return "loss"
    return "embedding"


def parse_loss(name: str) -> tuple[str, str, frozenset[str], str, str]:
    """``loss.<batch>.<phase>.<options and mode>[.<field>]`` -> batch, phase, options, mode, field."""
    words = name.split(".")
    if words[0] != "loss" or len(words) < 4 or words[2] not in PHASES:
        raise AssertionError(f"the golden name '{name}' is not understood")
    mode, field, options = "", "", set()
    for word in words[3:]:
        if word in MODES:
            mode = word
        elif word in OPTIONS:
            options.add(word)
        elif word in {"loss", "score", "accuracy", "eval_from_features", "maxsim_matrix"} and not field:
            field = word
        else:
            raise AssertionError(f"the word '{word}' of the golden name '{name}' is not understood")
    return words[1], words[2], frozenset(options), mode or "eval", field
