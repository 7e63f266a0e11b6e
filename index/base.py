"""The read side that every index of this room shares: manifest, ids, verify, stats."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch

from index.chunks import Chunks, check_files, read_manifest
from index.common import check_encoder


class ChunkedIndex:
    """An opened index. Opening reads the manifest only; ids and vectors are read at the first search."""

    FORMAT: ClassVar[str]

    def __init__(self, path: Path, manifest: dict, device: str) -> None:
        self.path, self.manifest, self.device = path, manifest, torch.device(device)
        self.dim: int = manifest["dim"]

    @classmethod
    def open(cls, path: str | Path, encoder: dict | None = None, device: str = "cpu") -> Any:
        """Open a complete index. encoder: what encodes the queries now; UserError when it is not what built it."""
        path = Path(path)
        manifest = read_manifest(path, cls.FORMAT)
        if encoder is not None:
            check_encoder(path, manifest["encoder"], encoder)
        return cls(path, manifest, device)

    def __len__(self) -> int:
        return self.manifest["documents"]

    @cached_property
    def chunks(self) -> Chunks:
        return Chunks(self.path, self.manifest["chunks"])

    @cached_property
    def where(self) -> dict[str, int]:
        """id -> position."""
        return {id_: position for position, id_ in enumerate(self.chunks.ids)}

    def ids(self) -> Sequence[str]:
        """All ids, in the order they were given."""
        return self.chunks.ids

    def verify(self) -> list[str]:
        """Re-read every file and compare sizes, digests and counts; one sentence per problem, none when all is well."""
        problems = check_files(self.path, self.manifest["files"])
        if problems:
            return problems
        chunks = Chunks(self.path, self.manifest["chunks"])
        found = {"documents": len(chunks), "vectors": int(chunks.offsets[-1])}
        return [
            f"{what}: the chunks hold {n}, the manifest says {self.manifest[what]}"
            for what, n in found.items()
            if n != self.manifest[what]
        ]

    def stats(self) -> dict:
        """documents, vectors, dim, bytes on disk, bytes per vector, documents without any vector, format, encoder."""
        size = sum(facts["bytes"] for facts in self.manifest["files"].values())
        vectors = self.manifest["vectors"]
        return {
            "format": self.FORMAT,
            "documents": len(self),
            "vectors": vectors,
            "dim": self.dim,
            "documents_without_vectors": self.manifest["documents_without_vectors"],
            "bytes": size,
            "bytes_per_vector": round(size / max(1, vectors), 2),
            "encoder": self.manifest["encoder"],
        }
