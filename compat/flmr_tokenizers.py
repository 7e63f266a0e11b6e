"""The original's two tokenizers: ``[CLS] [Q] pieces [SEP] [MASK] ...`` and ``[CLS] [D] pieces [SEP] [PAD] ...``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.config import check
from core.errors import UserError
from core.files import read_object
from models import colbert, flmr, flmr_files
from models.towers.conventions import Conventions
from models.towers.folders import resolve
from models.towers.tokenizer import ColbertTokenizer

DEFAULTS = {"query_maxlen": 32, "doc_maxlen": flmr_files.DOC_MAXLEN, "attend_to_mask_tokens": False}


class _Tokenizer:
    """Everything that is not named here (``encode``, ``batch_decode``, ``pad_token_id``) is the Hugging Face
    tokenizer's."""

    side: str

    def __init__(self, words: ColbertTokenizer, **settings: Any) -> None:
        self.words, self.settings = words, {**DEFAULTS, **settings}

    @classmethod
    def from_pretrained(cls, path: str | Path, text_config: Any = None, subfolder: str = "", **options: Any):
        """Of a checkpoint folder or hub name.

        subfolder: where in it; the side's own ("query_tokenizer", "context_tokenizer") when left out. options:
        query_maxlen, doc_maxlen and attend_to_mask_tokens, in place of the folder's. text_config and loading options of
        transformers are accepted and not needed. A checkpoint in this project's layout has one tokenizer for both
        sides, whatever the subfolder.
        """
        own = {key: options[key] for key in DEFAULTS if key in options}
        base = getattr(text_config, "text_encoder_base_model", flmr_files.BERT)
        if base != flmr_files.BERT:
            raise UserError(f"the text encoders are '{base}'; only the tokenizers of {flmr_files.BERT} are offered.")
        place = Path(path)
        if not (place / "vocab.txt").is_file():  # not a tokenizer's own folder
            folder = resolve(str(path))
            raw = read_object(folder / "config.json", "checkpoint config")
            if "retriever" in raw:
                return cls._of_ours(check(flmr.Config, raw["retriever"], "model"), folder, own)
            place = folder / (subfolder or f"{cls.side}_tokenizer")
        words, settings = flmr_files.read_tokenizer(place)
        return cls(ColbertTokenizer(words, Conventions()), **{**settings, **own})

    @classmethod
    def _of_ours(cls, config: flmr.Config, folder: Path, own: dict[str, Any]):
        words = colbert.make_tokenizer(config, folder / "text")
        stage, attend = config.eval, config.attend_to_mask_tokens
        settings = {
            "query_maxlen": stage.query_maxlen,
            "doc_maxlen": stage.doc_maxlen,
            "attend_to_mask_tokens": words.conventions.attend if attend is None else attend,
        }
        return cls(words, **{**settings, **own})

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("words", "settings"):  # while unpickling there is neither
            raise AttributeError(name)
        return self.settings[name] if name in self.settings else getattr(self.words.tokenizer, name)

    def __len__(self) -> int:
        return len(self.words.tokenizer)

    def save_pretrained(self, path: str | Path) -> None:
        """Write the files of a released tokenizer folder into ``path``."""
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        flmr_files.write_tokenizer(self.words.tokenizer, folder, self.side, self.settings)

    def _checked(self, text: Any, padding: Any, truncation: Any) -> tuple[list[str], bool]:
        """Texts as a list, and whether they are padded to the full length."""
        texts = [text] if isinstance(text, str) or not isinstance(text, Iterable) else list(text)
        if not texts or not all(isinstance(one, str) for one in texts):
            wrong = next((one for one in texts if not isinstance(one, str)), texts)
            raise UserError(f"a tokenizer takes a text or a list of texts, not {wrong!r}.")
        if padding not in ("max_length", "longest", True):
            raise UserError(f"padding={padding!r} is not offered; use 'max_length' or 'longest'.")
        if not truncation:
            raise UserError("truncation=False is not offered: longer texts are cut to max_length.")
        return texts, padding == "max_length"


class FLMRQueryEncoderTokenizer(_Tokenizer):
    side = "query"

    def __call__(
        self,
        text: str | Sequence[str],
        padding: str | bool = "max_length",
        truncation: bool | str = True,
        max_length: int | None = None,
        return_tensors: str | None = "pt",
    ) -> dict[str, Any]:
        """input_ids and attention_mask [B, L], L = max_length or ``query_maxlen``; padding is [MASK], not attended."""
        texts, full = self._checked(text, padding, truncation)
        ids, mask = self.words.queries(texts, max_length or self.query_maxlen, full)
        mask = torch.ones_like(mask) if self.attend_to_mask_tokens else mask
        return _returned({"input_ids": ids, "attention_mask": mask}, return_tensors)


class FLMRContextEncoderTokenizer(_Tokenizer):
    side = "context"

    def __call__(
        self,
        text: str | Sequence[str],
        padding: str | bool = "max_length",
        truncation: bool | str = "longest_first",
        max_length: int | None = 512,
        return_tensors: str | None = "pt",
    ):
        """input_ids, token_type_ids, attention_mask [B, L], L = the smaller of max_length and ``doc_maxlen``.

        ``padding="longest"`` gives the same vectors from fewer tokens.
        """
        from transformers import BatchEncoding

        texts, full = self._checked(text, padding, truncation)
        length = min(max_length or self.doc_maxlen, self.doc_maxlen)
        ids, mask = self.words.documents(texts, length)
        if full:
            beyond = (0, length - ids.shape[1])
            ids = torch.nn.functional.pad(ids, beyond, value=self.words.pad_id)
            mask = torch.nn.functional.pad(mask, beyond)
        found = {"input_ids": ids, "token_type_ids": torch.zeros_like(ids), "attention_mask": mask}
        return BatchEncoding(_returned(found, return_tensors))


def _returned(found: dict[str, Tensor], kind: str | None) -> dict[str, Any]:
    if kind not in ("pt", "np", None):
        raise UserError(f"return_tensors={kind!r} is not offered; use 'pt', 'np' or None for lists.")
    turn = {"pt": lambda t: t, "np": lambda t: t.numpy(), None: lambda t: t.tolist()}[kind]
    return {name: turn(tensor) for name, tensor in found.items()}
