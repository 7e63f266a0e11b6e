"""Reads a PLAID index exactly as colbert-ai 0.2.22 wrote it (the layout of ColBERTv2 and PLAID), and searches it."""

from __future__ import annotations

import pickle
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.errors import UserError
from core.files import read_json
from core.protocols import Ranking
from core.tokens import TokenBatch
from index import colbert_ai_search
from index.codec import Codec
from index.colbert_ai_search import Parameters
from index.common import Allowed, allowed_positions, check_k, check_queries
from index.ivf import row_numbers

FORMAT = "colbert_ai"


def is_colbert_ai(path: str | Path) -> bool:
    """Whether a folder holds what colbert-ai writes, told by its files."""
    return (Path(path) / "metadata.json").is_file() and (Path(path) / "centroids.pt").is_file()


class ColbertAIIndex:
    """A folder with metadata.json, centroids.pt, buckets.pt, N.codes.pt, N.residuals.pt, doclens.N.json, ivf.pid.pt.

    Passages are numbered (pids), and these numbers are their ids; in a collection they are the line numbers.
    Read-only, on CPU, held in memory at the first search; ``index.convert`` makes a memory-mapped index of it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not (self.path / "metadata.json").is_file():
            raise UserError(f"'{path}' holds no colbert-ai index (metadata.json is missing); give its index folder.")
        self.metadata: dict[str, Any] = read_json(self.path / "metadata.json", "colbert-ai metadata")
        try:
            self.config: dict[str, Any] = self.metadata["config"]
            self.chunks = range(self.metadata["num_chunks"])
            self.nbits, self.query_maxlen = int(self.config["nbits"]), int(self.config.get("query_maxlen", 32))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise damaged(self.path / "metadata.json", f"{type(error).__name__}: {error}") from None

    @classmethod
    def open(cls, path: str | Path, encoder: dict | None = None, device: str = "cpu") -> ColbertAIIndex:
        """device is ignored. encoder cannot be compared: colbert-ai notes no digest of its weights."""
        index = cls(path)
        if encoder is not None:
            cannot_compare(path, index.config.get("checkpoint"))
        return index

    def load(self, name: str) -> Any:
        """The tensor or tensors of a .pt file; a missing, truncated or changed one is an error that names it."""
        file = self.path / name
        try:
            if zipfile.is_zipfile(file):
                with zipfile.ZipFile(file) as archive:
                    if (bad := archive.testzip()) is not None:  # torch itself does not look at the checksums
                        raise damaged(file, f"'{bad}' has another checksum")
            return torch.load(file, map_location="cpu", weights_only=True)
        except UserError:  # which is a ValueError too
            raise
        except FileNotFoundError:
            raise UserError(f"'{file}' is missing; copy the whole colbert-ai index folder.") from None
        except (OSError, EOFError, RuntimeError, ValueError, KeyError, zipfile.BadZipFile, zlib.error,
                pickle.UnpicklingError) as error:  # fmt: skip
            raise damaged(file, (str(error) or type(error).__name__).splitlines()[0]) from None

    def chunk(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """Codes [n] int32, residuals [n, bytes] uint8 and vectors per passage [m] int64 of one chunk, checked."""
        codes, residuals = self.load(f"{number}.codes.pt"), self.load(f"{number}.residuals.pt")
        lengths = torch.tensor(self.lengths(number), dtype=torch.int64)
        rows, width = int(lengths.sum()), self.dim * self.codec.nbits // 8
        if len(codes) != rows:
            raise damaged(self.path / f"{number}.codes.pt", f"it holds {len(codes)} vectors, doclens says {rows}")
        if rows and not 0 <= int(codes.min()) <= int(codes.max()) < len(self.codec.centroids):
            raise damaged(self.path / f"{number}.codes.pt", "it names a centroid that is not there")
        if residuals.shape != (rows, width) or residuals.dtype != torch.uint8:
            shape = tuple(residuals.shape)
            raise damaged(self.path / f"{number}.residuals.pt", f"its shape is {shape}, not {(rows, width)}")
        return codes, residuals, lengths

    def lengths(self, number: int) -> list[int]:
        found = read_json(self.path / f"doclens.{number}.json", "doclens")
        if not isinstance(found, list) or not all(isinstance(n, int) and n >= 0 for n in found):
            raise damaged(self.path / f"doclens.{number}.json", "not a list of lengths")
        return found

    @cached_property
    def codec(self) -> Codec:
        buckets, centroids = self.load("buckets.pt"), self.load("centroids.pt")
        try:
            codec = Codec(centroids.float(), buckets[0].float(), buckets[1].float(), unit=True)
            if centroids.ndim != 2 or not centroids.isfinite().all() or len(buckets[0]) != len(buckets[1]) - 1:
                raise ValueError("wrong shape, NaN or infinity")
        except (ValueError, TypeError, AttributeError, LookupError, RuntimeError) as error:
            raise damaged(self.path / "centroids.pt' or 'buckets.pt", error) from None
        if codec.nbits != self.nbits:
            raise UserError(f"'{self.path}' says nbits={self.nbits} but buckets.pt has {codec.nbits}; build it again.")
        return codec

    @property
    def dim(self) -> int:
        return self.codec.dim

    @cached_property
    def doclens(self) -> Tensor:
        """[passages] int64: vectors per passage."""
        return torch.tensor([n for i in self.chunks for n in self.lengths(i)], dtype=torch.int64)

    @cached_property
    def offsets(self) -> Tensor:
        """[passages + 1] int64: first vector of each passage."""
        return torch.cat([torch.zeros(1, dtype=torch.int64), self.doclens.cumsum(0)])

    @cached_property
    def _arrays(self) -> tuple[Tensor, Tensor]:
        chunks = [self.chunk(i) for i in self.chunks]
        return torch.cat([c[0] for c in chunks]), torch.cat([c[1] for c in chunks])

    @cached_property
    def codes(self) -> Tensor:
        """[vectors] int32: centroid of each vector."""
        return self._arrays[0]

    @cached_property
    def residuals(self) -> Tensor:
        """[vectors, dim * nbits / 8] uint8, packed as ``index.codec`` says."""
        return self._arrays[1]

    @cached_property
    def ivf(self) -> tuple[Tensor, Tensor]:
        """Passage numbers of all lists one after another [n] int64, and their lengths [K] int64."""
        pids, lengths = self.load("ivf.pid.pt")
        if (
            len(lengths) != len(self.codec.centroids)
            or int(lengths.sum()) > len(pids)
            or (len(pids) and int(pids.max()) >= len(self))
        ):
            raise damaged(self.path / "ivf.pid.pt", "its lists do not fit the passages")
        # colbert-ai saves its lists with a tail of zeros (room for strided reads); it belongs to no list.
        return pids[: int(lengths.sum())].long(), lengths.long()

    def __len__(self) -> int:
        return len(self.doclens)

    # -- what a search asks (colbert_ai_search.Passages) -----------------------------------------------------------

    def rows(self, pids: Tensor) -> Tensor:
        """Numbers of the vectors of these passages, one passage after another."""
        return torch.from_numpy(row_numbers(self.offsets[pids].numpy(), self.doclens[pids].numpy()))

    def listed(self, cells: np.ndarray) -> Tensor:
        pids, lengths = self.ivf
        entries = row_numbers((lengths.cumsum(0) - lengths)[cells].numpy(), lengths[cells].numpy())
        return pids[torch.from_numpy(entries)].unique()

    def lengths_of(self, pids: Tensor) -> Tensor:
        return self.doclens[pids]

    def codes_of(self, pids: Tensor) -> Tensor:
        return self.codes[self.rows(pids)]

    def decompress(self, pids: Tensor | list[int], normalise: bool = True) -> Tensor:
        """[sum of doclens[pids], dim] float32: centroid + bucket weight, then at length 1 when ``normalise``."""
        rows = self.rows(torch.as_tensor(pids, dtype=torch.int64))
        return self.codec.decompress(self.codes[rows], self.residuals[rows], normalise)

    def exact_scores(self, query: Tensor, pids: Tensor | None = None, floor: float | None = 0.0) -> Tensor:
        """``colbert_ai_search.exact_scores`` with all passages, or with ``pids``."""
        return colbert_ai_search.exact_scores(self, query, torch.arange(len(self)) if pids is None else pids, floor)

    # -- the protocol of an index ----------------------------------------------------------------------------------

    def search(
        self,
        queries: TokenBatch,
        k: int,
        allowed_ids: Allowed = None,
        *,
        effort: str | None = "colbert",
        n_probe: int | None = None,
        threshold: float | None = None,
        n_candidates: int | None = None,
    ) -> list[Ranking]:
        """At most k passages per query [B, T, D]; masked rows are dropped.

        effort: "colbert" ranks as colbert-ai does (n_probe, threshold and n_candidates are its ncells,
        centroid_score_threshold and ndocs, by default what it picks for k; a ranking may be shorter than k);
        "exhaustive" is MaxSim with every passage.
        """
        check_k(k, len(self))
        if effort not in ("colbert", "exhaustive", None):
            raise UserError(
                f"effort {effort!r} is unknown to an index that colbert-ai wrote; use 'colbert' or 'exhaustive', or "
                "convert it with: python -m runs.convert_index"
            )
        chosen = Parameters.chosen(k, n_probe, threshold, n_candidates)
        emb = check_queries(queries, self.dim, "cpu")
        positions = allowed_positions(allowed_ids, len(emb), self.find, len(self))
        out = []
        with torch.inference_mode():
            for query, mask, allowed in zip(emb, queries.mask.cpu(), positions):
                wanted = torch.full((len(self),), allowed is None)
                wanted[slice(0) if allowed is None else torch.from_numpy(allowed)] = True
                if effort == "exhaustive":
                    pids = wanted.nonzero().flatten()
                    scores = self.exact_scores(query[mask], pids, floor=None)
                    order = scores.argsort(descending=True, stable=True)[:k]
                    found = pids[order].tolist(), scores[order].tolist()
                else:
                    found = colbert_ai_search.search(
                        self, query[mask], k, chosen, filter_fn=lambda p, wanted=wanted: p[wanted[p]]
                    )
                out.append(Ranking(tuple(map(str, found[0])), tuple(found[1])))
        return out

    @property
    def manifest(self) -> dict:
        """What the manifests of other indexes say, as far as it is known."""
        facts = {key: self.metadata.get(key) for key in ("num_embeddings", "num_partitions", "avg_doclen")}
        return {"format": FORMAT, "dim": self.dim, "documents": len(self), "encoder": {}, **facts}

    def ids(self) -> Sequence[str]:
        return [str(pid) for pid in range(len(self))]

    def find(self, ids: Sequence[str]) -> np.ndarray:
        """[n] int64: the passage number of each id, -1 where there is none."""
        numbers = [int(i) if i.isascii() and i.isdigit() and str(int(i)) == i else -1 for i in ids]
        return np.array([n if n < len(self) else -1 for n in numbers], dtype=np.int64)

    def vectors(self) -> Iterator[tuple[str, np.ndarray]]:
        """Every (pid, [n, dim] float32), decompressed chunk by chunk."""
        pid = 0
        for number in self.chunks:
            codes, residuals, lengths = self.chunk(number)
            rows = 0
            for piece in lengths.split(1024):
                n = int(piece.sum())
                vectors = self.codec.decompress(codes[rows : rows + n], residuals[rows : rows + n])
                for one in vectors.split(piece.tolist()):
                    yield str(pid), one.numpy()
                    pid += 1
                rows += n

    def verify(self) -> list[str]:
        """Read every file; one sentence per missing or damaged one (colbert-ai keeps no digests of its own)."""
        problems: list[str] = []

        def tried(read: Callable[[], Any]) -> Any:
            try:
                return read()
            except UserError as error:
                problems.append(str(error))

        if tried(lambda: self.codec) is None:
            return problems  # nothing else can be judged without it
        chunks = [tried(lambda i=i: len(self.chunk(i)[0])) for i in self.chunks]
        if None not in chunks:
            tried(lambda: self.ivf)
            said = self.metadata.get("num_embeddings", sum(chunks))
            if said != sum(chunks):
                problems.append(f"vectors: the chunks hold {sum(chunks)}, metadata.json says {said}")
        return problems

    def stats(self) -> dict:
        size = sum(f.stat().st_size for f in self.path.iterdir() if f.is_file())
        vectors = int(self.doclens.sum())
        return {
            "format": FORMAT,
            "documents": len(self),
            "vectors": vectors,
            "dim": self.dim,
            "documents_without_vectors": int((self.doclens == 0).sum()),
            "bytes": size,
            "bytes_per_vector": round(size / max(1, vectors), 2),
            "encoder": {},
            "nbits": self.codec.nbits,
            "centroids": len(self.codec.centroids),
        }


def cannot_compare(path: str | Path, checkpoint: str | None) -> None:
    """The note in place of a comparison of encoders."""
    print(
        f"note: the index '{path}' was written by colbert-ai with the checkpoint {checkpoint!r}; whether that is the "
        "present one cannot be checked",
        file=sys.stderr,
    )


def damaged(file: Path, why: object) -> UserError:
    return UserError(f"colbert-ai's index file '{file}' is damaged ({why}); copy or build that index again.")
