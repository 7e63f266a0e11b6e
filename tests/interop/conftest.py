"""These tests need other libraries; without them they are not collected.

INTEROP=1 (scripts/test_interop.sh, the packages of requirements-interop.txt), INTEROP=sentence-transformers
(scripts/test_sentence_transformers.sh, which PyLate's pins keep apart) and INTEROP=mteb (scripts/test_mteb.sh) make a
missing package an error.
"""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import pytest


def _newest_sentence_transformers() -> bool:
    try:
        return int(version("sentence-transformers").split(".")[0]) >= 6
    except PackageNotFoundError:
        return False


ALONE, MTEB = "test_sentence_transformers.py", "test_mteb.py"
MISSING = [name for name in ("fast_plaid", "faiss", "pylate", "colbert") if find_spec(name) is None]
collect_ignore = [] if _newest_sentence_transformers() else [ALONE]
collect_ignore += [] if find_spec("mteb") else [MTEB]
if MISSING:
    here = sorted(os.listdir(os.path.dirname(__file__)))
    collect_ignore += [f for f in here if f.startswith("test_") and f not in (ALONE, MTEB)]

if MISSING and os.environ.get("INTEROP") == "1":
    raise pytest.UsageError(
        f"INTEROP=1, but {', '.join(MISSING)} cannot be imported; run this with: bash scripts/test_interop.sh"
    )
if ALONE in collect_ignore and os.environ.get("INTEROP") == "sentence-transformers":
    raise pytest.UsageError(
        "sentence-transformers 6 is not installed; run this with: bash scripts/test_sentence_transformers.sh"
    )
if MTEB in collect_ignore and os.environ.get("INTEROP") == "mteb":
    raise pytest.UsageError("mteb is not installed; run this with: bash scripts/test_mteb.sh")
