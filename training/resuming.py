"""What a run writes into a checkpoint and takes up from it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import torch

from core import distributed
from core.errors import UserError
from core.files import write_json
from training import checkpoint, lora, same_run, sharding
from training.schedule import param_groups

if TYPE_CHECKING:
    from training.loop import Run


def save(run: Run) -> None:
    """Weights, optimizer, random states, position and counts of ``run``; every process calls it."""
    state = {
        "optimizer": sharding.optimizer_state(run.optimizer),
        "objective": run.objective.state_dict(),
        "position": {"epoch": run.epoch, "within": run.within},
        "best": run.best,
        "counts": {"bad": run.bad.state(), "since_best": run.since_best, "owed": run.owed},
        "config": run.config.model_dump(),
        "made_by": same_run.made_by(run.provenance),
        "world": distributed.world(),
        "names": [name for name, _ in run.named],
    }
    also = None
    if run.config.lora is not None:  # the folder's weights hold the adapters merged, which cannot be undone exactly
        state["trained"] = {name: sharding.whole(p.detach()).cpu() for name, p in run.named}
        state["base"] = run.base
        also = lora.files(run.retriever)
    facts = {**run.provenance, "metrics": run.metrics}
    with sharding.gathered(run.retriever), lora.merged(run.retriever):
        args = run.out, run.step, run.retriever, state, facts, run.config.keep, run.best, also
        run.saved = checkpoint.save(*args)


def take_up(run: Run) -> None:
    """Put ``run`` where its newest usable checkpoint was; a new run begins at step 0. Every process calls it."""
    found = checkpoint.load_latest(run.out)
    if found is None:
        if distributed.is_main():
            write_json(run.out / "train_config.json", run.config.model_dump())
        return
    run.saved, state = found
    same_run.compare(state, run.out, run.config, run.provenance)
    _check_parameters(run, state)
    same_run.tell_changes(state, run.config)
    if run.config.lora is None:
        checkpoint.restore_weights(run.retriever, run.saved)
    else:
        _restore_adapters(run, state)
    # What the present config and machine decide; the rest, such as the moments, is the checkpoint's.
    ours = [{k: group[k] for k in ("fused",)} for group in run.optimizer.param_groups]
    for group, own, fresh in zip(state["optimizer"]["param_groups"], ours, param_groups(run.named, run.config)):
        group.update(own, scale=fresh["scale"], weight_decay=fresh["weight_decay"])
    sharding.load_optimizer_state(run.optimizer, state["optimizer"])
    run.objective.load_state_dict(state["objective"])
    run.step, run.best = state["step"], state["best"]
    run.epoch, run.within = state["position"]["epoch"], state["position"]["within"]
    if "counts" in state:  # absent in checkpoints from before there were any
        run.bad.load(state["counts"]["bad"])
        run.since_best, run.owed = state["counts"]["since_best"], state["counts"].get("owed", False)
    checkpoint.set_rng_state(state["rng"][distributed.rank()])
    if distributed.is_main():
        print(f"resuming after step {run.step} of {run.total} ({run.saved}).", file=sys.stderr)


def _restore_adapters(run: Run, state: dict) -> None:
    if state["base"] != run.base:
        raise UserError(
            f"'{run.out}' trained adapters beside other weights than the towers have now; restore the towers' files or "
            "give another run.out."
        )
    with torch.no_grad():
        for name, parameter in run.named:
            parameter.copy_(sharding.like(state["trained"][name], parameter))


def _check_parameters(run: Run, state: dict) -> None:
    """The optimizer's state belongs to its parameters."""
    names = [name for name, _ in run.named]
    if state["names"] != names:
        odd = sorted(set(state["names"]) ^ set(names))
        raise UserError(
            f"'{run.out}' trained other parameters (such as {odd[0] if odd else names[0]}); set model.frozen back "
            "or give another run.out and start from the checkpoint with run.init."
        )
