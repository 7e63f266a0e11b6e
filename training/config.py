"""The YAML section ``train``: how a retriever learns. Lengths, row sets and temperatures belong to ``model``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from core.config import Strict
from training.lora import Lora


class Config(Strict):
    """One training run. Every number of examples is per process unless it says otherwise."""

    out: str = Field(description="folder of this run: checkpoints/, metrics.jsonl, curves.png")
    resume: bool = Field(True, description="go on from the newest usable checkpoint in `out`; false refuses one")

    # How long. Exactly one of the two.
    steps: int | None = Field(None, ge=1, description="optimizer steps in all")
    epochs: int | None = Field(None, ge=1, description="passes over the examples; what fills no batch is dropped")

    # What a step sees.
    split: str = Field("train", description="split of the data set that gives the examples")
    batch_size: int = Field(32, ge=1, description="queries per process and micro-batch")
    accumulation: int = Field(1, ge=1, description="micro-batches per optimizer step; each has its own negatives")
    nways: int = Field(1, ge=1, description="documents per query: the positive and nways - 1 hard negatives")
    seed: int = Field(2024, ge=0, description="decides initial dropout noise, order of the examples and redraws")

    # What a step minimises.
    in_batch: bool = Field(True, description="the other queries' documents are negatives too")
    hard_negatives: Literal["own_term", "in_batch"] = Field(
        "own_term",
        description="own hard negatives: own_term = a cross-entropy of their own, added (ColBERT, MIRe); in_batch = "
        "in the in-batch denominator and no other term (FLMR)",
    )
    gather: bool = Field(True, description="in-batch negatives come from all processes, with gradients to their owners")
    false_negatives: Literal["mask", "mask_same_image", "keep"] = Field(
        "mask",
        description="mask: documents with the id or the content of the positive, and other positives of the same "
        "query, leave the denominator; mask_same_image: also the positives of other questions on the same picture, for "
        "data whose passages answer a picture more than a question; keep: they count as negatives, as in the originals",
    )
    memory: int = Field(
        0, ge=0, description="micro-batches whose documents stay in-batch negatives for later ones, without gradient"
    )
    teacher_scores: str | None = Field(
        None, description="file of runs.score_examples; the teacher's scores replace the term over own hard negatives"
    )
    distillation: Literal["kl", "margin_mse"] = Field("kl", description="distance to the teacher's scores")
    teacher_scale: float = Field(1.0, gt=0, description="factor on the teacher's scores")
    grad_cache: int | None = Field(
        None,
        ge=1,
        description="queries or documents whose activations exist at one time: every batch is encoded twice, and its "
        "size is limited by its vectors alone; null: the whole batch at once",
    )
    unit_tokens: int | None = Field(
        None,
        ge=1,
        description="token positions encoded at one time: documents are taken in order of length and padded only to "
        "the longest of their unit; with grad_cache its units are cut by both limits; null: all padded to the longest",
    )

    lora: Lora | None = Field(
        None, description="{r, alpha, dropout, targets, towers}: low-rank adapters learn in place of a tower's weights"
    )

    # Optimizer: AdamW, betas (0.9, 0.999), eps 1e-8.
    lr: float = Field(1e-5, gt=0, description="peak learning rate")
    lr_scale: dict[str, float] = Field(
        {}, description="{prefix of parameter names: factor on lr}, the longest prefix wins; for a fresh layer: 10"
    )
    weight_decay: float = Field(0.0, ge=0, description="on matrices only; biases and norms never decay")
    warmup_steps: int = Field(0, ge=0, description="optimizer steps of linear rise from lr / warmup_steps to lr")
    schedule: Literal["constant", "cosine", "linear"] = Field("constant", description="after the rise")
    clip: float | None = Field(1.0, gt=0, description="largest L2 norm of the gradient of one step; null: no limit")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="of the encoders; scores and losses are fp32 always")
    device: str = Field("auto", description="auto (CUDA, then MPS, then CPU), cpu, cuda, cuda:1, mps")
    checkpoint_activations: bool = Field(
        False, description="layers of towers that train keep only their input and are computed again: memory for time"
    )
    compile: bool = Field(
        False, description="torch.compile for the layers of the towers: faster steps after a minute or more of waiting"
    )
    parallel: Literal["ddp", "fsdp"] = Field(
        "ddp", description="several processes: ddp = each holds the whole model; fsdp = each holds a slice of it"
    )
    find_unused: Literal["auto", "always"] = Field(
        "auto",
        description="several processes: look in every step for parameters without gradient; auto: only when the first "
        "batch has one, or has items with and without images. always: where later batches leave other parts out",
    )

    # Input.
    num_workers: int = Field(0, ge=0, description="processes that collate ahead; 0: the training process does it")
    cache_text_states: bool = Field(
        False, description="compute the frozen text trunk's output of each document once and read it from disk"
    )

    # Measuring and keeping.
    eval_every: int | None = Field(None, ge=1, description="steps between validations; null: only after the last step")
    eval_first: bool = Field(True, description="validate before the first step: the baseline, and an early check")
    metric: str | None = Field(None, description="name of the validation metric that picks the best; null: the first")
    patience: int | None = Field(
        None, ge=1, description="validations without a better metric after which the run ends; null: never"
    )
    save_every: int | None = Field(None, ge=1, description="steps between checkpoints; null: with each validation")
    max_bad_steps: int = Field(
        3, ge=1, description="steps in a row without a finite loss and gradient (they are skipped) that end the run"
    )
    keep: int = Field(2, ge=1, description="newest checkpoints kept, besides the best one")
    log_every: int = Field(1, ge=1, description="steps between lines of metrics.jsonl")
    trackers: list[Literal["wandb", "tensorboard"]] = Field([], description="besides metrics.jsonl, which is always")
    project: str = Field("retrieval", description="wandb project")
    run_name: str | None = Field(None, description="wandb run name; null: the name of `out`")

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of steps and epochs")
        if self.nways == 1 and not self.in_batch:
            raise ValueError("nways 1 without in_batch leaves no negatives; set in_batch: true or nways above 1")
        if self.hard_negatives == "in_batch" and not self.in_batch:
            raise ValueError("hard_negatives: in_batch needs in_batch: true")
        if self.in_batch and self.batch_size == 1 and self.nways == 1 and not self.gather:
            raise ValueError("batch_size 1 without hard negatives leaves no negatives; raise batch_size")
        if self.memory and not (self.in_batch and self.gather):
            raise ValueError("memory needs in_batch: true and gather: true; set both or memory: 0")
        if self.memory and self.false_negatives == "keep":
            raise ValueError(
                "memory with false_negatives: keep would make a passage's own older vectors its negatives; set "
                "false_negatives: mask"
            )
        if self.teacher_scores is not None and self.nways == 1:
            raise ValueError("teacher_scores say how a query's documents compare; set nways above 1")
        if self.teacher_scores is None and (self.distillation != "kl" or self.teacher_scale != 1.0):
            raise ValueError("distillation and teacher_scale need teacher_scores; give the file or leave them out")
        if self.false_negatives == "mask_same_image" and not self.in_batch:
            raise ValueError("mask_same_image is about other queries' documents; set in_batch: true or mask")
        if self.patience is not None and self.eval_every is None:
            raise ValueError("patience counts validations, and there is one only at the end; set eval_every")
        if self.parallel == "fsdp" and (self.unit_tokens is not None or self.compile or self.lora is not None):
            raise ValueError("parallel: fsdp goes without unit_tokens, compile and lora; unset these or take ddp")
        if any(factor < 0 for factor in self.lr_scale.values()):
            raise ValueError("lr_scale factors must not be negative")
        if self.steps is not None and self.warmup_steps >= self.steps:
            raise ValueError("warmup_steps must be below steps")
        return self


# fmt: off
CHANGEABLE = frozenset({
    "out", "resume", "steps", "epochs", "num_workers", "cache_text_states", "eval_every", "eval_first", "metric",
    "save_every", "keep", "log_every", "trackers", "project", "run_name", "device", "find_unused", "patience",
    "max_bad_steps", "checkpoint_activations", "compile", "parallel",
})
# fmt: on
"""Keys that may differ when a run is resumed; any other difference is said aloud (see ``loop``)."""

FIXED = ("split", "batch_size", "accumulation", "nways", "seed", "lr_scale", "memory", "lora")
"""Keys that decide which example comes when, which parameters go together and what a checkpoint remembers: a resumed
run must not change them."""
