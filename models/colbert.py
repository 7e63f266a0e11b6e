"""ColBERT: the text-only late-interaction retriever (Khattab & Zaharia 2020; ColBERTv2, Santhanam et al. 2022)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn.functional import normalize

from core.batch import Batch
from core.config import Strict
from core.errors import UserError
from core.records import Document, Query
from core.tokens import Rows, TokenBatch
from models import artifacts
from models.pooling import pool_tokens
from models.towers.folders import tower_config
from models.towers.text import TextTower, load_text_tower
from models.towers.tokenizer import ColbertTokenizer


class Stage(Strict):
    """What differs between training, validation and inference. Lengths in tokens, markers included."""

    query_maxlen: int = Field(32, ge=4)
    doc_maxlen: int = Field(180, ge=4)
    temperature: float = Field(1.0, gt=0)
    mask_punctuation: bool = True

    @field_validator("rows", "document_rows", check_fields=False)  # of the families that have them
    @classmethod
    def _each_kind_once(cls, rows: list[str]) -> list[str]:
        if twice := [kind for kind in dict.fromkeys(rows) if rows.count(kind) > 1]:
            raise ValueError(f"'{twice[0]}' is named more than once; a query or document has each kind of row once")
        return rows


class Config(Strict):
    """``model`` section for ``name: colbert``.

    text_tower: a ColBERT, PyLate, sentence-transformers or plain encoder folder, or a hub name (docs/TOWERS.md).
    fresh: weights that the tower does not have and that are to be trained from scratch (``[linear]`` for a plain
    encoder). frozen: parts that do not train, of "text" and "linear". query_marker, doc_marker: the vocabulary entry
    behind [CLS], "" for none. attend_to_mask_tokens: the trunk attends to the [MASK] padding of queries. These three
    are what the tower's folder says where they are null.
    """

    name: Literal["colbert"] = "colbert"
    text_tower: str = "ckpts/colbertv2.0"
    dim: int = Field(128, ge=1)
    fresh: list[str] = []
    frozen: list[Literal["text", "linear"]] = []
    query_marker: str | None = None
    doc_marker: str | None = None
    attend_to_mask_tokens: bool | None = None
    train: Stage = Stage()
    valid: Stage | None = None
    eval: Stage = Stage()


class ColBERT(nn.Module):
    """Two verbs, ``encode_queries`` and ``encode_documents``; ``stage`` says which lengths and temperature hold."""

    Config = Config

    def __init__(self, config: Config, text: TextTower, tokenizer: ColbertTokenizer) -> None:
        super().__init__()
        self._setup(config, text, tokenizer)

    def _setup(self, config: Config, text: TextTower, tokenizer: ColbertTokenizer) -> None:
        self.config = config
        self.stage = "eval"
        self.text = text
        self.tokenizer = tokenizer
        self.freeze(config.frozen)

    # ---- stages and frozen parts

    def options(self) -> Stage:
        """The config of the present stage; validation falls back to training's."""
        return getattr(self.config, self.stage) or self.config.train

    def temperature(self) -> float:
        return self.options().temperature

    def parts(self) -> dict[str, nn.Module]:
        """Names that ``frozen`` may use."""
        return {"text": self.text.trunk, "linear": self.text.linear}

    def freeze(self, frozen: Sequence[str]) -> None:
        """Exactly the named parts stop training (a pooler never trains: nothing reads it)."""
        for name, part in self.parts().items():
            part.requires_grad_(name not in frozen)
        if getattr(self.text.trunk, "pooler", None) is not None:
            self.text.trunk.pooler.requires_grad_(False)
        self._frozen = frozenset(frozen)
        self.train(self.training)

    def train(self, mode: bool = True) -> ColBERT:
        """Frozen parts stay in eval mode: no dropout noise in what does not learn."""
        super().train(mode)
        for name, part in self.parts().items():
            if name in getattr(self, "_frozen", ()):
                part.eval()
        return self

    # ---- a config and the towers

    def resolved(self, config: Config) -> Config:
        """``config`` with what it leaves to the towers written out, as far as the weights depend on it."""
        return config

    def check_lengths(self, config: Config) -> None:
        """Whether the text tower has positions for the lengths of every stage."""
        limit = self.text.positions
        for stage in ("train", "valid", "eval"):
            for key in ("query_maxlen", "doc_maxlen"):
                value = getattr(getattr(config, stage), key, 0)  # valid may be null
                if limit is not None and value > limit:
                    raise UserError(
                        f"model.{stage}.{key} is {value}, but the text tower has {limit} positions "
                        "(max_position_embeddings in its config.json); set it to that or less."
                    )

    # ---- collate

    def collate_queries(self, records: Sequence[Query], visual=None, states=None) -> Batch:
        """ids and mask [B, L], and states [B, L, h] when ``states`` holds the frozen trunk's output."""
        self._refuse_images(records)
        for record in records:
            if not record.text.strip():
                raise UserError(f"query '{record.id}' has no text; '{self.config.name}' reads text only.")
        return self._text_batch("query", [r.text for r in records], states)

    def collate_documents(self, records: Sequence[Document], visual=None, states=None) -> Batch:
        """ids, mask and keep [B, L]; ``keep`` marks the rows that are stored. With ``states`` where nothing trains on
        the way to the rows: rows [B, L, dim], mask and keep."""
        self._refuse_images(records)
        return self._text_batch("document", [r.text for r in records], states)

    def _refuse_images(self, records: Sequence[Query | Document]) -> None:
        for record in records:
            if record.images:
                raise UserError(
                    f"'{record.id}' has an image, but '{self.config.name}' reads text only; "
                    "use an image retriever such as mire, or remove the images."
                )

    def _text_batch(self, side: str, texts: list[str], states=None) -> Batch:
        if states is not None and self._finished(side):
            rows = TokenBatch.pad([r.float() for r in states.get(side, texts)])
            tensors = {"rows": rows.embeddings, "mask": rows.mask, "keep": rows.mask}
            return Batch(tensors, offsets=torch.zeros(len(texts) + 1, dtype=torch.int64))
        ids, mask = self.tokenize(side, texts)
        tensors = {"ids": ids, "mask": mask}
        if side == "document":
            tensors["keep"] = self._keep(ids)
        if states is not None and "text" in self._frozen:
            stored = states.get(side, texts)
            width = ids.shape[1]
            for text, item in zip(texts, stored):
                if len(item) > width:
                    raise UserError(
                        f"stored states of '{text[:40]}' have {len(item)} rows, the batch has {width}; "
                        "the cache was made with another length, build it again."
                    )
            tensors["states"] = TokenBatch.pad([s.float() for s in stored], width).embeddings
        return Batch(tensors, offsets=torch.zeros(len(texts) + 1, dtype=torch.int64))

    def _keep(self, ids: Tensor) -> Tensor:
        return self.tokenizer.keep(ids, self.options().mask_punctuation)

    def tokenize(self, side: str, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """ids and attention mask [B, L] of the present stage."""
        options = self.options()
        if side == "document":
            return self.tokenizer.documents(texts, options.doc_maxlen)
        ids, mask = self.tokenizer.queries(texts, options.query_maxlen)
        return ids, torch.ones_like(mask) if self.attends() else mask

    def attends(self) -> bool:
        """Whether the trunk attends to the [MASK] padding of queries: the config's word, else the tower's."""
        asked, own = self.config.attend_to_mask_tokens, self.tokenizer.conventions
        return own.expansion and (own.attend if asked is None else asked)

    # ---- encode

    def states(self, batch: Batch) -> Tensor:
        """Trunk states [B, L, h], stored or computed; a frozen trunk makes no graph."""
        if "states" in batch:
            return batch["states"]
        with torch.no_grad() if "text" in self._frozen else nullcontext():
            return self.text.states(batch["ids"], batch["mask"], only_attended="keep" in batch)

    def encode_queries(self, batch: Batch) -> TokenBatch:
        """[B, L, dim] unit rows. [MASK] rows count (query augmentation)."""
        counts = batch["ids"] != self.tokenizer.pad_id
        return self._tokens(self.text.project(self.states(batch)), counts)

    def encode_documents(self, batch: Batch) -> TokenBatch:
        """[B, L, dim] unit rows; rows of [PAD] and of skipped punctuation are zero and masked."""
        return self._tokens(self.document_rows(batch), batch["keep"])

    def document_rows(self, batch: Batch) -> Tensor:
        """[B, L, dim], stored or projected, not normalised."""
        return batch["rows"] if "rows" in batch else self.text.project(self.states(batch))

    def _tokens(self, rows: Tensor, counts: Tensor) -> TokenBatch:
        what = Rows(("text",) * rows.shape[1], torch.arange(rows.shape[1]))
        return TokenBatch(normalize(rows * counts.unsqueeze(-1), dim=-1), counts, what)

    # ---- convenience on texts, as colbert-ai's Checkpoint offers them

    @torch.no_grad()
    def query_from_text(
        self, texts: Sequence[str], context: Sequence[str] | None = None, full_length: bool = False
    ) -> tuple[Batch, TokenBatch]:
        """Batch and vectors of query strings. ``context``: one passage per query that follows it; its [PAD] rows are
        zero. ``full_length``: tokenise to the longest query instead of ``query_maxlen`` (colbert-ai's rule)."""
        batch = self._text_batch("query", list(texts))
        if full_length:
            length = self.tokenizer.full_query_length(texts, self.options().query_maxlen)
            ids, mask = self.tokenizer.queries(texts, length)
            batch.tensors.update(ids=ids, mask=torch.ones_like(mask) if self.attends() else mask)
        if context is not None:
            room = self.text.trunk.config.max_position_embeddings - self.options().query_maxlen
            extra, extra_mask = self.tokenizer.contexts(context, room + 1)
            batch.tensors.update(
                ids=torch.cat([batch["ids"], extra], 1), mask=torch.cat([batch["mask"], extra_mask], 1)
            )
        return batch, self.encode_queries(batch)

    @torch.no_grad()
    def doc_from_text(self, texts: Sequence[str], pool_factor: int = 1, protected_tokens: int = 0) -> list[Tensor]:
        """One [n, dim] tensor per text: the stored rows, optionally pooled (see ``models.pooling``)."""
        rows = self.encode_documents(self._text_batch("document", list(texts))).unpad()
        return rows if pool_factor == 1 else [pool_tokens(r, pool_factor, protected_tokens) for r in rows]

    # ---- frozen trunk states

    def _finished(self, side: str) -> bool:
        """Whether a document's rows themselves are stored: neither the trunk nor the projection trains."""
        return side == "document" and {"text", "linear"} <= self._frozen

    def frozen_text_key(self, side: str) -> dict | None:
        """What the frozen trunk's states (or a document's finished rows) depend on; None when the trunk trains."""
        if "text" not in self._frozen:
            return None
        options = self.options()
        if self._finished(side):
            return {**self.identity(), "kind": "text rows, document", "dtype": "float16"}
        length = options.doc_maxlen if side == "document" else options.query_maxlen
        return {
            "kind": f"text states, {side}",
            "weights": artifacts.weight_digest(self.text.trunk),
            "maxlen": length,
            "marker": self.tokenizer.doc_marker_id if side == "document" else self.tokenizer.query_marker_id,
            "tokenizer": self.tokenizer.digest,
            "dtype": "float16",
            **self._query_key(side),
        }

    def _query_key(self, side: str) -> dict:
        return {} if side == "document" else {"attend_to_mask_tokens": self.attends()}

    @torch.no_grad()
    def text_states(self, side: str, texts: Sequence[str]) -> list[Tensor]:
        """Trunk states, one [n, h] tensor per text: attended rows of a document, all rows of a query. Where nothing
        trains on the way to a document's rows, these: [n, dim] unit rows that are stored."""
        device = self.text.linear.weight.device
        ids, mask = (t.to(device) for t in self.tokenize(side, texts))
        states = self.text.states(ids, mask, only_attended=side == "document")
        if side == "query":
            return list(states)
        if self._finished(side):
            return self._tokens(self.text.project(states), self._keep(ids)).unpad()
        return [s[m.bool()] for s, m in zip(states, mask)]

    # ---- identity and files

    def identity(self, images: bool = False) -> dict:
        """What document vectors made now depend on. An index stores it and refuses another's queries.

        images: some documents have images (never here; a retriever that sees them adds what their rows depend on).
        """
        options = self.options()
        return {
            "retriever": self.config.name,
            "text": artifacts.weight_digest(self.text),
            "dim": self.config.dim,
            "marker": self.tokenizer.doc_marker_id,
            "tokenizer": self.tokenizer.digest,
            "doc_maxlen": options.doc_maxlen,
            "mask_punctuation": options.mask_punctuation,
        }

    def save_pretrained(self, path: str | Path, provenance: dict | None = None) -> None:
        """Write a checkpoint folder, whole or not at all."""
        artifacts.save_retriever(self, path, provenance)

    @classmethod
    def from_pretrained(cls, path: str | Path) -> ColBERT:
        """Read a folder that ``save_pretrained`` wrote; the stage is "eval"."""
        return artifacts.load_retriever(cls, path)

    @classmethod
    def skeleton(cls, config: Config, folder: Path, names: Iterable[str]) -> ColBERT:
        """The module with the towers' shapes and no weights yet, for ``from_pretrained``."""
        text = TextTower(tower_config(folder / "text"), config.dim, artifacts.has_pooler(names))
        return cls(config, text, make_tokenizer(config, folder / "text"))

    def tower_folders(self) -> dict[str, tuple]:
        """folder name -> (Hugging Face config, things with ``save(folder)``), kept beside the weights."""
        return {"text": (self.text.trunk.config, (self.tokenizer,))}


def make_tokenizer(config: Config, folder: Path) -> ColbertTokenizer:
    """The folder's tokenizer and conventions, with the markers that the config names."""
    return ColbertTokenizer.from_folder(folder, query_marker=config.query_marker, doc_marker=config.doc_marker)


def build(config: Config, root: str | Path | None = None) -> ColBERT:
    """Build with pretrained towers. ``root``: folder in which relative tower names are looked up first."""
    text, missing, folder = load_text_tower(config.text_tower, config.dim, root)
    artifacts.settle_fresh(missing, config.fresh, config.text_tower)
    return ColBERT(config, text, make_tokenizer(config, folder))


Retriever = ColBERT
