"""Processes: one or many, the same code. gloo on CPU, nccl on CUDA."""

from __future__ import annotations

import os
import time
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from core.errors import UserError
from core.tokens import TokenBatch


def init(device: str = "auto") -> None:
    """Join the process group when torchrun started this process; otherwise do nothing.

    device: where the run computes, as in run.device: gloo for "cpu" also where CUDA exists, else nccl when it does.
    """
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ and not dist.is_initialized():
        backend = "nccl" if device.startswith(("auto", "cuda")) and torch.cuda.is_available() else "gloo"
        if backend == "nccl":
            if local_rank() >= torch.cuda.device_count():
                raise UserError(
                    f"process {local_rank()} has no GPU of its own, this machine has {torch.cuda.device_count()}; "
                    "start as many processes as GPUs (--nproc_per_node), or set run.device=cpu."
                )
            torch.cuda.set_device(local_rank())
        dist.init_process_group(backend, timeout=timedelta(minutes=30))


def close() -> None:
    """Leave the process group; with gloo, give its threads a moment to finish.

    A thread of gloo that drops the tensors of the last exchange needs the interpreter's lock. If the interpreter ends
    before it gets it, the process aborts ("terminate called without an active exception") although all is done. Leaving
    the group ends the threads only when nothing else holds the group, and the slices of a model (FSDP) hold it. A
    barrier would be no cure: a process that ends with an error meets nobody.
    """
    if dist.is_initialized():
        gloo = dist.get_backend() == "gloo"
        dist.destroy_process_group()
        if gloo:
            time.sleep(0.2)


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", 0))


def is_main() -> bool:
    return rank() == 0


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def patient_barrier() -> None:
    """A barrier for long work of one process: the default group gives up after half an hour, this one after a week."""
    if world() > 1:
        group = dist.new_group(backend="gloo", timeout=timedelta(days=7))
        dist.barrier(group=group)
        dist.destroy_process_group(group)


def mean(value: float) -> float:
    """Average of a number over the processes."""
    if world() == 1:
        return value
    device = f"cuda:{local_rank()}" if dist.get_backend() == "nccl" else "cpu"
    tensor = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    return float(tensor / world())


def gather_objects(value: object) -> list:
    """One Python object per process, in rank order."""
    if world() == 1:
        return [value]
    out: list = [None] * world()
    dist.all_gather_object(out, value)
    return out


class _AllGather(torch.autograd.Function):
    """All-gather along dim 0 whose backward sums every process's gradient for the local slice.

    With the loss summed over processes this is the true gradient, also through other processes' losses.
    """

    @staticmethod
    def forward(ctx, tensor: Tensor) -> Tensor:  # type: ignore[override]
        ctx.size = tensor.shape[0]
        parts = [torch.empty_like(tensor) for _ in range(world())]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:  # type: ignore[override]
        grad = grad.contiguous()
        dist.all_reduce(grad)
        start = rank() * ctx.size
        return grad[start : start + ctx.size]


def gather_tokens(batch: TokenBatch) -> TokenBatch:
    """Concatenate a TokenBatch over the processes in rank order, gradients flowing back to every owner.

    Row counts T may differ between processes (padded to the longest); batch sizes B must be equal.
    """
    if world() == 1:
        return batch
    # Where one process's rows have a gradient (its documents have images, say) and another's have none, all must
    # take part in the backward collective, or it would wait for ever.
    local = batch.embeddings
    facts = torch.tensor([batch.mask.shape[1], int(local.requires_grad)], device=local.device)
    dist.all_reduce(facts, op=dist.ReduceOp.MAX)
    longest, trains = facts.tolist()
    if trains and not local.requires_grad:
        local = local.detach().requires_grad_()
    gap = longest - batch.mask.shape[1]
    emb = torch.nn.functional.pad(local, (0, 0, 0, gap))
    mask = torch.nn.functional.pad(batch.mask, (0, gap)).to(torch.uint8)
    masks = [torch.empty_like(mask) for _ in range(world())]
    dist.all_gather(masks, mask.contiguous())
    return TokenBatch(_AllGather.apply(emb), torch.cat(masks).bool())
