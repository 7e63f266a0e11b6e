"""From a retriever, a query and passages to an ``evaluation.explain.Explanation``. Not a command of its own."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from core.batch import Batch
from core.records import Document, Query
from core.tokens import TokenBatch
from evaluation.explain import (
    Explanation,
    Maps,
    Passage,
    Picture,
    Piece,
    Row,
    Token,
    Word,
    attention_maps,
    by_kind,
    grid_of,
    match,
    relevance_maps,
    words_of,
)
from models.towers.images import decode


@torch.inference_mode()
def explain(retriever, query: Query, documents: Sequence[Document] = ()) -> Explanation:
    """What ``retriever`` (in eval stage) sees in ``query`` and why each document gets its score.

    Images are always decoded, never taken from a feature cache: what the tower saw is part of the answer.
    """
    device = next(retriever.parameters()).device
    batch = retriever.collate_queries([query])
    shown = {"return_relevance": True} if hasattr(retriever, "visual_features") else {}
    tokens = retriever.encode_queries(batch.to(device), **shown)
    pieces = pieces_of(retriever.tokenizer, batch["ids"][0].tolist(), query.text)
    words = words_of(pieces)
    picture = picture_of(retriever, batch, query) if query.images else None
    maps = maps_of(retriever, batch, tokens, words) if query.images else None
    rows = rows_of(retriever, tokens, pieces, words, picture)
    passages = [passage_of(retriever, tokens, rows, document) for document in documents]
    notes = notes_of(retriever, query, words, picture, maps)
    return Explanation(retriever.config.name, query.text, words, rows, picture, maps, passages, notes)


def pieces_of(tokenizer, ids: Sequence[int], text: str) -> list[Piece]:
    """The tokens of ``ids`` as they stand in ``text``; markers by name."""
    inner = tokenizer.tokenizer
    named = {tokenizer.query_marker_id: "[Q]", tokenizer.doc_marker_id: "[D]"}
    special = {*inner.all_special_ids, *named} - {inner.unk_token_id}
    names = [named.get(i, name) for i, name in zip(ids, inner.convert_ids_to_tokens(list(ids)))]
    offsets = places(inner, ids, special, text)
    out: list[Piece] = []
    end = 0
    for number, (index, name) in enumerate(zip(ids, names)):
        if index in special:
            out.append(Piece(name, " ", True))
        elif offsets is None:  # no places known: WordPiece's sign for "goes on" is all there is
            out.append(Piece(name.removeprefix("##"), "" if name.startswith("##") else " "))
        else:
            begin, stop = offsets[number]
            begin += len(text[begin:stop]) - len(text[begin:stop].lstrip())  # byte-level tokens own the blank before
            before = " " if out and out[-1].marker else text[end:begin]
            out.append(Piece(text[begin:stop], before))
            end = stop
    return out


def places(inner, ids: Sequence[int], special: set[int], text: str) -> dict[int, tuple[int, int]] | None:
    """position in ``ids`` -> where in ``text`` that token stands; None when tokenising it again gives other tokens."""
    if not inner.is_fast:
        return None
    plain = inner(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    found = [(i, o) for i, o in zip(plain["input_ids"], plain["offset_mapping"]) if i not in special]
    spots = [n for n, i in enumerate(ids) if i not in special]
    if [ids[n] for n in spots] != [i for i, _ in found[: len(spots)]]:
        return None
    return {n: tuple(o) for n, (_, o) in zip(spots, found)}


def picture_of(retriever, batch: Batch, query: Query) -> Picture:
    """The tower's pixels, made visible again."""
    settings = retriever.pixel_source().describe()
    pixels = batch.images.pixels[0].float().cpu()
    if settings.get("do_normalize"):
        mean, std = (torch.tensor(settings[f"image_{k}"])[:, None, None] for k in ("mean", "std"))
        pixels = pixels * std + mean
    levels = (pixels.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    patches = retriever.visual_features(batch.images.to(next(retriever.parameters()).device)).patches.shape[1]
    height, width = levels.shape[:2]
    seen = share_seen(settings, decode(query.images[0]).size)
    return Picture(data_uri(levels), width, height, grid_of(patches, height, width), seen)


def share_seen(settings: dict, size: tuple[int, int]) -> float:
    """Share of an image's area (size: width, height) that is left after resizing and centre cropping."""
    if not settings.get("do_center_crop"):
        return 1.0
    crop, target = settings["crop_size"], settings["size"] if settings.get("do_resize") else {}
    if "shortest_edge" in target:
        scale = target["shortest_edge"] / min(size)
        size = (size[0] * scale, size[1] * scale)
    elif target:
        size = (target["width"], target["height"])
    return min(1.0, crop["width"] / size[0]) * min(1.0, crop["height"] / size[1])


def data_uri(levels: np.ndarray) -> str:
    """uint8 [H, W, 3] as a PNG inside a URI."""
    out = io.BytesIO()
    Image.fromarray(levels).save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def maps_of(retriever, batch: Batch, tokens: TokenBatch, words: Sequence[Word]) -> Maps | None:
    """The family's heat maps, None when it has none."""
    relevance = tokens.extras.get("relevance")
    if relevance is None:
        return None
    if relevance.ndim == 4:
        counted = batch["mask"][0].bool()
        if retriever.config.mask_policy != "clean":
            counted = torch.ones_like(counted)  # published pooling sums padding, too
        return attention_maps(relevance[0], words, counted)
    return relevance_maps(relevance[0], tokens.extras["similarity"][0].T, words)


def rows_of(
    retriever, tokens: TokenBatch, pieces: Sequence[Piece], words: Sequence[Word], picture: Picture | None
) -> list[Row]:
    """One entry per query row that counts."""
    word_of = {piece: number for number, word in enumerate(words) for piece in word.pieces}
    out = []
    sources: Tensor = tokens.rows.source
    for kind, source, counts in zip(tokens.rows.kind, sources.tolist(), tokens.mask[0].tolist()):
        if not counts:
            continue
        if kind == "text":
            out.append(Row(kind, source, pieces[source].text, word=word_of[source]))
        elif kind == "pooled":
            out.append(Row(kind, source, f"{kind}, head {source + 1}", head=source))
        elif kind == "mapped":
            out.append(Row(kind, source, f"patch {source + 1}", patches=[source]))
        elif kind == "cell":
            head, total = retriever.fusion, picture.grid[0] * picture.grid[1]
            cell = int(tokens.extras["cell"][0]) if retriever.only_best() else source // head.ROWS
            label = f"cell {cell + 1}, row {source % head.ROWS + 1}"
            out.append(Row(kind, source, label, patches=head.window(cell, total)))
        else:
            out.append(Row(kind, source, f"{kind} {source + 1}"))
    return out


def passage_of(retriever, queries: TokenBatch, rows: Sequence[Row], document: Document) -> Passage:
    device = queries.embeddings.device
    batch = retriever.collate_documents([document])
    tokens = retriever.encode_documents(batch.to(device))
    pieces = pieces_of(retriever.tokenizer, batch["ids"][0].tolist(), document.text)
    score, matches = match(queries, tokens)
    listed = []
    for kind, source, stored in zip(tokens.rows.kind, tokens.rows.source.tolist(), tokens.mask[0].tolist()):
        piece = pieces[source] if kind == "text" else Piece(f"[{kind} {source + 1}]", " ", True)
        listed.append(Token(piece.text, piece.before, piece.marker, stored))
    return Passage(document.id, score, by_kind(rows, matches), listed, matches)


def notes_of(retriever, query: Query, words: Sequence[Word], picture: Picture | None, maps: Maps | None) -> list[str]:
    """What a reader has to know to read the pictures rightly."""
    notes = []
    if not hasattr(retriever, "visual_features"):
        notes.append(f"{retriever.config.name} reads text only: there is no picture to look at.")
    elif picture is None:
        notes.append("The query has no image, so the text rows are all there is.")
    if picture is not None and picture.seen < 0.995:
        notes.append(f"The tower saw {picture.seen:.0%} of the image: the middle. What is cut off is not shown.")
    if picture is not None and maps is None:
        notes.append(
            f"{retriever.config.name} has no map of words: its patches read each other before they become rows. "
            "Each mapped row still has its patch."
        )
    if maps is not None and maps.unit == "attention" and getattr(retriever.config, "mask_policy", "clean") == "legacy":
        notes.append("mask_policy is legacy: [MASK] padding attends to all patches alike, and enters the pooled rows.")
    if picture is not None and not query.text.strip():
        notes.append("There is no question: the markers are all that looks at the picture.")
    return notes
