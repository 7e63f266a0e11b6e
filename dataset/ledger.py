"""What became of everything that was read: counts per reason, a sample of each, and a sum that must come out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

CUT = 200
"""Characters of a sample's texts that are kept."""


class Ledger:
    """Conversations are used or skipped for a reason; their pairs are kept or dropped for one.

    changed: how many responses a clean-up changed. notes: what is worth a number but drops nothing. samples: reason ->
    the first case of it, ``at`` the number of its conversation (of its pair, where pairs were searched).
    """

    PARTS = ("skipped", "dropped", "changed", "notes")

    def __init__(self) -> None:
        self.read = self.used = self.found = self.kept = 0
        self.skipped, self.dropped, self.changed, self.notes = Counter(), Counter(), Counter(), Counter()
        self.samples: dict[str, dict[str, Any]] = {}

    def skip(self, reason: str, at: int, **facts: Any) -> None:
        """A whole conversation, number ``at``."""
        self.skipped[reason] += 1
        self._sample(reason, at, facts)

    def drop(self, reason: str, at: int, **facts: Any) -> None:
        """A pair of conversation ``at``."""
        self.dropped[reason] += 1
        self._sample(reason, at, facts)

    def _sample(self, reason: str, at: int, facts: Mapping[str, Any]) -> None:
        if reason not in self.samples:
            cut = {key: _shown(value) if isinstance(value, str) else value for key, value in facts.items()}
            self.samples[reason] = {"at": at, **cut}

    def check(self) -> None:
        """Nothing may vanish: a wrong sum is a mistake of ours."""
        if self.read != self.used + sum(self.skipped.values()) or self.found != self.kept + sum(self.dropped.values()):
            raise AssertionError(f"the counts do not add up: {self.as_json()}")

    def as_json(self) -> dict[str, Any]:
        return {
            "conversations": {"read": self.read, "used": self.used, "skipped": dict(sorted(self.skipped.items()))},
            "pairs": {"found": self.found, "kept": self.kept, "dropped": dict(sorted(self.dropped.items()))},
            "changed": dict(sorted(self.changed.items())),
            "notes": dict(sorted(self.notes.items())),
            "samples": dict(sorted(self.samples.items())),
        }

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> Ledger:
        made = cls()
        made.read, made.used = found["conversations"]["read"], found["conversations"]["used"]
        made.found, made.kept = found["pairs"]["found"], found["pairs"]["kept"]
        parts = {**found, "skipped": found["conversations"]["skipped"], "dropped": found["pairs"]["dropped"]}
        for name in cls.PARTS:
            getattr(made, name).update(parts[name])
        made.samples = dict(found["samples"])
        return made

    @classmethod
    def sum(cls, parts: Iterable[Ledger]) -> Ledger:
        """Of several shards; the sample of a reason is the first of all."""
        made = cls()
        for part in parts:
            for name in ("read", "used", "found", "kept"):
                setattr(made, name, getattr(made, name) + getattr(part, name))
            for name in cls.PARTS:
                getattr(made, name).update(getattr(part, name))
            for reason, sample in part.samples.items():
                known = made.samples.get(reason)
                if known is None or sample["at"] < known["at"]:
                    made.samples[reason] = sample
        made.check()
        return made

    def lines(self) -> list[str]:
        """For a terminal."""
        out = [f"conversations: {self.read} read, {self.used} used"]
        out += [f"  skipped, {reason}: {n}" for reason, n in self.skipped.most_common()]
        out.append(f"pairs: {self.found} found, {self.kept} kept")
        out += [f"  dropped, {reason}: {n}" for reason, n in self.dropped.most_common()]
        out += [f"  changed by {reason}: {n}" for reason, n in self.changed.most_common()]
        return out + [f"  note, {reason}: {n}" for reason, n in self.notes.most_common()]


def _shown(text: str) -> str:
    """Its beginning, with halves of surrogate pairs as \\ud800: no file takes them, and they may be the reason."""
    return text[:CUT].encode("utf-8", "backslashreplace").decode()
