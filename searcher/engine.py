"""A retriever and an index that answer questions: what the terminal, the page and the HTTP interface share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from core.errors import UserError
from core.protocols import Index, Ranking
from core.records import Document, ImageRef, Query
from core.visual import VisualBatch
from evaluation.explain import Explanation
from models.towers.images import decode

GREY = Image.new("RGB", (64, 64), (128, 128, 128))


@dataclass(frozen=True)
class Asked:
    """A query ready for the model. pixels: what the vision tower's preprocessing made of its image, None without one.

    seconds: what decoding took.
    """

    query: Query
    pixels: np.ndarray | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Hit:
    """One passage found. rank: from 1."""

    rank: int
    id: str
    score: float
    title: str
    text: str


@dataclass(frozen=True)
class Answer:
    """The passages, best first, and where the time went. batch: how many queries were answered in the same call.

    decode_ms: of this query's image. encode_ms, search_ms: of the call. queue_ms: waiting for its turn.
    """

    results: list[Hit]
    decode_ms: float
    queue_ms: float
    encode_ms: float
    search_ms: float
    batch: int

    def plain(self, seconds: float) -> dict[str, Any]:
        """results and timings, as ``POST /search`` replies. seconds: what the query took in all."""
        names = ("decode_ms", "queue_ms", "encode_ms", "search_ms")
        timings = {name: round(getattr(self, name), 2) for name in names}
        timings |= {"batch": self.batch, "total_ms": round(1000 * seconds, 2)}
        return {"results": [asdict(hit) for hit in self.results], "timings": timings}


class Prepared:
    """A VisualSource over pixels that other threads decoded: the model's thread only stacks them."""

    fingerprint = {"kind": "given"}

    def __init__(self, source, asked: Sequence[Asked]) -> None:
        self._source = source
        self._pixels = {ref.id: one.pixels for one in asked for ref in one.query.images}

    def fetch(self, refs: Sequence[ImageRef]) -> VisualBatch:
        stacked = torch.from_numpy(np.stack([self._pixels[ref.id] for ref in refs]))
        return VisualBatch(pixels=self._source.finish(stacked))


class Engine:
    """One retriever in eval stage, one index, the passages' texts."""

    def __init__(
        self,
        retriever,
        index: Index,
        find: Callable[[str], Document | None],
        explain: Callable[[Any, Query, Sequence[Document]], Explanation],
        effort: str | None = None,
        allowed: Iterable[str] | None = None,
    ) -> None:
        """find: id -> the document. explain(retriever, query, documents): the reasons. effort: how hard the index
        looks. allowed: only these ids may answer."""
        self.retriever, self.index, self.find, self._explain = retriever, index, find, explain
        self._effort = {} if effort is None else {"effort": effort}
        self._allowed = None if allowed is None else set(allowed)
        self.facts: dict[str, Any] = {}  # more for people, see ``describe``
        self.sees_images = hasattr(retriever, "pixel_source")
        self._source = retriever.pixel_source() if self.sees_images else None

    # ---- one query, any thread

    def prepare(self, text: str, image: ImageRef | None = None, decode: Callable[[ImageRef], Any] = decode) -> Asked:
        """A query of a question, an image, or both. The image is decoded here, in the caller's thread.

        decode: ImageRef -> upright RGB PIL image; the server's is stricter than the one for files of one's own.
        """
        text = text.strip()
        if not text and image is None:
            raise UserError("the query is empty; give a question, an image, or both.")
        if image is None:
            return Asked(Query("query", text))
        if self._source is None:
            raise UserError(f"this model ({self.retriever.config.name}) reads text only; leave the image out.")
        begin = time.perf_counter()
        pixels = self._source.prepare(decode(image))
        return Asked(Query("query", text, (image,)), pixels, time.perf_counter() - begin)

    # ---- the model's thread

    def search(self, asked: Sequence[Asked], k: int) -> list[Answer]:
        """The k best passages of each query (fewer where there are fewer), encoded and searched in one go."""
        begin = time.perf_counter()
        tokens = self.encode(asked)
        middle = time.perf_counter()
        k = min(k, len(self.index if self._allowed is None else self._allowed))
        rankings = self.index.search(tokens, k, allowed_ids=self._allowed, **self._effort)
        end = time.perf_counter()
        encode, search = 1000 * (middle - begin), 1000 * (end - middle)
        return [
            Answer(self._hits(ranking), 1000 * one.seconds, 0.0, encode, search, len(asked))
            for one, ranking in zip(asked, rankings)
        ]

    @torch.inference_mode()
    def encode(self, asked: Sequence[Asked]):
        """A TokenBatch."""
        asked = [_numbered(one, number) for number, one in enumerate(asked)]
        visual = Prepared(self._source, asked) if self.sees_images else None
        batch = self.retriever.collate_queries([one.query for one in asked], visual)
        tokens = self.retriever.encode_queries(batch.to(self.device))
        if tokens.embeddings.device.type == "cuda":
            torch.cuda.synchronize()  # so that the time is encoding's, not searching's
        return tokens

    def explain(self, asked: Asked, ids: Sequence[str]) -> Explanation:
        """Why these documents get their scores; see ``evaluation.explain``."""
        return self._explain(self.retriever, asked.query, [self.document(id_) for id_ in ids])

    def warm_up(self) -> None:
        """Answer once, so that what is compiled or allocated at first use is no user's wait."""
        asked = [self.prepare("warm up")]
        if self.sees_images:
            asked.append(Asked(Query("query", "warm up", (ImageRef("grey", data=b""),)), self._source.prepare(GREY)))
        for one in asked:
            self.search([one], 1)

    # ---- what there is

    def document(self, id_: str) -> Document:
        found = self.find(id_)
        if found is None:
            raise UserError(f"the passages do not contain '{id_}'; a search shows their ids.")
        return found

    @property
    def device(self) -> torch.device:
        return next(self.retriever.parameters()).device

    def describe(self) -> dict[str, Any]:
        """The model, the index and their sizes."""
        stats = self.index.stats()
        return {
            **self.facts,
            "model": {
                **self.facts.get("model", {}),
                "name": self.retriever.config.name,
                "parameters": sum(p.numel() for p in self.retriever.parameters()),
                "device": str(self.device),
                "images": self.sees_images,
            },
            "index": {
                "format": self.index.manifest["format"],
                "documents": int(stats["documents"]) if self._allowed is None else len(self._allowed),
                "vectors": int(stats["vectors"]),
                "bytes": int(stats["bytes"]),
            },
        }

    def _hits(self, ranking: Ranking) -> list[Hit]:
        out = []
        for rank, (id_, score) in enumerate(zip(ranking.ids, ranking.scores), 1):
            document = self.find(id_) or Document(id_)
            out.append(Hit(rank, id_, float(score), document.title, document.text))
        return out


def _numbered(asked: Asked, number: int) -> Asked:
    """With names that no other query of the batch has."""
    images = tuple(replace(ref, id=f"image {number}") for ref in asked.query.images)
    return replace(asked, query=replace(asked.query, id=f"query {number}", images=images))
