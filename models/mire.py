"""MIRe: fusion-free modality interaction for multimodal query retrieval (Ju et al., ACL 2025).

Q = normalize([global rows ; pooled rows ; text rows]): the image becomes T + H extra query vectors; the text steers
where the pooled rows look, and no text value is mixed into them. Documents are ColBERT's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import normalize

from core.batch import Batch
from core.errors import UserError
from core.files import fingerprint
from core.records import Document, Query
from core.tokens import Rows, TokenBatch
from core.visual import VisualBatch, VisualSource
from models import artifacts, colbert
from models.fusion import QueryGuidedAttentivePooling
from models.towers.folders import tower_config
from models.towers.images import PixelSource
from models.towers.text import TextTower, load_text_tower
from models.towers.tokenizer import ColbertTokenizer
from models.towers.vision import VisionConfig, VisionTower, load_vision_tower

RowKind = Literal["global", "pooled", "text"]

TEMPERATURES = {"pretrain": 0.3, "train": 0.8, "eval": 1.0}
"""The published temperatures: phase A, phase B, inference."""

IMAGE_PROMPT = "Can you describe the primary elements in this image?"
"""The text that steers the pooled rows of a document that is only an image."""


class Stage(colbert.Stage):
    """rows: which rows form the query. Phase A trains on [global, pooled] so that text cannot dominate."""

    rows: list[RowKind] = Field(default=["global", "pooled", "text"], min_length=1)


class Config(colbert.Config):
    """``model`` section for ``name: mire``.

    num_tokens T, num_heads H: global and pooled rows per image. frozen: of "text", "linear", "vision", "fusion".
    visual_noise: Gaussian noise on features while training, in standard deviations per dimension; 0 as published.
    mask_policy: what [MASK] padding of queries does.
      legacy  attended and counted in training, masked at inference, as published; masked rows enter the pooling
      train   attended and counted everywhere
      clean   masked everywhere and left out of the pooling; batches pad only to their longest query
    """

    name: Literal["mire"] = "mire"
    vision: VisionConfig = VisionConfig(tower="openai/clip-vit-base-patch32")
    num_tokens: int = Field(16, ge=1)
    num_heads: int = Field(12, ge=1)
    residual: bool = False
    visual_noise: float = Field(0.0, ge=0)
    mask_policy: Literal["legacy", "train", "clean"] = "legacy"
    frozen: list[Literal["text", "linear", "vision", "fusion"]] = ["vision"]
    fresh: list[str] = ["fusion"]
    train: Stage = Stage()
    valid: Stage | None = None
    eval: Stage = Stage()

    @model_validator(mode="after")
    def _vision_stays_frozen(self) -> Config:
        if "vision" not in self.frozen:
            raise ValueError("frozen must contain 'vision': MIRe's vision tower never trains")
        if self.attend_to_mask_tokens:
            raise ValueError("attend_to_mask_tokens belongs to colbert; mask_policy says it for mire")
        return self


class MIRe(colbert.ColBERT):
    """ColBERT plus a frozen vision tower and the fusion-free head. One image per query or document at most."""

    Config = Config

    def __init__(
        self,
        config: Config,
        text: TextTower,
        tokenizer: ColbertTokenizer,
        vision: VisionTower,
        pixels: PixelSource | None,
    ) -> None:
        nn.Module.__init__(self)
        self.fusion = QueryGuidedAttentivePooling(
            vision.hidden_size, config.dim, config.num_tokens, config.num_heads, config.residual
        )
        self.vision = vision
        self._pixels = pixels
        self._setup(config, text, tokenizer)

    def parts(self) -> dict[str, nn.Module]:
        return {**super().parts(), "vision": self.vision, "fusion": self.fusion}

    # ---- images

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
        counts = []
        for record in records:
            if len(record.images) > 1:
                raise UserError(f"'{record.id}' has {len(record.images)} images; mire takes one, remove the others.")
            counts.append(len(record.images))
        refs = [r.images[0] for r in records if r.images]
        offsets = Batch.image_offsets(counts)
        if not refs:
            return {"images": None, "offsets": offsets}
        source = visual or self.pixel_source()
        self._check_source(source)
        return {"images": source.fetch(refs), "offsets": offsets}

    def _check_source(self, source: VisualSource) -> None:
        if source.fingerprint.get("kind") == "pixels" or getattr(self, "_source_checked", None) is source:
            return
        found = source.fingerprint
        wanted = json.loads(json.dumps(self.visual_spec(found.get("dtype", "float16"))))
        different = sorted(k for k in {*wanted, *found} if wanted.get(k) != found.get(k))
        if different:
            raise UserError(
                f"the feature cache was made by another tower (differing: {', '.join(different)}); "
                "build one for this model with python -m runs.run_visual_embedder."
            )
        self._source_checked = source

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
        """As ColBERT; a document with an image also gets the image prompt's ids."""
        found = self._fetch(records, visual)
        batch = self._text_batch("document", [r.text for r in records], states)
        batch.tensors["has_text"] = torch.tensor([bool(r.text.strip()) for r in records])
        return Batch(batch.tensors, **found)

    def tokenize(self, side: str, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        if side == "document":
            return super().tokenize(side, texts)
        policy = self.config.mask_policy
        # legacy and train always pad to the configured length: masked or [MASK] rows enter the pooling there, so a
        # shorter batch would change an encoding with its companions.
        ids, mask = self.tokenizer.queries(texts, self.options().query_maxlen, pad_to_maxlen=policy != "clean")
        attend = policy == "train" or (policy == "legacy" and self.stage != "eval")
        return ids, torch.ones_like(mask) if attend else mask

    # ---- encode

    def encode_queries(self, batch: Batch, return_relevance: bool = False) -> TokenBatch:
        """[B, T + H + L, dim] unit rows, of the kinds that the stage's ``rows`` names.

        An item without image keeps its text rows only; an item without text, under the clean policy, its visual rows
        only. ``return_relevance`` puts the attention [N, H, L, P] of the N images into ``extras["relevance"]``.
        """
        wanted = self.options().rows
        mask = batch["mask"].bool()
        counts = mask if self.config.mask_policy != "clean" else mask & batch["has_text"][:, None]
        text = self.text.project(self.states(batch)) * mask.unsqueeze(-1)
        parts: list[tuple[str, Tensor, Tensor]] = []
        extras = {}
        if batch.images is not None and {"global", "pooled"} & set(wanted):
            owner = torch.repeat_interleave(torch.arange(len(batch), device=text.device), batch.image_counts)
            global_, pooled, attention = self.visual_rows(batch.images, text[owner], mask[owner])
            parts += [
                (kind, *self._scatter(rows, owner, len(batch)))
                for kind, rows in (("global", global_), ("pooled", pooled))
                if kind in wanted
            ]
            if return_relevance:
                extras["relevance"] = attention
        has_image = batch.image_counts > 0
        if "text" in wanted or not bool(has_image.all()):
            # Without an image the question is all there is, whatever rows the stage asks for.
            shown = counts if "text" in wanted else counts & ~has_image[:, None]
            parts.append(("text", text * shown.unsqueeze(-1), shown))
        return _assemble(parts, extras)

    def visual_rows(self, images: VisualBatch, text: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Global rows [N, T, dim], pooled rows [N, H, dim] (neither normalised), attention [N, H, L, P]."""
        features = self.visual_features(images)
        if self.training and self.config.visual_noise:
            features = _noisy(features, self.config.visual_noise)
        pooled, attention = self.fusion.pooled_rows(
            features.patches, text, mask, exclude_masked=self.config.mask_policy == "clean"
        )
        return self.fusion.global_rows(features.global_), pooled, attention

    def encode_documents(self, batch: Batch) -> TokenBatch:
        """Text rows as ColBERT; an image adds T + H rows in front, steered by a fixed prompt."""
        if batch.images is None:
            return super().encode_documents(batch)
        # Beside an image an absent text has nothing to say. Without one its markers are the document, as in ColBERT.
        drop = (batch.image_counts > 0) & ~batch["has_text"]
        keep = batch["keep"] & ~drop[:, None]
        text = self.text.project(self.states(batch)) * keep.unsqueeze(-1)
        prompt_ids, prompt_mask = (t.to(text.device) for t in self.prompt())
        prompt = self.text.project(self.text.states(prompt_ids, prompt_mask))
        n = len(batch.images)
        global_, pooled, _ = self.visual_rows(batch.images, prompt.expand(n, -1, -1), prompt_mask.bool().expand(n, -1))
        owner = torch.repeat_interleave(torch.arange(len(batch), device=text.device), batch.image_counts)
        parts = [
            (kind, *self._scatter(rows, owner, len(batch))) for kind, rows in (("global", global_), ("pooled", pooled))
        ]
        return _assemble([*parts, ("text", text, keep)], {})

    def prompt(self) -> tuple[Tensor, Tensor]:
        """ids and mask [1, L] of the image prompt, tokenised as a query without padding."""
        return self.tokenizer.queries([IMAGE_PROMPT], self.options().query_maxlen, pad_to_maxlen=False)

    @staticmethod
    def _scatter(rows: Tensor, owner: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        """Rows of N images to their items: [B, R, dim] and mask [B, R]."""
        out = rows.new_zeros(batch, *rows.shape[1:]).index_copy(0, owner, rows)
        mask = torch.zeros(batch, rows.shape[1], dtype=torch.bool, device=rows.device)
        mask[owner] = True
        return out, mask

    # ---- identity and files

    def _query_key(self, side: str) -> dict:
        return {} if side == "document" else {"mask_policy": self.config.mask_policy, "stage": self.stage}

    def identity(self, images: bool = False) -> dict:
        """Text documents do not depend on the fusion head: an index of the plain text tower is reusable.

        images: documents have images, so their vectors also follow the fusion head, the vision tower and the prompt.
        """
        plain = {**super().identity(), "retriever": "colbert"}
        if not images:
            return plain
        preprocessing = self._pixels.describe() if self._pixels is not None else {}
        return {
            **plain,
            "retriever": self.config.name,
            "fusion": artifacts.weight_digest(self.fusion),
            "residual": self.config.residual,
            "visual": fingerprint(self.vision.fingerprint(preprocessing)),
            "prompt": fingerprint([self.prompt()[0].tolist()]),
        }

    @classmethod
    def skeleton(cls, config: Config, folder: Path, names: Iterable[str]) -> MIRe:
        text = TextTower(tower_config(folder / "text"), config.dim, artifacts.has_pooler(names))
        vision = VisionTower(tower_config(folder / "vision"), config.vision)
        return cls(config, text, colbert.make_tokenizer(config, folder / "text"), vision, pixels_of(folder / "vision"))

    def tower_folders(self) -> dict[str, tuple]:
        keepers = (self._pixels,) if self._pixels is not None else ()
        return {**super().tower_folders(), "vision": (self.vision.trunk.config, keepers)}


def _assemble(parts: list[tuple[str, Tensor, Tensor]], extras: dict) -> TokenBatch:
    kinds = tuple(kind for kind, rows, _ in parts for _ in range(rows.shape[1]))
    source = torch.cat([torch.arange(rows.shape[1]) for _, rows, _ in parts])
    embeddings = normalize(torch.cat([rows for _, rows, _ in parts], 1), dim=-1)
    return TokenBatch(embeddings, torch.cat([mask for _, _, mask in parts], 1), Rows(kinds, source), extras)


def _noisy(features: VisualBatch, scale: float) -> VisualBatch:
    """Features with Gaussian noise of ``scale`` times their standard deviation over the batch, per dimension."""

    def add(values: Tensor) -> Tensor:
        spread = values.flatten(0, -2).std(0, correction=0)
        return values + scale * spread * torch.randn_like(values)

    return VisualBatch(global_=add(features.global_), patches=add(features.patches))


def pixels_of(folder: Path) -> PixelSource | None:
    """The folder's image processor, when it has one."""
    return PixelSource(folder) if (folder / "preprocessor_config.json").is_file() else None


def build(config: Config, root: str | Path | None = None) -> MIRe:
    """Build with pretrained towers. ``root``: folder in which relative tower names are looked up first."""
    text, missing, text_folder = load_text_tower(config.text_tower, config.dim, root)
    vision, vision_missing, vision_folder = load_vision_tower(config.vision, root)
    tokenizer = colbert.make_tokenizer(config, text_folder)
    model = MIRe(config, text, tokenizer, vision, pixels_of(vision_folder))
    missing += vision_missing + [f"fusion.{k}" for k in model.fusion.state_dict()]
    artifacts.settle_fresh(missing, config.fresh, f"{config.text_tower} and {config.vision.tower}")
    return model


Retriever = MIRe
