"""The folder of an index: one writer at a time, a build's ``spec.json``, and the manifest, which says what counts."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.files import read_json, restore_folder, sha256, write_json
from index.segment import FACTS, JOURNAL, Segment

MANIFEST = "manifest.json"
SPEC = "spec.json"
VERSION = 2
KEYS = {
    "generation": int,
    "dim": int,
    "documents": int,
    "vectors": int,
    "documents_without_vectors": int,
    "last_segment": int,
    "segments": list,
    "files": dict,
    "encoder": dict,
}


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """One writer at a time: UserError when another process (or object) is writing the index."""
    path.mkdir(parents=True, exist_ok=True)
    handle = _locked(path)
    try:
        yield
    except OSError as error:
        if error.errno in (28, 122):  # no space left, quota exceeded
            raise UserError(
                f"the disk of '{path}' is full ({error.strerror}); free space and run the same command, it goes on."
            ) from None
        raise
    finally:
        if handle is not None:
            os.close(handle)


def _locked(path: Path) -> int | None:
    """An open folder that this process alone holds; None where there are no such locks."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    while True:
        handle = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                return handle
        except BlockingIOError:
            os.close(handle)
            raise UserError(
                f"another process is writing the index '{path}'; wait until it has ended, or stop it."
            ) from None
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # another folder has taken its place meanwhile (see StoredIndex.rebuild)


def begin(path: Path, spec: dict) -> None:
    """Start or go on with a build: refuse a complete index and an unfinished one with other options."""
    if (path / MANIFEST).is_file():
        found = read_json(path / MANIFEST, "index manifest")
        documents = found.get("documents") if isinstance(found, dict) else "unknown"
        raise UserError(
            f"'{path}' already holds a complete index of {documents} documents; "
            "open it, or delete the folder to build it anew."
        )
    remove_halves(path)
    spec = json.loads(json.dumps({"version": VERSION, **spec}))
    if not (path / SPEC).is_file():
        if any(path.iterdir()):
            raise UserError(f"the folder '{path}' is not empty and holds no index; give a new folder.")
        write_json(path / SPEC, spec)
    found = read_json(path / SPEC, "index spec")
    if not isinstance(found, dict):
        raise UserError(f"the unfinished index '{path}' has a damaged {SPEC}; delete the folder and build again.")
    differing = [key for key in sorted({*spec, *found}) if found.get(key) != spec.get(key)]
    if differing:
        lines = "; ".join(f"{key}: unfinished {found.get(key)!r}, now {spec.get(key)!r}" for key in differing)
        raise UserError(
            f"the unfinished index '{path}' was begun otherwise ({lines}); use the same options, or delete the folder."
        )


def remove_halves(path: Path) -> None:
    """Remove the files that a killed process had not written to their end."""
    for file in path.glob(".*.tmp"):
        file.unlink(missing_ok=True)


def write_manifest(path: Path, manifest: Mapping) -> None:
    """Put a manifest in force, with the digest of its own content."""
    rest = {key: value for key, value in manifest.items() if key != "checksum"}
    write_json(path / MANIFEST, {**rest, "checksum": _checksum(rest)})


def _checksum(manifest: Mapping) -> str:
    rest = {key: value for key, value in manifest.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def read_manifest(path: Path, format_: str) -> dict:
    """The manifest of a complete index of this format, otherwise one sentence."""
    if not path.is_dir():
        time.sleep(0.1)  # a rebuild may be putting its folder here this moment; a killed one leaves the old one aside
        restore_folder(path)
    if not path.is_dir():
        raise UserError(f"there is no index at '{path}'; build it first.")
    if not (path / MANIFEST).is_file():
        raise UserError(
            f"the index '{path}' is incomplete (it has no {MANIFEST}); run the same command again, it goes on."
        )
    manifest = read_json(path / MANIFEST, "index manifest")
    changed = UserError(
        f"the index manifest '{path / MANIFEST}' has changed since it was written; "
        "copy the folder again, or build the index again."
    )
    if not isinstance(manifest, dict) or manifest.get("checksum") not in (None, _checksum(manifest)):
        raise changed
    if manifest.get("format") != format_:
        found = manifest.get("format")
        raise UserError(f"'{path}' holds an index of format {found!r}, not {format_!r}; open it as that.")
    if manifest.get("version") != VERSION:
        raise UserError(f"'{path}' was written by an earlier version of this project; build the index again.")
    if any(not isinstance(manifest.get(key), kind) for key, kind in KEYS.items()):
        raise changed
    return manifest


def finished(path: Path) -> Segment | None:
    """The segment, when its last file is there; what a kill between that and the tidying left is removed."""
    if not (path / FACTS).is_file():
        return None
    for name in ("ids.lengths.bin", "lengths.bin", JOURNAL):
        (path / name).unlink(missing_ok=True)
    return Segment(path)


def entry(segment: Segment) -> dict:
    """How a manifest names a segment."""
    return {"name": segment.path.name, "sha256": sha256(segment.path / FACTS)}


def own_files(manifest: Mapping[str, Any]) -> dict[str, dict]:
    """Files of the whole index, without those of one generation."""
    return {n: f for n, f in manifest["files"].items() if not n.startswith("deleted-")}


def check_positive(**options: int) -> None:
    for name, value in options.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"{name}={value!r} is not a positive integer; give 1 or more.")
