"""The sections of a run's YAML that belong to no room, and the whole schema."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, Literal

from pydantic import Field, model_validator

from core.config import Schema, Strict, load_yaml, override, validate
from core.errors import UserError


class Run(Strict):
    """out: folder of everything the run makes. device: auto, cpu, cuda, cuda:N or mps. init: checkpoint whose weights
    training starts from (phase B starts from phase A's), ours or an original .pth; null starts from the towers."""

    out: str = "experiments/run"
    init: str | None = None
    device: str = "auto"


class Visual(Strict):
    """cache: folder of the stored visual features; null decodes images and runs the tower in every step. A folder with
    one .npy per image, as the original systems leave it, is read as it lies (docs/FEATURES.md).

    batch_size: images per tower call. workers: threads that read and decode ahead; null: one per core. precision: of
    the tower; auto: as the cache was begun, else fp16 on CUDA and fp32 elsewhere. dtype: of the stored values.
    draft: decode JPEGs at a fraction of their size where that is enough for the tower; faster, other pixels.
    on_error: what a missing or broken image does while the cache is built; "fatal" stops with its name, "skip" lists
    it and leaves it out (a query that shows it is then an error).
    """

    cache: str | None = None
    batch_size: int = Field(32, ge=1)
    workers: int | None = Field(None, ge=1)
    precision: Literal["auto", "fp32", "fp16", "bf16"] = "auto"
    dtype: Literal["float16", "float32"] = "float16"
    draft: bool = False
    on_error: Literal["fatal", "skip"] = "fatal"


class IndexSection(Strict):
    """name: module of index/, or auto: exact for few passages, otherwise plaid. path: folder, by default
    <run.out>/index. options: passed to its build (with auto they are plaid's).

    effort: how hard a search looks, for indexes that have a choice; colbert ranks as colbert-ai does.
    batch_size: passages per encoder call. precision: of the encoder; auto: fp16 on CUDA, fp32 elsewhere.
    """

    name: str = "plaid"
    path: str | None = None
    batch_size: int = Field(64, ge=1)
    precision: Literal["auto", "fp32", "fp16", "bf16"] = "auto"
    effort: Literal["fast", "balanced", "exhaustive", "colbert"] | None = None
    options: dict[str, Any] = {}

    @model_validator(mode="after")
    def _options_fit(self) -> IndexSection:
        from runs.backends import build_options

        build_options(self.name, self.options)
        return self


class Eval(Strict):
    """splits: null means the data set's test splits. ablations: the same model with one modality taken away.

    valid_queries, valid_documents: how many queries of the validation split, and how many passages (their answers
    first), the retrieval that validates during training uses.
    """

    splits: list[str] | None = None
    valid_queries: int = Field(256, ge=1)
    valid_documents: int = Field(20_000, ge=1)
    k: int = Field(10, ge=1)
    metrics: list[str] = ["Success@1", "Success@5", "Success@10", "MRR@10", "nDCG@10"]
    ablations: list[Literal["no image", "no question"]] = []
    batch_size: int = Field(32, ge=1)

    @model_validator(mode="after")
    def _metrics_fit(self) -> Eval:
        from evaluation.metrics import apart

        apart(self.metrics)
        for name in self.metrics:
            if int(name.split("@")[1]) > self.k:
                raise UserError(f"eval.metrics has '{name}' but eval.k is {self.k}; raise eval.k or drop the metric.")
        return self


def schema() -> Schema:
    """Section name -> its pydantic class; ``model.name`` and ``data.name`` decide theirs."""
    import dataset
    import models
    from training.config import Config as Train

    return {"run": Run, "data": dataset.config_class, "model": models.config_class, "visual": Visual, "train": Train,
            "index": IndexSection, "eval": Eval}  # fmt: skip


def load(path: str, overrides: Sequence[str] = (), limit: int | None = None) -> SimpleNamespace:
    """A validated run: ``run``, ``data``, ``model``, ``visual``, ``train``, ``index``, ``eval``, and ``raw``."""
    from core.legacy import adapt_yaml, is_original, is_original_key

    overrides = [*overrides, *([] if limit is None else [f"data.limit={limit}"])]
    raw = load_yaml(path, overrides)
    if is_original(raw):  # its own keys change the original, ours what became of it
        theirs = [o for o in overrides if is_original_key(o.split("=")[0])]
        raw = override(adapt_yaml(load_yaml(path, theirs)), [o for o in overrides if o not in theirs])
    place = raw.get("run") if isinstance(raw.get("run"), dict) else {}
    train = {} if raw.get("train") is None else raw["train"]
    if isinstance(train, dict):
        for key in ("out", "device"):
            if key in train:
                raise UserError(f"train.{key} is set from run.{key}; write run.{key}={train[key]} instead.")
        raw["train"] = {**train, "out": place.get("out", Run().out), "device": place.get("device", "auto")}
    sections = validate(raw, schema())
    return SimpleNamespace(**sections, raw=raw)
