"""Say what is here: versions, device, threads, cache paths, and what is missing.

python -m runs.doctor
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from collections.abc import Sequence
from pathlib import Path

from core.cli import main
from runs.common import nothing_to_limit, parse, parser

OPTIONAL = {
    "wandb": "train.trackers: [wandb]",
    "tensorboard": "train.trackers: [tensorboard]",
    "onnx": "scripts/prepare_towers.py",
}


def run(argv: Sequence[str]) -> int:
    args = parse(parser(__doc__, "python -m runs.doctor", config=False), argv)
    nothing_to_limit(args.limit, "no records are read")
    print(f"python        {platform.python_version()} on {platform.system()} {platform.machine()}")
    needed = requirements()
    missing = [name for name, found in needed if not found]
    for name, found in needed:
        print(f"{name:<13} {found or 'MISSING'}")
    for name, use in OPTIONAL.items():
        if version(name) is None:
            print(f"{name:<13} not installed (only needed for {use})")
    if version("torch") is not None:
        import torch

        from core.device import pick_device

        print(f"device        {pick_device()} ({torch.get_num_threads()} threads, {os.cpu_count()} cores)")
    home = os.environ.get("HF_HOME", "~/.cache/huggingface")
    print(f"hub cache     {home} ({'offline' if os.environ.get('HF_HUB_OFFLINE') else 'online'})")
    for folder in ("data/flagfacts", "ckpts", "experiments"):
        print(f"{folder:<13} {'present' if Path(folder).is_dir() else 'not there'}")
    for folder in ("ckpts/minilm-l6", "ckpts/dinov2-small"):
        if not (Path(folder) / "config.json").is_file():
            print(f"missing: {folder}; make it with: python scripts/prepare_towers.py")
    if missing:
        print(f"missing: {', '.join(missing)}; install with: pip install -r requirements.txt")
    return 1 if missing else 0


def requirements() -> list[tuple[str, str | None]]:
    """(package, installed version or None) of requirements.txt, or of the installed project's own metadata."""
    file = Path(__file__).parent.parent / "requirements.txt"
    if file.is_file():
        lines = file.read_text(encoding="utf-8").splitlines()
    else:
        lines = [line for line in installed_requirements() if "extra ==" not in line]
    names = [m.group() for line in lines if (m := re.match(r"[A-Za-z][\w.-]*", line))]
    return [(name, version(name)) for name in names]


def installed_requirements() -> list[str]:
    """What the installed project asks for; without requirements.txt and uninstalled, nothing can be said."""
    try:
        return importlib.metadata.requires("multimodal-query-retrieval") or []
    except importlib.metadata.PackageNotFoundError:
        print("requirements.txt is not here and the project is not installed: its packages cannot be checked")
        return []


def version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main(run)
