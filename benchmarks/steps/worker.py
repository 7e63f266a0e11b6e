"""A contestant's process: it obeys JSON lines on stdin and answers on stdout, so that the others wait while it works.

{"do": "prepare", "turns": 3, "steps": 8} -> {"once_s"}        {"do": "loss"} -> {"loss"}
{"do": "turn", "turn": 0, "steps": 8} -> {"seconds", "flops", "batch", "peak_gb", "rest_gb"}
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def memory_gb(device: str, what: str) -> float:
    """what: "peak" since the start of the process, or "rest", now. Of tensors on a GPU, of the process elsewhere."""
    if device.startswith("cuda"):
        import torch

        return (torch.cuda.max_memory_allocated() if what == "peak" else torch.cuda.memory_allocated()) / 1e9
    name = {"peak": "VmHWM", "rest": "VmRSS"}[what]
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith(name)), 0.0)


def serve(make, device: str, versions: dict) -> None:
    """Answer orders with the methods of ``make()``'s object until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not be taken for an answer

    def say(answer: dict) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    try:
        arm = make()
        say({"versions": versions})
        for line in sys.stdin:
            order = json.loads(line)
            found = getattr(arm, order.pop("do"))(**order)
            say({**(found or {}), "peak_gb": memory_gb(device, "peak"), "rest_gb": memory_gb(device, "rest")})
    except Exception as error:
        traceback.print_exc()
        say({"error": f"{type(error).__name__}: {error}"})


def main() -> None:
    sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
    import torch
    import transformers

    from steps.arms import ARMS
    from steps.setting import Options

    name, options = sys.argv[1], Options(**json.loads(sys.argv[2]))
    torch.set_num_threads(options.threads)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    serve(lambda: Answers(ARMS[name](options)), options.device, versions)


class Answers:
    """An arm's methods with answers as dicts."""

    def __init__(self, arm) -> None:
        self.arm = arm

    def prepare(self, **order) -> dict:
        self.arm.prepare(**order)
        return {"once_s": getattr(self.arm, "once", 0.0)}

    def loss(self) -> dict:
        return {"loss": self.arm.loss()}

    def turn(self, **order) -> dict:
        """As the arm's, with "batch": half as large, and again, where GPU memory does not hold it."""
        import torch

        while True:
            try:
                return {**self.arm.turn(**order), "batch": self.arm.options.batch}
            except torch.cuda.OutOfMemoryError:
                if self.arm.options.batch < 4:
                    raise
            self._resize(self.arm.options.batch // 2)

    def _resize(self, batch: int) -> None:
        import gc

        import torch

        self.arm.options = dataclasses.replace(self.arm.options, batch=batch)
        self.arm.retriever.zero_grad()
        gc.collect()
        torch.cuda.empty_cache()

    def fits(self, batch: int, gigabytes: float) -> dict:
        """Whether a step of so many queries runs in this much GPU memory."""
        import torch

        whole = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, gigabytes * 1e9 / whole))
        self._resize(batch)
        try:
            self.arm.turn(0, 1)
        except torch.cuda.OutOfMemoryError:
            return {"fits": False}
        return {"fits": True}


class Local:
    """A contestant in this process: quick to start, but memory is everybody's."""

    def __init__(self, arm, device: str) -> None:
        self.answers, self.device, self.versions = Answers(arm), device, {}

    def ask(self, do: str, **order) -> dict:
        found = getattr(self.answers, do)(**order)
        return {**found, "peak_gb": memory_gb(self.device, "peak"), "rest_gb": memory_gb(self.device, "rest")}

    def close(self) -> None:
        pass


class Process:
    """The benchmark's side of a contestant in a process of its own."""

    def __init__(self, name: str, command: list[str], log: Path, environment: dict[str, str]) -> None:
        from core.errors import UserError

        self.name, self.log, self.error = name, log, UserError
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "w", encoding="utf-8") as handle:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=handle, text=True, env=environment,
                cwd=ROOT,
            )  # fmt: skip
        self.versions = self._answer()["versions"]

    def ask(self, do: str, **order) -> dict:
        self.process.stdin.write(json.dumps({"do": do, **order}) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict:
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"error": f"ended with status {self.process.wait()}"}
        if "error" in answer:
            raise self.error(f"{self.name} failed: {answer['error']}; its log is {self.log}.")
        return answer

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


if __name__ == "__main__":
    main()
