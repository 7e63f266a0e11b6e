"""What ``runs.check_data`` looks at. Not a command of its own.

Passages are read one at a time: a corpus of millions of lines is never held.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.progress import progress
from core.records import Document, ImageRef
from runs.common import corpus_of
from runs.looking import look_at_images, look_at_passages, look_at_split

PLACES = re.compile(r"(^|_)(path|dir|root|roots|passages|qrels|tsv|lineidx|map|annotations|file|files)$")
"""Keys of a ``data`` section that name files and folders."""


def look(config, all_images: bool = False) -> dict[str, Any]:
    """The findings about the data set of a validated ``data`` section; ``ok`` when ``problems`` is empty."""
    import dataset

    found: dict[str, Any] = {"data": config.name, "files": files(config), "splits": {}, "passages": {}, "problems": []}
    problems = found["problems"]
    for file in found["files"]:
        if file["bytes"] is None:
            problems.append(f"data.{file['key']} '{file['path']}' is not there")
    if getattr(config, "repo", None) is not None:
        config = config.model_copy(update={"repo": None})  # looking downloads nothing
    refs: dict[str, ImageRef] = {}
    try:
        data = dataset.build(config)
        splits = list(dict.fromkeys([data.train_split, data.valid_split, *data.test_splits]))
    except UserError as error:
        data, splits = None, []
        problems.append(str(error))
    corpora = Corpora(data, problems)
    for split in splits:
        if not absent(config, split):
            try:
                found["splits"][split] = look_at_split(data, split, corpora.of(split), refs, problems)
            except UserError as error:
                problems.append(f"{split}: {error}")
    if corpora.looked is not None:
        found["passages"] = look_at_passages(corpora.looked, refs, problems)
    if all_images and data is not None:
        try:
            refs = {ref.key: ref for ref in data.images()}
        except UserError as error:
            problems.append(f"images: {error}")
    found["images"] = look_at_images(list(refs.values()), problems)
    found["problems"] = problems = once(problems, [f["path"] for f in found["files"] if f["bytes"] is None])
    return {**found, "ok": not problems}


def once(problems: list[str], missing: list[str]) -> list[str]:
    """Each problem once: of a missing file only that it is missing, not also what cannot be done without it."""
    told = [f"'{path}' is not there" for path in missing]
    consequences = [p for p in problems if any(f"'{m}'" in p for m in missing) and not p.endswith(tuple(told))]
    return [p for p in dict.fromkeys(problems) if p not in consequences]


def files(config) -> list[dict[str, Any]]:
    """What the config names: key, path, and bytes; -1 of a folder, None of what is not there."""
    out = []
    for key in type(config).model_fields:
        value = getattr(config, key)
        values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
        if PLACES.search(key):
            out += [{"key": key, "path": v, "bytes": taken(Path(v))} for v in values if isinstance(v, str)]
    return out


def taken(path: Path) -> int | None:
    if not path.exists() and path.suffix in (".gz", ".zip"):  # what was unpacked may stand in its place
        path = next((p for p in (path.with_suffix(""), path.with_suffix(".sections.jsonl")) if p.exists()), path)
    if not path.exists():  # JSON lines of the splits may stand beside where their folder would be
        return -1 if next(path.parent.glob(f"{path.name}.*.jsonl"), None) else None
    return -1 if path.is_dir() else path.stat().st_size


def absent(config, split: str) -> bool:
    """Whether the config itself says that there is no such split."""
    key = {"train": "path", "test": "test_path"}.get(split)
    return key in type(config).model_fields and getattr(config, key) is None


class Corpora:
    """The passages that each split is judged on, opened once."""

    def __init__(self, data, problems: list[str]) -> None:
        self.data, self.problems = data, problems
        self.looked: Sequence[Document] | None = None
        self._of: dict[str, tuple[Sequence[Document], Any] | None] = {}

    def of(self, split: str) -> tuple[Sequence[Document], Any] | None:
        """The corpus, and what answers ``id in``; None when it cannot be read, which is told once."""
        name = split if hasattr(self.data, "corpus_of") else ""
        if name not in self._of:
            try:
                corpus = corpus_of(self.data, split)
                self._of[name] = corpus, ids_of(corpus)
                if self.looked is None or len(corpus) > len(self.looked):
                    self.looked = corpus
            except UserError as error:
                self._of[name] = None
                self.problems.append(f"passages: {error}")
        return self._of[name]


def ids_of(corpus: Sequence[Document]) -> Any:
    from dataset.lines import Lines

    if isinstance(corpus, Lines):
        return corpus  # finds an id through its index
    return {document.id for document in progress(corpus, "ids of passages", total=len(corpus))}
