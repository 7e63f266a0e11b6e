"""Building an index at a place, and what to do with what lies there already. Not a command of its own."""

from __future__ import annotations

import hashlib
import inspect
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from core.errors import UserError
from core.files import read_json, replace_folder, restore_folder, write_json
from runs.common import encode_corpus

JOB = "job.json"
"""Written into an index folder before its first chunk: which weights, passages and options it is of."""


def build(
    retriever, corpus: Sequence, section, path, states=None, visual=None, overwrite: bool = False, device: str = "cpu"
):
    """Encode and index; returns the opened index. A complete index of the same job is kept, an unfinished one goes on.

    What is of another job is an error, or with ``overwrite`` replaced: a complete index only when the new one, built
    in ``<path>.new``, is complete too. device: where the index computes (see ``index_device``).
    """
    from runs.backends import index_module, resolved

    section, chosen = resolved(section, len(corpus))
    path, cls, encoder = Path(path), index_module(section.name).Index, encoder_of(retriever, corpus)
    job = {"format": section.name, "encoder": encoder, "options": section.options, "corpus": digest(corpus)}
    if chosen:
        job["chosen"] = chosen
    restore_folder(path)
    place = path
    if complete(path):
        if not (problem := difference(path, job, (d.id for d in corpus))):
            return described(cls.open(path, encoder=encoder, device=device), "was complete")
        if not overwrite:
            raise UserError(f"{problem}; give another index.path, or replace it with --overwrite.")
        place = path.with_name(path.name + ".new")
    if (place / "spec.json").is_file() and (problem := difference(place, job)):
        begun = complete(place) or (place / JOB).is_file() or cls.committed(place) > 0
        if begun and place == path and not overwrite:
            raise UserError(f"{problem}; its build is unfinished: give another index.path, or add --overwrite.")
        shutil.rmtree(place)
    if not complete(place):
        skip, precision = cls.committed(place), section.precision
        stream = encode_corpus(retriever, corpus, section.batch_size, visual, states, skip=skip, precision=precision)
        signed = sign(place, job, stream)
        options = section.options | ({"device": device} if takes_device(cls) else {})
        cls.build(place, signed, dim=retriever.config.dim, encoder=encoder, total=len(corpus), **options)
    if place != path:
        replace_folder(place, path)
    return described(cls.open(path, encoder=encoder, device=device), "built")


def index_device(device) -> str:
    """Where an index computes when the run's device is this one: CUDA, otherwise the CPU (MPS lacks int64 topk).

    A process that is alone divides the index among all GPUs of the machine; one of several keeps to its own.
    """
    from core import distributed

    if not str(device).startswith("cuda"):
        return "cpu"
    return "cuda" if distributed.world() == 1 else str(device)


def takes_device(cls) -> bool:
    return "device" in inspect.signature(cls.build).parameters


def opened(section, path, encoder: dict, device):
    """The index at ``path``, whatever its format; a note when the YAML names another. Under torchrun the processes
    divide its documents among them."""
    from core import distributed
    from index import open_index
    from index.shards import Ranks

    group = Ranks() if distributed.world() > 1 else None
    index = open_index(path, encoder=encoder, device=index_device(device), group=group)
    found = index.manifest["format"]
    if section.name not in (found, "auto"):
        print(
            f"note: index.name is '{section.name}', the index '{path}' is of format '{found}'; it is searched as that"
        )
    return index


def sign(place: Path, job: dict, stream: Iterator) -> Iterator:
    """The stream; the job is written when it is first read, since a build begins in an empty folder only."""
    write_json(place / JOB, job)
    yield from stream


def encoder_of(retriever, corpus: Sequence) -> dict:
    """What the corpus' vectors depend on; more than the text tower when documents have images."""
    return retriever.identity(images=any(d.images for d in corpus))


def complete(path: Path) -> bool:
    return (path / "manifest.json").is_file()


def digest(corpus: Sequence) -> str:
    """Names passages by id, text and images, in order."""
    seen = hashlib.sha256()
    for document in corpus:
        seen.update(repr((document.id, document.text, [i.key for i in document.images])).encode())
    return seen.hexdigest()[:16]


def difference(path: Path, job: dict, ids: Iterable[str] | None = None) -> str | None:
    """How the index at ``path`` is of another job, as the beginning of a sentence; None when it is of this one."""
    from index import open_index
    from index.common import check_encoder

    found = read_json(path / JOB) if (path / JOB).is_file() else None
    if found is None and ids is None:
        return f"'{path}' does not say what it is of"
    if found is None:  # built by other means than this command: ask the index itself
        index = open_index(path)
        same = list(index.ids()) == list(ids)
        found = {**job, "encoder": index.manifest["encoder"], "corpus": job["corpus"] if same else None}
    try:
        check_encoder(path, found["encoder"], job["encoder"])
    except UserError as error:
        return str(error).rstrip(".")
    for key, what in (("corpus", "other passages"), ("format", "another kind"), ("options", "other index.options")):
        if found[key] != job[key]:
            return f"the index '{path}' is of {what} ({key}: {found[key]!r} there, {job[key]!r} now)"
    return None


def described(index, how: str):
    facts = index.stats()
    print(
        f"index {how}: {facts['documents']} passages, {facts['vectors']} vectors, {facts['bytes'] / 1e6:.1f} MB "
        f"in '{index.path}'"
    )
    return index
