"""Two sizes of one suite: FULL_TESTS=1 (scripts/test.sh --full) raises the counts and adds tests/full."""

from __future__ import annotations

import os

from hypothesis import settings

FULL = os.environ.get("FULL_TESTS") == "1"
collect_ignore_glob = [] if FULL else ["full/*"]

settings.register_profile("sized", max_examples=300 if FULL else 25, deadline=None)
settings.load_profile("sized")
