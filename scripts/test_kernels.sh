#!/usr/bin/env bash
# The MaxSim kernels (tests/kernels) without a GPU: interpreted against plain torch, and compiled for GPUs that are not
# here; in .venv-kernels, which is made the first time (requirements-kernels.txt). Arguments go to pytest.
# On a machine with a GPU: python -m pytest tests/kernels
#   bash scripts/test_kernels.sh
VENV=${VENV:-.venv-kernels}
source "$(dirname "$0")/env.sh"
beside requirements-kernels.txt
export KERNELS=1 # a missing Triton is an error
exec python -m pytest tests/kernels "$@"
