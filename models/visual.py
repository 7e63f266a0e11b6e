"""What the retrievers with images share: ColBERT plus a frozen vision tower and a head that turns one image into rows.

Q = normalize([visual rows ; text rows]). A family (``models/mire.py``, ...) says which head it has and which kinds of
visual rows the head makes; images, feature caches, mask policies, collating and assembling live here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import normalize

from core.batch import Batch
from core.errors import UserError
from core.files import fingerprint
from core.records import Document, Query
from core.tokens import Rows, TokenBatch
from core.visual import VisualBatch, VisualSource, as_stored
from models import artifacts, colbert
from models.towers.folders import tower_config
from models.towers.images import PixelSource
from models.towers.text import TextTower, load_text_tower
from models.towers.tokenizer import ColbertTokenizer
from models.towers.vision import VisionConfig, VisionTower, load_vision_tower

IMAGE_PROMPT = "Can you describe the primary elements in this image?"
"""The text that steers the visual rows of a document that is only an image."""


class Config(colbert.Config):
    """What the ``model`` sections of these families share. A family's stages also have ``rows``: the kinds that form
    its queries. Phase A trains on the visual ones alone so that text cannot dominate.

    num_tokens: T global rows per image. frozen: of "text", "linear", "vision", "fusion".
    visual_noise: Gaussian noise on features while training, in standard deviations per dimension; 0 as published.
    mask_policy: what [MASK] padding of queries does.
      legacy  attended and counted in training, masked at inference, as published; masked rows reach the head
      train   attended and counted everywhere
      clean   masked everywhere and left out by the head; batches pad only to their longest query
    """

    vision: VisionConfig = VisionConfig(tower="openai/clip-vit-base-patch32")
    num_tokens: int = Field(16, ge=1)
    visual_noise: float = Field(0.0, ge=0)
    mask_policy: Literal["legacy", "train", "clean"] = "legacy"
    frozen: list[Literal["text", "linear", "vision", "fusion"]] = ["vision"]
    fresh: list[str] = ["fusion"]

    @model_validator(mode="after")
    def _fits_a_visual_family(self) -> Config:
        if "vision" not in self.frozen:
            raise ValueError(f"frozen must contain 'vision': the vision tower of {self.name} never trains")
        if self.attend_to_mask_tokens:
            raise ValueError(f"attend_to_mask_tokens belongs to colbert; mask_policy says it for {self.name}")
        return self


@dataclass
class Question:
    """The text beside N images: trunk states [N, L, h], projected rows [N, L, dim] (not normalised, zero where masked)
    and mask [N, L] bool."""

    states: Tensor
    rows: Tensor
    mask: Tensor


class SeesImages:
    """The part of a retriever that gets images: pixels and feature caches of its ``vision`` tower."""

    several_images: ClassVar[bool] = False
    """Whether a query or document may have more than one."""

    config: Any
    vision: VisionTower
    _pixels: PixelSource | None

    def pixel_source(self) -> PixelSource:
        """Decodes and preprocesses images for the vision tower."""
        if self._pixels is None:
            raise UserError(
                "this checkpoint holds no image processor; put the tower's preprocessor_config.json into "
                "its 'vision' folder."
            )
        return self._pixels

    def visual_spec(self, dtype: str = "float16") -> dict:
        """Key of this model's feature cache."""
        return {**self.vision.fingerprint(self.pixel_source().describe()), "dtype": dtype}

    def visual_features(self, images: VisualBatch) -> VisualBatch:
        """Stored features pass through, pixels go through the tower: global_ [N, v] and patches [N, P, v]."""
        if images.pixels is None:
            return images
        global_, patches = self.vision(images.pixels)
        return VisualBatch(global_=global_, patches=patches)

    def _fetch(self, records: Sequence[Query | Document], visual: VisualSource | None) -> dict:
        """``images`` and ``offsets`` of a Batch."""
        for record in records:
            if len(record.images) > 1 and not self.several_images:
                raise UserError(
                    f"'{record.id}' has {len(record.images)} images; {self.config.name} takes one, remove the others."
                )
        refs = [ref for r in records for ref in r.images]
        offsets = Batch.image_offsets([len(r.images) for r in records])
        if not refs:
            return {"images": None, "offsets": offsets}
        source = visual or self.pixel_source()
        self._check_source(source)
        return {"images": source.fetch(refs), "offsets": offsets}

    def _check_source(self, source: VisualSource) -> None:
        named = source.fingerprint.get("kind") not in ("pixels", "npy", "given")  # says which tower made it
        if not named or getattr(self, "_source_checked", None) is source:
            return
        found = source.fingerprint
        wanted = as_stored(json.loads(json.dumps(self.visual_spec())), found)
        different = sorted(k for k in {*wanted, *found} if wanted.get(k) != found.get(k))
        if different:
            raise UserError(
                f"the feature cache was made by another tower (differing: {', '.join(different)}); "
                "build one for this model with python -m runs.run_visual_embedder."
            )
        self._source_checked = source


class VisualColBERT(SeesImages, colbert.ColBERT):
    """ColBERT with visual rows in front. One image per query or document at most. A family gives the first three."""

    kinds: ClassVar[tuple[str, ...]]
    """Kinds of the head's rows, in their order."""

    def make_head(self, config, text: TextTower, vision: VisionTower, pixels: PixelSource | None) -> nn.Module:
        """The part named "fusion"."""
        raise NotImplementedError

    def fuse(self, features: VisualBatch, text: Question) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """kind -> rows [N, R, dim], not normalised; and what ``return_relevance`` shows."""
        raise NotImplementedError

    def head_options(self) -> dict:
        """Config values at the present stage, beside the weights, that the head's rows depend on."""
        return {}

    def __init__(
        self,
        config: Config,
        text: TextTower,
        tokenizer: ColbertTokenizer,
        vision: VisionTower,
        pixels: PixelSource | None,
    ) -> None:
        nn.Module.__init__(self)
        self.fusion = self.make_head(config, text, vision, pixels)
        self.vision = vision
        self._pixels = pixels
        self._setup(config, text, tokenizer)

    def parts(self) -> dict[str, nn.Module]:
        return {**super().parts(), "vision": self.vision, "fusion": self.fusion}

    # ---- collate

    def collate_queries(self, records: Sequence[Query], visual=None, states=None) -> Batch:
        """ids, mask [B, L] (the mask policy applied), has_text [B], and the images."""
        for record in records:
            if not record.text.strip() and not record.images:
                raise UserError(f"query '{record.id}' has neither text nor image; give at least one.")
        batch = self._text_batch("query", [r.text for r in records], states)
        batch.tensors["has_text"] = torch.tensor([bool(r.text.strip()) for r in records])
        found = self._fetch(records, visual)
        return Batch(batch.tensors, **found)

    def collate_documents(self, records: Sequence[Document], visual=None, states=None) -> Batch:
        """As ColBERT, with has_text [B] and the images."""
        found = self._fetch(records, visual)
        batch = self._text_batch("document", [r.text for r in records], states)
        batch.tensors["has_text"] = torch.tensor([bool(r.text.strip()) for r in records])
        return Batch(batch.tensors, **found)

    def tokenize(self, side: str, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        if side == "document":
            return super().tokenize(side, texts)
        policy = self.config.mask_policy
        # legacy and train always pad to the configured length: masked or [MASK] rows reach the head there, so a
        # shorter batch would change an encoding with its companions.
        ids, mask = self.tokenizer.queries(texts, self.options().query_maxlen, pad_to_maxlen=policy != "clean")
        attend = policy == "train" or (policy == "legacy" and self.stage != "eval")
        return ids, torch.ones_like(mask) if attend else mask

    # ---- encode

    def encode_queries(self, batch: Batch, return_relevance: bool = False) -> TokenBatch:
        """[B, visual rows + L, dim] unit rows, of the kinds that the stage's ``rows`` names.

        An item without image keeps its text rows only; an item without text, under the clean policy, its visual rows
        only. ``return_relevance`` puts what the head can show of its N images into ``extras`` (see the family).
        """
        wanted = self.options().rows
        mask = batch["mask"].bool()
        counts = mask if self.config.mask_policy != "clean" else mask & batch["has_text"][:, None]
        states = self.states(batch)
        text = self.text.project(states) * mask.unsqueeze(-1)
        parts: list[tuple[str, Tensor, Tensor]] = []
        extras: dict[str, Tensor] = {}
        if batch.images is not None and set(self.kinds) & set(wanted):
            owner = owner_of(batch, text.device)
            rows, shown = self.visual_rows(batch.images, Question(states[owner], text[owner], mask[owner]))
            parts += [(kind, *_scatter(rows[kind], owner, len(batch))) for kind in self.kinds if kind in wanted]
            extras = shown if return_relevance else {}
        has_image = batch.image_counts > 0
        if "text" in wanted or not bool(has_image.all()):
            # Without an image the question is all there is, whatever rows the stage asks for.
            shown_text = counts if "text" in wanted else counts & ~has_image[:, None]
            parts.append(("text", text * shown_text.unsqueeze(-1), shown_text))
        return assemble(parts, extras)

    def visual_rows(self, images: VisualBatch, text: Question) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """``fuse`` on features of N images, with noise while training when the config asks for it."""
        features = self.visual_features(images)
        if self.training and self.config.visual_noise:
            features = noisy(features, self.config.visual_noise)
        return self.fuse(features, text)

    def encode_documents(self, batch: Batch) -> TokenBatch:
        """Text rows as ColBERT; an image adds the visual rows in front, steered by a fixed prompt."""
        if batch.images is None:
            return super().encode_documents(batch)
        # Beside an image an absent text has nothing to say. Without one its markers are the document, as in ColBERT.
        drop = (batch.image_counts > 0) & ~batch["has_text"]
        keep = batch["keep"] & ~drop[:, None]
        text = self.document_rows(batch) * keep.unsqueeze(-1)
        ids, mask = (t.to(text.device) for t in self.prompt())
        states = self.text.states(ids, mask)
        prompt = (states, self.text.project(states), mask.bool())
        rows, _ = self.visual_rows(batch.images, Question(*(t.expand(len(batch.images), *t.shape[1:]) for t in prompt)))
        owner = owner_of(batch, text.device)
        parts = [(kind, *_scatter(rows[kind], owner, len(batch))) for kind in self.kinds]
        return assemble([*parts, ("text", text, keep)], {})

    def prompt(self) -> tuple[Tensor, Tensor]:
        """ids and mask [1, L] of the image prompt, tokenised as a query without padding."""
        return self.tokenizer.queries([IMAGE_PROMPT], self.options().query_maxlen, pad_to_maxlen=False)

    # ---- identity and files

    def _query_key(self, side: str) -> dict:
        return {} if side == "document" else {"mask_policy": self.config.mask_policy, "stage": self.stage}

    def identity(self, images: bool = False) -> dict:
        """Text documents do not depend on the head: an index of the plain text tower is reusable.

        images: documents have images, so their vectors also follow the head, the vision tower and the prompt.
        """
        plain = {**super().identity(), "retriever": "colbert"}
        if not images:
            return plain
        preprocessing = self._pixels.describe() if self._pixels is not None else {}
        return {
            **plain,
            "retriever": self.config.name,
            "fusion": artifacts.weight_digest(self.fusion),
            **self.head_options(),
            "visual": fingerprint(self.vision.fingerprint(preprocessing)),
            "prompt": fingerprint([self.prompt()[0].tolist()]),
        }

    @classmethod
    def skeleton(cls, config: Config, folder: Path, names: Iterable[str]) -> VisualColBERT:
        text = TextTower(tower_config(folder / "text"), config.dim, artifacts.has_pooler(names))
        vision = VisionTower(tower_config(folder / "vision"), config.vision)
        return cls(config, text, colbert.make_tokenizer(config, folder / "text"), vision, pixels_of(folder / "vision"))

    def tower_folders(self) -> dict[str, tuple]:
        keepers = (self._pixels,) if self._pixels is not None else ()
        return {**super().tower_folders(), "vision": (self.vision.trunk.config, keepers)}


def owner_of(batch: Batch, device: torch.device) -> Tensor:
    """[N] int64: the item that each image belongs to."""
    return torch.repeat_interleave(torch.arange(len(batch), device=device), batch.image_counts)


def _scatter(rows: Tensor, owner: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    """Rows of N images to their items: [B, R, dim] and mask [B, R]."""
    out = rows.new_zeros(batch, *rows.shape[1:]).index_copy(0, owner, rows)
    mask = torch.zeros(batch, rows.shape[1], dtype=torch.bool, device=rows.device)
    mask[owner] = True
    return out, mask


def assemble(parts: list[tuple[str, Tensor, Tensor]], extras: dict) -> TokenBatch:
    kinds = tuple(kind for kind, rows, _ in parts for _ in range(rows.shape[1]))
    source = torch.cat([torch.arange(rows.shape[1]) for _, rows, _ in parts])
    embeddings = normalize(torch.cat([rows for _, rows, _ in parts], 1), dim=-1)
    return TokenBatch(embeddings, torch.cat([mask for _, _, mask in parts], 1), Rows(kinds, source), extras)


def noisy(features: VisualBatch, scale: float) -> VisualBatch:
    """Features with Gaussian noise of ``scale`` times their standard deviation over the batch, per dimension."""

    def add(values: Tensor) -> Tensor:
        spread = values.flatten(0, -2).std(0, correction=0)
        return values + scale * spread * torch.randn_like(values)

    return VisualBatch(
        global_=add(features.global_), patches=None if features.patches is None else add(features.patches)
    )


def pixels_of(folder: Path) -> PixelSource | None:
    """The folder's image processor, when it has one."""
    return PixelSource(folder) if (folder / "preprocessor_config.json").is_file() else None


def patches_per_image(vision: VisionTower, pixels: PixelSource | None) -> int:
    """P of this tower behind this preprocessing, from the shapes alone: nothing is computed."""
    if pixels is None:
        side = vision.trunk.config.image_size
        shape = (1, 3, side, side)
    else:
        shape = pixels.pixels([Image.new("RGB", (64, 64))]).pixels.shape
    weights = {k: v.to("meta") for k, v in vision.state_dict(keep_vars=True).items()}
    weights.update({k: v.to("meta") for k, v in vision.named_buffers()})
    return functional_call(vision, weights, torch.empty(shape, device="meta"))[1].shape[1]


def build(family: type[VisualColBERT], config: Config, root: str | Path | None = None) -> VisualColBERT:
    """Build with pretrained towers. ``root``: folder in which relative tower names are looked up first."""
    text, missing, text_folder = load_text_tower(config.text_tower, config.dim, root)
    vision, vision_missing, vision_folder = load_vision_tower(config.vision, root)
    tokenizer = colbert.make_tokenizer(config, text_folder)
    model = family(config, text, tokenizer, vision, pixels_of(vision_folder))
    missing += vision_missing + [f"fusion.{k}" for k in model.fusion.state_dict()]
    artifacts.settle_fresh(missing, config.fresh, f"{config.text_tower} and {config.vision.tower}")
    return model
