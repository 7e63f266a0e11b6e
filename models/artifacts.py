"""Checkpoint folders: safetensors, a JSON of the config, tower configs, tokenizer, provenance. Written whole."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path

import torch
from torch import Tensor, nn

from core.config import check
from core.differences import differences
from core.errors import UserError
from core.files import atomic_folder, read_object, write_json
from models.keys.towers import canonical
from models.towers.folders import assign, read_weights


def weight_digest(*modules: nn.Module) -> str:
    """16 hex digits over names, shapes and values of the modules' weights, in fp32."""
    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def settle_fresh(missing: list[str], fresh: list[str], where: str) -> None:
    """Every weight left at its initial value must be declared in ``model.fresh`` and nothing else may be.

    missing: names at init. fresh: whole dotted components of names ("linear", "fusion.k_state") that the YAML declares.
    """

    def covers(part: str, name: str) -> bool:
        return f".{part}." in f".{name}."

    undeclared = [m for m in missing if not any(covers(f, m) for f in fresh)]
    if undeclared:
        shown = ", ".join(undeclared[:8]) + (f" and {len(undeclared) - 8} more" if len(undeclared) > 8 else "")
        raise UserError(
            f"{len(undeclared)} weights are not in '{where}' and would stay random: {shown}; give a checkpoint "
            "that has them, or declare them in model.fresh if they are to be trained from scratch."
        )
    unused = [f for f in fresh if not any(covers(f, m) for m in missing)]
    if unused:
        raise UserError(
            f"model.fresh names {unused}, but '{where}' contains these weights; remove them from model.fresh."
        )


PHASES = {"train", "valid", "eval", "frozen", "fresh", "mask_policy", "visual_noise", "text_tower", "variant"}
"""Config keys that another phase may choose anew for the same weights. All others decide what the weights mean.
(A variant is a set of defaults: what it stands for is compared.)"""

OPEN = ("query_marker", "doc_marker", "attend_to_mask_tokens")
"""Keys whose null asks for what the text tower has, so for the checkpoint's."""


def check_compatible(there, wanted, where: str = "run.init") -> None:
    """Whether the weights of a checkpoint with config ``there`` are right for the config ``wanted``.

    Names of towers may differ (the checkpoint holds their weights). Errors: UserError with every structural difference.
    """

    left_open = {key for key in OPEN if getattr(wanted, key, None) is None}

    def structure(config) -> dict:
        plain = config.model_dump(mode="json", exclude=PHASES | left_open)
        if isinstance(plain.get("vision"), dict):
            plain["vision"].pop("tower", None)
        return plain

    if there.name != wanted.name:  # two families differ in everything else too
        lines = differences({"name": there.name}, {"name": wanted.name}, "model")
    else:
        lines = differences(structure(there), structure(wanted), "model")
    if lines:
        raise UserError(
            f"{where} does not fit the model section ({'; '.join(lines)}); set these to the checkpoint's values or "
            "give another checkpoint."
        )


def provenance(given: dict | None) -> dict:
    """What made a checkpoint: the caller's facts (data, config, metrics) and the versions in use."""
    import transformers

    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    return {"written": datetime.now(timezone.utc).isoformat(timespec="seconds"), "versions": versions, **(given or {})}


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    from safetensors.torch import save_file

    save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, path, metadata={"format": "pt"})


# ---- checkpoint folders
#
#   config.json            {"retriever": the model section, "format": 1}
#   model.safetensors      every weight, towers under their hub names
#   text/, vision/         tower config, tokenizer or image processor
#   provenance.json        data, config, versions, metrics

FORMAT = 1


def save_retriever(retriever, path: str | Path, facts: dict | None) -> None:
    """Write ``retriever`` as a checkpoint folder: whole, or not at all."""
    with atomic_folder(path) as folder:
        for name, (config, keepers) in retriever.tower_folders().items():
            config.save_pretrained(folder / name)
            for keeper in keepers:
                keeper.save(folder / name)
        save_tensors(folder / "model.safetensors", portable_state(retriever))
        write_json(folder / "config.json", {"retriever": retriever.config.model_dump(), "format": FORMAT})
        write_json(folder / "provenance.json", provenance(with_source(retriever, facts)))


def with_source(retriever, facts: dict | None) -> dict:
    """``facts``, and under "source" the provenance of the files that the retriever was read from."""
    source = getattr(retriever, "provenance", None)
    return {**(facts or {}), **({"source": source} if source else {})}


def read_provenance(folder: Path) -> dict | None:
    """The folder's provenance.json, None when it has none."""
    file = folder / "provenance.json"
    return read_object(file, "provenance") if file.is_file() else None


def load_retriever(cls: type, path: str | Path):
    """Read a checkpoint folder of the family ``cls``; every weight must be there, and nothing else."""
    folder = Path(path)
    raw = read_object(folder / "config.json", "checkpoint config")
    section = raw.get("retriever")
    expected = cls.Config.model_fields["name"].default
    if section is None or section.get("name") != expected:
        found = "an original system" if section is None else f"'{section.get('name')}'"
        raise UserError(f"the checkpoint '{path}' belongs to {found}, not to '{expected}'; set model.name accordingly.")
    tensors = read_weights(folder)
    retriever = cls.skeleton(check(cls.Config, section, "model"), folder, tensors)
    load_portable(retriever, tensors, path)
    retriever.provenance = read_provenance(folder)
    return retriever.eval()


def portable_state(retriever) -> dict[str, Tensor]:
    """State dict with tower names in the hub's style, so that files outlive transformers' renamings."""
    return {portable_name(retriever, k): v for k, v in retriever.state_dict().items()}


def load_portable(retriever, tensors: dict[str, Tensor], path: str | Path) -> None:
    """Load a portable state dict strictly."""
    names = {own: portable_name(retriever, own) for own in retriever.state_dict()}
    missing = assign(retriever, tensors, names)
    extra = sorted(set(tensors) - set(names.values()))
    if missing or extra:
        raise UserError(
            f"the checkpoint '{path}' does not fit its config: missing {missing[:5]}, not understood {extra[:5]}; "
            "it was damaged or changed by hand, use another one."
        )


def portable_name(retriever, name: str) -> str:
    """The name a weight has in our files: tower weights keep the hub's names."""
    for tower, (config, _) in retriever.tower_folders().items():
        prefix = f"{tower}.trunk."
        if name.startswith(prefix):
            return prefix + canonical(config.model_type, name[len(prefix) :])
    return name


def has_pooler(names: Iterable[str]) -> bool:
    """Whether weights of these names hold the text trunk's pooler."""
    return any(n.startswith("text.trunk.pooler.") for n in names)
