"""Compile the kernels for a GPU that need not be here; a line each: name, dtype, exact, shared bytes, code bytes."""

from __future__ import annotations

import torch
from triton import compile as build
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from core import maxsim_triton as kernels

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
NUMBERS = ("n_rows", "n_docs", "td", "dim")


def main(capability: int) -> None:
    for name, dtype in DTYPES.items():
        size = kernels.tiles(torch.empty(1, 128, dtype=dtype), 180)
        types = {"rows": name, "docs": name, "keep": "u8", "best": "fp32", "where": "u8", "weights": "fp32"}
        for exact in (True, False):
            chosen = {**size, "LEARNS": True, "EXACT": exact, "LOWEST": kernels.LOWEST}
            for kernel in (kernels._best, kernels._to_queries, kernels._to_documents):
                out = "fp32" if kernel is kernels._to_queries else name
                signature = {a: "*" + types.get(a, out) for a in kernel.arg_names if a.islower()}
                signature |= {a: "i32" for a in kernel.arg_names if a in NUMBERS}
                constants = {a: chosen[a] for a in kernel.arg_names if a.isupper()}
                for ones in ((), NUMBERS):  # Triton builds a kernel of its own for numbers that are 1
                    fixed = constants | {a: 1 for a in kernel.arg_names if a in ones}
                    source = ASTSource(kernel, signature | dict.fromkeys(fixed, "constexpr"), constexprs=fixed)
                    done = build(source, target=GPUTarget("cuda", capability, 32))
                    print(kernel.__name__, name, exact, done.metadata.shared, len(done.asm["cubin"]))
