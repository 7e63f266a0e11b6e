"""Index and search a list of documents by FLMR's three functions, on this project's indexes. Also ``rerank``.

A document is a text, (text, features, None) with the vision tower's CLS vector [Hv], or (text, None, image path), where
a list of paths gives it several images. A list of documents may hold texts beside one of the other two. A document's id
is its position in the list.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.config import check
from core.errors import UserError
from core.files import atomic_file, replace_folder
from core.records import Document, ImageRef, Query
from core.tokens import TokenBatch
from core.visual import VisualBatch

COLBERT_AI = "colbert_ai"
FEW = {"n_probe": 2, "threshold": 0.45, "n_candidates": 1024}
"""What the original's engine takes for k <= 10, where colbert-ai looks less hard."""

UNCOMPRESSED = {16: "float16", 32: "float32"}
"""``nbits`` that keep vectors as they are; every search of such an index is exact."""

# ---- documents


class Given:
    """A VisualSource of features that stand in the records themselves, and of picture files."""

    def __init__(self, model) -> None:
        self.model = model
        self.fingerprint = {"kind": "given"}

    def fetch(self, refs: Sequence[ImageRef]) -> VisualBatch:
        if all(ref.data is None for ref in refs):
            return self.model.pixel_source().fetch(refs)
        rows = np.stack([np.frombuffer(ref.data, np.float32) for ref in refs])
        rows = torch.from_numpy(rows.reshape(len(refs), -1, self.model.vision.hidden_size))
        return VisualBatch(global_=rows[:, 0], patches=rows[:, 1:] if rows.shape[1] > 1 else None)


def parts_of(item: Any, where: str, model, patches: bool = False) -> tuple[str, tuple[ImageRef, ...]]:
    """Text and image of one item of a list. where: names it in errors. patches: features are CLS and patches."""
    if isinstance(item, str):
        return item, ()
    forms = "a text, (text, features, None) or (text, None, image path)"
    if not isinstance(item, (tuple, list)) or len(item) != 3 or not isinstance(item[0], str):
        raise UserError(f"{where} is {type(item).__name__} {str(item)[:60]!r}; give {forms}.")
    text, features, path = item
    if features is not None and path is not None:
        raise UserError(f"{where} has both features and an image path; give {forms}.")
    if features is None and path is None:
        return text, ()
    if model.vision is None:
        raise UserError(f"{where} has an image, but this checkpoint reads text only (use_vision_encoder is false).")
    if path is not None:
        paths = [path] if isinstance(path, (str, Path)) else [*path]
        return text, tuple(ImageRef(str(one), path=str(one)) for one in paths)
    rows, width = torch.as_tensor(features).detach().float().cpu().contiguous().numpy(), model.vision.hidden_size
    if rows.ndim != 1 + patches or rows.shape[-1] != width or not rows.size or not np.isfinite(rows).all():
        wanted = f"[1 + P, {width}], CLS and patches," if patches else f"[{width}]"
        raise UserError(
            f"the features of {where} are {list(rows.shape)}; this checkpoint's vision tower makes {wanted} finite "
            "numbers: give those."
        )
    data = rows.tobytes()
    return text, (ImageRef(f"features {hashlib.sha256(data).hexdigest()[:16]}", data=data),)


def documents_of(collection: Sequence, model) -> list[Document]:
    if isinstance(collection, (str, Mapping)):
        raise UserError(f"the collection is a {type(collection).__name__}; give a list of documents.")
    parts = [parts_of(item, f"document {i} of the collection", model) for i, item in enumerate(collection)]
    if not parts:
        raise UserError("the collection holds no documents; give at least one.")
    kinds = {ref.data is None for _, images in parts for ref in images}
    if len(kinds) > 1:
        raise UserError("the collection has images as features and as files; give one kind in one list.")
    return [Document(str(i), text, images) for i, (text, images) in enumerate(parts)]


@contextlib.contextmanager
def encoding(model, device: Any, images: bool, doc_maxlen: int | None = None) -> Iterator:
    """The model at inference on ``device``, then as it was before; documents may be shorter, and with images have
    their rows whatever the checkpoint says."""
    usual = model.config.eval
    changes = {} if doc_maxlen is None else {"doc_maxlen": min(doc_maxlen, usual.doc_maxlen)}
    if images and "global" not in usual.document_rows:
        changes["document_rows"] = ["global", *usual.document_rows]
    view = copy.copy(model)  # the same weights under another config
    view.config = model.config.model_copy(update={"eval": usual.model_copy(update=changes)})
    view.stage = "eval"
    modes, home = [(module, module.training) for module in model.modules()], device_of(model)
    model.eval()
    view.training = False
    try:
        model.to(device)
        yield view
    finally:
        model.to(home)
        for module, mode in modes:
            module.training = mode


def device_of(model) -> torch.device:
    return next(model.parameters()).device


def chosen_device(use_gpu: bool, device: str | None) -> torch.device:
    """device when it is given, else CUDA where it is wanted and there, else the CPU."""
    if device is not None:
        from core.device import pick_device

        return pick_device(device)
    return torch.device("cuda" if use_gpu and torch.cuda.is_available() else "cpu")


# ---- indexing


def index_custom_collection(
    custom_collection: Sequence,
    model: Any,
    index_root_path: str = ".",
    index_experiment_name: str = "default_experiment",
    index_name: str = "index",
    nbits: int = 8,
    doc_maxlen: int = 512,
    overwrite: bool = False,
    use_gpu: bool = True,
    indexing_batch_size: int = 64,
    model_temp_folder: str = "tmp",
    nranks: int = 1,
    *,
    device: str | None = None,
) -> str:
    """Encode and index; returns ``{root}/{experiment}/indexes/{name}.nbits={nbits}``.

    model: a ``FLMRModelForRetrieval``, or a checkpoint folder or hub name. nbits: 1, 2, 4 or 8 per dimension, or 16 or
    32 for vectors as they are, without any error. doc_maxlen: tokens of a document that are read, at most those of the
    checkpoint. An index of the same documents, checkpoint and options is kept, an unfinished one goes on; another one
    is an error, or with overwrite replaced when the new one is complete. use_gpu: where there is one; device, such as
    "cpu" or "cuda:1", takes its place.
    model_temp_folder, nranks: not needed: nothing is saved on the way, and one process does the work.
    """
    from index.colbert_ai import is_colbert_ai
    from runs.indexing import build, index_device
    from runs.settings import IndexSection

    path = index_path(index_root_path, index_experiment_name, index_name, nbits)
    if isinstance(model, (str, Path)):
        from compat.flmr_model import FLMRModelForRetrieval

        model = FLMRModelForRetrieval.from_pretrained(model)
    if nbits in UNCOMPRESSED:
        chosen: dict[str, Any] = {"name": "exact", "options": {"dtype": UNCOMPRESSED[nbits]}}
    elif nbits in (1, 2, 4, 8):
        chosen = {"name": "plaid", "options": {"nbits": nbits}}
    else:
        raise UserError(f"nbits={nbits!r} is not offered; use 1, 2, 4 or 8, or 16 or 32 for no compression.")
    if isinstance(doc_maxlen, bool) or not isinstance(doc_maxlen, int) or doc_maxlen < 4:
        raise UserError(f"doc_maxlen={doc_maxlen!r} leaves no room for words; give a whole number of 4 or more.")
    documents = documents_of(custom_collection, model)
    section = check(IndexSection, {**chosen, "batch_size": indexing_batch_size}, "index_custom_collection")
    images = any(d.images for d in documents)
    place = chosen_device(use_gpu, device)
    foreign = path.is_dir() and is_colbert_ai(path)
    if foreign and not overwrite:
        raise UserError(
            f"'{path}' was written by the original engine, which did not note what checkpoint and documents it is of; "
            "open it with create_searcher if you know, or give another index_name or overwrite=True."
        )
    with encoding(model, place, images, doc_maxlen) as encoder:
        into = path.with_name(f"{path.name}.rebuilt") if foreign else path
        options = {"visual": Given(encoder) if images else None, "overwrite": overwrite}
        try:
            build(encoder, documents, section, into, device=index_device(place), **options)
        except UserError as error:
            problem, found, _ = str(error).partition("give another index.path")
            raise UserError(f"{problem}give another index_name, or overwrite=True.") if found else error from None
    if foreign:
        replace_folder(into, path)
    return str(path)


def index_path(root: str, experiment: str, name: str, nbits: int) -> Path:
    return Path(root) / experiment / "indexes" / f"{name}.nbits={nbits}"


# ---- searching


class Searcher:
    """An open index."""

    def __init__(self, index) -> None:
        self.index = index

    def __len__(self) -> int:
        return len(self.index)


def create_searcher(
    index_root_path: str = ".",
    index_experiment_name: str = "default_experiment",
    index_name: str = "index",
    use_gpu: bool = True,
    nbits: int = 8,
    *,
    device: str | None = None,
    model: Any = None,
) -> Searcher:
    """Open what ``index_custom_collection`` made of these names, or the original engine.

    model: encodes the queries; an error when the index is of other document weights. Without it only the number of
    dimensions can be compared.
    """
    from index import open_index
    from index.common import check_encoder
    from runs.indexing import index_device

    path = index_path(index_root_path, index_experiment_name, index_name, nbits)
    index = open_index(path, device=index_device(chosen_device(use_gpu, device)))
    if model is not None:
        built = index.manifest["encoder"]
        if not built:
            raise UserError(
                f"'{path}' was written by the original engine, which did not note its checkpoint; leave model out, or "
                "build the index again."
            )
        images = built.get("document_rows") is not None
        with encoding(model, device_of(model), images, built.get("doc_maxlen")) as encoder:
            now = encoder.identity(images=images)
        check_encoder(path, built, now)
    return Searcher(index)


class Ranking:
    """Question id -> [(document, rank from 1, score), ...], best first."""

    def __init__(self, data: Mapping[Any, Sequence[tuple[Any, int, float]]]) -> None:
        self.data = {query: [tuple(entry) for entry in entries] for query, entries in data.items()}

    def todict(self) -> dict[Any, list[tuple[Any, int, float]]]:
        return dict(self.data)

    def tolist(self) -> list[tuple[Any, Any, int, float]]:
        """Rows (question id, document, rank, score)."""
        return [(query, *entry) for query, entries in self.data.items() for entry in entries]

    def items(self):
        return self.data.items()

    def save(self, path: str | Path) -> None:
        """``tolist`` as tab-separated text."""
        with atomic_file(path, "w") as handle:
            handle.writelines("\t".join(map(str, row)) + "\n" for row in self.tolist())


def search_custom_collection(
    searcher: Searcher,
    queries: Mapping[Any, str] | Sequence[str],
    query_embeddings: Tensor,
    num_document_to_retrieve: int = 100,
    remove_zero_tensors: bool = True,
    centroid_search_batch_size: int | None = None,
    filter_fn: Callable[[Tensor], Tensor] | None = None,
    **effort: Any,
) -> Ranking:
    """The best documents of each query. Documents are list positions (or the ids of an index built elsewhere).

    queries: question id -> text; its order is that of query_embeddings [B, Lq, dim]. num_document_to_retrieve: fewer
    when the index has fewer. remove_zero_tensors: rows that are zero are no part of the query (they never change a
    score). filter_fn: positions of all documents [N] -> those that may be found. effort, n_probe, threshold,
    n_candidates: of the index (docs/INDEX.md): effort="exhaustive" scores every document, effort="colbert" searches as
    the original engine. centroid_search_batch_size: not needed, memory is bounded in any case.
    """
    names = list(queries) if isinstance(queries, Mapping) else list(range(len(queries)))
    if isinstance(query_embeddings, np.ndarray):
        query_embeddings = torch.from_numpy(query_embeddings)
    if not isinstance(query_embeddings, Tensor) or query_embeddings.ndim != 3:
        shape = getattr(query_embeddings, "shape", type(query_embeddings).__name__)
        raise UserError(f"query_embeddings is {tuple(shape) if isinstance(shape, torch.Size) else shape}; give "
                        "late_interaction_output [B, rows, dim].")  # fmt: skip
    if len(names) != len(query_embeddings):
        raise UserError(
            f"there are {len(names)} questions and {len(query_embeddings)} rows of query_embeddings; give one question "
            "id per row (an id that stands twice is one entry of a dict)."
        )
    known = ("effort", "n_probe", "threshold", "n_candidates")
    if unknown := [name for name in effort if name not in known]:
        raise UserError(f"search_custom_collection has no argument {unknown[0]!r}; it has {', '.join(known)}.")
    index, vectors = searcher.index, query_embeddings.detach().float()
    k = min(num_document_to_retrieve, len(index))
    effort = {**_usual(index.manifest["format"], effort.get("effort"), k), **effort}
    allowed = None
    if filter_fn is not None:
        ids = index.ids()
        allowed = {ids[i] for i in filter_fn(torch.arange(len(ids))).tolist()}
    mask = (vectors != 0).any(-1) if remove_zero_tensors else torch.ones(vectors.shape[:2], dtype=torch.bool)
    found = index.search(TokenBatch(vectors, mask.to(vectors.device)), k, allowed, **effort)
    return Ranking({name: _entries(r.ids, r.scores) for name, r in zip(names, found)})


def _usual(kind: str, effort: str | None, k: int) -> dict[str, Any]:
    """Options that follow from k where the caller gives none. kind: the index's format."""
    if kind == "plaid" and effort in (None, "balanced"):
        return {"n_candidates": max(512, 2 * k)}  # a larger k costs more, here too
    original = effort == "colbert" or (kind == COLBERT_AI and effort is None)
    return FEW if original and k <= 10 else {}


def _entries(ids: Sequence[str], scores: Sequence[float]) -> list[tuple[Any, int, float]]:
    found = (int(i) if i.isascii() and i.isdigit() else i for i in ids)
    return [(i, rank, score) for rank, (i, score) in enumerate(zip(found, scores), 1)]


# ---- without an index


def rerank(
    model: Any, query: Any, documents: Sequence, k: int | None = None, batch_size: int = 64
) -> list[tuple[int, int, float]]:
    """See ``FLMRModelForRetrieval.rerank``."""
    from core.maxsim import maxsim
    from runs.common import encode_corpus

    records, place = documents_of(documents, model), device_of(model)
    images = any(d.images for d in records)
    with encoding(model, place, images) as encoder, torch.inference_mode():
        tokens = getattr(query, "tokens", None) or _query(encoder, query)
        if len(tokens) != 1:
            raise UserError(f"rerank takes one query, not {len(tokens)}; call it once for each.")
        scores: list[float] = []
        stream = encode_corpus(encoder, records, batch_size, Given(encoder) if images else None)
        for group in _groups((v for _, v in stream), batch_size):
            batch = TokenBatch.pad([torch.from_numpy(v).to(place) for v in group])
            scores += maxsim(tokens.to(place), batch)[0].tolist()
    order = sorted(range(len(scores)), key=lambda i: -scores[i])[:k]
    return [(i, rank, scores[i]) for rank, i in enumerate(order, 1)]


def _query(model, item: Any) -> TokenBatch:
    text, images = parts_of(item, "the query", model, patches=model.config.mapping is not None)
    batch = model.collate_queries([Query("query", text, images)], Given(model) if images else None)
    return model.encode_queries(batch.to(device_of(model)))


def _groups(stream: Iterator[np.ndarray], size: int) -> Iterator[list[np.ndarray]]:
    group: list[np.ndarray] = []
    for item in stream:
        group.append(item)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
