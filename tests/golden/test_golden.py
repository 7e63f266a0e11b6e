"""Compatibility: numbers of the original systems, reproduced. Cases are found below GOLDEN_DIR."""

from __future__ import annotations

import importlib
import os

import pytest

from tests.golden_case import LATER, Case, cases

FOUND = cases()
KNOWN = {"colbert", "mire", "ret_xknow", "mire_preflmr", "flmr", "preflmr", "recall", "metrics", "vid2r_text"}


def test_cases_are_found():
    systems = {Case(path).system for path in FOUND}
    # A folder of one's own may hold any cases, but an empty one proves nothing.
    assert systems if "GOLDEN_DIR" in os.environ else systems >= KNOWN


@pytest.mark.parametrize("path", FOUND, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_case(path, capsys):
    case = Case(path)
    if case.system in LATER:
        return
    importlib.import_module(f"tests.golden_runners.{case.system}").run(case)
    line = case.finish()
    tried = case.mutate()
    assert tried >= len(case.compared)
    with capsys.disabled():
        print(f"\n{line}; {len(case.compared)} comparisons, {tried} mutations noticed")


def test_unknown_system_fails(tmp_path):
    (tmp_path / "case.json").write_text('{"system": "nobody"}')
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(f"tests.golden_runners.{Case(tmp_path).system}")
