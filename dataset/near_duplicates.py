"""Texts that are nearly the same, found by MinHash (Broder 1997): 128 bytes a text, whatever their number.

A text is the set of its runs of three words. Two sets of Jaccard similarity s agree in one of the 32 minima with
probability s; texts that agree in all four minima of one of eight bands are compared by all 32.
"""

from __future__ import annotations

import re
import zlib
from array import array
from collections.abc import Iterable

import numpy as np

HASHES, ROWS = 32, 4
BANDS = HASHES // ROWS
WORDS = 3
ALIKE = 0.8
"""Estimated similarity from which two texts count as near-duplicates."""

LARGEST_BUCKET = 64
"""Texts of one bucket are compared with the first of it and, up to so many, with each other."""

_RNG = np.random.default_rng(20240517)
_SEEDS = _RNG.integers(0, 1 << 63, HASHES, dtype=np.uint64)
_MIX = tuple(np.uint64(x) for x in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
"""Of splitmix64's finaliser."""


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def runs(text: str) -> set[str]:
    """Runs of ``WORDS`` words; of a shorter text the text itself."""
    found = words(text)
    return {" ".join(found[i : i + WORDS]) for i in range(max(1, len(found) - WORDS + 1))}


def similarity(one: str, other: str) -> float:
    """The true Jaccard similarity of two texts' runs."""
    a, b = runs(one), runs(other)
    return len(a & b) / len(a | b)


def signature(text: str) -> np.ndarray:
    """[32] uint32: the minima of 32 hashes over the text's runs."""
    keys = np.array([zlib.crc32(run.encode()) for run in runs(text)], dtype=np.uint64)
    # A linear function of the key would not do: its minimum is nearly always that of the smallest key.
    mixed = (keys[:, None] << np.uint64(32)) ^ keys[:, None] ^ _SEEDS
    for shift, factor in zip((30, 27), _MIX):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * factor  # modulo 2^64
    return (mixed >> np.uint64(32)).min(0).astype(np.uint32)


def signatures(texts: Iterable[str]) -> np.ndarray:
    """[n, 32] uint32, grown in place."""
    out, count = np.zeros((1024, HASHES), np.uint32), 0
    for text in texts:
        if count == len(out):
            out = np.concatenate([out, np.zeros_like(out)])
        out[count] = signature(text)
        count += 1
    return out[:count]


def alike(found: np.ndarray) -> np.ndarray:
    """found [n, 32] -> [pairs, 2], first < second, in order: those whose estimated similarity is ``ALIKE`` or more.

    Texts made of the same articles are near-duplicates by the million, so a pair is held in 8 bytes.
    """
    pairs = np.zeros(0, np.uint64)
    for band in range(BANDS):
        part = np.ascontiguousarray(found[:, band * ROWS : (band + 1) * ROWS]).view(f"V{4 * ROWS}").ravel()
        order = np.argsort(part, kind="stable")
        same = np.flatnonzero(part[order][1:] != part[order][:-1]) + 1
        begins, ends = np.append(0, same), np.append(same, len(order))
        fresh = array("Q")
        for at in np.flatnonzero(ends - begins > 1):
            _compare(found, np.sort(order[begins[at] : ends[at]]), fresh)
        if fresh:
            pairs = np.union1d(pairs, np.frombuffer(fresh, np.uint64))
    return np.stack([pairs >> np.uint64(32), pairs & np.uint64(0xFFFFFFFF)], axis=1).astype(np.int64)


def _compare(found: np.ndarray, bucket: np.ndarray, pairs: array) -> None:
    heads = bucket if len(bucket) <= LARGEST_BUCKET else bucket[:1]
    for at, i in enumerate(heads.tolist()):
        rest = bucket[at + 1 :]
        shares = (found[rest] == found[i]).mean(1)
        pairs.extend(((i << 32) + rest[shares >= ALIKE]).tolist())
