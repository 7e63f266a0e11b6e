"""FLMR and PreFLMR: tokens, vectors, losses and gradients of the released layout, in every spelling of its names."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from compat.flmr_model import FLMRModelForRetrieval
from models import artifacts
from models.keys.flmr import hub, to_hub, twin
from tests.golden_case import Case

ZERO = ("attention.self.key.bias", "self_attn.k_proj.bias")
"""Attention key biases: a constant added to all scores of a softmax changes nothing."""

KINDS = {"loss": "value", "scores": "value", "in_batch_negative_loss": "value", "context_mask": "exact"}
"""Result fields that are no vectors."""


def run(case: Case) -> None:
    if "world_size" in case.facts:
        return _processes(case)
    for folder in case.facts.get("checkpoints", [case.facts["checkpoint"]]):
        model = FLMRModelForRetrieval.from_pretrained(case.path / folder)
        _tokens(case, model)
        for call in case.facts["calls"]:
            _call(case, model, call)
    case.aside("tensor:debug/*", "inner values for finding a fault; what follows from them is compared")


def _tokens(case: Case, model: FLMRModelForRetrieval) -> None:
    """The tokenizers of the library API give the reference's inputs, padding included."""
    tokenizers = {"query": model.query_tokenizer, "context": model.context_tokenizer}
    for facts in case.texts.values():
        found = tokenizers[facts["tokenizer"]](facts["texts"], **facts["options"])
        for name in facts["gives"]:
            assert torch.equal(case.inputs[name], found[name.split("/")[-1]]), f"{name}: our tokens differ"


def _call(case: Case, model: FLMRModelForRetrieval, call: dict) -> None:
    given = {argument: case.inputs[key] for argument, key in call["tensors"].items()}
    given |= call["options"] | {argument: None for argument in call.get("explicit_none", ())}
    model.freeze([])
    for name in call.get("frozen", ()):
        getattr(model, name).requires_grad_(False)
    model.zero_grad(set_to_none=True)
    with torch.set_grad_enabled("backward" in call):
        out = getattr(model, call["method"])(**given)
    for field, where in call["outputs"].items():
        case.tensor(where["key"], getattr(out, field), KINDS.get(field, "embedding"))
    for field in call["returns_none"]:
        assert getattr(out, field) is None, f"{call['name']}: {field} is not None"
    if "backward" in call:
        getattr(out, call["backward"]).backward()
        frozen = {id(p) for name in call["frozen"] for p in getattr(model, name).parameters()}
        grads = {n: p.grad for n, p in theirs(model).items() if id(p) not in frozen}
        _gradients(case, call["name"], grads)
        if call.get("full_gradients"):
            _full_gradients(case, call["name"], grads)


def theirs(model: FLMRModelForRetrieval) -> dict[str, torch.nn.Parameter]:
    """The parameters by their released names."""
    config = model.config
    return {
        to_hub(artifacts.portable_name(model, n), config.separate_text, config.separate_vision)[0]: p
        for n, p in model.named_parameters()
    }


def spelt(name: str, ours: dict[str, Tensor | None]) -> str:
    """The released name of ours that a stored name, in any of the layout's spellings, stands for."""
    name = hub(name) or name
    return name if name in ours else twin(name)


def _gradients(case: Case, name: str, ours: dict[str, Tensor | None]) -> None:
    table = case.grads[name]
    differ = {spelt(parameter, ours) for parameter in table} ^ set(ours)
    assert not differ, f"{name}: parameters differ: {sorted(differ)[:6]}"
    for parameter, facts in table.items():
        key, grad = f"gradient:{name}:{parameter}", ours[spelt(parameter, ours)]
        if facts is None or grad is None:
            case.compare(key, facts, grad, "exact")
            continue
        g = grad.detach().double().flatten()
        case.compare(f"{key}/shape", facts["shape"], list(grad.shape), "exact")
        entries = [*facts["lead5"], *facts["top5"]]
        found = [*g[:5].tolist(), *g[torch.tensor(facts["top5_flat_index"])].tolist()]
        if parameter.endswith(ZERO):
            case.compare(key, [facts["l2"], facts["sum"], *entries], [g.norm().item(), g.sum().item(), *found], "noise")
            continue
        norm = facts["l2"]
        case.compare(key, norm, g.norm().item(), "norm")
        if norm == 0:  # a modality that is switched off in the whole batch
            continue
        case.compare(f"{key}/entries", [e / norm for e in entries], [f / norm for f in found], "entry")
        summands = g.abs().sum().item()
        case.compare(f"{key}/sum", facts["sum"] / summands, g.sum().item() / summands, "entry")


def _full_gradients(case: Case, name: str, ours: dict[str, Tensor | None]) -> None:
    """Every entry; of word embeddings the rows that have any."""
    for key in [n for n in case.expected if n.startswith(f"{name}/grad/")]:
        parameter = key.removeprefix(f"{name}/grad/")
        if parameter.endswith(ZERO):
            case.compare(f"tensor:{key}", case.expected[key], ours[spelt(parameter, ours)], "noise")
        else:
            norm = case.expected[key].norm()
            case.compare(f"tensor:{key}", case.expected[key] / norm, ours[spelt(parameter, ours)] / norm, "entry")
    for key in [n for n in case.expected if n.startswith(f"{name}/grad_rows/") and n.endswith("/index")]:
        grad = ours[spelt(key.removeprefix(f"{name}/grad_rows/").removesuffix("/index"), ours)]
        index, values = grad.abs().sum(1).nonzero().flatten(), key.removesuffix("index") + "values"
        case.tensor(key, index, "exact")
        norm = case.expected[values].norm()
        case.compare(f"tensor:{values}", case.expected[values] / norm, grad[index] / norm, "entry")


# ---- several processes


def _processes(case: Case) -> None:
    world = case.facts["world_size"]
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_rank, args=(world, case.path, Path(folder)), nprocs=world)
        found = {f"rank{r}": torch.load(Path(folder) / f"{r}.pt") for r in range(world)}
    arguments = {n.split("/", 1)[1] for n in case.inputs}
    whole = {a: torch.cat([case.inputs[f"rank{r}/{a}"] for r in range(world)]) for a in arguments}
    found["single_process"] = _step(case, whole)
    for name in case.expected:
        who, field = name.split("/", 1)
        kind = "gathered_loss" if field.endswith("loss") else KINDS.get(field, "embedding")
        case.tensor(name, found[who]["out"][field], kind)
    for who in case.grads:
        # The reference's processes have their own share of the gradient, so that an average over them is too small by
        # their number. Ours have that number times the share.
        times = 1 if who == "single_process" else world
        _gradients(case, who, {n: None if g is None else g / times for n, g in found[who]["grads"].items()})


def _rank(rank: int, world: int, path: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    try:
        case = Case(path)
        own = {n.split("/", 1)[1]: t for n, t in case.inputs.items() if n.startswith(f"rank{rank}/")}
        torch.save(_step(case, own), folder / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


def _step(case: Case, tensors: dict[str, Tensor]) -> dict:
    model = FLMRModelForRetrieval.from_pretrained((case.path / case.facts["checkpoint"]).resolve())
    frozen = {id(p) for name in case.facts["frozen"] for p in getattr(model, name).parameters()}
    for name in case.facts["frozen"]:
        getattr(model, name).requires_grad_(False)
    out = getattr(model, case.facts["method"])(**tensors, **case.facts["options"])
    out.loss.backward()
    fields = {name.split("/", 1)[1] for name in case.expected}
    return {
        "out": {f: getattr(out, f).detach() for f in fields},
        "grads": {n: p.grad for n, p in theirs(model).items() if id(p) not in frozen},
    }
