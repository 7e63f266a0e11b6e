"""Who encodes. ``models/<name>.py`` is one retriever family; ``model.name`` in a YAML is the module's name."""

from __future__ import annotations

from pathlib import Path

from core.errors import UserError
from core.files import read_object
from core.names import Room

room = Room(
    "models", key="model.name", what="retrievers",
    helpers={"towers", "keys", "visual", "fusion", "mapping", "pooling", "artifacts", "originals", "multivector",
             "flmr_head", "flmr_files"},
)  # fmt: skip
names, module, config_class = room.names, room.module, room.config_class


def from_pretrained(path: str | Path):
    """Load any checkpoint folder this project wrote, whatever its family; or FLMR's released one, also of the hub."""
    from models.towers.folders import is_hub_name, resolve

    folder = Path(path)
    if "/" in str(path) and is_hub_name(str(path)):
        folder = resolve(str(path))
    if not (folder / "config.json").is_file():
        raise UserError(
            f"'{path}' is not a checkpoint folder (no config.json); give a folder that training or "
            "python -m runs.convert_checkpoint wrote."
        )
    raw = read_object(folder / "config.json", "checkpoint config")
    if "retriever" not in raw and raw.get("model_type") == "flmr":  # its released layout says everything
        return module("flmr").Retriever.from_pretrained(folder)
    if "retriever" not in raw:
        raise UserError(
            f"'{path}' holds a foreign checkpoint; convert it first: python -m runs.convert_checkpoint {path} OUT."
        )
    return module(raw["retriever"]["name"]).Retriever.from_pretrained(folder)
