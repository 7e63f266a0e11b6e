"""The training loop: batches in, checkpoints out. One process or many under torchrun, the same numbers.

With W processes of batch b the steps are those of one process with batch W * b: the order of the examples does not
depend on the rank, in-batch negatives are gathered with their gradients, DDP averages the rest.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from core import distributed
from core.device import autocast, pick_device
from core.errors import UserError
from core.files import write_json
from core.progress import progress
from core.protocols import RetrievalDataset, Retriever, TextStates
from core.visual import VisualSource
from training import checkpoint, same_run
from training.batches import Collator, Order, TrainBatch, stream
from training.config import Config
from training.objective import Objective, from_config
from training.parallel import StepModule, mean_over_processes, on_signal, quiet, train_mode, wrap
from training.schedule import lr_factor, param_groups, trainable
from training.tracker import Tracker

Validate = Callable[[Retriever], dict[str, float]]
"""Called on every process in eval mode, stage "valid", without gradients; the first process's answer counts."""


@dataclass(frozen=True)
class Outcome:
    """What a run came to. step: optimizer steps done. stopped: a signal ended it before ``total``.

    best: {"step", "metric", "value"} or None without validation. checkpoint: the newest folder.
    """

    step: int
    total: int
    stopped: bool
    best: dict | None
    checkpoint: Path | None


def fit(
    retriever: Retriever,
    dataset: RetrievalDataset,
    config: Config,
    visual: VisualSource | None = None,
    states: TextStates | None = None,
    validate: Validate | None = None,
    tracker: Tracker | None = None,
    out: str | Path | None = None,
    objective: Objective | None = None,
    provenance: dict | None = None,
) -> Outcome:
    """Train ``retriever`` in place; an interrupted run goes on from its newest checkpoint.

    visual, states: where pixels or features and frozen-text states come from. validate: metrics of the retriever, all
    better when larger. tracker: made from the config when None. out: instead of ``config.out``. provenance: facts
    about data and run that every checkpoint carries; of its "config" the model and data sections and run.init must stay
    the same when a run goes on (see ``training.same_run``). Ctrl-C or SIGTERM: a checkpoint after the present step,
    then a return with ``stopped``. Afterwards the retriever is in eval mode and stage. Errors: UserError, also for a
    loss that is not finite.
    """
    run = _Run(retriever, dataset, config, visual, states, validate, tracker, out, objective, provenance)
    try:
        with on_signal(run.ask_to_stop):
            return run.train()
    finally:
        retriever.stage = "eval"
        retriever.eval()


class _Run:
    """State of one call of ``fit``."""

    def __init__(self, retriever, dataset, config, visual, states, validate, tracker, out, objective, provenance):
        self.retriever, self.config, self.validate = retriever, config, validate
        self.out = Path(out or config.out)
        self.device = pick_device(config.device)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # the one whose random state checkpoints keep
        if states is not None and config.num_workers > 0 and self.device.type != "cpu":
            raise UserError(
                "worker processes cannot compute text states on a GPU; set train.num_workers: 0 "
                "(with stored states collating is cheap) or train.cache_text_states: false."
            )
        torch.manual_seed(config.seed + distributed.rank())  # dropout differs between ranks, the order does not
        self.objective = objective or from_config(config)
        self.module = StepModule(retriever.to(self.device), self.objective.to(self.device))
        self.named = trainable(retriever, self.objective)
        if not self.named:
            raise UserError("nothing trains: every parameter is frozen; take a part out of model.frozen.")
        self.optimizer = torch.optim.AdamW(param_groups(self.named, config), lr=config.lr)
        self.order = Order(dataset, config.split, config.batch_size, config.nways, config.seed)
        self.collator = Collator(self.order, retriever, visual, states)
        self.total = config.steps or config.epochs * self._steps_per_epoch()
        if config.warmup_steps >= self.total:
            raise UserError(f"train.warmup_steps is {config.warmup_steps}, the run has {self.total} steps; lower it.")
        self.provenance = {**(provenance or {}), "train": config.model_dump()}
        self.tracker = tracker or Tracker(config, self.out, self.provenance)
        self.step = self.epoch = self.within = 0  # steps done; epoch and steps done in it
        self.best: dict | None = None
        self.metrics: dict[str, float] = {}
        self.saved: Path | None = None
        self.asked = self.stop = False  # this process got a signal; all processes know

    def ask_to_stop(self) -> None:
        self.asked = True

    def _steps_per_epoch(self) -> int:
        steps = len(self.order) // self.config.accumulation
        if steps == 0:
            raise UserError(
                f"an epoch has {len(self.order)} micro-batches, fewer than train.accumulation "
                f"{self.config.accumulation}; lower it."
            )
        return steps

    # ---- the story

    def train(self) -> Outcome:
        self.out.mkdir(parents=True, exist_ok=True)
        checkpoint.clean(self.out)
        self.retriever.stage = "train"
        first = next(stream(self.collator, 0, 1))  # faults of the data show before anything long begins
        self._resume()
        self.tracker.resume(self.step)
        if self.step == 0 and self.config.eval_first:
            self._validate()
        train_mode(self.module)
        model = wrap(self.module, self.device, distributed.world() > 1 and self._find_unused(first))
        bar = None
        if distributed.is_main():
            bar = progress(None, "train", total=self.total, unit="step", initial=self.step)
        for micro in self._steps():
            began = time.perf_counter()
            numbers = self._one_step(model, micro)
            self._bookkeeping(numbers, time.perf_counter() - began, bar)
            if self.stop:
                break
        if bar is not None:
            bar.close()
        self.tracker.finish()
        return Outcome(self.step, self.total, self.step < self.total, self.best, self.saved)

    def _steps(self) -> Iterator[Iterator[TrainBatch]]:
        """The micro-batches of each step that is left, from the sampler position on, without replay."""
        while self.step < self.total:
            self.order.set_epoch(self.epoch)
            per_epoch, k = self._steps_per_epoch(), self.config.accumulation
            last = min(per_epoch, self.within + self.total - self.step)
            self.retriever.stage = "train"  # before workers take their copy
            micro = stream(self.collator, self.within * k, last * k, self.config.num_workers)
            for _ in range(self.within, last):
                yield micro
            if self.within >= per_epoch:
                self.epoch, self.within = self.epoch + 1, 0

    def _one_step(self, model: nn.Module, micro: Iterator[TrainBatch]) -> dict[str, float]:
        """Forward and backward over the micro-batches, one optimizer step; the step's mean numbers."""
        config, k = self.config, self.config.accumulation
        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        for i in range(k):
            batch = next(micro).to(self.device)
            with quiet(model, last=i == k - 1):
                with autocast(self.device, config.precision):
                    losses = model(batch)
                if not losses["loss"].requires_grad:
                    raise UserError(
                        f"step {self.step + 1}: nothing that trains took part in this batch (such as an image part in "
                        "a batch without images); mix the data otherwise or unfreeze the text part."
                    )
                (losses["loss"] / k).backward()
            for name, value in losses.items():
                sums[name] = sums.get(name, 0) + value.detach() / k
        numbers = mean_over_processes({**sums, "stop": torch.tensor(float(self.asked))}, self.device)
        self.stop = numbers.pop("stop") > 0  # a signal that reached one process stops all at the same step
        norm = self._clip()
        if not (math.isfinite(numbers["loss"]) and math.isfinite(norm)):
            raise UserError(
                f"step {self.step + 1}: the loss is {numbers['loss']}, the gradient norm {norm}. Lower train.lr, raise "
                "train.warmup_steps, set train.clip or train.precision: fp32; the last checkpoint is whole."
            )
        factor = lr_factor(self.step, self.total, config.warmup_steps, config.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr * group["scale"] * factor
        self.optimizer.step()
        self.objective.after_step()
        self.step += 1
        self.within += 1
        return {**numbers, "lr": config.lr * factor, "grad_norm": norm}

    def _clip(self) -> float:
        """Limit the gradient's L2 norm when asked; returns the norm before. The same on every process."""
        grads = [p.grad for _, p in self.named if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads)
        if self.config.clip is not None:
            torch.nn.utils.clip_grads_with_norm_([p for _, p in self.named], self.config.clip, norm)
        return float(norm)

    def _bookkeeping(self, numbers: dict[str, float], seconds: float, bar: Any) -> None:
        config, done = self.config, self.step == self.total
        if bar is not None:
            bar.set_postfix(loss=f"{numbers['loss']:.4f}", lr=f"{numbers['lr']:.2e}", refresh=False)
            bar.update()
        if self.step % config.log_every == 0 or done:
            self.tracker.log(self.step, epoch=self.epoch, **numbers, seconds=round(seconds, 4))
        measured = done or (config.eval_every is not None and self.step % config.eval_every == 0)
        if measured and self.validate is not None:
            self._validate()
        save_every = config.save_every or config.eval_every
        if done or self.stop or (save_every and self.step % save_every == 0) or self._is_best():
            self._save()

    def _find_unused(self, batch: TrainBatch) -> bool:
        """Whether some parameter gets no gradient: one pass over the first batch, whose traces are wiped."""
        if self.config.find_unused == "always":
            return True
        before = checkpoint.rng_state()
        with autocast(self.device, self.config.precision):
            losses = self.module(batch.to(self.device))
        losses["loss"].backward()
        names = [name for name, p in self.named if p.grad is None]
        self.optimizer.zero_grad(set_to_none=True)
        checkpoint.set_rng_state(before)
        names = sorted({n for part in distributed.gather_objects(names) for n in part})
        if names and distributed.is_main():
            print(f"{len(names)} parameters get no gradient, such as {names[0]}; DDP looks for them.", file=sys.stderr)
        return bool(names)

    # ---- validation and checkpoints

    def _validate(self) -> None:
        """Measure, log, remember the best. Random states are put back: measuring never changes the training."""
        if self.validate is None:
            return
        before = checkpoint.rng_state()
        self.retriever.stage = "valid"
        self.module.eval()
        with torch.no_grad():
            metrics = self.validate(self.retriever)
        self.retriever.stage = "train"
        train_mode(self.module)
        checkpoint.set_rng_state(before)
        self.metrics = {k: float(v) for k, v in distributed.gather_objects(dict(metrics))[0].items()}
        name = self.config.metric or next(iter(self.metrics), None)
        if name not in self.metrics:
            raise UserError(f"train.metric is '{name}', validation gives {', '.join(self.metrics) or 'nothing'}.")
        self.tracker.log(self.step, **{f"valid/{k}": v for k, v in self.metrics.items()})
        if self.step and (self.best is None or self.metrics[name] > self.best["value"]):
            self.best = {"step": self.step, "metric": name, "value": self.metrics[name]}

    def _is_best(self) -> bool:
        return self.best is not None and self.best["step"] == self.step

    def _save(self) -> None:
        state = {
            "optimizer": self.optimizer.state_dict(),
            "objective": self.objective.state_dict(),
            "position": {"epoch": self.epoch, "within": self.within},
            "best": self.best,
            "config": self.config.model_dump(),
            "made_by": same_run.made_by(self.provenance),
            "world": distributed.world(),
            "names": [name for name, _ in self.named],
        }
        facts = {**self.provenance, "metrics": self.metrics}
        self.saved = checkpoint.save(self.out, self.step, self.retriever, state, facts, self.config.keep, self.best)

    def _resume(self) -> None:
        """Take up the newest usable checkpoint: weights, optimizer, random states, position, best."""
        found = checkpoint.load_latest(self.out)
        if found is None:
            if distributed.is_main():
                write_json(self.out / "train_config.json", self.config.model_dump())
            return
        self.saved, state = found
        same_run.compare(state, self.out, self.config, self.provenance)
        self._check_parameters(state)
        same_run.tell_changes(state, self.config)
        checkpoint.restore_weights(self.retriever, self.saved)
        self.optimizer.load_state_dict(state["optimizer"])
        for group, fresh in zip(self.optimizer.param_groups, param_groups(self.named, self.config)):
            group.update({k: fresh[k] for k in ("scale", "weight_decay")})  # the present config's
        self.objective.load_state_dict(state["objective"])
        self.step, self.best = state["step"], state["best"]
        self.epoch, self.within = state["position"]["epoch"], state["position"]["within"]
        checkpoint.set_rng_state(state["rng"][distributed.rank()])
        if distributed.is_main():
            print(f"resuming after step {self.step} of {self.total} ({self.saved}).", file=sys.stderr)

    def _check_parameters(self, state: dict) -> None:
        """The optimizer's state belongs to its parameters."""
        names = [name for name, _ in self.named]
        if state["names"] != names:
            odd = sorted(set(state["names"]) ^ set(names))
            raise UserError(
                f"'{self.out}' trained other parameters (such as {odd[0] if odd else names[0]}); set model.frozen back "
                "or give another run.out and start from the checkpoint with run.init."
            )
