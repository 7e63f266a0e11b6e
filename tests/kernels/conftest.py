"""These tests need Triton (torch's CUDA builds bring it; scripts/test_kernels.sh installs it elsewhere); without it
they are not collected. Without a GPU the kernels are interpreted, and compiled for GPUs that are not here.

KERNELS=1 makes a missing Triton an error.
"""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest
import torch

collect_ignore = [] if find_spec("triton") else ["test_maxsim.py"]
if collect_ignore and os.environ.get("KERNELS") == "1":
    raise pytest.UsageError("triton is not installed; run this with: bash scripts/test_kernels.sh")
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined
