"""Reading and writing the released layouts: HF ColBERT folders, and the ``.pth`` files of MIRe and Ret-XKnow.

FLMR's folders have a module of their own, ``flmr_files``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from core import foreign
from core.config import check
from core.differences import differences
from core.errors import UserError
from core.files import atomic_folder, read_object, write_json
from core.legacy import INFERENCE, training_lengths
from models import artifacts, colbert, flmr, mire, mire_preflmr, ret_xknow, visual
from models.flmr_files import is_released
from models.keys.mire import COLBERT_PREFIXES, PREFIXES, SENT_PREFIXES, to_ours, to_theirs
from models.mapping import EPS
from models.multivector import is_multivector, load_multivector
from models.towers.conventions import FILE as CONVENTIONS
from models.towers.conventions import Conventions
from models.towers.folders import assign, read_weights, resolve, tower_config
from models.towers.multivector import trunk_folder
from models.towers.text import TextTower
from models.towers.vision import VisionConfig, VisionTower, vision_trunk_config

MAPPING_BASE = "bert-base-uncased"
TOKENIZER = ("tokenizer.json", "vocab.txt")
"""Files of which a BERT's tokenizer needs one."""


def load_original(path: str | Path, root: str | Path | None = None) -> colbert.ColBERT:
    """A retriever from a released checkpoint.

    path: a ``.pth`` (or the folder that holds exactly one), with its sidecars beside it; or a folder or hub name of an
    HF ColBERT (``artifact.metadata``), a multi-vector model (``modules.json``) or FLMR. root: folder in which relative
    names are looked up first.
    The source's ``provenance.json``, where there is one, becomes ``retriever.provenance``.
    """
    place = Path(path)
    found = [place] if place.suffix == ".pth" else sorted(place.glob("*.pth"))
    if len(found) > 1:
        raise UserError(f"the folder '{place}' holds {len(found)} .pth files; give one of them, such as '{found[-1]}'.")
    if not found and place.is_file():
        raise UserError(
            f"'{place}' is a single file; give a .pth of MIRe or Ret-XKnow, or the folder of a ColBERT checkpoint."
        )
    folder = found[0].parent if found else resolve(str(path), root)
    if found:
        model = load_pth(found[0], root)
    elif is_released(_config_of(folder)):
        model = flmr.FLMR.from_pretrained(folder)
    else:
        model = (load_multivector if is_multivector(folder) else load_colbert)(path, root)
    model.provenance = artifacts.read_provenance(folder)
    return model


def metadata(folder: Path) -> dict[str, Any]:
    """ColBERT's settings: ``artifact.metadata``, flat or nested under "config"; empty when absent."""
    if not (folder / "artifact.metadata").is_file():
        return {}
    raw = read_object(folder / "artifact.metadata", "ColBERT settings")
    return raw["config"] if isinstance(raw.get("config"), dict) else raw


def _config_of(folder: Path) -> dict[str, Any]:
    """The folder's config.json; empty when absent."""
    return read_object(folder / "config.json", "checkpoint config") if (folder / "config.json").is_file() else {}


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
    config = _colbert_config(str(name), facts, tensors["linear.weight"].shape[0], f"'{folder / 'artifact.metadata'}'")
    return colbert.build(config, root).eval()


def _colbert_config(name: str, facts: dict, dim: int, where: str) -> colbert.Config:
    stage = {key: facts[key] for key in ("query_maxlen", "doc_maxlen", "mask_punctuation") if key in facts}
    attend = {"attend_to_mask_tokens": facts.get("attend_to_mask_tokens", False)}
    section = {"text_tower": name, "dim": dim, "train": stage, "eval": stage, **attend, **_markers(facts)}
    return check(colbert.Config, section, where)


def _markers(facts: dict) -> dict[str, str]:
    return {
        "query_marker": facts.get("query_token_id", "[unused0]"),
        "doc_marker": facts.get("doc_token_id", "[unused1]"),
    }


@dataclass(frozen=True)
class Released:
    """One ``short_name`` of the MIRe and Ret-XKnow repositories: our module and the settings of its own.

    sentence: the text tower is a PyLate folder's, not a BERT under ColBERTv2's names.
    """

    module: ModuleType
    facts: tuple[str, ...] = ()
    sentence: bool = False

    @property
    def prefixes(self) -> list[tuple[str, str]]:
        return SENT_PREFIXES if self.sentence else PREFIXES

    @property
    def family(self) -> str:
        return self.module.Config.model_fields["name"].default

    @property
    def kinds(self) -> list[str]:
        return list(self.module.Retriever.kinds)


RELEASED = {
    "mire": Released(mire, facts=("num_heads",)),
    "sent_mire": Released(mire, facts=("num_heads", "colbert_checkpoint"), sentence=True),
    "xknow": Released(ret_xknow),
    "preflmr": Released(mire_preflmr),
}


def load_pth(path: Path, root: str | Path | None = None) -> visual.VisualColBERT:
    """A ``.pth`` of MIRe, SentMIRe, Ret-XKnow or their PreFLMR; ``short_name`` in config.json says which.

    With towers inside nothing else is needed but the vision tower's config; a fusion-only file (59 MB for MIRe) goes
    onto the towers that ``config.json`` names.
    """
    payload = foreign.load(path)
    if not isinstance(payload, dict):
        raise UserError(f"'{path}' holds a {type(payload).__name__}, not a checkpoint; give a MIRe .pth file.")
    folder = path.parent
    block, facts = read_object(folder / "config.json", "checkpoint config"), metadata(folder)
    released = RELEASED.get(str(block.get("short_name")))
    needed = ("num_tokens", "vision_model_name", *(released.facts if released else ()))
    missing = [key for key in needed if key not in block]
    if released is None or missing:
        raise UserError(
            f"'{folder / 'config.json'}' says short_name '{block.get('short_name')}'"
            + (f" and has no {', '.join(missing)}" if missing else "")
            + f"; '{path.name}' can be read beside the config.json that its training wrote, of short_name "
            f"{', '.join(RELEASED)}."
        )
    tensors = _renamed(payload.get("model", payload), released.prefixes, path)
    complete = any(k.startswith("text.trunk.") for k in tensors)
    config = _config(released, block, facts, tensors, (root, folder), f"'{folder / 'config.json'}'")
    if not complete:
        model = released.module.build(config, root)
        state = model.fusion.state_dict()
        unknown = sorted(k for k in tensors if not k.startswith("fusion."))
        missing = sorted(k for k in state if f"fusion.{k}" not in tensors)
        if unknown or missing:
            raise UserError(
                f"'{path}' is neither a whole nor a fusion-only checkpoint: missing {missing[:4]}, "
                f"not understood {unknown[:4]}."
            )
        assign(model.fusion, tensors, {k: f"fusion.{k}" for k in state})
        return model.eval()
    place = _tokenizer_folder(released.sentence, config.text_tower, folder, root)
    trunk = trunk_folder(place) if released.sentence else folder
    text = TextTower(tower_config(trunk), config.dim, artifacts.has_pooler(tensors))
    vision, pixels = _vision(config.vision, tensors, root)
    model = released.module.Retriever(config, text, colbert.make_tokenizer(config, place), vision, pixels)
    artifacts.load_portable(model, tensors, path)
    return model.eval()


def _tokenizer_folder(sentence: bool, base: str, folder: Path, root: str | Path | None) -> Path:
    """Where tokenizer and conventions are: beside the .pth, or in the base model's folder.

    A SentMIRe's files beside it count if we wrote them: the original's say nothing of the PyLate folder's conventions.
    """
    if any((folder / file).is_file() for file in ([CONVENTIONS] if sentence else TOKENIZER)):
        return folder
    try:
        return resolve(base, root)
    except UserError as error:
        raise UserError(f"no tokenizer ({' or '.join(TOKENIZER)}) is in '{folder}', and {error}") from None


def _renamed(state: Any, prefixes: list[tuple[str, str]], path: Path) -> dict[str, Tensor]:
    if not isinstance(state, dict) or not any(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"'{path}' holds no weights under \"model\"; it was cut or is another system's, get it again.")
    named = {to_ours(k, prefixes): v for k, v in state.items() if isinstance(v, Tensor)}
    named.pop(None, None)
    unknown = [k[1:] for k in named if k.startswith("?")]
    if unknown:
        raise UserError(
            f"'{path}' has weights that its short_name does not know: {', '.join(unknown[:5])}; it is another system's."
        )
    return {k: v.float() for k, v in named.items()}


def training_stage(released: Released, facts: dict, pretraining: bool, training: bool) -> colbert.Stage:
    """How the original treats a training batch, while training or validating on it.

    MIRe's trainer sets lengths and temperature: phase A divides by 0.3 in both; phase B's 0.8 follows BERT's training
    flag, so it validates at 1.0. The others keep the lengths of ``artifact.metadata`` and divide by nothing.
    """
    rows = released.kinds if pretraining else [*released.kinds, "text"]
    lengths = training_lengths(released.family, pretraining)
    if released.module is not mire:
        stage = {**{k: facts.get(k, v) for k, v in lengths.items()}, "rows": rows}
        return check(released.module.Stage, stage, "artifact.metadata")
    name = "pretrain" if pretraining else "train" if training else "eval"
    return mire.Stage(**lengths, rows=rows, temperature=mire.TEMPERATURES[name])


def _config(
    released: Released, block: dict, facts: dict, tensors: dict[str, Tensor], places, where: str
) -> visual.Config:
    pretraining = bool(block.get("pretraining", False))
    linear = tensors.get("text.linear.weight")
    own = {key: block[key] for key in released.facts if key in released.module.Config.model_fields}
    if not released.sentence:
        own |= _markers(facts)
    if released.module is ret_xknow:
        own["kernel_size"] = _kernel(tensors, block)
    if released.module is mire_preflmr:
        own["mapping"] = _mapping(tensors, block, places)
    section = {
        "text_tower": block.get("colbert_checkpoint", "ckpts/colbertv2.0"),
        "vision": {"tower": block["vision_model_name"]},
        "dim": facts.get("dim", 128) if linear is None else linear.shape[0],
        "num_tokens": block["num_tokens"],
        "mask_policy": "legacy",
        "frozen": ["vision", "text", "linear"] if pretraining else ["vision"],
        "train": training_stage(released, facts, pretraining, True),
        "valid": training_stage(released, facts, pretraining, False),
        # Indexes of the original keep punctuation although training drops it.
        "eval": {**INFERENCE, "mask_punctuation": False},
        **own,
    }
    return check(released.module.Config, section, where)


def _kernel(tensors: dict[str, Tensor], block: dict) -> int:
    """Ret-XKnow's kernel: the weights know it."""
    first = tensors.get("fusion.conv1.0.weight", tensors.get("fusion.conv.0.weight"))
    if first is None or first.dim() != 4:
        raise UserError(
            "config.json says short_name 'xknow', but these weights hold no convolution of Ret-XKnow; they are another "
            "system's, or not whole."
        )
    if "fusion.k_state.weight" not in tensors:
        raise UserError(
            "these are weights of the first form of Ret-XKnow (March 2024: no k_state, cells of raw patches), which "
            "is another model; only the form of August 2024 and later can be read."
        )
    kernel = first.shape[-1]
    if block.get("kernel_size", kernel) != kernel:
        raise UserError(
            f"config.json says kernel_size {block['kernel_size']!r}, but the weights have {kernel}; correct it there."
        )
    return kernel


def _mapping(tensors: dict[str, Tensor], block: dict, places) -> mire_preflmr.Mapping:
    """The mapping layer's settings. The original takes them from the hub's bert-base-uncased: a folder of that name
    beside the base models or the checkpoint is read, else the text tower's stand for them (ColBERTv2's are the same).
    """
    files = [Path(place) / MAPPING_BASE / "config.json" for place in places if place is not None]
    base = next((read_object(f, "mapping config") for f in files if f.is_file()), block)
    if base.get("hidden_act", "gelu") != "gelu" or base.get("layer_norm_eps", EPS) != EPS:
        raise UserError(
            f"the mapping layer's config has hidden_act '{base.get('hidden_act')}' and layer_norm_eps "
            f"{base.get('layer_norm_eps')}; only BERT's, 'gelu' and {EPS}, can be read."
        )
    wide = tensors.get("fusion.transformer_mapping_network.layer.0.intermediate.dense.weight")
    section = {
        "heads": base.get("num_attention_heads"),
        "width": base.get("intermediate_size") if wide is None else wide.shape[0],
        "dropout": base.get("hidden_dropout_prob", 0.1),
    }
    return check(mire_preflmr.Mapping, section, f"{MAPPING_BASE}/config.json")


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
    return VisionTower(vision_trunk_config(folder), config), visual.pixels_of(folder)


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
    """Write the released layout: a folder with one ``.pth``, or an HF ColBERT folder. Returns the main file.

    facts: go into provenance.json, beside the provenance of what the model was read from.
    """
    if isinstance(model, flmr.FLMR):
        model.save_pretrained(out, facts, layout="hub")
        return Path(out)
    short = _short_name(model)
    state = artifacts.portable_state(model)
    with atomic_folder(out) as folder:
        model.text.trunk.config.save_pretrained(folder)
        model.tokenizer.save(folder)
        write_json(folder / "provenance.json", artifacts.provenance(artifacts.with_source(model, facts)))
        settings = {
            "query_token_id": model.tokenizer.conventions.query_marker,
            "doc_token_id": model.tokenizer.conventions.doc_marker,
            "query_token": "[Q]",
            "doc_token": "[D]",
            "dim": model.config.dim,
            "similarity": "cosine",
            "interaction": "colbert",
            "query_maxlen": model.config.train.query_maxlen,
            "doc_maxlen": model.config.train.doc_maxlen,
            "mask_punctuation": model.config.train.mask_punctuation,
            "use_ib_negatives": True,
            "attend_to_mask_tokens": model.attends(),
            "checkpoint": model.config.text_tower,
        }
        (folder / "artifact.metadata").write_text(json.dumps(settings, indent=2), encoding="utf-8")
        raw = read_object(folder / "config.json")
        if short is not None:
            _save_pth(model, short, folder, raw, state)
            return Path(out) / f"{short}.pth"
        _say_what_is_lost(model, _colbert_config(model.config.text_tower, settings, model.config.dim, "model"))
        write_json(folder / "config.json", {**raw, "architectures": ["HF_ColBERT"]})
        named = {to_theirs(k, COLBERT_PREFIXES): v for k, v in state.items()}
        artifacts.save_tensors(folder / "model.safetensors", named)
        return Path(out) / "model.safetensors"


def _as_colbertv2(model: colbert.ColBERT) -> bool:
    """Whether the text tower is a BERT that reads texts as ColBERTv2 does; markers are ColBERT's to choose."""
    own, usual = model.tokenizer.conventions, Conventions()
    lengths = {"query_maxlen": None, "doc_maxlen": None, "attend": False}
    markers = {"query_marker": usual.query_marker, "doc_marker": usual.doc_marker}
    return model.text.trunk.config.model_type == "bert" and replace(own, **lengths, **markers) == usual


def _short_name(model: colbert.ColBERT) -> str | None:
    """Which of the released systems a model is; None for ColBERT itself."""
    sentence = not _as_colbertv2(model)
    if not sentence and not isinstance(model, visual.VisualColBERT):
        return None
    for short, released in RELEASED.items():
        if type(model) is released.module.Retriever and released.sentence == sentence:
            return short
    if model.config.name not in {released.family for released in RELEASED.values()} | {"colbert"}:
        raise UserError(f"there is no original layout of '{model.config.name}'; keep it in this project's own layout.")
    raise UserError(
        f"the original layout of '{model.config.name}' holds a BERT that reads texts as ColBERTv2 does, this model's "
        "text tower is another; keep it in this project's own layout, or, if it reads text only, use "
        "--to sentence-transformers."
    )


def _save_pth(model: visual.VisualColBERT, short: str, folder: Path, raw: dict, state: dict[str, Tensor]) -> None:
    from omegaconf import OmegaConf

    if not model.vision.family.startswith("clip"):
        raise UserError(
            f"the .pth layout holds a CLIP tower, this model has '{model.vision.family}'; "
            "keep it in this project's own layout."
        )
    config = model.config
    asked = {
        "short_name": short,
        "vision_model_name": config.vision.tower,
        "colbert_checkpoint": config.text_tower,
        "gather_embeddings": True,
        "num_tokens": config.num_tokens,
        **{key: getattr(config, key) for key in ("num_heads", "kernel_size") if hasattr(config, key)},
        "hidden_size": model.text.hidden_size,
        "pretraining": "text" not in config.train.rows,
    }
    block = {**raw, "architectures": ["HF_ColBERT"], **asked}
    write_json(folder / "config.json", block)
    if short == "preflmr":
        _save_mapping(model, folder / MAPPING_BASE)
    _say_what_is_lost(model, _config(RELEASED[short], block, metadata(folder), state, (folder,), "model"))
    payload = {
        "model": {to_theirs(k, RELEASED[short].prefixes): v.detach().cpu().clone() for k, v in state.items()},
        "config": OmegaConf.create({"model": asked}),
        "epoch": 0,
    }
    torch.save(payload, folder / f"{short}.pth")


OF_A_RUN = {"train", "valid", "eval", "frozen", "fresh", "visual_noise", *artifacts.OPEN}
"""Config keys that do not belong to the weights. (Markers are in artifact.metadata.)"""


def _say_what_is_lost(model: colbert.ColBERT, back: colbert.Config) -> None:
    """An error for what changes the meaning of the weights, a note for each key of inference that a run can give again.

    back: the config that reading the files written gives.
    """
    there, now = (model.resolved(c).model_dump(mode="json") for c in (back, model.config))
    kept = [{k: v for k, v in c.items() if k not in OF_A_RUN} for c in (there, now)]
    if lost := differences(*kept, "model"):
        raise UserError(
            f"the original layout cannot say what this model does otherwise ({'; '.join(lost)}); keep it in this "
            "project's own layout."
        )
    for line in differences(there["eval"], now["eval"], "model.eval"):
        print(f"note: the original layout cannot say {line}; give it again where the files are used.")


def _save_mapping(model: mire_preflmr.MirePreFLMR, folder: Path) -> None:
    """The BertConfig that the original fetches by this name, for a mapping layer of other shape too."""
    from transformers import BertConfig

    BertConfig(
        hidden_size=model.text.hidden_size,
        num_attention_heads=model.fusion.heads,
        intermediate_size=model.fusion.width,
        hidden_dropout_prob=model.config.mapping.dropout,
        attention_probs_dropout_prob=model.config.mapping.dropout,
    ).save_pretrained(folder)
