"""FLMR and PreFLMR: question rows, rows of whole images and regions, and in PreFLMR a row per patch that read the
question (Lin et al. 2023, "Fine-grained Late-interaction Multi-modal Retrieval"; Lin et al. 2024, "PreFLMR").

Q = normalize([text rows ; global rows ; mapped rows]), D = normalize([global rows ; text rows]). One class; the config
says which of the two systems, or what in between.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from core.batch import Batch
from core.errors import UserError
from core.files import fingerprint, read_object
from core.records import Document, Query
from core.tokens import TokenBatch
from core.visual import VisualBatch
from models import artifacts, colbert
from models.flmr_head import ImageRows, Mapping
from models.towers.folders import resolve, tower_config
from models.towers.images import PixelSource
from models.towers.text import TextTower, load_text_tower
from models.towers.tokenizer import ColbertTokenizer
from models.towers.vision import VisionConfig, VisionTower, load_vision_tower
from models.visual import SeesImages, assemble, noisy, owner_of, pixels_of

VARIANTS: dict[str, dict[str, Any]] = {
    "flmr": {},
    "preflmr": {"separate_text": True, "mapping": {}, "instruction_separator": ":"},
}


class Stage(colbert.Stage):
    """rows: which kinds form the query; "mapped" exists with a mapping network only. PreFLMR's first stage trains on
    [global, mapped]. document_rows: which kinds form a document; an image without "global" there is an error."""

    rows: list[Literal["text", "global", "mapped"]] = Field(default=["text", "global", "mapped"], min_length=1)
    document_rows: list[Literal["global", "text"]] = Field(default=["global", "text"], min_length=1)


class Config(colbert.Config):
    """``model`` section for ``name: flmr``.

    variant: which published system the next three have their defaults from (FLMR: false, null, null; PreFLMR: true,
    a mapping network, ":"). separate_text: queries have a text tower of their own. mapping: PreFLMR's network, null
    for none. instruction_separator: of a query "instruction: question", rows of the instruction do not count; it is
    one vocabulary entry, null keeps all rows.
    vision: null makes a text retriever. separate_vision: documents' images have a tower and projection of their own.
    num_tokens: T rows per image. skip_query_ids: vocabulary entries whose rows of queries never count.
    visual_noise: noise on image features in training, in standard deviations per dimension; 0 as published.
    frozen: of "text", "linear" (both sides of each), "vision" (the towers), "fusion" (projection and mapping), and
    "documents": what encodes text documents, so that their index stays right (with separate_text only).
    """

    name: Literal["flmr"] = "flmr"
    variant: Literal["flmr", "preflmr"] = "flmr"
    separate_text: bool = False
    mapping: Mapping | None = None
    instruction_separator: str | None = None
    vision: VisionConfig | None = VisionConfig(tower="openai/clip-vit-base-patch32")
    separate_vision: bool = False
    num_tokens: int = Field(32, ge=1)
    skip_query_ids: list[int] = []
    visual_noise: float = Field(0.0, ge=0)
    frozen: list[Literal["text", "linear", "vision", "fusion", "documents"]] = ["vision"]
    fresh: list[str] = ["fusion"]
    train: Stage = Stage()
    valid: Stage | None = None
    eval: Stage = Stage()

    @model_validator(mode="before")
    @classmethod
    def _of_the_variant(cls, raw: Any) -> Any:
        return {**VARIANTS.get(str(raw.get("variant")), {}), **raw} if isinstance(raw, dict) else raw

    @model_validator(mode="after")
    def _fits_together(self) -> Config:
        if self.vision is None and (self.mapping is not None or self.separate_vision):
            raise ValueError("vision is null, so mapping must be null and separate_vision false")
        kinds = {"text", *(() if self.vision is None else ("global",)), *(() if self.mapping is None else ("mapped",))}
        if "documents" in self.frozen and not self.separate_text:
            raise ValueError(
                "frozen names 'documents', but without separate_text queries have the same text tower; "
                "freeze 'text' and 'linear'"
            )
        for stage in (self.train, self.valid, self.eval):
            if stage is not None and not kinds & {*stage.rows}:
                raise ValueError(f"rows {stage.rows} leave nothing, this model has {sorted(kinds)}")
        return self


class FLMR(SeesImages, colbert.ColBERT):
    """``text`` reads documents, ``query_text`` queries where there is one. Items may have several images."""

    Config = Config
    several_images = True

    def __init__(
        self,
        config: Config,
        text: TextTower,
        tokenizer: ColbertTokenizer,
        vision: VisionTower | None,
        pixels: PixelSource | None,
        query_text: TextTower | None = None,
        document_vision: VisionTower | None = None,
    ) -> None:
        nn.Module.__init__(self)
        self.query_text, self.vision, self.document_vision = query_text, vision, document_vision
        self.fusion = None
        if vision is not None:
            shape = (vision.hidden_size, text.trunk.config, config.dim, config.num_tokens)
            self.fusion = ImageRows(*shape, config.mapping, config.separate_vision)
        self._pixels = pixels
        self._setup(config, text, tokenizer)
        self.separator_id = self._separator()

    def _separator(self) -> int | None:
        wanted = self.config.instruction_separator
        if wanted is None:
            return None
        ids = self.tokenizer.tokenizer.encode(wanted, add_special_tokens=False)
        if len(ids) != 1 or ids[0] == self.tokenizer.tokenizer.unk_token_id:
            raise UserError(
                f"model.instruction_separator '{wanted}' is not one entry of the tokenizer's vocabulary; "
                "use one that is, such as ':', or null."
            )
        return ids[0]

    # ---- parts

    @property
    def query_tower(self) -> TextTower:
        return self.text if self.query_text is None else self.query_text

    def parts(self) -> dict[str, nn.Module]:
        texts = [t for t in (self.text, self.query_text) if t is not None]
        visions = [v for v in (self.vision, self.document_vision) if v is not None]
        parts = {"text": _together([t.trunk for t in texts]), "linear": _together([t.linear for t in texts])}
        return parts if not visions else {**parts, "vision": _together(visions), "fusion": self.fusion}

    def freeze(self, frozen: Sequence[str]) -> None:
        """Exactly the named parts stop training, and what feeds nothing: poolers and the vision towers' last norm."""
        super().freeze(frozen)
        idle = [self.query_tower.trunk.pooler] if getattr(self.query_tower.trunk, "pooler", None) is not None else []
        for tower in (self.vision, self.document_vision):
            if tower is not None:
                idle += [m for name, m in tower.named_modules() if name.endswith("post_layernorm")]
        if "documents" in frozen:
            idle.append(self.text)
        for module in idle:
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> FLMR:
        super().train(mode)
        if "documents" in getattr(self, "_frozen", ()):
            self.text.eval()
        return self

    def resolved(self, config: Config) -> Config:
        """``config`` with the mapping network's shape written out where it is the text tower's."""
        if config.mapping is None:
            return config
        return config.model_copy(update={"mapping": config.mapping.resolved(self.text.trunk.config)})

    # ---- collate

    def question(self, record: Query) -> str:
        """Instruction and question as one text, the instruction closed by the separator; blanks as the original's."""
        instruction, separator = record.instruction.strip(), self.config.instruction_separator
        if instruction and separator is not None:
            instruction = instruction if instruction.endswith(":") else f"{instruction}:"
            instruction = instruction.replace(":", separator)
        return f"{instruction}  {record.text} " if instruction else record.text

    def collate_queries(self, records: Sequence[Query], visual=None, states=None) -> Batch:
        """ids, mask [B, L], L = query_maxlen ([MASK] rows count), has_text [B], and the images."""
        texts = [self.question(r) for r in records]
        for record, text in zip(records, texts):
            if not text.strip() and not record.images:
                raise UserError(f"query '{record.id}' has neither text nor image; give at least one.")
        found = self._fetch(records, visual)
        batch = self._text_batch("query", texts, states)
        batch.tensors["has_text"] = torch.tensor([bool(t.strip()) for t in texts])
        self._tell_of_separators(records, batch)
        return Batch(batch.tensors, **found)

    def collate_documents(self, records: Sequence[Document], visual=None, states=None) -> Batch:
        """ids, mask and keep [B, L], L the longest, has_text [B], and the images."""
        for record in records:
            if record.images and self.fusion is not None and "global" not in self.options().document_rows:
                raise UserError(
                    f"document '{record.id}' has an image, but this model's documents are text; set "
                    f"model.{self.stage}.document_rows: [global, text] to use images, or remove them."
                )
        kind = "pixels" if visual is None else visual.fingerprint.get("kind")
        if self.document_vision is not None and kind not in ("pixels", "given"):
            visual = None if not any(r.images for r in records) else self._refuse_cache()
        found = self._fetch(records, visual)
        batch = self._text_batch("document", [r.text for r in records], states)
        batch.tensors["has_text"] = torch.tensor([bool(r.text.strip()) for r in records])
        return Batch(batch.tensors, **found)

    def _refuse_cache(self):
        raise UserError(
            "a feature cache holds the features of the queries' vision tower, but documents have a tower of their own "
            "(model.separate_vision); set visual.cache: null."
        )

    def _fetch(self, records, visual) -> dict:
        if self.vision is None:
            self._refuse_images(records)
            return {"images": None, "offsets": Batch.image_offsets([0] * len(records))}
        stored = visual is not None and visual.fingerprint.get("kind") != "pixels"
        if stored and self.stage == "train" and "vision" not in self._frozen:
            raise UserError(
                "the vision tower trains, so stored features of it would soon be wrong; set visual.cache: null, or add "
                "vision to model.frozen."
            )
        return super()._fetch(records, visual)

    def _tell_of_separators(self, records: Sequence[Query], batch: Batch) -> None:
        """One warning per model about a text in which no instruction ends."""
        if self.separator_id is None or getattr(self, "_told", False):
            return
        lacking = (~(batch["ids"] == self.separator_id).any(1) & batch["has_text"]).tolist()
        for record, lacks in zip(records, lacking):
            if lacks:
                self._told = True
                why = (
                    f"has no '{self.config.instruction_separator}' within {batch['ids'].shape[1]} tokens, so all its "
                    "rows count, the instruction's too; shorten the instruction or raise query_maxlen"
                    if record.instruction
                    else f"has no instruction that ends in '{self.config.instruction_separator}', so all its rows count"
                    "; give queries an instruction, or set model.instruction_separator: null"
                )
                print(f"warning: query '{record.id}' {why}. (Said once.)", file=sys.stderr)
                return

    # ---- encode

    def visual_features(self, images: VisualBatch, side: str = "query") -> VisualBatch:
        """Stored features pass through, pixels go through the side's tower, which makes a graph where it trains.

        While training with the config's noise.
        """
        features = images if images.pixels is None else self._through_the_tower(images, side)
        return noisy(features, self.config.visual_noise) if self.training and self.config.visual_noise else features

    def _through_the_tower(self, images: VisualBatch, side: str) -> VisualBatch:
        tower = self.vision if side == "query" or self.document_vision is None else self.document_vision
        wanted, found = getattr(tower.trunk.config, "image_size", None), tuple(images.pixels.shape[-2:])
        if wanted is not None and found != (wanted, wanted) and tower.family == "clip_vision_model":
            raise UserError(
                f"images are {found[0]} x {found[1]} pixels, but this model's vision tower wants {wanted} x {wanted}; "
                f"use the image processor of '{self.config.vision.tower}'."
            )
        global_, patches = (tower if "vision" in self._frozen else tower.taps)(images.pixels)
        return VisualBatch(global_=global_, patches=patches)

    def states(self, batch: Batch, side: str = "document") -> Tensor:
        """Trunk states [B, L, h] of the side's tower, stored or computed; a frozen trunk makes no graph."""
        if side == "document" or self.query_text is None or "states" in batch:
            return super().states(batch)
        with torch.set_grad_enabled(torch.is_grad_enabled() and "text" not in self._frozen):
            return self.query_text.states(batch["ids"], batch["mask"])

    def counted(self, ids: Tensor) -> Tensor:
        """[B, L] bool: rows of queries that count, of ids [B, L].

        With a separator: the first two ([CLS] and marker) and what follows its first occurrence; all when it is absent.
        """
        counts = self._seen(ids) & (ids != self.tokenizer.pad_id)
        if self.separator_id is None:
            return counts
        last = (ids == self.separator_id).int().argmax(1, keepdim=True).clamp(min=1)  # of the instruction; 1: none
        position = torch.arange(ids.shape[1], device=ids.device)
        return counts & ((position < 2) | (position > last))

    def _seen(self, ids: Tensor) -> Tensor:
        return ~torch.isin(ids, torch.tensor(self.config.skip_query_ids, dtype=ids.dtype, device=ids.device))

    def encode_queries(self, batch: Batch, return_relevance: bool = False) -> TokenBatch:
        """[B, rows, dim] unit rows of the stage's kinds; an item without image keeps its text rows in any case.

        There is no relevance to show: a mapped row is a mixture of patches before it reads the question.
        """
        return assemble(self.query_parts(batch, self.options().rows), {})

    def query_parts(self, batch: Batch, wanted: Sequence[str]) -> list[tuple[str, Tensor, Tensor]]:
        """(kind, rows [B, R, dim] not normalised and zero where they do not count, counts [B, R])."""
        ids, has_image = batch["ids"], batch.image_counts > 0
        mapped = "mapped" in wanted and self.config.mapping is not None and batch.images is not None
        show_text = "text" in wanted or not bool(has_image.all())
        states = self.states(batch, "query") if show_text or mapped else None
        parts = []
        if show_text:
            counts = self.counted(ids) & batch["has_text"][:, None]
            if "text" not in wanted:
                counts = counts & ~has_image[:, None]
            parts.append(("text", self.query_tower.project(states) * counts.unsqueeze(-1), counts))
        if batch.images is not None and ("global" in wanted or mapped):
            features, owner = self.visual_features(batch.images), owner_of(batch, ids.device)
            if "global" in wanted:
                parts.append(("global", *_scatter(self.fusion.global_rows(features.global_), owner, batch)))
            if mapped:
                if features.patches is None:
                    raise UserError("the mapping network reads patches, but only global features are given.")
                seen = self._seen(ids)[owner] if self.config.skip_query_ids else None
                rows = self.fusion.mapped_rows(features.patches, states[owner], seen)
                parts.append(("mapped", *_scatter(rows, owner, batch)))
        return parts

    def encode_documents(self, batch: Batch) -> TokenBatch:
        """[B, rows, dim] unit rows: those of the images in front, then the text's without [PAD] and punctuation."""
        return assemble(self.document_parts(batch, self.options().document_rows), {})

    def document_parts(self, batch: Batch, wanted: Sequence[str]) -> list[tuple[str, Tensor, Tensor]]:
        """As ``query_parts``. Beside an image an absent text has no rows; without one its markers are the document."""
        has_image = batch.image_counts > 0
        parts = []
        if batch.images is not None and "global" in wanted:
            features = self.visual_features(batch.images, "document")
            owner = owner_of(batch, features.global_.device)
            parts.append(("global", *_scatter(self.fusion.document_rows(features.global_), owner, batch)))
        drop = has_image & (~batch["has_text"] if "text" in wanted else True)
        if "text" in wanted or not bool(has_image.all()):
            keep = batch["keep"] & ~drop[:, None] if parts else batch["keep"]
            parts.append(("text", self.document_rows(batch) * keep.unsqueeze(-1), keep))
        return parts

    # ---- frozen trunk states, identity and files

    def frozen_text_key(self, side: str) -> dict | None:
        key = super().frozen_text_key(side)
        if key is None or side == "document" or self.query_text is None:
            return key
        return {**key, "weights": artifacts.weight_digest(self.query_text.trunk)}

    @torch.no_grad()
    def text_states(self, side: str, texts: Sequence[str]) -> list[Tensor]:
        if side == "document" or self.query_text is None:
            return super().text_states(side, texts)
        device = self.query_text.linear.weight.device
        return list(self.query_text.states(*(t.to(device) for t in self.tokenize(side, texts))))

    def identity(self, images: bool = False) -> dict:
        """Text documents depend on ``text`` alone, as ColBERT's do: an index of that text tower is reusable.

        images: documents have images, so their vectors also follow a vision tower and a projection.
        """
        plain = {**super().identity(), "retriever": "colbert"}
        if not images or self.fusion is None:
            return plain
        own = self.fusion.document_projection
        tower = self.vision if self.document_vision is None else self.document_vision
        preprocessing = self._pixels.describe() if self._pixels is not None else {}
        return {
            **plain,
            "retriever": self.config.name,
            "document_rows": self.options().document_rows,
            "fusion": artifacts.weight_digest(self.fusion.projection if own is None else own),
            "visual": fingerprint(tower.fingerprint(preprocessing)),
        }

    @classmethod
    def from_pretrained(cls, path: str | Path) -> FLMR:
        """Our own checkpoint folder, or one in the released layout (a folder or a hub name)."""
        from models import flmr_files

        folder = resolve(str(path))
        if flmr_files.is_released(read_object(folder / "config.json", "checkpoint config")):
            return flmr_files.load(cls, folder)
        return super().from_pretrained(folder)

    def save_pretrained(self, path: str | Path, provenance: dict | None = None, layout: str = "own") -> None:
        """layout: "own", or "hub" for the released one, which the original code reads."""
        if layout == "own":
            return super().save_pretrained(path, provenance)
        from models import flmr_files

        flmr_files.save(self, path, provenance)

    @classmethod
    def skeleton(cls, config: Config, folder: Path, names: Iterable[str]) -> FLMR:
        names = list(names)

        def text(name: str) -> TextTower:
            pooler = any(n.startswith(f"{name}.trunk.pooler.") for n in names)
            return TextTower(tower_config(folder / name), config.dim, pooler)

        def vision(name: str) -> VisionTower:
            return VisionTower(tower_config(folder / name), config.vision)

        return cls(
            config,
            text("text"),
            colbert.make_tokenizer(config, folder / "text"),
            vision("vision") if config.vision is not None else None,
            pixels_of(folder / "vision"),
            text("query_text") if config.separate_text else None,
            vision("document_vision") if config.separate_vision else None,
        )

    def tower_folders(self) -> dict[str, tuple]:
        folders = super().tower_folders()
        if self.query_text is not None:
            folders["query_text"] = (self.query_text.trunk.config, ())
        if self.vision is not None:
            keepers = (self._pixels,) if self._pixels is not None else ()
            folders["vision"] = (self.vision.trunk.config, keepers)
        if self.document_vision is not None:
            folders["document_vision"] = (self.document_vision.trunk.config, ())
        return folders


def _together(modules: list[nn.Module]) -> nn.Module:
    """Both sides' modules as one part, in their mode."""
    if len(modules) == 1:
        return modules[0]
    both = nn.ModuleList(modules)
    both.training = modules[0].training
    return both


def _scatter(rows: Tensor, owner: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Rows [N, K, dim] of N images to their items: [B, R * K, dim] image by image, and mask; R: most images of one."""
    most = int(batch.image_counts.max())
    slot = torch.arange(len(owner), device=rows.device) - batch.offsets.to(rows.device)[owner]
    out = rows.new_zeros(len(batch), most, *rows.shape[1:]).index_put((owner, slot), rows)
    mask = torch.arange(most, device=rows.device) < batch.image_counts.to(rows.device)[:, None]
    return out.flatten(1, 2), mask.repeat_interleave(rows.shape[1], 1)


def build(config: Config, root: str | Path | None = None) -> FLMR:
    """Build with pretrained towers. ``root``: folder in which relative tower names are looked up first."""
    text, missing, folder = load_text_tower(config.text_tower, config.dim, root)
    tokenizer = colbert.make_tokenizer(config, folder)
    query_text = vision = document_vision = pixels = None
    if config.separate_text:  # both sides start alike
        query_text, more, _ = load_text_tower(config.text_tower, config.dim, root)
        missing += [f"query_{name}" for name in more]
    if config.vision is not None:
        vision, more, place = load_vision_tower(config.vision, root)
        missing, pixels = missing + more, pixels_of(place)
        document_vision = load_vision_tower(config.vision, root)[0] if config.separate_vision else None
    model = FLMR(config, text, tokenizer, vision, pixels, query_text, document_vision)
    if config.separate_text:  # a projection that is to be trained also starts the same on both sides
        query_text.linear.load_state_dict(text.linear.state_dict())
    if model.fusion is not None:
        missing += [f"fusion.{k}" for k in model.fusion.state_dict()]
    fresh = config.fresh if model.fusion is not None else [f for f in config.fresh if f != "fusion"]
    artifacts.settle_fresh(missing, fresh, config.text_tower)
    return model


Retriever = FLMR
