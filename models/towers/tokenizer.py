"""ColBERT tokenisation: ``[CLS] [Q] pieces [SEP] [MASK] ...`` and ``[CLS] [D] pieces [SEP]``.

Source: ColBERTv2 (Santhanam et al. 2022) as colbert-ai 0.2.22 runs it. The marker is inserted behind [CLS] after
tokenising to one token less, which gives the same ids as overwriting a ". " placeholder.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from core.errors import UserError
from core.files import fingerprint


class ColbertTokenizer:
    """Turns texts into ids and attention masks, [B, L] int64 each.

    query_marker, doc_marker: vocabulary entries that stand behind [CLS] ("[unused0]" and "[unused1]" in ColBERTv2).
    """

    def __init__(self, tokenizer, query_marker: str = "[unused0]", doc_marker: str = "[unused1]") -> None:
        self.tokenizer = tokenizer
        self.query_marker_id = self._known(query_marker)
        self.doc_marker_id = self._known(doc_marker)
        self.pad_id, self.mask_id = tokenizer.pad_token_id, tokenizer.mask_token_id
        # The first piece of each punctuation symbol, as the original skip list has it.
        self.skip_ids = sorted({tokenizer.encode(s, add_special_tokens=False)[0] for s in string.punctuation})

    @classmethod
    def from_folder(cls, folder: Path, **markers: str) -> ColbertTokenizer:
        from transformers import AutoTokenizer

        try:
            return cls(AutoTokenizer.from_pretrained(folder), **markers)
        except (OSError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"the tokenizer in '{folder}' cannot be loaded ({str(error).splitlines()[0]}); "
                "the folder needs tokenizer.json or vocab.txt beside config.json."
            ) from None

    def _known(self, marker: str) -> int:
        index = self.tokenizer.convert_tokens_to_ids(marker)
        if index is None or index == self.tokenizer.unk_token_id:
            raise UserError(
                f"the marker '{marker}' is not in the tokenizer's vocabulary; set model.query_marker and "
                "model.doc_marker to entries that are, such as '[unused0]'."
            )
        return index

    @cached_property
    def digest(self) -> str:
        """16 hex digits over the vocabulary and over how a probe is cut (case, accents, punctuation, scripts)."""
        probe = self.tokenizer.encode("Crème BRÛLÉE, isn't it?  naïve-3.5 東京 ß", add_special_tokens=True)
        return fingerprint([sorted(self.tokenizer.get_vocab().items()), probe])

    def queries(self, texts: Sequence[str], maxlen: int, pad_to_maxlen: bool = True) -> tuple[Tensor, Tensor]:
        """ids padded with [MASK] (to ``maxlen``, or to the longest), mask 0 on the padding."""
        ids, mask = self._encode(texts, maxlen, self.query_marker_id, pad_to_maxlen)
        return ids.masked_fill(ids == self.pad_id, self.mask_id), mask

    def documents(self, texts: Sequence[str], maxlen: int) -> tuple[Tensor, Tensor]:
        """ids padded with [PAD] to the longest, mask 0 on the padding."""
        return self._encode(texts, maxlen, self.doc_marker_id, False)

    def contexts(self, texts: Sequence[str], maxlen: int) -> tuple[Tensor, Tensor]:
        """Context passages that follow a query: pieces and [SEP] without [CLS], padded with [PAD] to the longest."""
        ids, mask = self._encode(texts, maxlen, None, False)
        return ids[:, 1:], mask[:, 1:]

    def full_query_length(self, texts: Sequence[str], maxlen: int) -> int:
        """colbert-ai's ``full_length_search``: the longest text's pieces, not counting special tokens, at least maxlen.

        Used as the total length, which loses a long query's last three pieces; kept because published runs did.
        """
        pieces = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return max(maxlen, *(len(p) for p in pieces))

    def keep(self, ids: Tensor, mask_punctuation: bool) -> Tensor:
        """[B, L] bool: document rows that are stored; never [PAD], and no punctuation when asked."""
        keep = ids != self.pad_id
        if mask_punctuation:
            keep &= ~torch.isin(ids, torch.tensor(self.skip_ids, device=ids.device))
        return keep

    def _encode(self, texts: Sequence[str], maxlen: int, marker: int | None, to_maxlen: bool) -> tuple[Tensor, Tensor]:
        room = maxlen - (marker is not None)
        out = self.tokenizer(
            list(texts),
            padding="max_length" if to_maxlen else "longest",
            truncation=True,
            max_length=room,
            return_tensors="pt",
        )
        ids, mask = out["input_ids"], out["attention_mask"]
        if marker is not None:
            column = torch.full((len(ids), 1), marker, dtype=ids.dtype)
            ids = torch.cat([ids[:, :1], column, ids[:, 1:]], 1)
            mask = torch.cat([mask[:, :1], torch.ones_like(column), mask[:, 1:]], 1)
        return ids, mask

    def save(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(folder)
