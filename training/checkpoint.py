"""Checkpoints: whole folders, found again after a crash.

<out>/checkpoints/step-0000100/   what ``retriever.save_pretrained`` writes, plus
    loop.pt                       optimizer, objective, random states, sampler position (tensors and plain containers)
    files.json                    size and SHA-256 of every other file
<out>/checkpoints/latest.json, best.json   pointers, written after the folder they name

A folder is filled under a temporary name, fsynced and renamed, so one that has its name is complete. A file damaged
later is noticed by its checksum, and the checkpoint before it is used.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from core import distributed
from core.errors import UserError
from core.files import atomic_folder, read_json, restore_folder, sha256, write_json
from core.protocols import Retriever
from training import sharding

FORMAT = 1


def folder(out: str | Path, step: int) -> Path:
    return Path(out) / "checkpoints" / f"step-{step:07d}"


def steps(out: str | Path) -> list[int]:
    """Steps of all finished checkpoints, oldest first."""
    found = (re.fullmatch(r"step-(\d+)", p.name) for p in (Path(out) / "checkpoints").glob("step-*"))
    return sorted(int(match[1]) for match in found if match)


def save(
    out: str | Path,
    step: int,
    retriever: Retriever,
    state: dict[str, Any],
    provenance: dict | None = None,
    keep: int = 2,
    best: dict | None = None,
    also: Callable[[Path], None] | None = None,
) -> Path:
    """Write the checkpoint of ``step``, then the pointers, then remove old ones. Every process calls it.

    state: tensors and plain containers. best: {"step", "metric", "value"} of the best so far, None when unmeasured.
    The ``keep`` newest up to ``step`` and the best stay. also: writes more into the folder. Errors: UserError on every
    process when it cannot be written (a full disk, say); what was there before is whole then.
    """
    rng = distributed.gather_objects(rng_state())
    path = folder(out, step)
    fault: str | None = None
    if distributed.is_main():
        try:
            with atomic_folder(path) as tmp:
                retriever.save_pretrained(tmp, {"step": step, **(provenance or {})})
                if also is not None:
                    also(tmp)
                torch.save({"format": FORMAT, "step": step, "rng": rng, **state}, tmp / "loop.pt")
                write_json(tmp / "files.json", _listing(tmp))
            write_json(path.parent / "latest.json", {"step": step, "folder": path.name})
            if best is not None:  # also when it is an older one: a crash may have come between folder and pointer
                write_json(path.parent / "best.json", {**best, "folder": folder(out, best["step"]).name})
            _prune(out, step, keep, best)
        except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors wrap what the system says
            fault = _unwritten(out, path, error)
    fault = distributed.gather_objects(fault)[0]  # also the barrier: nobody goes on before the folder stands
    if fault is not None:
        raise UserError(fault)
    return path


def _unwritten(out: str | Path, path: Path, error: Exception) -> str:
    found = steps(out)
    last = f"the last good one is '{folder(out, found[-1])}'" if found else "there is none yet"
    free = shutil.disk_usage(path.parent).free / 1e9
    said, remedy = " ".join(str(error).split())[:300], "Make room, or lower train.keep"
    if "DataLoader worker" in said:  # torch tells of a worker's end wherever the process just is
        remedy = "Lower train.num_workers, or give the job more memory"
    return (
        f"the checkpoint '{path}' could not be written ({said}; {free:.2f} GB are free there); {last}. {remedy}, and "
        "give the same command again."
    )


def load_latest(out: str | Path) -> tuple[Path, dict[str, Any]] | None:
    """Folder and loop state of the newest usable checkpoint; None when there is none at all.

    A damaged one is named on stderr and the one before it is taken; all damaged is an error. Every process calls it.
    """
    choice: object = None
    if distributed.is_main():
        try:
            choice = _newest_usable(out)
        except UserError as error:
            choice = error
    choice = distributed.gather_objects(choice)[0]
    if isinstance(choice, UserError):
        raise choice
    if choice is None:
        return None
    path = folder(out, choice)
    return path, torch.load(path / "loop.pt", map_location="cpu", weights_only=True)


def clean(out: str | Path) -> None:
    """Remove what an interrupted write or removal left behind (the first process, at the start of a run).

    A checkpoint that was set aside to be written anew (a validation that is made up for) comes back first.
    """
    if distributed.is_main():
        checkpoints = Path(out) / "checkpoints"
        for aside in checkpoints.glob(".step-*.old"):
            restore_folder(checkpoints / aside.name[1:-4])
        for path in checkpoints.glob(".*"):  # every temporary name begins with a dot
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    distributed.barrier()


def restore_weights(retriever: Retriever, path: Path) -> None:
    """Copy a checkpoint's weights into ``retriever``, in place, so optimizers keep their parameters."""
    saved = type(retriever).from_pretrained(path).state_dict()  # type: ignore[attr-defined]
    own = retriever.state_dict()  # type: ignore[attr-defined]
    if own.keys() != saved.keys():
        raise UserError(
            f"'{path}' holds other weights ({sorted(own.keys() ^ saved.keys())[:3]}); give another run.out."
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(sharding.like(saved[name], tensor))


def rng_state() -> dict[str, Any]:
    """Python, numpy, torch and accelerator states of this process, as tensors and plain containers."""
    version, numbers, gauss = random.getstate()
    name, keys, *rest = np.random.get_state()
    state: dict[str, Any] = {
        "python": [version, list(numbers), gauss],
        "numpy": [str(name), torch.from_numpy(np.asarray(keys).astype(np.int64)), int(rest[0]), int(rest[1]), rest[2]],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    if torch.backends.mps.is_available():
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """The inverse of ``rng_state``; states of an accelerator that is not here are left out."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    if "mps" in state and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"])


def _newest_usable(out: str | Path) -> int | None:
    found = steps(out)
    for step in reversed(found):
        problem = _damage(folder(out, step))
        if problem is None:
            return step
        print(f"checkpoint '{folder(out, step)}' is damaged ({problem}); trying the one before it.", file=sys.stderr)
    if found:
        raise UserError(f"every checkpoint in '{out}' is damaged; restore a copy or give another run.out.")
    return None


def _damage(path: Path) -> str | None:
    """What is wrong with a checkpoint folder, or None."""
    try:
        listing = read_json(path / "files.json", "checkpoint listing")
    except UserError as error:
        return str(error)
    for name, (size, digest) in listing.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size or sha256(file) != digest:
            return f"{name} has changed"
    return None


def _listing(path: Path) -> dict[str, list]:
    files = sorted(p for p in path.rglob("*") if p.is_file())
    return {p.relative_to(path).as_posix(): [p.stat().st_size, sha256(p)] for p in files}


def _prune(out: str | Path, step: int, keep: int, best: dict | None) -> None:
    # Later steps than the present one belong to a run this one fell back from; they are overwritten when reached.
    past = [s for s in steps(out) if s <= step]
    for old in past[:-keep]:
        if best is None or old != best["step"]:
            path = folder(out, old)
            gone = path.with_name(f".{path.name}.gone")
            shutil.rmtree(gone, ignore_errors=True)
            os.replace(path, gone)  # a removal cut short must not leave a folder that looks like a checkpoint
            shutil.rmtree(gone)
