"""sentence-transformers 6's multi-vector trainer as a contestant of train_bench (see benchmarks/steps/worker.py).

Runs in an environment of its own, on files: a folder that its MultiVectorEncoder loads, and the texts of every turn.

  run_sentence_transformers.py {"model": ..., "texts": ..., "scale": 2.0, "device": "cpu", "batch": 32, ...}
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from steps.worker import serve

WARM = 1


class Peer:
    """Its own trainer, loss, collator and optimizer, with its defaults where the setting leaves a choice."""

    def __init__(self, given: dict) -> None:
        import torch
        from sentence_transformers import MultiVectorEncoder

        torch.set_num_threads(given["threads"])
        self.given = given
        self.model = MultiVectorEncoder(given["model"], device=given["device"])
        self.texts = json.loads(Path(given["texts"]).read_text(encoding="utf-8"))

    def prepare(self, turns: int, steps: int) -> dict:
        """Which of its settings is fastest here: precision, and texts per pass of its encoder (None: all at once)."""
        before = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.tried = {}
        for bf16, mini_batch in ((True, None), (True, 16), (False, 16)):
            self.given |= {"bf16": bf16, "mini_batch": mini_batch}
            self.tried[bf16, mini_batch] = min(self._train(0, 2))
        bf16, mini_batch = min(self.tried, key=self.tried.get)
        self.given |= {"bf16": bf16, "mini_batch": mini_batch}
        self.model.load_state_dict(before)
        shown = [{"bf16": b, "mini_batch_size": m, "step_s": s} for (b, m), s in self.tried.items()]
        return {"tried": shown, "chosen": {"bf16": bf16, "mini_batch_size": mini_batch}}

    def loss(self) -> dict:
        """Of the first examples, without dropout, by its own loss function."""
        import torch

        columns = self._columns(0, self.given["first"])
        tasks = ["query", *["document"] * (len(columns) - 1)]
        self.model.eval()
        with torch.no_grad():
            features = [
                {**self.model.preprocess(list(texts), task=task), "task": task}
                for task, texts in zip(tasks, columns.values())
            ]
            features = [
                {k: v.to(self.model.device) if hasattr(v, "to") else v for k, v in one.items()} for one in features
            ]
            return {"loss": float(self._objective()(features))}

    def turn(self, turn: int, steps: int) -> dict:
        seconds = self._train(turn, steps + WARM)[WARM:]
        return {"seconds": seconds, "flops": self.given["flops"][turn][:steps], "batch": self.given["batch"]}

    def quality(self, steps: int, warmup: int, lr: float, projection_lr: float, out: str) -> dict:
        """Train from the start on the texts of "quality" and write the model's folder."""
        seconds = self._train("quality", steps, lr, warmup, "linear", projection_lr)
        self.model.save_pretrained(out)
        return {"seconds": seconds}

    def _objective(self):
        from sentence_transformers.multi_vector_encoder.losses import MultiVectorMultipleNegativesRankingLoss

        return MultiVectorMultipleNegativesRankingLoss(
            self.model, scale=self.given["scale"], mini_batch_size=self.given["mini_batch"]
        )

    def _columns(self, turn, count: int) -> dict[str, list[str]]:
        rows = self.texts[str(turn)][:count]
        names = ["query", "positive", *(f"negative_{i}" for i in range(len(rows[0]) - 2))]
        return {name: [row[i] for row in rows] for i, name in enumerate(names)}

    def _train(self, turn, steps, lr=1e-5, warmup=0, schedule="constant", projection_lr=None) -> list[float]:
        from datasets import Dataset
        from sentence_transformers import MultiVectorEncoderTrainer, MultiVectorEncoderTrainingArguments
        from transformers import TrainerCallback

        given, times = self.given, []
        now = time.process_time if given["clock"] == "cpu" else time.perf_counter

        class Clock(TrainerCallback):
            def on_step_end(self, args, state, control, **more):
                if given["device"] == "cuda":
                    import torch

                    torch.cuda.synchronize()
                times.append(now())

        args = MultiVectorEncoderTrainingArguments(
            output_dir=given["work"], max_steps=steps, per_device_train_batch_size=given["batch"], learning_rate=lr,
            lr_scheduler_type=schedule, warmup_steps=warmup, weight_decay=0.0, bf16=given["bf16"],
            use_cpu=given["device"] == "cpu", save_strategy="no", logging_strategy="no", report_to="none",
            disable_tqdm=True, dataloader_drop_last=True,
            learning_rate_mapping={} if projection_lr is None else {r"linear\.weight$": projection_lr},
        )  # fmt: skip
        trainer = MultiVectorEncoderTrainer(
            model=self.model, args=args, train_dataset=Dataset.from_dict(self._columns(turn, steps * given["batch"])),
            loss=self._objective(), callbacks=[Clock()],
        )  # fmt: skip
        begun = now()
        trainer.train()
        return [b - a for a, b in zip([begun, *times], times)]


if __name__ == "__main__":
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    options = json.loads(sys.argv[2])
    names = ("sentence-transformers", "torch", "transformers")
    serve(lambda: Peer(options), options["device"], {n: importlib.metadata.version(n) for n in names})
