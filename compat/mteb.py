"""mteb's search protocol (mteb 2.x: ``index`` and ``search``) on top of any retriever and any index.

    from compat.mteb import MtebSearch
    from runs.common import open_retriever
    model = MtebSearch(open_retriever("experiments/triviawiki/trained"), index="plaid")
    mteb.evaluate(model, mteb.get_tasks(["SciFact"]))

mteb itself is only needed for what the model says about itself (``mteb_model_meta``).
"""

from __future__ import annotations

import importlib
import io
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from core.device import autocast
from core.errors import UserError
from core.files import fingerprint
from core.protocols import Index, Retriever
from core.records import Document, ImageRef, Query

INSTALL = "pip install -r requirements-mteb.txt"
WINDOW = 32  # batches that are sorted by length together


class MtebSearch:
    """A retriever and an index as one model of mteb.

    index: module of ``index/``; options go to its ``build``. The index of the present corpus lies in a temporary folder
    (below TMPDIR) that ends with the next corpus or with this object. name: "organisation/model", as mteb files its
    results; its revision names weights, lengths, index and options, so that results of other ones are never taken from
    mteb's cache.
    """

    def __init__(
        self,
        retriever: Retriever,
        index: str = "exact",
        *,
        name: str = "local/retriever",
        batch_size: int = 32,
        precision: str = "fp32",
        effort: str | None = None,
        **options: Any,
    ) -> None:
        if name.count("/") != 1 or name.startswith("/") or name.endswith("/"):
            raise UserError(f"name is '{name}'; mteb files results under 'organisation/model', such as local/mire.")
        self.retriever, self.index_name, self.options = retriever, index, options
        self.name, self.batch_size, self.precision, self.effort = name, batch_size, precision, effort
        self._folder: tempfile.TemporaryDirectory | None = None
        self._index: Index | None = None
        retriever.stage = "eval"
        retriever.eval()  # type: ignore[attr-defined]

    # ---- the protocol

    def index(self, corpus, *, hf_split: str = "", hf_subset: str = "", **ignored: Any) -> None:
        """Encode and index a corpus: rows with ``id``, ``text`` and perhaps ``title`` and ``image``.

        mteb's ``encode_kwargs`` are not read: batch size and precision are this object's.
        """
        documents = [_document(row) for row in corpus]
        if not documents:
            raise UserError(f"the corpus of split '{hf_split}' {hf_subset} is empty; check the task.")
        module = importlib.import_module(f"index.{self.index_name}")
        self._folder = tempfile.TemporaryDirectory(prefix="mteb-")  # the one before goes
        self._index = module.Index.build(
            Path(self._folder.name) / "index",
            self._vectors(documents),
            dim=self.retriever.config.dim,
            encoder=self.retriever.identity(any(d.images for d in documents)),
            total=len(documents),
            **self.options,
        )

    def search(self, queries, *, top_k: int, top_ranked: Mapping[str, Sequence[str]] | None = None, **ignored: Any):
        """{query id: {document id: score}}, at most ``top_k`` each. top_ranked: rank only these documents."""
        if self._index is None:
            raise UserError("search was called before index; index a corpus first.")
        asked = [_query(row) for row in queries]
        effort = {} if self.effort is None else {"effort": self.effort}
        found: dict[str, dict[str, float]] = {}
        for start in range(0, len(asked), self.batch_size):
            batch = asked[start : start + self.batch_size]
            with torch.inference_mode(), autocast(self._device, self.precision):
                tokens = self.retriever.encode_queries(self.retriever.collate_queries(batch).to(self._device))
            allowed = None if top_ranked is None else [set(top_ranked.get(q.id, ())) for q in batch]
            k = min(top_k, len(self._index))  # type: ignore[arg-type]
            rankings = self._index.search(tokens.to(torch.float32), k, allowed, **effort)
            for query, ranking in zip(batch, rankings, strict=True):
                found[query.id] = dict(zip(ranking.ids, ranking.scores, strict=True))
        return found

    @property
    def mteb_model_meta(self):
        """What mteb files the results under."""
        try:
            from mteb.models import ModelMeta
        except ImportError:
            raise UserError(f"mteb is not installed; {INSTALL}.") from None
        count = sum(p.numel() for p in self.retriever.parameters())  # type: ignore[attr-defined]
        sees = ["text", "image"] if hasattr(self.retriever, "visual_spec") else ["text"]
        return ModelMeta.create_empty({
            "name": self.name, "revision": self.revision, "n_parameters": count, "embed_dim": self.retriever.config.dim,
            "framework": ["PyTorch"], "similarity_fn_name": "MaxSim", "modalities": sees,
        })  # fmt: skip

    @property
    def revision(self) -> str:
        """16 digits over everything that the scores depend on."""
        settings = [self.index_name, self.options, self.effort, self.precision]
        stage = self.retriever.config.eval.model_dump()
        return fingerprint([self.retriever.identity(hasattr(self.retriever, "visual_spec")), stage, settings])

    # ---- encoding

    @property
    def _device(self) -> torch.device:
        return next(self.retriever.parameters()).device  # type: ignore[attr-defined]

    def _vectors(self, documents: Sequence[Document]) -> Iterator[tuple[str, np.ndarray]]:
        """(id, [n, dim]) in order; passages of like length share a batch."""
        window = self.batch_size * WINDOW
        for start in range(0, len(documents), window):
            part = documents[start : start + window]
            order = sorted(range(len(part)), key=lambda i: len(part[i].text))
            made: dict[int, np.ndarray] = {}
            for s in range(0, len(order), self.batch_size):
                rows = order[s : s + self.batch_size]
                with torch.inference_mode(), autocast(self._device, self.precision):
                    batch = self.retriever.collate_documents([part[i] for i in rows]).to(self._device)
                    tokens = self.retriever.encode_documents(batch)
                made |= {i: v.float().cpu().numpy() for i, v in zip(rows, tokens.unpad(), strict=True)}
            yield from ((part[i].id, made[i]) for i in range(len(part)))


# ---- mteb's rows as records


def _document(row: Mapping[str, Any]) -> Document:
    """The title stands before the text, as mteb gives documents to every model."""
    text = _text(row, row.get("text") or row.get("body") or "")
    return Document(str(row["id"]), f"{row.get('title') or ''} {text}".strip(), _images(row))


def _query(row: Mapping[str, Any]) -> Query:
    text, instruction = _text(row, row.get("text") or ""), row.get("instruction") or ""
    return Query(str(row["id"]), text, _images(row), instruction=_text(row, instruction))


def _text(row: Mapping[str, Any], value: Any) -> str:
    if not isinstance(value, str):
        raise UserError(f"'{row['id']}' has a {type(value).__name__} as text (a conversation?); only texts are read.")
    return value


def _images(row: Mapping[str, Any]) -> tuple[ImageRef, ...]:
    image = row.get("image")
    if image is None:
        return ()
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "PNG")
    return (ImageRef(str(row["id"]), data=buffer.getvalue()),)
