"""What a text tower's folder says about its input: markers, prompts, expansion of queries, skipped words, lengths."""

from __future__ import annotations

import string
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from core.errors import UserError
from core.files import read_json, write_json
from models.towers.multivector import Module, modules_of

FILE = "text_tower.json"
"""Our own checkpoints keep the conventions in this file of their ``text`` folder."""

PUNCTUATION = tuple(string.punctuation)


@dataclass(frozen=True)
class Conventions:
    """How texts become tokens; the defaults are ColBERT's.

    query_marker, doc_marker: one vocabulary entry inserted behind the first token; "" for none.
    query_prompt, doc_prompt: put in front of every text before it is cut (sentence-transformers 6 does it so).
    expansion: short queries are filled with [MASK] up to their length, and those rows count.
    attend: the trunk attends to the [MASK] filling. skip_words: their rows of documents may be dropped (those that are
    one vocabulary entry). lower: texts are lowercased first. query_maxlen, doc_maxlen: the folder's lengths in tokens,
    None where it says nothing.
    """

    query_marker: str = "[unused0]"
    doc_marker: str = "[unused1]"
    query_prompt: str = ""
    doc_prompt: str = ""
    expansion: bool = True
    attend: bool = False
    skip_words: tuple[str, ...] = PUNCTUATION
    lower: bool = False
    query_maxlen: int | None = None
    doc_maxlen: int | None = None

    def save(self, folder: Path) -> None:
        write_json(folder / FILE, asdict(self))


def read_conventions(folder: Path) -> Conventions:
    """What the folder's own files say: ours, PyLate's, sentence-transformers 6's or ColBERT's; else the defaults."""
    if (folder / FILE).is_file():
        raw = read_json(folder / FILE, "text conventions")
        unknown = sorted(set(raw) - {f.name for f in fields(Conventions)})
        if unknown:
            raise UserError(f"'{folder / FILE}' has the unknown keys {unknown}; it comes from a newer release, update.")
        return Conventions(**{**raw, "skip_words": tuple(raw["skip_words"])})
    modules = modules_of(folder)
    if modules is not None:
        settings = _optional(folder / "config_sentence_transformers.json")
        native = any(m.kind == "MultiVectorMask" for m in modules) and "query_prefix" not in settings
        return _native(modules, settings) if native else _pylate(modules, settings)
    return _colbert(_optional(folder / "artifact.metadata"))


def _optional(path: Path) -> dict:
    return read_json(path, "settings") if path.is_file() else {}


def _colbert(raw: dict) -> Conventions:
    raw = raw.get("config", raw)  # flat, or nested
    return Conventions(
        query_marker=raw.get("query_token_id", "[unused0]"),
        doc_marker=raw.get("doc_token_id", "[unused1]"),
        attend=bool(raw.get("attend_to_mask_tokens", False)),
        query_maxlen=raw.get("query_maxlen"),
        doc_maxlen=raw.get("doc_maxlen"),
    )


def _pylate(modules: list[Module], raw: dict) -> Conventions:
    """PyLate: the prefix is one entry inserted behind the first token. A key that is absent or null has its default."""
    if raw.get("default_prompt_name"):
        raise UserError(
            f"'{modules[0].folder}' has the default prompt '{raw['default_prompt_name']}'; PyLate folders with a text "
            "prompt beside the prefix are not supported, remove default_prompt_name if the prompt is not wanted."
        )

    def value(key: str, default):
        return default if raw.get(key) is None else raw[key]

    expansion = value("do_query_expansion", True)
    return Conventions(
        query_marker=value("query_prefix", "[Q] "),
        doc_marker=value("document_prefix", "[D] "),
        expansion=expansion,
        attend=expansion and value("attend_to_expansion_tokens", False),
        skip_words=tuple(value("skiplist_words", PUNCTUATION)),
        lower=bool(_optional(modules[0].folder / "sentence_bert_config.json").get("do_lower_case", False)),
        query_maxlen=value("query_length", 32),
        doc_maxlen=value("document_length", 180),
    )


def _native(modules: list[Module], raw: dict) -> Conventions:
    """sentence-transformers 6: settings lie in the modules, and the prefix is a prompt that belongs to the text."""
    folder = modules[0].folder
    trunk = _optional(folder / "sentence_bert_config.json")
    expansion = trunk.get("query_expansion")
    if expansion and (expansion.get("strategy") != "fixed" or expansion.get("token") not in (None, "[MASK]", "<mask>")):
        raise UserError(
            f"'{folder}' expands queries by {expansion}; supported are the strategy 'fixed' and the mask token."
        )
    mask = _optional(next(m.folder for m in modules if m.kind == "MultiVectorMask") / "config.json")
    if mask.get("keep_only_token_ids") or mask.get("skiplist_tasks", ["document"]) != ["document"]:
        raise UserError(
            f"the MultiVectorMask of '{folder}' has keep_only_token_ids or skips words of queries; supported is a "
            "skiplist of documents."
        )
    if not any(m.kind == "Normalize" for m in modules):
        raise UserError(f"'{folder}' has no Normalize module; late interaction here has unit vectors, add one.")
    prompts = raw.get("prompts") or {}
    return Conventions(
        query_marker="",
        doc_marker="",
        query_prompt=prompts.get("query") or "",
        doc_prompt=prompts.get("document") or "",
        expansion=bool(expansion),
        attend=bool(expansion and expansion.get("attend")),
        skip_words=tuple(mask.get("skiplist_words") or ()),
        query_maxlen=expansion["length"] if expansion else trunk.get("query_length"),
        doc_maxlen=trunk.get("document_length"),
    )
