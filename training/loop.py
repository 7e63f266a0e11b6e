"""The training loop: batches in, checkpoints out. One process or many under torchrun, the same numbers.

With W processes of batch b the steps are those of one process with batch W * b: the order of the examples does not
depend on the rank, in-batch negatives are gathered with their gradients, DDP averages the rest.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from core import distributed
from core.device import autocast, pick_device
from core.errors import UserError
from core.progress import progress
from core.protocols import RetrievalDataset, Retriever, TextStates
from core.visual import VisualSource
from training import activations, checkpoint, compiling, faults, grad_cache, lora, meter, resuming, sharding
from training.bad_steps import BadSteps
from training.batches import Collator, Order, TrainBatch, stream
from training.config import Config
from training.distill import TeacherScores
from training.flops import Flops
from training.objective import Objective, from_config
from training.parallel import (
    StepModule,
    before_encoding,
    find_unused,
    mean_over_processes,
    on_signal,
    quiet,
    train_mode,
    wrap,
)
from training.phases import phase
from training.prefetch import Ahead
from training.schedule import lr_factor, optimizer, param_groups, trainable
from training.tracker import Tracker

Validate = Callable[[Retriever], dict[str, float]]
"""Called on every process in eval mode, stage "valid", without gradients; the first process's answer counts. Each must
encode equally often: between two encodings all agree whether a signal ends the validation."""


@dataclass(frozen=True)
class Outcome:
    """What a run came to. step: steps done. stopped: a signal ended it before ``total`` or before the validation that
    was due then; early: train.patience ended it.

    skipped: of the steps, those whose loss or gradient was no number and that changed nothing.
    best: {"step", "metric", "value"} or None without validation. checkpoint: the newest folder.
    """

    step: int
    total: int
    stopped: bool
    best: dict | None
    checkpoint: Path | None
    early: bool = False
    skipped: int = 0


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
    the same when a run goes on (see ``training.same_run``). Ctrl-C or SIGTERM: a checkpoint after the present step (a
    validation that runs is given up), then a return with ``stopped``. Afterwards the retriever is in eval mode and
    stage (with ``parallel: fsdp`` each process still holds its slices: read the checkpoint). Errors: UserError, also
    for ``max_bad_steps`` steps in a row whose loss is not finite, for a checkpoint that cannot be written, a worker
    process that was killed and a compiler that fails.
    """
    try:
        with faults.named(config), lora.adapted(retriever, config.lora, config.seed):
            run = Run(retriever, dataset, config, visual, states, validate, tracker, out, objective, provenance)
            with on_signal(run.ask_to_stop):
                return run.train()
    finally:
        retriever.stage = "eval"
        retriever.eval()


class Run:
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
        retriever.stage = "train"
        torch.manual_seed(config.seed + distributed.rank())  # dropout differs between ranks, the order does not
        self.objective = objective or from_config(config)
        self.module = StepModule(retriever.to(self.device), self.objective.to(self.device))
        self.sharded = config.parallel == "fsdp" and distributed.world() > 1
        if self.sharded:
            if trainable(self.objective):
                raise UserError("train.parallel: fsdp cannot share an objective's own parameters; set it to ddp.")
            sharding.shard(retriever, self.device)
        self.named = trainable(retriever, self.objective)
        if not self.named:
            raise UserError("nothing trains: every parameter is frozen; take a part out of model.frozen.")
        self.base = None if config.lora is None else lora.digest(retriever)
        self.optimizer = optimizer(param_groups(self.named, config), config.lr, self.device)
        if config.checkpoint_activations:
            activations.check(retriever)
        if config.compile:
            compiling.check(self.device)
        self.order = Order(dataset, config.split, config.batch_size, config.nways, config.seed)
        teacher = None if config.teacher_scores is None else TeacherScores(config.teacher_scores)
        limits = config.grad_cache, config.unit_tokens
        # Sliced weights compute on all processes together, and each process meets other queries first.
        remember = states is not None and not self.sharded and states.remembers(*self._queries())
        self.collator = Collator(self.order, retriever, visual, states, teacher, *limits, remember)
        self.total = config.steps or config.epochs * self._steps_per_epoch()
        if config.warmup_steps >= self.total:
            raise UserError(f"train.warmup_steps is {config.warmup_steps}, the run has {self.total} steps; lower it.")
        self.provenance = {**(provenance or {}), "train": config.model_dump()}
        self.tracker = tracker or Tracker(config, self.out, self.provenance)
        self.step = self.epoch = self.within = 0  # steps done; epoch and steps done in it
        self.bad = BadSteps(self.out, config.max_bad_steps)
        self.meter = meter.Meter(self.device, self.total)
        self.best: dict | None = None
        self.since_best = 0  # validations
        self.owed = False  # a signal came before or in the validation of the last step: the resumed run makes up for it
        self.metrics: dict[str, float] = {}
        self.saved: Path | None = None
        self.asked = self.stop = False  # this process got a signal; all processes know

    def ask_to_stop(self) -> None:
        self.asked = True

    def _queries(self) -> tuple[int, list[str]]:
        """How many there are, and the texts of a few."""
        items = self.order.items
        return len(items), [items[i].query.text for i in range(0, len(items), 1 + len(items) // 64)]

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
        first = next(stream(self.collator, 0, 1))  # faults of the data show before anything long begins
        resuming.take_up(self)
        self.tracker.resume(self.step, self.owed or self.step == 0)
        train_mode(self.module)
        self.meter.flops = Flops(self.retriever, first, self.device, self.config.precision)
        if self.owed:
            self._validate()
            if not self.owed:
                resuming.save(self)  # as it would be had no signal come
        elif self.step == 0 and self.config.eval_first:
            self._validate()
        if not self.stop:  # who sent a signal meanwhile may not wait for a compiler or for DDP's look at the batch
            self._all_steps(first)
        self.tracker.finish()
        early, cut = self._is_enough(), self.step < self.total
        stopped = (cut and not early) or self.owed
        return Outcome(self.step, self.total, stopped, self.best, self.saved, cut and early, self.bad.total)

    def _all_steps(self, first: TrainBatch) -> None:
        with self._bar() as bar, self._changed_layers():
            model = self._parallel(first)
            for micro in self._steps():
                with phase("step"):
                    began = time.perf_counter()
                    numbers = self._one_step(model, micro)
                    seconds = time.perf_counter() - began
                self._bookkeeping(numbers, seconds, bar)
                if self.stop or self._is_enough():
                    break

    @contextlib.contextmanager
    def _changed_layers(self) -> Iterator[None]:
        """The towers' layers compiled and their activations dropped, as asked for."""
        config, nothing = self.config, contextlib.nullcontext()
        with (
            compiling.compiled(self.retriever) if config.compile else nothing,
            activations.recomputed(self.retriever) if config.checkpoint_activations else nothing,
        ):
            yield

    def _bar(self) -> contextlib.AbstractContextManager:
        if not distributed.is_main():
            return contextlib.nullcontext()
        return progress(None, "train", total=self.total, unit="step", initial=self.step)

    def _steps(self) -> Iterator[Ahead]:
        """The micro-batches of each step that is left, from the sampler position on, without replay."""
        while self.step < self.total and not self._is_enough():
            self.order.set_epoch(self.epoch)
            per_epoch, k = self._steps_per_epoch(), self.config.accumulation
            last = min(per_epoch, self.within + self.total - self.step)
            self.retriever.stage = "train"  # before workers take their copy
            pinned = self.device.type == "cuda" and self.config.num_workers > 0
            source = stream(self.collator, self.within * k, last * k, self.config.num_workers, pinned)
            micro = Ahead(source, self.device, self.meter.count)
            for _ in range(self.within, last):
                yield micro
            if self.within >= per_epoch:
                self.epoch, self.within = self.epoch + 1, 0

    def _one_step(self, model: nn.Module, micro: Ahead) -> dict[str, float]:
        """Forward and backward over the micro-batches, one optimizer step; the step's mean numbers."""
        k = self.config.accumulation
        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        tokens, flops = 0, 0.0
        for i in range(k):
            batch, (some, work) = next(micro)
            tokens, flops = tokens + some, flops + work
            losses = self._backward(model, batch, last=i == k - 1)
            if not losses["loss"].requires_grad:
                raise UserError(
                    f"step {self.step + 1}: nothing that trains took part in this batch (such as an image part in "
                    "a batch without images); mix the data otherwise or unfreeze the text part."
                )
            for name, value in losses.items():
                sums[name] = sums.get(name, 0) + value.detach() / k
        micro.prepare()
        shared = {"stop": float(self.asked), "tokens": float(tokens), "flops": flops}
        numbers = mean_over_processes({**sums, **{n: torch.tensor(v) for n, v in shared.items()}}, self.device)
        self.stop = numbers.pop("stop") > 0  # a signal that reached one process stops all at the same step
        for name in ("tokens", "flops"):
            numbers[name] *= distributed.world()
        with phase("optimizer"):
            return self._update(numbers)

    def _backward(self, model: nn.Module, batch: TrainBatch, last: bool) -> dict[str, Tensor]:
        """The numbers of one micro-batch, its gradients added; nothing is added where the loss has none."""
        config = self.config
        precision = partial(autocast, self.device, config.precision)
        if config.grad_cache is not None:
            return grad_cache.backward(model, batch, 1 / config.accumulation, last, precision)
        with quiet(model, last):
            with precision():
                losses = model(batch)
            if losses["loss"].requires_grad:
                with phase("backward"):
                    (losses["loss"] / config.accumulation).backward()
        return losses

    def _update(self, numbers: dict[str, float]) -> dict[str, float]:
        """The optimizer step, or none where loss or gradient is no number: the same choice on every process."""
        config, norm = self.config, self._clip()
        factor = lr_factor(self.step, self.total, config.warmup_steps, config.schedule)
        if self.bad.is_bad(numbers["loss"], norm):
            self.optimizer.zero_grad(set_to_none=True)
            self.bad.bad(self.step + 1, numbers["loss"], norm, self._asked_in_this_step)
        else:
            for group in self.optimizer.param_groups:
                group["lr"] = config.lr * group["scale"] * factor
            self.optimizer.step()
            self.objective.after_step()
            self.bad.good()
        self.step += 1
        self.within += 1
        skipped = {"skipped": self.bad.total} if self.bad.total else {}
        return {**numbers, "lr": config.lr * factor, "grad_norm": norm, **skipped}

    def _asked_in_this_step(self) -> list[str]:
        """Ids of this process's queries of the present step."""
        k = self.config.accumulation
        return [e.query.id for i in range(self.within * k, (self.within + 1) * k) for e in self.order.examples(i)]

    def _clip(self) -> float:
        """Limit the gradient's L2 norm when asked; returns the norm before. The same on every process."""
        grads = [p.grad for _, p in self.named if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads)
        if self.config.clip is not None:
            torch.nn.utils.clip_grads_with_norm_([p for _, p in self.named], self.config.clip, norm)
        return float(sharding.whole(norm))

    def _bookkeeping(self, numbers: dict[str, float], seconds: float, bar: Any) -> None:
        config, done = self.config, self.step == self.total
        samples = meter.world_samples(config.batch_size, config.accumulation)
        self.meter.add(samples, numbers.pop("tokens"), numbers.pop("flops"), seconds)
        if bar is not None:
            meter.live(bar, numbers, self.meter, self.step)
        if self.step % config.log_every == 0 or done:
            self.tracker.log(self.step, epoch=self.epoch, **numbers, **self.meter.take(self.step))
        measured = done or (config.eval_every is not None and self.step % config.eval_every == 0)
        self.owed = measured and self.stop and self.validate is not None  # who sent the signal may not wait for it
        if measured and not self.owed:
            self._validate()
        save_every = config.save_every or config.eval_every
        due = done or self.stop or self._is_enough() or self._is_best()
        if due or (save_every and self.step % save_every == 0):
            with phase("checkpoint"):
                resuming.save(self)

    def _parallel(self, first: TrainBatch) -> nn.Module:
        if self.sharded or distributed.world() == 1:
            return self.module
        return wrap(self.module, self.device, self._find_unused(first))

    def _find_unused(self, batch: TrainBatch) -> bool:
        if self.config.find_unused == "always" or self.config.grad_cache is not None:
            return True  # a gradient cache encodes one side at a time
        return find_unused(self.module, batch, self.named, self.device, self.config.precision)

    # ---- validation and checkpoints

    def _validate(self) -> None:
        """Measure, log, remember the best. Random states are put back: measuring never changes the training.

        A signal that comes meanwhile ends it before its next batch, on all processes; it is owed then.
        """
        self.owed = False
        if self.validate is None:
            return
        before = checkpoint.rng_state()
        self.retriever.stage = "valid"
        self.module.eval()
        try:
            with torch.no_grad(), before_encoding(self.retriever, self._leave_when_asked):
                metrics = self.validate(self.retriever)
        except _LeftError:
            self.owed = self.stop = True
            return
        finally:
            self.retriever.stage = "train"
            train_mode(self.module)
            checkpoint.set_rng_state(before)
        self.metrics = {k: float(v) for k, v in distributed.gather_objects(dict(metrics))[0].items()}
        name = self.config.metric or next(iter(self.metrics), None)
        if name not in self.metrics:
            raise UserError(f"train.metric is '{name}', validation gives {', '.join(self.metrics) or 'nothing'}.")
        self.tracker.log(self.step, **{f"valid/{k}": v for k, v in self.metrics.items()})
        if not self.step:
            return
        self.since_best += 1
        other = self.best is not None and self.best["metric"] != name  # a resumed run may be asked for another one
        if self.best is None or other or self.metrics[name] > self.best["value"]:
            self.best = {"step": self.step, "metric": name, "value": self.metrics[name]}
            self.since_best = 0

    def _leave_when_asked(self) -> None:
        if distributed.mean(float(self.asked)) > 0:
            raise _LeftError

    def _is_best(self) -> bool:
        return self.best is not None and self.best["step"] == self.step

    def _is_enough(self) -> bool:
        """Whether train.patience has run out."""
        return self.config.patience is not None and self.since_best >= self.config.patience


class _LeftError(Exception):
    """A signal came during a validation."""
