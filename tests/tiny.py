"""Tiny towers with random weights, in the layouts that users have: an HF ColBERT folder and a CLIP folder."""

from __future__ import annotations

import json
import string
from pathlib import Path

import torch
from PIL import Image

from core.records import Document, ImageRef, Query

WORDS = """the a of what which is in this country climate capital red green blue bird fish fox river city food music
play made with rice and cheese snow mountain island sea it eats lives mild dry hot cold name can you describe primary
elements image""".split()  # noqa: SIM905 (a word list reads better so)


def text_tower(folder: Path, colbert: bool = True, seed: int = 0, hidden: int = 32, positions: int = 128) -> Path:
    """A BERT of two layers with WordPiece vocabulary; with ``linear.weight`` when it is a ColBERT."""
    from safetensors.torch import save_file
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    pieces = [*string.ascii_lowercase, *(f"##{c}" for c in string.ascii_lowercase), *string.digits, *string.punctuation]
    vocabulary = ["[PAD]", "[unused0]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *pieces, *WORDS]
    vocabulary = list(dict.fromkeys(vocabulary))
    (folder / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=hidden, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=2 * hidden, max_position_embeddings=positions, hidden_dropout_prob=0.1,
    )  # fmt: skip
    torch.manual_seed(seed)
    state = {k: v.clone() for k, v in BertModel(config).state_dict().items()}
    if colbert:
        state = {f"bert.{k}": v for k, v in state.items()} | {"linear.weight": torch.randn(16, hidden) / hidden**0.5}
        (folder / "artifact.metadata").write_text(json.dumps({"query_maxlen": 12, "doc_maxlen": 24, "dim": 16}))
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(folder)
    return folder


def vision_tower(folder: Path, seed: int = 0, side: int = 3) -> Path:
    """A CLIP vision tower with side x side patches of 8 px; with its image processor."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(seed)
    config = CLIPVisionConfig(
        hidden_size=24, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2, image_size=8 * side,
        patch_size=8,
    )  # fmt: skip
    CLIPVisionModel(config).save_pretrained(folder)
    processor = {
        "image_processor_type": "CLIPImageProcessor", "do_resize": True, "do_center_crop": True, "do_normalize": True,
        "do_rescale": True, "do_convert_rgb": True, "size": {"shortest_edge": 8 * side},
        "crop_size": {"height": 8 * side, "width": 8 * side}, "image_mean": [0.5] * 3, "image_std": [0.25] * 3,
        "resample": 3, "rescale_factor": 1 / 255,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    return folder


VARIANTS = {
    "mire": [{}, {"mask_policy": "train"}, {"mask_policy": "clean"}, {"residual": True}],
    "mire_plus": [
        {"mask_policy": "clean"},
        {"weighting": "kind", "layout": 2},
        {"weighting": "question", "registers": 3, "mask_policy": "clean"},
    ],
    "ret_xknow": [
        {},
        {"kernel_size": 3, "mask_policy": "clean"},
        {"kernel_size": 4, "cells": "all"},
        {"cells": "best", "mask_policy": "train"},
    ],
    "mire_preflmr": [{}, {"mask_policy": "train"}, {"mask_policy": "clean"}],
    "flmr": [
        {},
        {"variant": "preflmr"},
        {"variant": "preflmr", "separate_text": False, "attend_to_mask_tokens": True},
        {"instruction_separator": ":", "skip_query_ids": [7]},
    ],
}
"""Config values that change what a family computes; the contract holds for each. A family not named has its default."""


def model_section(name: str, root: Path, **changes) -> dict:
    """The ``model`` section of family ``name`` on tiny towers below ``root``; fields a family lacks are left out."""
    import models

    fields = models.module(name).Config.model_fields
    stage = {"query_maxlen": 12, "doc_maxlen": 24, "temperature": 0.5}
    section = {"name": name, "dim": 16, "train": stage, "eval": {**stage, "temperature": 1.0}}
    if "text_tower" in fields:
        section["text_tower"] = str(text_tower(root / "text"))
    if "vision" in fields:
        side = 12 if "kernel_size" in fields else 3  # two by two cells behind kernel 4, which wants 8 x 8 or more
        section["vision"] = {"tower": str(vision_tower(root / "vision", side=side))}
    for key, value in {"num_tokens": 3, "num_heads": 2}.items():
        if key in fields:
            section[key] = value
    return {**section, **changes}


def retriever(name: str, root: Path, **changes):
    """A tiny retriever in eval mode, built the way a YAML builds it."""
    import models
    from core.config import check

    module = models.module(name)
    torch.manual_seed(0)
    return module.build(check(module.Config, model_section(name, root, **changes), "model")).eval()


def image(
    folder: Path, name: str = "image.png", color: tuple[int, int, int] = (200, 30, 30), size: int = 40
) -> ImageRef:
    """A picture with some structure on disk."""
    folder.mkdir(parents=True, exist_ok=True)
    picture = Image.new("RGB", (size, size), color)
    picture.paste((255 - color[0], 255 - color[1], 90), (size // 4, size // 3, size // 2, size))
    picture.save(folder / name)
    return ImageRef(name, path=str(folder / name))


def queries(folder: Path, images: bool = True) -> list[Query]:
    """Both, question only (long), image only, both: of different lengths."""
    pictures = [image(folder, f"{i}.png", (40 * i, 255 - 30 * i, 90)) for i in range(3)]
    if not images:
        return [Query("a", "what is the climate"), Query("b", "which bird eats fish in this country and lives")]
    return [
        Query("both", "what is the climate", (pictures[0],)),
        Query("question", "which bird eats fish in this country and lives in snow"),
        Query("image", "", (pictures[1],)),
        Query("short", "food", (pictures[2],)),
    ]


def mixed_documents(folder: Path) -> list[Document]:
    """Text only, image only, both, neither: every combination a corpus with images may hold."""
    pictures = [image(folder, f"d{i}.png", (60 * i, 90, 255 - 50 * i)) for i in range(2)]
    return [
        Document("text", "the bird eats fish."),
        Document("image", "", (pictures[0],)),
        Document("both", "the climate is mild, and the river is cold", (pictures[1],)),
        Document("empty", ""),
    ]


def documents() -> list[Document]:
    """Ordinary, one token, empty, longer than the limit."""
    return [
        Document("plain", "the climate is mild, and the river is cold."),
        Document("token", "fish"),
        Document("empty", ""),
        Document("long", " ".join(WORDS)),
    ]
