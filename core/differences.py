"""Two settings trees compared, for messages that name every key that differs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def differences(there: Any, now: Any, prefix: str = "") -> list[str]:
    """Lines such as "model.num_heads: 12 there, 3 now", keys sorted. A key that is absent counts as null."""
    old, new = dict(_leaves(there, prefix)), dict(_leaves(now, prefix))
    keys = sorted(k for k in {*old, *new} if old.get(k) != new.get(k))
    return [f"{k}: {_shown(old.get(k))} there, {_shown(new.get(k))} now" for k in keys]


def _shown(value: Any) -> str:
    return "null" if value is None else repr(value)


def _leaves(tree: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from _leaves(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, tree
