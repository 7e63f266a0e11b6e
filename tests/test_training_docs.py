"""docs/training.md: its table is the config's, its commands are commands, its live line is the one that runs show."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from torch.distributed.run import parse_args

from tests.test_readme import arguments
from training.config import Config
from training.lora import Lora

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
LINES = [
    line
    for block in re.findall(r"```bash check\n(.*?)```", TEXT, re.S)
    for line in block.strip().splitlines()
    if line.startswith("python")
]


def said(field) -> str:
    if field.is_required():
        return "required"
    value = field.default
    return value if isinstance(value, str) else json.dumps(value)


def test_the_table_is_the_configs():
    wanted = [
        f"| `{name}` | {said(field)} | {field.description} |"
        for name, field in Config.model_fields.items()
        if name not in ("out", "device")
    ]
    section = TEXT.split("## Keys of `train`")[1].split("\n## ")[0]
    assert re.findall(r"^\| `\w+` \| .* \| .* \|$", section, re.M) == wanted


def test_keys_in_the_prose_exist():
    named = set(re.findall(r"`train\.(\w+)", TEXT)) | {
        key for block in re.findall(r"train: \{(.*?)\}\n", TEXT) for key in re.findall(r"(\w+):", block)
    }
    assert len(named) > 10 and named <= {*Config.model_fields, *Lora.model_fields}


@pytest.mark.parametrize("line", LINES)
def test_commands_are_commands(line):
    module, words = arguments(line)
    importlib.import_module(module).arguments().parse_intermixed_args(words)
    if "torch.distributed.run" in line:
        assert parse_args(shlex.split(line)[3:]).training_script == f"{module}.py"
    config = next((w for w in words if w.endswith(".yaml")), None)
    assert config is None or (ROOT / config).is_file()


def test_the_slurm_script_is_bash_and_starts_what_the_page_says():
    script = ROOT / "scripts" / "slurm_train.sh"
    subprocess.run(["bash", "-n", str(script)], check=True)
    text = script.read_text()
    assert "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in text and "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in TEXT
    options = re.findall(r"--(\w[\w-]*)=", re.search(r"srun .*?train_retrieval", text, re.S)[0])
    assert {"nnodes", "nproc_per_node", "max-restarts", "rdzv_id", "rdzv_backend", "rdzv_endpoint"} <= set(options)
