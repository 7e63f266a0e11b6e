"""Reading and writing the released layouts of ColBERT and MIRe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core import foreign
from core.errors import UserError
from core.files import atomic_folder, read_json, write_json
from models import artifacts, colbert, mire
from models.keys.mire import COLBERT_PREFIXES, PREFIXES, to_ours, to_theirs
from models.towers.folders import read_weights, resolve, tower_config
from models.towers.text import TextTower
from models.towers.vision import VisionConfig, VisionTower, vision_trunk_config

PHASES = {  # query and document lengths that the original trainer sets, by model.pretraining
    True: {"query_maxlen": 40, "doc_maxlen": 400},
    False: {"query_maxlen": 32, "doc_maxlen": 180},
}
INFERENCE = {"query_maxlen": 64, "doc_maxlen": 384}


def load_original(path: str | Path, root: str | Path | None = None) -> colbert.ColBERT:
    """A retriever from a released checkpoint.

    path: a MIRe ``.pth`` (or the folder that holds exactly one), with its sidecars beside it; or an HF ColBERT folder
    with ``artifact.metadata``, or its hub name. root: folder in which relative names are looked up first.
    The source's ``provenance.json``, where there is one, becomes ``retriever.provenance``.
    """
    place = Path(path)
    found = [place] if place.suffix == ".pth" else sorted(place.glob("*.pth"))
    if len(found) > 1:
        raise UserError(f"the folder '{place}' holds {len(found)} .pth files; give one of them, such as '{found[-1]}'.")
    if not found and place.is_file():
        raise UserError(f"'{place}' is a single file; give a MIRe .pth, or the folder of a ColBERT checkpoint.")
    model = load_mire(found[0], root) if found else load_colbert(path, root)
    folder = found[0].parent if found else resolve(str(path), root)
    model.provenance = artifacts.read_provenance(folder)
    return model


def metadata(folder: Path) -> dict[str, Any]:
    """ColBERT's settings: ``artifact.metadata``, flat or nested under "config"; empty when absent."""
    if not (folder / "artifact.metadata").is_file():
        return {}
    raw = read_json(folder / "artifact.metadata", "ColBERT settings")
    return raw.get("config", raw)


def load_colbert(name: str | Path, root: str | Path | None = None) -> colbert.ColBERT:
    """An HF ColBERT folder or hub name, with the lengths and markers of its ``artifact.metadata``."""
    folder = resolve(str(name), root)
    facts = metadata(folder)
    tensors = read_weights(folder)
    if "linear.weight" not in tensors:
        raise UserError(
            f"'{name}' is not a ColBERT checkpoint (no linear.weight); use it as model.text_tower with "
            "model.fresh: [linear]."
        )
    if facts.get("similarity", "cosine") != "cosine":
        raise UserError(
            f"'{folder / 'artifact.metadata'}' has similarity '{facts['similarity']}'; only 'cosine' (unit vectors) is "
            "supported, so use a checkpoint trained with it."
        )
    stage = colbert.Stage(
        query_maxlen=facts.get("query_maxlen", 32),
        doc_maxlen=facts.get("doc_maxlen", 180),
        mask_punctuation=facts.get("mask_punctuation", True),
    )
    config = colbert.Config(
        text_tower=str(name),
        dim=tensors["linear.weight"].shape[0],
        train=stage,
        eval=stage,
        attend_to_mask_tokens=facts.get("attend_to_mask_tokens", False),
        **_markers(facts),
    )
    return colbert.build(config, root).eval()


def _markers(facts: dict) -> dict[str, str]:
    return {
        "query_marker": facts.get("query_token_id", "[unused0]"),
        "doc_marker": facts.get("doc_token_id", "[unused1]"),
    }


def load_mire(path: Path, root: str | Path | None = None) -> mire.MIRe:
    """A MIRe ``.pth``. With towers inside nothing else is needed but the vision tower's config; a fusion-only file
    (about 59 MB) goes onto the towers that ``config.json`` names."""
    payload = foreign.load(path)
    if not isinstance(payload, dict):
        raise UserError(f"'{path}' holds a {type(payload).__name__}, not a checkpoint; give a MIRe .pth file.")
    tensors = _renamed(payload.get("model", payload), path)
    folder = path.parent
    block, facts = read_json(folder / "config.json", "checkpoint config"), metadata(folder)
    for key in ("num_tokens", "num_heads", "vision_model_name"):
        if key not in block:
            raise UserError(
                f"'{folder / 'config.json'}' has no '{key}', so '{path.name}' is not a MIRe checkpoint; "
                f"it says short_name '{block.get('short_name')}'."
            )
    complete = any(k.startswith("text.trunk.") for k in tensors)
    config = _mire_config(block, facts, tensors)
    if not complete:
        model = mire.build(config, root)
        state = model.fusion.state_dict()
        unknown = sorted(k for k in tensors if not k.startswith("fusion."))
        missing = sorted(k for k in state if f"fusion.{k}" not in tensors)
        if unknown or missing:
            raise UserError(
                f"'{path}' is neither a whole nor a fusion-only checkpoint: missing {missing[:4]}, "
                f"not understood {unknown[:4]}."
            )
        model.fusion.load_state_dict({k: tensors[f"fusion.{k}"] for k in state})
        return model.eval()
    text = TextTower(tower_config(folder), config.dim, artifacts.has_pooler(tensors))
    vision, pixels = _vision(config.vision, tensors, root)
    model = mire.MIRe(config, text, colbert.make_tokenizer(config, folder), vision, pixels)
    artifacts.load_portable(model, tensors, path)
    return model.eval()


def _renamed(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    named = {to_ours(k): v for k, v in state.items() if isinstance(v, Tensor)}
    named.pop(None, None)
    unknown = [k[1:] for k in named if k.startswith("?")]
    if unknown:
        raise UserError(
            f"'{path}' has weights that MIRe does not know: {', '.join(unknown[:5])}; it is another system's."
        )
    return {k: v.float() for k, v in named.items()}


def training_stage(pretraining: bool, training: bool) -> mire.Stage:
    """How the original treats a training batch, while training or validating on it.

    Phase A divides by 0.3 in both; phase B's 0.8 follows BERT's training flag, so it validates at 1.0.
    """
    name = "pretrain" if pretraining else "train" if training else "eval"
    rows = ["global", "pooled"] if pretraining else ["global", "pooled", "text"]
    return mire.Stage(**PHASES[pretraining], rows=rows, temperature=mire.TEMPERATURES[name])


def _mire_config(block: dict, facts: dict, tensors: dict[str, Tensor]) -> mire.Config:
    pretraining = bool(block.get("pretraining", False))
    linear = tensors.get("text.linear.weight")
    return mire.Config(
        text_tower=block.get("colbert_checkpoint", "ckpts/colbertv2.0"),
        vision=VisionConfig(tower=block["vision_model_name"]),
        dim=facts.get("dim", 128) if linear is None else linear.shape[0],
        num_tokens=block["num_tokens"],
        num_heads=block["num_heads"],
        mask_policy="legacy",
        frozen=["vision", "text", "linear"] if pretraining else ["vision"],
        train=training_stage(pretraining, True),
        valid=training_stage(pretraining, False),
        # Indexes of the original keep punctuation although training drops it.
        eval=mire.Stage(**INFERENCE, mask_punctuation=False),
        **_markers(facts),
    )


def _vision(config: VisionConfig, tensors: dict[str, Tensor], root) -> tuple[VisionTower, Any]:
    """Shapes from the tower's own config where it can be found, else from the weights."""
    try:
        folder = resolve(config.tower, root)
    except UserError:
        print(
            f"note: '{config.tower}' is not at hand; its shape is read off the weights, with 64 dimensions a head. "
            "Images need its preprocessor_config.json in the converted checkpoint's 'vision' folder."
        )
        return VisionTower(_clip_config(tensors), config), None
    return VisionTower(vision_trunk_config(folder), config), mire.pixels_of(folder)


def _clip_config(tensors: dict[str, Tensor]):
    from transformers import CLIPVisionConfig

    base = "vision.trunk.vision_model."
    patch = tensors[base + "embeddings.patch_embedding.weight"]
    width, size = patch.shape[0], patch.shape[-1]
    patches = tensors[base + "embeddings.position_embedding.weight"].shape[0] - 1
    layers = len({k.split(".layers.")[1].split(".")[0] for k in tensors if f"{base}encoder.layers." in k})
    return CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=tensors[base + "encoder.layers.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 64),
        patch_size=size,
        image_size=size * round(patches**0.5),
    )


# ---- the way back


def save_original(model: colbert.ColBERT, out: str | Path, facts: dict | None = None) -> Path:
    """Write the released layout: a MIRe folder with one ``.pth``, or an HF ColBERT folder. Returns the main file.

    facts: go into provenance.json, beside the provenance of what the model was read from.
    """
    state = artifacts.portable_state(model)
    with atomic_folder(out) as folder:
        model.text.trunk.config.save_pretrained(folder)
        model.tokenizer.save(folder)
        write_json(folder / "provenance.json", artifacts.provenance(artifacts.with_source(model, facts)))
        settings = {
            "query_token_id": model.config.query_marker,
            "doc_token_id": model.config.doc_marker,
            "query_token": "[Q]",
            "doc_token": "[D]",
            "dim": model.config.dim,
            "similarity": "cosine",
            "interaction": "colbert",
            "query_maxlen": model.config.train.query_maxlen,
            "doc_maxlen": model.config.train.doc_maxlen,
            "mask_punctuation": model.config.train.mask_punctuation,
            "use_ib_negatives": True,
            "attend_to_mask_tokens": model.config.attend_to_mask_tokens,
            "checkpoint": model.config.text_tower,
        }
        (folder / "artifact.metadata").write_text(json.dumps(settings, indent=2), encoding="utf-8")
        raw = read_json(folder / "config.json")
        if isinstance(model, mire.MIRe):
            _save_mire(model, folder, raw, state)
            return Path(out) / "mire.pth"
        write_json(folder / "config.json", {**raw, "architectures": ["HF_ColBERT"]})
        named = {to_theirs(k, COLBERT_PREFIXES): v for k, v in state.items()}
        artifacts.save_tensors(folder / "model.safetensors", named)
        return Path(out) / "model.safetensors"


def _save_mire(model: mire.MIRe, folder: Path, raw: dict, state: dict[str, Tensor]) -> None:
    from omegaconf import OmegaConf

    if not model.vision.family.startswith("clip"):
        raise UserError(
            f"MIRe's .pth layout holds a CLIP tower, this model has '{model.vision.family}'; "
            "keep it in this project's own layout."
        )
    block = {
        "short_name": "mire",
        "vision_model_name": model.config.vision.tower,
        "colbert_checkpoint": model.config.text_tower,
        "gather_embeddings": True,
        "num_tokens": model.config.num_tokens,
        "num_heads": model.config.num_heads,
        "hidden_size": model.text.hidden_size,
        "pretraining": "text" not in model.config.train.rows,
    }
    write_json(folder / "config.json", {**raw, "architectures": ["HF_ColBERT"], **block})
    payload = {
        "model": {to_theirs(k, PREFIXES): v.detach().cpu().clone() for k, v in state.items()},
        "config": OmegaConf.create({"model": block}),
        "epoch": 0,
    }
    torch.save(payload, folder / "mire.pth")
