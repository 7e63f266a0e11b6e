"""These tests need the packages of requirements-interop.txt; without them they are not collected.

With INTEROP=1 (scripts/test_interop.sh) a missing package is an error.
"""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest

MISSING = [name for name in ("fast_plaid", "faiss", "pylate", "colbert") if find_spec(name) is None]
collect_ignore_glob = ["test_*.py"] if MISSING else []

if MISSING and os.environ.get("INTEROP") == "1":
    raise pytest.UsageError(
        f"INTEROP=1, but {', '.join(MISSING)} cannot be imported; run this with: bash scripts/test_interop.sh"
    )
