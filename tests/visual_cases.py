"""What the tests of visual caches share: pictures, a tiny tower, a quick build, the command's words."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from core import features as loop
from core.records import ImageRef
from core.store import Store
from models.towers.images import PixelSource
from models.towers.vision import VisionConfig, load_vision_tower
from runs import features
from runs.settings import Visual
from tests import tiny

ROOT = Path(__file__).parent.parent
COUNT = 23


def noise(seed: int, width: int = 40, height: int = 30) -> Image.Image:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def folder_of(root: Path, count: int = COUNT, duplicates: bool = True) -> list[ImageRef]:
    """JPEGs below ``root``; every seventh has the content of the one two before it."""
    root.mkdir(parents=True, exist_ok=True)
    refs = []
    for i in range(count):
        noise(i - 2 if duplicates and i % 7 == 6 else i).save(root / f"{i:03d}.jpg", quality=90)
        refs.append(ImageRef(f"{i:03d}.jpg", path=str(root / f"{i:03d}.jpg")))
    return refs


@pytest.fixture(scope="module")
def tower_folder(tmp_path_factory) -> Path:
    return tiny.vision_tower(tmp_path_factory.mktemp("tower"))


@pytest.fixture
def make(tower_folder, monkeypatch):
    """Build a cache with small shards: make(refs, out, workers=2, ...)."""
    monkeypatch.setattr(loop, "COMMIT_IMAGES", 4)
    tower, _, _ = load_vision_tower(VisionConfig(tower=str(tower_folder)))

    def run(refs, out, **visual) -> Store:
        return features.build(refs, tower, PixelSource(tower_folder), out, Visual(batch_size=3, **visual))

    return run


def data(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def values(store: Store, refs) -> np.ndarray:
    return np.stack(store.get([ref.key for ref in refs]))


def words(root: Path, tower: Path, out: Path, *more: str) -> list[str]:
    return ["--model_name", str(tower), "--data_path", str(root / "d.json"), "--image_dir", str(root / "i"),
            "--out", str(out), "--batch_size", "3", "--device", "cpu", *more]  # fmt: skip


def environment() -> dict:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def prepared(root: Path) -> list[ImageRef]:
    refs = folder_of(root / "i")
    (root / "d.json").write_text(json.dumps([{"image": ref.id} for ref in refs]))
    return refs
