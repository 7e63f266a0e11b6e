"""What the arms of ``train_bench`` share: model, data and batches. The same call gives the same in every process."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from core.errors import UserError
from core.records import Document, Example, ImageRef, Query

CASES = ("finetune", "pretrain", "text")
LENGTHS = {"query_maxlen": 40, "doc_maxlen": 400}
"""Of the published phase A; the passages of FlagFacts are all shorter."""

TEXT_LENGTHS = {"query_maxlen": 32, "doc_maxlen": 180}
"""ColBERT's own."""

SHAPES = {  # name -> (text: width, layers, heads, inner), (vision: the same, image side, patch side), dim, (T, H)
    "base": ((768, 12, 12, 3072), (768, 12, 12, 3072, 224, 32), 128, (16, 12)),  # as published: BERT-base, CLIP B/32
    "small": ((384, 6, 12, 1536), (384, 12, 6, 1536, 224, 32), 128, (16, 4)),
    "tiny": ((32, 2, 2, 64), (24, 3, 2, 48, 24, 8), 16, (3, 2)),
}
"""Random towers of ``--synthetic``."""


@dataclass(frozen=True)
class Options:
    """case: finetune (everything trains but the vision tower), pretrain (only the fusion head) or text (ColBERT).
    data: "real" is FlagFacts or, for text, TriviaWiki, on MiniLM and DINOv2; else a name of ``SHAPES``. home: folder
    for what is made once."""

    case: str
    data: str
    home: str
    device: str = "cpu"
    batch: int = 32
    nways: int = 1
    threads: int = 1
    clock: str = "wall"

    @property
    def visual_only(self) -> bool:
        return self.case == "pretrain"


@dataclass
class Setting:
    retriever: Any
    dataset: Any
    cache: str | None
    """Folder of the stored visual features; None without images."""


def make(options: Options) -> Setting:
    """The retriever on its device, in training stage and eval mode, and the data."""
    torch.manual_seed(0)
    made = _text(options) if options.case == "text" else _visual(options)
    made.retriever.stage = "train"
    made.retriever.to(options.device).eval()
    return made


# ---- the real ones


def _visual(options: Options) -> Setting:
    frozen = ["text", "linear", "vision"] if options.case == "pretrain" else ["vision"]
    stage = {**LENGTHS, "temperature": 0.3 if options.case == "pretrain" else 0.8}
    if options.case == "pretrain":
        stage["rows"] = ["global", "pooled"]
    if options.data != "real":
        return _synthetic(options, frozen, stage)
    import dataset
    import models
    from core.config import check
    from runs.settings import load

    cfg = load("cfgs/flagfacts_mire.yaml")
    section = {**cfg.raw["model"], "frozen": frozen, "mask_policy": "legacy", "visual_noise": 0.0}
    section |= {"train": stage, "query_marker": "[unused0]", "doc_marker": "[unused1]"}
    module = models.module(section["name"])
    retriever = module.build(check(module.Config, section, "model"))
    return Setting(retriever, dataset.build(cfg.data), cfg.visual.cache)


def _text(options: Options) -> Setting:
    stage = {**TEXT_LENGTHS, "temperature": 0.5}
    if options.data != "real":
        return _synthetic(options, [], stage)
    import dataset
    from runs.settings import load
    from runs.training import build_retriever

    cfg = load("cfgs/triviawiki_colbert.yaml")
    if not Path(cfg.run.init).is_dir():
        raise UserError(
            f"the text case starts from '{cfg.run.init}', which is not here; make it with "
            "python benchmarks/triviawiki.py --smoke, or give --synthetic."
        )
    retriever = build_retriever(cfg)
    stages = {name: getattr(retriever.config, name).model_copy(update=stage) for name in ("train", "eval")}
    retriever.config = retriever.config.model_copy(update=stages)
    return Setting(retriever, dataset.build(cfg.data), None)


# ---- random ones, for a machine without network


def _synthetic(options: Options, frozen: list[str], stage: dict) -> Setting:
    from transformers import BertConfig, CLIPVisionConfig

    from models import colbert, mire
    from models.towers.text import TextTower
    from models.towers.vision import VisionConfig, VisionTower
    from models.visual import pixels_of

    (width, layers, heads, inner), eyes, dim, (tokens, pooled) = SHAPES[options.data]
    home = Path(options.home)
    vocabulary = 500 if options.data == "tiny" else 30_513
    words = _tokenizer(home / f"words-{vocabulary}", vocabulary)
    trunk = BertConfig(
        vocab_size=len(words.tokenizer), hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=inner, max_position_embeddings=512,
    )  # fmt: skip
    longest = 400 if options.data != "tiny" else 60
    stage = {**stage, "doc_maxlen": min(longest, stage["doc_maxlen"])}
    size = 16_384 if longest == 400 else 8 * options.batch
    data = Synthetic(home / "pictures", longest, options.case != "text", size, vocabulary)
    if options.case == "text":
        settings = colbert.Stage(**stage)
        config = colbert.Config(dim=dim, train=settings, eval=settings)
        return Setting(colbert.ColBERT(config, TextTower(trunk, dim), words), data, None)
    v, v_layers, v_heads, v_inner, side, patch = eyes
    vision = VisionTower(
        CLIPVisionConfig(
            hidden_size=v, intermediate_size=v_inner, num_hidden_layers=v_layers, num_attention_heads=v_heads,
            image_size=side, patch_size=patch,
        ),
        VisionConfig(tower="random"),
    )  # fmt: skip
    config = mire.Config(
        dim=dim, vision=vision.config, num_tokens=tokens, num_heads=pooled, frozen=frozen, train=mire.Stage(**stage)
    )
    retriever = mire.MIRe(config, TextTower(trunk, dim), words, vision, pixels_of(_processor(home / "eyes", side)))
    return Setting(retriever, data, str(home / f"features-{options.data}"))


def _tokenizer(folder: Path, words: int):
    """WordPiece over made-up words."""
    from transformers import BertTokenizerFast

    from models.towers.tokenizer import ColbertTokenizer

    if not (folder / "tokenizer.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        special = ["[PAD]", "[unused0]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?"]
        (folder / "vocab.txt").write_text("\n".join([*special, *(f"w{i}" for i in range(words))]), encoding="utf-8")
        BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    return ColbertTokenizer.from_folder(folder, "[unused0]", "[unused1]")


def _processor(folder: Path, side: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "image_processor_type": "CLIPImageProcessor", "do_resize": True, "do_center_crop": True, "do_rescale": True,
        "do_normalize": True, "do_convert_rgb": True, "size": {"shortest_edge": side},
        "crop_size": {"height": side, "width": side}, "image_mean": [0.48, 0.46, 0.41],
        "image_std": [0.27, 0.26, 0.28], "resample": 3, "rescale_factor": 1 / 255,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


class Synthetic:
    """Questions of made-up words about pictures of noise. Passages have a log-normal number of words, median 75."""

    train_split, valid_split, test_splits = "train", "dev", ("test",)

    def __init__(self, folder: Path, longest: int, images: bool, size: int, words: int) -> None:
        self.folder, self.longest, self.with_images, self.size = folder, longest, images, size
        self.pictures, self.words = min(256, size), words
        if images:
            self._draw()

    def _draw(self) -> None:
        import numpy as np
        from PIL import Image

        self.folder.mkdir(parents=True, exist_ok=True)
        for i in range(self.pictures):
            path = self.folder / f"{i}.jpg"
            if not path.is_file():
                noise = np.random.default_rng(i).integers(0, 256, (40, 53, 3), dtype=np.uint8)
                Image.fromarray(noise).resize((500, 375)).save(path, quality=90)

    @cached_property
    def _documents(self) -> list[Document]:
        return [self._document(i) for i in range(2 * self.size)]

    def _document(self, i: int) -> Document:
        rng = random.Random(f"document {i}")
        count = max(5, min(self.longest, int(self.longest / 5.3 * rng.lognormvariate(0, 0.6))))
        return Document(f"d{i}", " ".join(f"w{rng.randrange(self.words)}" for _ in range(count)))

    def corpus(self) -> Sequence[Document]:
        return self._documents

    def images(self) -> Sequence[ImageRef]:
        return [self._image(i) for i in range(self.pictures)] if self.with_images else []

    def _image(self, i: int) -> ImageRef:
        return ImageRef(f"{i}.jpg", path=str(self.folder / f"{i}.jpg"))

    def queries(self, split: str) -> Sequence[Query]:
        return [self._query(i) for i in range(self.size)]

    def _query(self, i: int) -> Query:
        rng = random.Random(f"query {i}")
        text = " ".join(f"w{rng.randrange(self.words)}" for _ in range(rng.randint(6, 20)))
        return Query(f"q{i}", text, (self._image(i % self.pictures),) if self.with_images else ())

    def qrels(self, split: str) -> dict:
        return {f"q{i}": {f"d{i}": 1} for i in range(self.size)}

    def examples(self, split: str, epoch: int, seed: int) -> Sequence[Example]:
        return [
            Example(self._query(i), self._documents[i], (self._documents[self.size + i],)) for i in range(self.size)
        ]
