"""Where the numbers of a run go: metrics.jsonl always, wandb and tensorboard when asked, a picture at the end."""

from __future__ import annotations

import importlib
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

from core import distributed
from core.errors import UserError
from core.files import append_line, atomic_file
from training.config import Config


class Tracker:
    """Writes on the first process only; on the others every method does nothing."""

    def __init__(self, config: Config, out: str | Path | None = None, facts: dict | None = None) -> None:
        """facts: the whole run configuration, for wandb's table. A missing library is an error with its remedy."""
        self.active = distributed.is_main()
        self.out = Path(out or config.out)
        self.path = self.out / "metrics.jsonl"
        self._wandb = self._tensorboard = None
        if not self.active:
            return
        check_trackers(config)
        self.out.mkdir(parents=True, exist_ok=True)
        if "wandb" in config.trackers:
            self._wandb = _start_wandb(config, self.out, facts)
        if "tensorboard" in config.trackers:
            self._tensorboard = _start_tensorboard(self.out)

    def resume(self, step: int, owed: bool = False) -> None:
        """Drop the lines of steps after ``step``, and a last line that an interruption cut short. owed: also the
        validation of ``step``, which is done again.

        Steps after a checkpoint are run again when it is resumed and must not be counted twice. (wandb and
        tensorboard keep both; their step axis shows it.)
        """
        if self.active and self.path.is_file():
            last = (step, not owed)  # validations come after the other numbers of their step
            kept = [row for row in read(self.path) if (row["step"], any(k.startswith("valid/") for k in row)) <= last]
            with atomic_file(self.path, "w") as handle:
                handle.writelines(json.dumps(row) + "\n" for row in kept)

    def log(self, step: int, **numbers: float) -> None:
        """One line: step, unix time and the numbers. Metric names may hold any character.

        A number that is none (the loss of a skipped step) is left out: JSON cannot say it, a curve cannot show it.
        """
        if not self.active:
            return
        numbers = {name: value for name, value in numbers.items() if math.isfinite(value)}
        try:
            append_line(self.path, json.dumps({"step": step, "time": round(time.time(), 3), **numbers}))
        except OSError as error:  # a run must not die of its diary; a checkpoint without room will end it in order
            print(f"'{self.path}' lacks a line of step {step}, which could not be written ({error}).", file=sys.stderr)
        if self._wandb is not None:
            self._wandb.log({"step": step, **numbers})
        if self._tensorboard is not None:
            for name, value in numbers.items():
                self._tensorboard.add_scalar(name, value, step)

    def finish(self) -> None:
        """Draw curves.png and close what is open."""
        if not self.active:
            return
        if self.path.is_file():
            plot(read(self.path), self.out / "curves.png")
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()


def read(path: str | Path) -> list[dict[str, Any]]:
    """Lines of a metrics.jsonl; a damaged last line (the process died while writing it) is left out."""
    rows = []
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            if number < len(lines):
                raise UserError(f"'{path}' line {number} is not JSON; repair or remove the file.") from None
    return rows


def plot(rows: list[dict[str, Any]], path: str | Path) -> None:
    """One panel per number (loss, rate, accuracy, each validation metric) over the steps, as a PNG."""
    names = list(dict.fromkeys(k for row in rows for k in row if k not in ("step", "time")))
    if not names:
        return
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        print("no curves.png: matplotlib is missing; pip install matplotlib", file=sys.stderr)
        return
    columns = min(3, len(names))
    lines = -(-len(names) // columns)
    figure = Figure(figsize=(4 * columns, 2.6 * lines), layout="constrained")
    FigureCanvasAgg(figure)
    for number, name in enumerate(names, 1):
        axes = figure.add_subplot(lines, columns, number)
        points = [(row["step"], row[name]) for row in rows if name in row]
        axes.plot(*zip(*points), marker="o" if len(points) < 30 else None, markersize=3, linewidth=1)
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("step", fontsize=8)
        axes.grid(alpha=0.3)
    with atomic_file(path) as handle:
        figure.savefig(handle, format="png", dpi=120)


LIBRARIES = {"wandb": "wandb", "tensorboard": "torch.utils.tensorboard"}


def check_trackers(config: Config) -> None:
    """Whether the libraries that ``trackers`` asks for are here, before hours go into a run that needs them."""
    for name in config.trackers if distributed.is_main() else ():
        try:
            importlib.import_module(LIBRARIES[name])
        except ImportError:
            raise UserError(
                f"train.trackers asks for {name}, which is missing; pip install {name} or remove it."
            ) from None


def _start_wandb(config: Config, out: Path, facts: dict | None) -> Any:
    import wandb

    mode = os.environ.get("WANDB_MODE")
    if mode is None and not wandb.api.api_key:
        mode = "offline"
        print(f"wandb: no key found, so offline; later: wandb sync {out / 'wandb'}", file=sys.stderr)
    options = {
        "project": config.project,
        "name": config.run_name or out.name,
        "dir": str(out),
        "config": facts or config.model_dump(),
        "id": _run_id(out),
        "resume": "allow",
    }
    try:
        run = wandb.init(mode=mode, **options)
    except Exception as error:
        # Whatever the service answers (wrong key, no network, time out): a run must not die of its diary.
        print(f"wandb: cannot connect ({error}); going on offline.", file=sys.stderr)
        run = wandb.init(mode="offline", **options)
    run.define_metric("*", step_metric="step")  # our own axis: wandb's cannot go back when a run is resumed
    return run


def _run_id(out: Path) -> str:
    """The wandb id of this run folder, so that a resumed run goes on in the same curves."""
    path = out / "wandb_id"
    if not path.is_file():
        with atomic_file(path, "w") as handle:
            handle.write(os.urandom(8).hex())
    return path.read_text(encoding="utf-8").strip()


def _start_tensorboard(out: Path) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(out / "tensorboard"))
