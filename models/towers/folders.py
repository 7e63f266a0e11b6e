"""Where pretrained weights are: a local folder or a hub name, read tensor by tensor so that none gets lost."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import torch
from torch import Tensor, nn

from core.config import check
from core.errors import UserError
from core.files import read_object
from models.towers.cnn import CNNConfig

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def is_hub_name(name: str) -> bool:
    """Whether ``name`` can only be a repository of the hub: no folder here, and not written like one."""
    return not (Path(name).is_dir() or name.startswith((".", "/", "ckpts/")) or name.count("/") > 1)


def resolve(name: str, root: str | Path | None = None) -> Path:
    """A local folder (relative names are tried under ``root`` first), else a snapshot of the hub repository."""
    for candidate in ([Path(root) / name] if root is not None else []) + [Path(name)]:
        if any((candidate / file).is_file() for file in ("config.json", "modules.json")):
            return candidate
    if Path(name).is_dir():
        raise UserError(f"the folder '{name}' has no config.json; give a folder in the Hugging Face layout.")
    if not is_hub_name(name):
        raise UserError(
            f"the model folder '{name}' does not exist; put the model there, or give a hub name such as "
            "'colbert-ir/colbertv2.0' or 'openai/clip-vit-base-patch32'."
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.txt", "*.model", "artifact.metadata"]
    try:
        folder = Path(snapshot_download(name, allow_patterns=patterns))
        if not any(next(folder.rglob(f), None) for f in WEIGHT_FILES):
            folder = Path(snapshot_download(name, allow_patterns=[*patterns, "*pytorch_model*.bin*"]))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0][:160]
        raise UserError(
            f"the model '{name}' is neither a local folder nor reachable on the hub ({reason}); "
            "download it on a machine with a connection and give its folder."
        ) from None
    return folder


def tower_config(folder: Path):
    """The folder's config: Hugging Face's, or ours for a CNN; a damaged one or an unknown model type is a UserError."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        raw = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        if not (isinstance(raw, dict) and raw.get("model_type") == "efficientnet_lite"):
            return AutoConfig.from_pretrained(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StrictDataclassError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UserError(
            f"'{Path(folder) / 'config.json'}' does not describe a tower ({reason}); give a folder in the Hugging Face "
            "layout whose model_type transformers knows."
        ) from None
    return check(CNNConfig, raw, f"'{Path(folder) / 'config.json'}'")


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a folder: safetensors preferred, sharded or not, else pickled weights (weights only)."""
    if (folder / "model.safetensors").is_file():
        return _safetensors(folder / "model.safetensors")
    if (folder / "model.safetensors.index.json").is_file():
        files = _shards(folder / "model.safetensors.index.json")
        return {k: v for f in files for k, v in _safetensors(folder / f).items()}
    if (folder / "pytorch_model.bin").is_file():
        return _pickled(folder / "pytorch_model.bin")
    if (folder / "pytorch_model.bin.index.json").is_file():
        files = _shards(folder / "pytorch_model.bin.index.json")
        parts = [_pickled(folder / f) for f in files]
        return {k: v for part in parts for k, v in part.items()}
    raise UserError(f"the model folder '{folder}' holds no weights ({' or '.join(WEIGHT_FILES)}); download it again.")


def _shards(path: Path) -> list[str]:
    """The files of which an index file says that they hold weights."""
    table = read_object(path, "list of weights").get("weight_map")
    if not isinstance(table, dict) or not all(isinstance(file, str) for file in table.values()):
        raise UserError(f"list of weights '{path}' has no weight_map of names and files; download it again.")
    return sorted(set(table.values()))


def _pickled(path: Path) -> dict[str, Tensor]:
    # Not core.foreign: towers published before torch 1.6 are in the format without a zip.
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UserError(f"the weights '{path}' cannot be read ({reason}); download or convert them again.") from None
    if not isinstance(found, dict):
        raise UserError(
            f"the weights '{path}' hold a {type(found).__name__}, not tensors by name; download them again."
        )
    return {k: v for k, v in found.items() if isinstance(v, Tensor)}


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"the weights '{path}' cannot be read ({error}); download or convert them again.") from None


def assign(module: nn.Module, tensors: dict[str, Tensor], names: dict[str, str]) -> list[str]:
    """Copy ``tensors[names[k]]`` into the module's entry ``k``; returns the entries that got nothing.

    A shape that does not fit is an error naming both shapes.
    """
    state = module.state_dict()
    missing = []
    with torch.no_grad():
        for own, tensor in state.items():
            source = names.get(own)
            if source is None or source not in tensors:
                missing.append(own)
                continue
            value = tensors[source]
            if value.shape != tensor.shape:
                raise UserError(
                    f"weight '{source}' is {tuple(value.shape)} in the checkpoint but {tuple(tensor.shape)} in the "
                    "configured model; the checkpoint belongs to another configuration."
                )
            tensor.copy_(value)
    return missing
