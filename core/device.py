"""Device and precision, chosen once and said with the reason."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import torch

from core import distributed
from core.errors import UserError


def pick_device(name: str = "auto") -> torch.device:
    """ "auto" takes CUDA, then MPS, then CPU. A named device that is absent or unknown is an error."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", name):
        raise UserError(f"device '{name}' is unknown; use auto, cpu, mps, cuda or one GPU such as cuda:0.")
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", distributed.local_rank())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"device '{name}' is not available here; use device=cpu or device=auto.")
    if name == "mps" and not torch.backends.mps.is_available():
        raise UserError("device 'mps' is not available here; use device=cpu or device=auto.")
    if name == "cuda":
        return torch.device("cuda", distributed.local_rank())
    if name.startswith("cuda") and torch.device(name).index >= torch.cuda.device_count():
        raise UserError(f"device '{name}' is not here, this machine has {torch.cuda.device_count()} GPUs; use cuda:0.")
    return torch.device(name)


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """fp32: no autocast; bf16, fp16: autocast on the device. (Training offers no fp16: it needs loss scaling.)"""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype={"bf16": torch.bfloat16, "fp16": torch.float16}[precision])


@contextlib.contextmanager
def tf32(wanted: bool) -> Iterator[None]:
    """Products of float32 matrices on CUDA may round their factors to 10 bits meanwhile (bf16: to 7)."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    if not wanted or before == "tf32":
        yield
        return
    matmul.fp32_precision = "tf32"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def encoding_precision(wanted: str, device: torch.device) -> str:
    """Of encoders that do not learn: auto is fp16 on CUDA, fp32 elsewhere."""
    if wanted == "auto":
        return "fp16" if device.type == "cuda" else "fp32"
    return wanted
