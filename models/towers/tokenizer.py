"""ColBERT tokenisation: ``[CLS] [Q] pieces [SEP] [MASK] ...`` and ``[CLS] [D] pieces [SEP]``.

Source: ColBERTv2 (Santhanam et al. 2022) as colbert-ai 0.2.22 runs it, and PyLate 1.6, which does the same with other
markers. The marker is inserted behind [CLS] after tokenising to one token less, which gives the same ids as
overwriting a ". " placeholder. What varies between towers is in ``Conventions``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from core.errors import UserError
from core.files import fingerprint
from models.towers.conventions import Conventions, read_conventions
from models.towers.multivector import trunk_folder


class ColbertTokenizer:
    """Turns texts into ids and attention masks, [B, L] int64 each.

    query_marker_id, doc_marker_id: the vocabulary entry behind [CLS] ("[unused0]" and "[unused1]" in ColBERTv2), None
    for none.
    """

    def __init__(self, tokenizer, conventions: Conventions | None = None) -> None:
        self.tokenizer = tokenizer
        self.conventions = conventions or Conventions()
        self.query_marker_id = self._known(self.conventions.query_marker)
        self.doc_marker_id = self._known(self.conventions.doc_marker)
        self.mask_id = tokenizer.mask_token_id
        self.pad_id = self._padding()
        vocabulary = tokenizer.get_vocab()
        self.skip_ids = sorted({vocabulary[w] for w in self.conventions.skip_words if w in vocabulary})

    @classmethod
    def from_folder(
        cls, folder: Path, query_marker: str | None = None, doc_marker: str | None = None
    ) -> ColbertTokenizer:
        """The folder's tokenizer and conventions. A marker that is given takes the place of the folder's own."""
        from transformers import AutoTokenizer

        folder = Path(folder)
        conventions = read_conventions(folder)
        if query_marker is not None:
            conventions = replace(conventions, query_marker=query_marker, query_prompt="")
        if doc_marker is not None:
            conventions = replace(conventions, doc_marker=doc_marker, doc_prompt="")
        try:
            tokenizer = AutoTokenizer.from_pretrained(trunk_folder(folder))
        except (OSError, ValueError) as error:
            raise UserError(
                f"the tokenizer in '{folder}' cannot be loaded ({str(error).splitlines()[0]}); "
                "the folder needs tokenizer.json or vocab.txt beside config.json."
            ) from None
        return cls(tokenizer, conventions)

    def _known(self, marker: str) -> int | None:
        if not marker:
            return None
        index = self.tokenizer.convert_tokens_to_ids(marker)
        if index is None or index == self.tokenizer.unk_token_id:
            raise UserError(
                f"the marker '{marker}' is not in the tokenizer's vocabulary; set model.query_marker and "
                "model.doc_marker to entries that are, such as '[unused0]', or to '' for none."
            )
        return index

    def _padding(self) -> int:
        """The id of padding that is no expansion. PyLate saves tokenizers whose padding token is the mask token."""
        if self.mask_id is None and self.conventions.expansion:
            raise UserError("the tokenizer has no mask token to expand queries with; use a masked language model.")
        found = self.tokenizer.pad_token_id
        if found is not None and found == self.mask_id:
            vocabulary = self.tokenizer.get_vocab()
            found = next((vocabulary[t] for t in ("[PAD]", "<pad>") if t in vocabulary), None)
        if found is None:
            raise UserError("the tokenizer has no padding token of its own; use one with [PAD] or <pad>.")
        return found

    @cached_property
    def digest(self) -> str:
        """16 hex digits over the vocabulary, over how a probe is cut (case, accents, punctuation, scripts), and over
        conventions that are not ColBERT's."""
        probe = self.tokenizer.encode("Crème BRÛLÉE, isn't it?  naïve-3.5 東京 ß", add_special_tokens=True)
        c, usual = self.conventions, Conventions()
        own = [c.query_prompt, c.doc_prompt, c.skip_words, c.lower]
        extra = [] if own == [usual.query_prompt, usual.doc_prompt, usual.skip_words, usual.lower] else [own]
        return fingerprint([sorted(self.tokenizer.get_vocab().items()), probe, *extra])

    def queries(self, texts: Sequence[str], maxlen: int, pad_to_maxlen: bool | None = None) -> tuple[Tensor, Tensor]:
        """ids padded with [MASK] (to ``maxlen``, or to the longest), mask 0 on the padding.

        pad_to_maxlen None: as the tower's conventions have it; without expansion, [PAD] to the longest.
        """
        c = self.conventions
        to_maxlen = c.expansion if pad_to_maxlen is None else pad_to_maxlen
        ids, mask = self._encode(self._prepared(texts, c.query_prompt), maxlen, self.query_marker_id, to_maxlen)
        if pad_to_maxlen is not None or c.expansion:
            ids = ids.masked_fill(ids == self.pad_id, self.mask_id)
        return ids, mask

    def documents(self, texts: Sequence[str], maxlen: int) -> tuple[Tensor, Tensor]:
        """ids padded with [PAD] to the longest, mask 0 on the padding."""
        return self._encode(self._prepared(texts, self.conventions.doc_prompt), maxlen, self.doc_marker_id, False)

    def contexts(self, texts: Sequence[str], maxlen: int) -> tuple[Tensor, Tensor]:
        """Context passages that follow a query: pieces and [SEP] without [CLS], padded with [PAD] to the longest."""
        ids, mask = self._encode(self._prepared(texts), maxlen, None, False)
        return ids[:, 1:], mask[:, 1:]

    def full_query_length(self, texts: Sequence[str], maxlen: int) -> int:
        """colbert-ai's ``full_length_search``: the longest text's pieces, not counting special tokens, at least maxlen.

        Used as the total length, which loses a long query's last three pieces; kept because published runs did.
        """
        pieces = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return max(maxlen, *(len(p) for p in pieces))

    def keep(self, ids: Tensor, mask_punctuation: bool) -> Tensor:
        """[B, L] bool: document rows that are stored; never [PAD], and no skipped words (punctuation) when asked."""
        keep = ids != self.pad_id
        if mask_punctuation and self.skip_ids:
            keep &= ~torch.isin(ids, torch.tensor(self.skip_ids, device=ids.device))
        return keep

    def _prepared(self, texts: Sequence[str], prompt: str = "") -> list[str]:
        """WordPiece does not see blanks around a text, byte pairs do: PyLate strips them. Behind a prompt they stay."""
        texts = [prompt + t if prompt else t.strip() for t in texts]
        return [t.lower() for t in texts] if self.conventions.lower else texts

    def _encode(self, texts: list[str], maxlen: int, marker: int | None, to_maxlen: bool) -> tuple[Tensor, Tensor]:
        room = maxlen - (marker is not None)
        out = self.tokenizer(
            texts,
            padding="max_length" if to_maxlen else "longest",
            truncation=True,
            max_length=room,
        )
        # Not return_tensors: transformers looks at every number in Python first, which takes longer than tokenising.
        ids, mask = torch.tensor(out["input_ids"]), torch.tensor(out["attention_mask"])
        ids = ids.masked_fill(mask == 0, self.pad_id)
        if marker is not None:
            column = torch.full((len(ids), 1), marker, dtype=ids.dtype)
            ids = torch.cat([ids[:, :1], column, ids[:, 1:]], 1)
            mask = torch.cat([mask[:, :1], torch.ones_like(column), mask[:, 1:]], 1)
        return ids, mask

    def save(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(folder)
        self.conventions.save(folder)
