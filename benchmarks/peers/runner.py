"""The benchmark's side of an engine: its virtual environment, its process, and questions and answers between them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from core.errors import UserError

HERE = Path(__file__).resolve().parent
OWN = {"ours": "run_ours.py", "exact": "run_exact.py"}  # run by the python that runs the benchmark
PEERS = {"colbert-ai": "run_colbert_ai.py", "fast-plaid": "run_fast_plaid.py"}  # each in an environment of its own


def python_of(name: str, venvs: Path, wheels: Path | None) -> Path:
    """The interpreter of a peer's environment, made the first time and when its requirements have changed."""
    requirements = HERE / f"requirements-{name}.txt"
    folder = venvs / name
    python = folder / "bin" / "python"
    stamp = folder / f"complete-{hashlib.sha256(requirements.read_bytes()).hexdigest()[:12]}"
    if stamp.is_file():
        return python
    print(f"making {folder} from {requirements.name} ...", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    offline = ["--no-index", "--find-links", str(wheels.resolve())] if wheels else []
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *offline]
    done = subprocess.run([*command, "-r", str(requirements)], capture_output=True, text=True)
    if done.returncode:
        reason = next((x for x in reversed(done.stderr.strip().splitlines()) if "ERROR" in x), done.stderr[-300:])
        raise UserError(f"{name} could not be installed ({reason}); give its wheels with --wheels, or leave it out.")
    stamp.touch()
    return python


class Runner:
    """One engine's process. ``ask`` waits for the answer, so that only one engine works at a time."""

    def __init__(self, name: str, folder: Path, args, work: Path) -> None:
        self.name, self.log = name, work / f"{name}.log"
        python = Path(sys.executable) if name in OWN else python_of(name, folder / "venvs", args.wheels)
        work.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(work / name, ignore_errors=True)
        given = {"vectors": args.vectors, "work": work / name, "docs": args.docs, "queries": args.queries}
        given |= {"threads": args.threads, "nbits": args.nbits, "device": args.device}
        flags = [word for key, value in given.items() for word in (f"--{key}", str(value))]
        script = HERE / (OWN | PEERS)[name]
        with open(self.log, "w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                [str(python), str(script), *flags], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                text=True, env=environment(args.threads, args.device),
            )  # fmt: skip
        self.work, self.versions = work / name, self._answer()["versions"]

    def ask(self, do: str, **order) -> dict:
        self.process.stdin.write(json.dumps({"do": do, **order}) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict:
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"error": f"ended with status {self.process.wait()}"}
        if "error" in answer:
            raise UserError(f"{self.name} failed: {answer['error']}; its log is {self.log}.")
        return answer

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        shutil.rmtree(self.work, ignore_errors=True)


def environment(threads: int, device: str) -> dict[str, str]:
    """Every library that has threads is told how many; on CPU the GPUs are hidden (some peers take them unasked)."""
    made = dict(os.environ)
    for pool in ("OMP", "MKL", "OPENBLAS", "RAYON", "NUMBA", "NUMEXPR"):
        made[f"{pool}_NUM_THREADS"] = str(threads)
    if device == "cpu":
        made["CUDA_VISIBLE_DEVICES"] = ""
    made.pop("PYTHONPATH", None)  # the benchmark's packages must not leak into a peer's environment
    return made
