"""States of a frozen text trunk, computed once instead of in every step.

A retriever whose text trunk does not train asks for the trunk's output of a text through ``TextStates.get``; only what
trains is computed in the step. Documents come from a store on disk, queries are kept in memory as far as all of them
fit there.
"""

from __future__ import annotations

import hashlib
import shutil
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from core import distributed
from core.device import pick_device
from core.errors import UserError
from core.files import fingerprint
from core.progress import progress
from core.protocols import Retriever
from core.records import Document
from core.store import Store, StoreWriter, check_spec
from training.config import Config

QUERY_BYTES = 4 * 2**30
"""Memory for the queries' states. Where a run's queries need more they are computed in the step, like any other batch:
what is forgotten before it comes again is remembered for nothing."""

LOOKED_AT = 64
"""Texts whose states are computed to see how much room all of them need; four times as many need no such look."""


def text_key(side: str, text: str) -> str:
    """Name of a text's states: the same text on the other side has other markers, hence other states."""
    return hashlib.sha256(f"{side}\n{text}".encode()).hexdigest()


class TextStates:
    """``core.protocols.TextStates`` over a frozen trunk: memory, then the store, then the trunk itself."""

    def __init__(self, retriever: Retriever, store: Store | None = None, max_items: int = 200_000) -> None:
        """store: what ``build_states`` made for this trunk (another one's is an error). max_items: texts in memory."""
        self.retriever, self.store, self.max_items = retriever, store, max_items
        self._memory: OrderedDict[tuple[str, str], Tensor] = OrderedDict()
        self._specs: dict[tuple[str, str], dict] = {}
        if store is not None:
            check_spec(store.path, store.spec, self.spec("document"))

    def remembers(self, queries: int, some: Sequence[str]) -> bool:
        """Whether memory holds the states of so many queries; the longest of ``some`` stands for all."""
        with torch.no_grad():
            one = self.retriever.text_states("query", [max(some, key=len)])[0]
        return queries <= self.max_items and 2 * one.numel() * queries <= QUERY_BYTES

    def spec(self, side: str) -> dict:
        """The retriever's key for the present stage. Taken once per stage: it may digest all weights."""
        where = (side, self.retriever.stage)
        if where not in self._specs:
            self._specs[where] = frozen_key(self.retriever, side)
        return self._specs[where]

    def get(self, side: str, texts: Sequence[str]) -> list[Tensor]:
        """side: "query" or "document" -> one [n, h] float32 CPU tensor per text, rounded to what the store keeps."""
        spec = self.spec(side)
        name = fingerprint(spec)
        stored = self.store is not None and side == "document" and same_spec(self.store.spec, spec)
        keys = [text_key(side, text) for text in texts]
        found = {key: self._known(name, key, stored) for key in keys}
        missing = {key: text for key, text in zip(keys, texts) if found[key] is None}
        for some in self._together(list(missing)):
            with torch.no_grad():
                made = self.retriever.text_states(side, [missing[key] for key in some])
            for key, states in zip(some, made):
                found[key] = self._memory[name, key] = states.to("cpu", torch.float16)
        while len(self._memory) > self.max_items:
            self._memory.popitem(last=False)
        return [found[key].float() for key in keys]  # type: ignore[union-attr]

    def _known(self, name: str, key: str, stored: bool) -> Tensor | None:
        if (name, key) in self._memory:
            self._memory.move_to_end((name, key))
            return self._memory[name, key]
        if stored and key in self.store:  # type: ignore[operator]  # memory-mapped: the page cache is its memory
            return torch.from_numpy(self.store.get([key])[0])  # type: ignore[union-attr]
        return None

    def _together(self, keys: list[str]) -> list[list[str]]:
        """On a CPU one text at a time: the last bits depend on a batch's make-up, and a resumed run, which is the same
        bit for bit there, meets other batches. A GPU would mostly wait."""
        size = 1 if next(self.retriever.parameters()).device.type == "cpu" else 64  # type: ignore[attr-defined]
        return [keys[s : s + size] for s in range(0, len(keys), size)]


def for_training(
    retriever: Retriever, documents: Iterable[Document], config: Config, path: str | Path | None = None
) -> TextStates | None:
    """What ``train.cache_text_states`` asks for: None, or states of all documents in ``path`` (in the run's folder)."""
    if not config.cache_text_states:
        return None
    retriever.to(pick_device(config.device))  # type: ignore[attr-defined]
    stage, retriever.stage = retriever.stage, "train"
    try:
        store = build_states(retriever, documents, path or Path(config.out) / "text_states")
        return TextStates(retriever, store)
    finally:
        retriever.stage = stage


def build_states(
    retriever: Retriever,
    documents: Iterable[Document],
    path: str | Path,
    batch_size: int = 64,
    shard_rows: int = 200_000,
) -> Store:
    """Compute the trunk's states of every document text that ``path`` does not hold yet.

    The first process computes, the others wait. Texts go in order of length, so that batches hold little padding;
    what was committed before an interruption is kept. The store's spec is the retriever's key at its present stage;
    a folder made by another trunk is an error.
    """
    spec = frozen_key(retriever, "document")
    if distributed.is_main():
        _build(retriever, documents, Path(path), spec, batch_size, shard_rows)
    distributed.patient_barrier()
    return Store(path, expect=spec)


def _build(
    retriever: Retriever, documents: Iterable[Document], path: Path, spec: dict, batch_size: int, shard_rows: int
) -> None:
    writer = StoreWriter(path, spec, shard_rows)
    texts = {text_key("document", d.text): d.text for d in documents}
    todo = sorted((k for k in texts if not writer.has(k, k)), key=lambda k: (len(texts[k]), k))
    modes = [(module, module.training) for module in retriever.modules()]  # type: ignore[attr-defined]
    retriever.eval()  # type: ignore[attr-defined]
    try:
        with torch.no_grad():
            _check_room(retriever, [texts[k] for k in todo], path, writer.dtype.itemsize)
        with torch.no_grad(), progress(None, "text states", total=len(todo), unit="text") as bar:
            for start in range(0, len(todo), batch_size):
                keys = todo[start : start + batch_size]
                for key, states in zip(keys, retriever.text_states("document", [texts[k] for k in keys])):
                    writer.add(key, key, states.float().cpu().numpy())
                bar.update(len(keys))
    finally:
        for module, mode in modes:
            module.training = mode
        writer.commit()  # also after Ctrl-C: the next call goes on from here
    if todo or not Store(path).complete:
        writer.finish()


def _check_room(retriever: Retriever, texts: list[str], path: Path, itemsize: int) -> None:
    """Say how much disk the states of ``texts``, in order of length, will take; UserError when it is not there."""
    if len(texts) <= 4 * LOOKED_AT:
        return
    some = texts[:: len(texts) // LOOKED_AT]
    states = [one for s in range(0, len(some), 16) for one in retriever.text_states("document", some[s : s + 16])]
    needed = itemsize * sum(one.numel() for one in states) / len(some) * len(texts) / 1e9
    free = shutil.disk_usage(path).free / 1e9
    if needed > free:
        raise UserError(
            f"the frozen text trunk's output for {len(texts):,} passages needs about {needed:.2f} GB, {free:.2f} GB "
            f"are free at '{path}'; make room, put run.out on another disk, or set train.cache_text_states: false."
        )
    print(f"text states: about {needed:.2f} GB for {len(texts):,} passages in '{path}' ({free:.1f} GB are free).")


def frozen_key(retriever: Retriever, side: str) -> dict:
    """The retriever's key, or an error when its text trunk trains."""
    key = retriever.frozen_text_key(side)
    if key is None:
        raise UserError(
            "the text trunk trains, so its states cannot be stored; set train.cache_text_states: false or freeze it."
        )
    return key


def same_spec(found: dict, wanted: dict) -> bool:
    return fingerprint(found) == fingerprint(wanted)
