"""What the adapters of other libraries share: the folder, the checked stream, ids, manifest, verify and stats.

A folder holds ``spec.json`` (written first: the folder is ours), what the library writes, ``ids.json`` (ids and
vectors per document, in the order given) and ``manifest.json`` (written last: the index is complete).
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from core.errors import UserError
from core.files import atomic_file, read_json, sha256, write_json
from core.protocols import Ranking
from index.common import NO_VECTORS, check_encoder, rank_keys, rankings
from index.segment import check_file
from index.stream import check_id, check_vectors

MANIFEST, SPEC, IDS = "manifest.json", "spec.json", "ids.json"


class PeerIndex:
    """An opened index of another library. Opening reads the manifest only; the library is imported at the search."""

    FORMAT: ClassVar[str]
    MODULE: ClassVar[str]  # what is imported
    PACKAGE: ClassVar[str]  # what is installed
    FILES: ClassVar[str]  # the file or folder that the library writes
    VOLATILE: ClassVar[tuple[str, ...]] = ()  # ends of names of files that the library touches when it only reads

    def __init__(self, path: Path, manifest: dict, device: str) -> None:
        self.path, self.manifest, self.device = path, manifest, device
        self.dim: int = manifest["dim"]

    @classmethod
    def open(cls, path: str | Path, encoder: dict | None = None, device: str = "cpu") -> Any:
        """Open a complete index. encoder: what encodes the queries now; UserError when it is not what built it."""
        path = Path(path)
        if not path.is_dir():
            raise UserError(f"there is no index at '{path}'; build it first.")
        if not (path / MANIFEST).is_file():
            raise UserError(
                f"the index '{path}' is incomplete (it has no {MANIFEST}); run the same command again, it starts anew."
            )
        manifest = read_json(path / MANIFEST, "index manifest")
        if (found := manifest.get("format")) != cls.FORMAT:
            raise UserError(f"'{path}' holds an index of format {found!r}, not {cls.FORMAT!r}; open it as that.")
        if encoder is not None:
            check_encoder(path, manifest["encoder"], encoder)
        return cls(path, manifest, device)

    @classmethod
    def library(cls) -> ModuleType:
        """The other library; UserError with the install command when it is absent."""
        try:
            return importlib.import_module(cls.MODULE)
        except ImportError as error:
            raise UserError(
                f"an index of format '{cls.FORMAT}' needs {cls.PACKAGE} ({error}); "
                f"install it with: pip install {cls.PACKAGE}"
            ) from None

    @staticmethod
    def committed(path: str | Path) -> int:
        """Documents that need not be encoded again: none, the libraries cannot go on with an unfinished build."""
        return 0

    @classmethod
    def begin(cls, path: Path, spec: dict) -> None:
        """Make ``path`` an empty unfinished index; a complete one and a foreign folder are refused."""
        path.mkdir(parents=True, exist_ok=True)
        if (path / MANIFEST).is_file():
            documents = read_json(path / MANIFEST, "index manifest").get("documents")
            raise UserError(
                f"'{path}' already holds a complete index of {documents} documents; "
                "open it, or delete the folder to build it anew."
            )
        if not (path / SPEC).is_file() and any(path.iterdir()):
            raise UserError(f"the folder '{path}' is not empty and holds no index; give a new folder.")
        if (path / SPEC).is_file() and (found := read_json(path / SPEC, "index spec").get("format")) != cls.FORMAT:
            raise UserError(
                f"'{path}' holds an unfinished index of format {found!r}, not {cls.FORMAT!r}; delete the folder."
            )
        for left in [path / cls.FILES, path / IDS, *path.glob(".*.tmp")]:
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
        write_json(path / SPEC, {"format": cls.FORMAT, **spec})

    @classmethod
    def finish(cls, path: Path, ids: Sequence[str], lengths: Sequence[int], facts: dict, device: str = "cpu") -> Any:
        """Write ids and manifest of what the library has written; returns the opened index."""
        if not ids:
            raise UserError(f"no documents were given for the index '{path}'; give at least one.")
        with atomic_file(path / IDS, "w") as handle:
            json.dump({"ids": list(ids), "lengths": list(lengths)}, handle, ensure_ascii=False)
        written = sorted(f for f in (path / cls.FILES, *(path / cls.FILES).rglob("*")) if f.is_file())
        for file in written:
            with open(file, "rb") as handle:
                os.fsync(handle.fileno())
        counted = [f for f in (path / SPEC, path / IDS, *written) if not f.name.endswith(cls.VOLATILE)]
        names = {f.relative_to(path).as_posix(): {"bytes": f.stat().st_size, "sha256": sha256(f)} for f in counted}
        manifest = {
            "format": cls.FORMAT,
            "library": f"{cls.PACKAGE} {importlib.metadata.version(cls.PACKAGE)}",
            "documents": len(ids),
            "vectors": sum(lengths),
            "documents_without_vectors": sum(n == 0 for n in lengths),
            **facts,
            "files": names,
        }
        write_json(path / MANIFEST, manifest)
        return cls.open(path, device=device)

    def __len__(self) -> int:
        return self.manifest["documents"]

    @cached_property
    def _documents(self) -> dict[str, list]:
        return read_json(self.path / IDS, "index ids")

    @cached_property
    def lengths(self) -> np.ndarray:
        """[N] int64: vectors of every document."""
        return np.array(self._documents["lengths"], dtype=np.int64)

    @cached_property
    def _where(self) -> dict[str, int]:
        return {id_: position for position, id_ in enumerate(self.ids())}

    def find(self, ids: Sequence[str]) -> np.ndarray:
        """ids -> [n] int64 positions, -1 for those that are not there."""
        return np.array([self._where.get(id_, -1) for id_ in ids], dtype=np.int64)

    def ids(self) -> Sequence[str]:
        """All ids, in the order they were given."""
        return self._documents["ids"]

    def ranked(self, scores: Tensor, positions: Tensor, k: int, empty: np.ndarray | None = None) -> Ranking:
        """The k best of scores [n] at positions [n], ties at the lower position; ``empty`` (positions of documents
        without vectors) fills what is left of k."""
        keys = rank_keys(scores.float(), positions.long()).sort(descending=True).values[:k]
        if empty is not None and (left := k - len(keys)) > 0:
            rest = torch.from_numpy(empty[:left])
            keys = torch.cat([keys, rank_keys(torch.full(rest.shape, NO_VECTORS), rest)])
        return rankings([keys], self.ids())[0]

    def verify(self) -> list[str]:
        """Re-read every file and compare sizes, digests and counts; one sentence per problem, none when all is well."""
        problems = []
        for name, facts in self.manifest["files"].items():
            problems += check_file(self.path / name, facts)
        if not problems and len(self.ids()) != len(self):
            problems.append(f"documents: {IDS} holds {len(self.ids())}, the manifest says {len(self)}")
        return problems

    def stats(self) -> dict:
        """documents, vectors, dim, bytes on disk, bytes per vector, documents without any vector, format, encoder."""
        kept = ("documents", "vectors", "dim", "documents_without_vectors", "encoder", "library", "options")
        size = sum(facts["bytes"] for facts in self.manifest["files"].values())
        return {
            "format": self.FORMAT,
            **{key: self.manifest[key] for key in kept if key in self.manifest},
            "bytes": size,
            "bytes_per_vector": round(size / max(1, self.manifest["vectors"]), 2),
        }


def checked(stream: Iterable[tuple[str, np.ndarray | None]], dim: int, dtype: str) -> Iterator[tuple[str, np.ndarray]]:
    """(id, [n, dim] of ``dtype``, a copy) of every document; a bad id, shape or value is a UserError that names it."""
    seen: set[str] = set()
    for position, (given, vectors) in enumerate(stream):
        id_ = check_id(given, position)
        if id_ in seen:
            raise UserError(f"id '{id_}' stands twice (again at document {position}); drop or rename one of them.")
        seen.add(id_)
        yield id_, check_vectors(id_, vectors, dim, dtype)
