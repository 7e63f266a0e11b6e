"""Ids and negatives of ViD2R's pairs, for files that are not held in memory: 8 bytes a pair, and what repeats."""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b

import numpy as np


def hashes(values: Iterable[str]) -> np.ndarray:
    """64 bits for each text, 8 bytes of memory."""
    found = array("Q")
    for value in values:
        found.append(int.from_bytes(blake2b(value.encode(), digest_size=8).digest(), "little"))
    return np.frombuffer(found, dtype=np.uint64) if found else np.zeros(0, np.uint64)


def repeated(keys: np.ndarray) -> set[int]:
    """The hashes that stand more than once."""
    ordered = np.sort(keys)
    return set(np.unique(ordered[1:][ordered[1:] == ordered[:-1]]).tolist())


def own_ids(rows: Callable[[], Iterator[dict]], rules: str, seed: int = 0) -> Iterator[tuple[dict, bool]]:
    """The rows with their final ids, and whether an id was changed. ``rows`` is walked over more than once.

    clean: the second, third ... of an id gets "#2", "#3" ... behind it. legacy: as the published scripts do it within
    each image: while any two ids of the image are equal, every row that is met gets a random letter and digit, also one
    that is no double; the last double keeps its id.
    """
    keys = hashes(row["id"] for row in rows())
    if rules == "clean":
        doubles, seen = repeated(keys), {}
        known = np.sort(keys)
        for row, key in zip(rows(), keys.tolist()):
            if key not in doubles:
                yield row, False
                continue
            count = seen.get(row["id"], 0) + 1
            while count > 1 and _has(known, f"{row['id']}#{count}"):
                count += 1
            seen[row["id"]] = count
            yield ({**row, "id": f"{row['id']}#{count}"}, True) if count > 1 else (row, False)
        return
    images = hashes(row["image"] for row in rows())
    both = hashes(f"{row['image']}\n{row['id'].strip()}" for row in rows())
    doubles = set(images[np.isin(both, np.array(sorted(repeated(both)), dtype=np.uint64))].tolist())
    ids: dict[str, dict[int, str]] = {}
    for place, (row, image) in enumerate(zip(rows(), images.tolist())):
        if image in doubles:
            ids.setdefault(row["image"], {})[place] = row["id"]
    rng = random.Random(seed)
    for place, row in enumerate(rows()):
        of_image = ids.get(row["image"], {})
        if len({i.strip() for i in of_image.values()}) == len(of_image):
            yield row, False
            continue
        row["id"] = of_image[place] = f"{row['id']}_{rng.choice('abcdefghijkl')}{rng.randint(0, 9)}"
        yield row, True


def _has(ordered: np.ndarray, id_: str) -> bool:
    key = hashes([id_])[0]
    at = int(np.searchsorted(ordered, key))
    return at < len(ordered) and ordered[at] == key


class Negatives:
    """Other pairs of the same picture whose question is another, as the published ``negs``."""

    def __init__(self, pairs) -> None:
        """pairs: a sequence of {"image", "question", ...} that is read from disk row by row."""
        self.pairs = pairs
        keys = hashes(row["image"] for row in pairs)
        self.order = np.argsort(keys, kind="stable")
        self.keys = keys[self.order]
        self.held: tuple[str, list[dict]] = ("", [])

    def of(self, row: dict) -> list[dict]:
        if self.held[0] != row["image"]:
            key = hashes([row["image"]])[0]
            first, end = (int(np.searchsorted(self.keys, key, side)) for side in ("left", "right"))
            same = [self.pairs[int(place)] for place in self.order[first:end]]
            self.held = (row["image"], [other for other in same if other["image"] == row["image"]])
        return [other for other in self.held[1] if other["question"] != row["question"]]
