"""Whether a run may go on: what may not differ is an error that names every difference; other changes are said."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from typing import Any

import torch

from core import distributed
from core.differences import differences
from core.errors import UserError
from core.files import fingerprint
from training import checkpoint
from training.config import CHANGEABLE, FIXED, Config


def made_by(provenance: dict | None) -> dict[str, Any]:
    """What decides which model learns from which data: {"fingerprint", "sections"} of ``provenance["config"]``.

    sections: "model", "data" and "run.init", those that were given; plain values, so that they can be stored.
    """
    config = (provenance or {}).get("config") or {}
    sections = {name: config[name] for name in ("model", "data") if config.get(name) is not None}
    if "run" in config:
        sections["run"] = {"init": (config["run"] or {}).get("init")}
    sections = json.loads(json.dumps(sections, default=str))
    return {"fingerprint": fingerprint(sections), "sections": sections}


def check_same_run(out: str | Path, config: Config, provenance: dict | None) -> None:
    """Refuse to go on in ``out`` with another model, other data or another order of examples.

    For before anything is written there; ``fit`` checks again. Errors: UserError naming the differing keys. A folder
    without a checkpoint, or with one that cannot be read (``fit`` finds an older one), says nothing.
    """
    found = checkpoint.steps(out)
    if not found:
        return
    try:
        path = checkpoint.folder(out, found[-1]) / "loop.pt"
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError):
        return
    compare(state, out, config, provenance)


def compare(state: dict[str, Any], out: str | Path, config: Config, provenance: dict | None) -> None:
    """Compare a loop state with what is asked for now; see ``check_same_run``."""
    if not config.resume:
        raise UserError(f"'{out}' holds a run and train.resume is false; give another run.out or delete it.")
    _compare_sections(state.get("made_by"), made_by(provenance), out)
    then = {**state["config"], "processes": state["world"]}
    now = {**config.model_dump(), "processes": distributed.world()}
    fixed = [k for k in now if k in then and then[k] != now[k] and (k in FIXED or k == "processes")]
    if fixed:
        lines = "; ".join(f"{k}: {then[k]!r}, now {now[k]!r}" for k in fixed)
        raise UserError(f"'{out}' was trained otherwise ({lines}); set these back or give another run.out.")


def _compare_sections(then: dict | None, now: dict, out: str | Path) -> None:
    if then is None or then["fingerprint"] == now["fingerprint"]:
        return
    both = then["sections"].keys() & now["sections"].keys()  # a caller may give no config at all
    lines = [line for k in sorted(both) for line in differences(then["sections"][k], now["sections"][k], k)]
    if lines:
        raise UserError(
            f"'{out}' holds a run of another model or other data ({'; '.join(lines)}); set the old values back, or "
            "give another run.out (and its weights as run.init to start from them)."
        )


def tell_changes(state: dict[str, Any], config: Config) -> None:
    """Say on stderr which settings a resumed run has changed, of those that may change but matter."""
    then, now = state["config"], config.model_dump()
    for key in now if distributed.is_main() else ():
        if key in then and then[key] != now[key] and key not in CHANGEABLE:
            print(f"note: train.{key} is now {now[key]!r}, the run began with {then[key]!r}.", file=sys.stderr)
