"""The walls of the house: which room may import which, and what --help may cost."""

from __future__ import annotations

import ast
import importlib
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("models", "dataset", "index", "training", "evaluation")
ALLOWED = {
    "core": {"core"},
    **{room: {"core", room} for room in ROOMS},
    "runs": {"core", "runs", "searcher", *ROOMS},
    "searcher": {"core", "searcher", *ROOMS},
    "train_retrieval": {"core", "runs", *ROOMS},
    "compat": {"core", "compat", "runs", *ROOMS},
}
CORE_THIRD_PARTY = {"torch", "numpy", "omegaconf", "pydantic", "tqdm", "triton", "yaml"}
"""yaml comes with OmegaConf, triton with torch where there is CUDA; tqdm draws the progress bars of every room."""
OURS = {"core", "runs", *ROOMS, "train_retrieval", "searcher", "compat"}
COMMANDS = sorted(
    m.name
    for m in pkgutil.iter_modules([str(ROOT / "runs")])
    if "__main__" in (ROOT / "runs" / f"{m.name}.py").read_text(encoding="utf-8")
)


def imports(path: Path) -> set[str]:
    """Top-level packages that a file imports anywhere."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.split(".")[0])
    return found


def files(room: str) -> list[Path]:
    folder = ROOT / room
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [ROOT / f"{room}.py"]


@pytest.mark.parametrize("room", ALLOWED)
def test_imports_flow_one_way(room):
    assert files(room)
    for path in files(room):
        crossed = (imports(path) & OURS) - ALLOWED[room]
        assert not crossed, f"{path.relative_to(ROOT)} imports {sorted(crossed)}"


def test_core_needs_little():
    for path in files("core"):
        foreign = imports(path) - CORE_THIRD_PARTY - {"core", "__future__"} - set(sys.stdlib_module_names)
        assert not foreign, f"{path.name} imports {sorted(foreign)}"


def test_files_stay_small():
    sizes = {p.relative_to(ROOT): len(p.read_text().splitlines()) for room in ALLOWED for p in files(room)}
    assert max(sizes.values()) < 500, sizes
    assert sizes[Path("train_retrieval.py")] < 200
    # A command is thin: what it grows belongs into a room.
    assert not [(p, n) for p, n in sizes.items() if p.parent.name == "runs" and n > 200]


@pytest.mark.parametrize("command", [*(f"runs.{c}" for c in COMMANDS), "train_retrieval"])
def test_help_is_fast_because_it_imports_no_torch(command):
    code = (
        "import sys, runpy, json, io, contextlib\n"
        "sys.argv = ['x', '--help']\n"
        "out = io.StringIO()\n"
        "try:\n"
        "    with contextlib.redirect_stdout(out):\n"
        f"        runpy.run_module('{command}', run_name='__main__')\n"
        "except SystemExit as stop:\n"
        "    print(json.dumps([stop.code, 'torch' in sys.modules, 'transformers' in sys.modules, out.getvalue()]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    status, torch_loaded, transformers_loaded, text = json.loads(done.stdout)
    assert status == 0 and not torch_loaded and not transformers_loaded
    assert "usage:" in text and len(text) > 200
    if command != "runs.doctor":
        assert "--limit" in text


def test_commands_are_found():
    assert {
        "run_visual_embedder",
        "run_indexer",
        "evaluate_retrieval",
        "search",
        "doctor",
        "convert_checkpoint",
    } <= set(COMMANDS)


@pytest.mark.parametrize("room", ["models", "dataset"])
def test_modules_expose_what_names_resolve_to(room):
    package = importlib.import_module(room)
    assert package.names()
    for name in package.names():
        module = package.module(name)
        assert module.Config.model_fields["name"].default == name
        assert callable(module.build)


def test_unknown_names_are_errors():
    from core.errors import UserError

    for room in ("models", "dataset"):
        with pytest.raises(UserError, match=r"'nothing'.*known"):
            importlib.import_module(room).module("nothing")


def test_every_package_is_installed():
    """``pip install -e .`` makes exactly these importable."""
    import re

    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = set(re.findall(r'"([\w.]+)"', re.search(r"packages = \[(.*?)\]", text, re.S)[1]))
    found = {
        ".".join(p.parent.relative_to(ROOT).parts)
        for room in [*ROOMS, "core", "runs", "compat", "searcher"]
        for p in (ROOT / room).rglob("__init__.py")
    }
    assert listed == found
