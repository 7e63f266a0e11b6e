"""Why a passage got its score: what each word looks at, and which passage token each query row matched.

Pure functions of token batches, arrays and strings, so that commands and the web demo say the same. ``as_json`` of an
Explanation holds only dicts, lists, strings and numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from math import log
from typing import Any

import torch
from torch import Tensor

from core.errors import UserError
from core.maxsim import maxsim
from core.tokens import TokenBatch

DIGITS = 5
"""Significant digits of heat maps in JSON (they are for the eye; similarities and scores are given in full)."""


@dataclass(frozen=True)
class Piece:
    """One token of a text. before: what stands between it and the token before (a blank, nothing inside a word).

    marker: put there by the tokenizer ([CLS], [Q], [SEP], [MASK]), not part of the text.
    """

    text: str
    before: str = ""
    marker: bool = False


@dataclass(frozen=True)
class Word:
    """One word of the query. pieces: its tokens' numbers. Repeated markers ([MASK] padding) are one word."""

    text: str
    pieces: list[int]
    marker: bool


@dataclass(frozen=True)
class Maps:
    """Heat maps over the patches of one picture, in reading order.

    unit: "attention" (each word's values sum to 1 over the patches) or "cosine" (relevance of the patch, -1 to 1).
    heads: names of the first axis; the first is the mean of the others where there are several.
    whole: [heads][P], all words together. words: [heads][W][P], one map per word.
    """

    unit: str
    heads: list[str]
    whole: list[list[float]]
    words: list[list[list[float]]]


@dataclass(frozen=True)
class Picture:
    """The image as the vision tower saw it. uri: a PNG as data URI. grid: [rows, columns] of patches.

    seen: share of the image's area that resizing and cropping left.
    """

    uri: str
    width: int
    height: int
    grid: list[int]
    seen: float = 1.0


@dataclass(frozen=True)
class Row:
    """One query row that counts. word: number of its word, for text rows. head: the head that pooled it.

    patches: the patches it was made from, where these are not all of them.
    """

    kind: str
    source: int
    label: str
    word: int | None = None
    head: int | None = None
    patches: list[int] | None = None


@dataclass(frozen=True)
class Match:
    """What query row ``row`` found: its best passage token (None in a passage without rows), the similarity that it
    adds to the score, and the share of the score."""

    row: int
    token: int | None
    similarity: float
    share: float


@dataclass(frozen=True)
class Token:
    """One row of a passage. stored: False for rows that are not in the index (skipped punctuation)."""

    text: str
    before: str
    marker: bool
    stored: bool


@dataclass(frozen=True)
class Passage:
    """One passage. score: exact MaxSim, the sum of the matches' similarities. kinds: the sum per kind of query row."""

    id: str
    score: float
    kinds: dict[str, float]
    tokens: list[Token]
    matches: list[Match]


@dataclass(frozen=True)
class Explanation:
    """Everything the pictures show. maps: None when the family has no map (see ``notes``) or there is no picture."""

    family: str
    question: str
    words: list[Word]
    rows: list[Row]
    picture: Picture | None = None
    maps: Maps | None = None
    passages: list[Passage] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def as_json(explanation: Explanation) -> dict[str, Any]:
    """Plain dicts and lists; heat maps rounded to ``DIGITS`` significant digits."""
    plain = asdict(explanation)
    if plain["maps"] is not None:
        plain["maps"]["whole"] = _short(plain["maps"]["whole"])
        plain["maps"]["words"] = _short(plain["maps"]["words"])
    return plain


def _short(values: Any) -> Any:
    return [_short(v) for v in values] if isinstance(values, list) else float(f"{values:.{DIGITS}g}")


def words_of(pieces: Sequence[Piece]) -> list[Word]:
    """Tokens that touch each other and are letters or digits there form one word; a sign is a word of its own."""
    out: list[Word] = []
    for number, piece in enumerate(pieces):
        last = out[-1] if out else None
        previous = pieces[number - 1] if number else None
        if piece.marker and last and last.marker and previous.text == piece.text:
            out[-1] = Word(f"{piece.text} ×{len(last.pieces) + 1}", [*last.pieces, number], True)
        elif last and not (piece.marker or last.marker or piece.before) and _touch(previous.text, piece.text):
            out[-1] = Word(last.text + piece.text, [*last.pieces, number], False)
        else:
            out.append(Word(piece.text, [number], piece.marker))
    return out


def _touch(left: str, right: str) -> bool:
    return left[-1:].isalnum() and right[:1].isalnum()


def attention_maps(attention: Tensor, words: Sequence[Word], counted: Tensor) -> Maps:
    """attention [H, L, P], rows summing to 1; counted [L] bool: the tokens whose attention forms the pooled rows.

    A word's map is the mean over its tokens, so it sums to 1 as well; "mean" is the mean over heads.
    """
    attention = attention.float().cpu()
    if attention.ndim != 3 or attention.shape[1] != len(counted):
        raise UserError(f"attention of {len(counted)} tokens wants shape [H, L, P], got {tuple(attention.shape)}.")
    names = [str(h + 1) for h in range(len(attention))]
    if len(names) > 1:
        attention, names = torch.cat([attention.mean(0, keepdim=True), attention]), ["mean", *names]
    per_word = [attention[:, word.pieces].mean(1) for word in words]
    whole = attention[:, counted.cpu()].mean(1)
    return Maps("attention", names, whole.tolist(), torch.stack(per_word, 1).tolist())


def relevance_maps(relevance: Tensor, by_token: Tensor, words: Sequence[Word]) -> Maps:
    """relevance [P] of the whole question and by_token [L, P], cosines. A word's map is the best of its tokens, as the
    whole question's is the best of all."""
    per_word = [by_token[word.pieces].amax(0) for word in words]
    stacked = torch.stack(per_word).float().cpu()
    return Maps("cosine", ["all"], [relevance.float().cpu().tolist()], [stacked.tolist()])


def grid_of(patches: int, height: int, width: int) -> list[int]:
    """[rows, columns] with rows * columns = patches whose cells are nearest to squares on height x width pixels."""
    sides = [r for r in range(1, patches + 1) if patches % r == 0]
    rows = min(sides, key=lambda r: abs(log((height / r) / (width / (patches // r)))))
    return [rows, patches // rows]


def match(queries: TokenBatch, document: TokenBatch) -> tuple[float, list[Match]]:
    """One query and one document (batches of one): the MaxSim score and what each row that counts adds to it.

    ``Match.row`` numbers the rows that count; ``Match.token`` is the document's row.
    """
    if len(queries) != 1 or len(document) != 1:
        raise UserError(f"match wants one query and one document, got {len(queries)} and {len(document)}.")
    score = float(maxsim(queries, document)[0, 0])
    q = queries.embeddings[0][queries.mask[0]]
    stored = document.mask[0].nonzero().flatten().tolist()
    if not stored:
        return score, [Match(i, None, 0.0, 0.0) for i in range(len(q))]
    best = (q @ document.embeddings[0][document.mask[0]].to(q.dtype).T).float().max(1)
    found = zip(best.values.tolist(), best.indices.tolist())
    share = 1 / score if score else 0.0
    return score, [Match(i, stored[t], value, value * share) for i, (value, t) in enumerate(found)]


def by_kind(rows: Sequence[Row], matches: Sequence[Match]) -> dict[str, float]:
    """kind of query row -> its part of the score."""
    out: dict[str, float] = {}
    for found in matches:
        kind = rows[found.row].kind
        out[kind] = out.get(kind, 0.0) + found.similarity
    return out


def received(passage: Passage) -> list[float]:
    """Per token of the passage: the similarities of the query rows that matched it, summed."""
    out = [0.0] * len(passage.tokens)
    for found in passage.matches:
        if found.token is not None:
            out[found.token] += found.similarity
    return out
