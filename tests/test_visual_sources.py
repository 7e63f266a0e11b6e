"""What a cache takes in: broken and odd pictures, pixels without the processor, the original systems' files."""

# ruff: noqa: F811 (fixtures that come by import)

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from core.errors import UserError
from core.files import read_json
from core.records import ImageRef, Query
from core.store import Store
from core.visual import OriginalVisual, StoredVisual, is_original
from models.towers import pixels as quick_pixels
from models.towers.images import PixelSource, decode
from models.towers.vision import VisionConfig, load_vision_tower
from runs import features, run_visual_embedder
from runs.common import visual_source
from tests import tiny
from tests.visual_cases import folder_of, make, noise, tower_folder, values  # noqa: F401

# ---- broken images


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def test_broken_images_are_listed_with_their_reason_and_never_stored(tmp_path, make, monkeypatch, capsys):
    refs = folder_of(tmp_path / "i", 8, duplicates=False)
    good = encoded(noise(50), "JPEG")
    (tmp_path / "i" / "000.jpg").write_bytes(good[: len(good) // 2])
    (tmp_path / "i" / "002.jpg").write_bytes(b"")
    (tmp_path / "i" / "003.jpg").unlink()
    (tmp_path / "i" / "005.jpg").write_text("<html>not found</html>")
    (tmp_path / "i" / "006.jpg").write_bytes(encoded(Image.new("1", (400, 400)), "PNG"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50_000)  # an error from twice as many on
    with pytest.raises(UserError, match=r"'000\.jpg' cannot be decoded"):
        make(refs, tmp_path / "f")
    assert not Store(tmp_path / "f").complete
    store = make(refs, tmp_path / "f", on_error="skip")
    assert sorted(store.where) == ["001.jpg", "004.jpg", "007.jpg"]
    listed = {line["id"]: line["reason"] for line in read_json(tmp_path / "f" / "skipped.json")}
    for name, reason in {"000": "runcated", "002": "0 bytes of no known image format", "003": "is missing: no file",
                         "005": "22 bytes of no known image format", "006": "decompression bomb"}.items():  # fmt: skip
        assert reason in listed.pop(f"{name}.jpg")
    assert not listed and capsys.readouterr().out.count("skipped: image") == 5
    with pytest.raises(UserError, match=r"'003\.jpg' is not in the store"):
        StoredVisual(store).fetch(refs[3:5])
    for ref in refs:
        Path(ref.path).write_bytes(good)
    make(refs, tmp_path / "f", on_error="skip")
    assert not (tmp_path / "f" / "skipped.json").exists(), "the list outlived the repair"


def test_a_long_list_is_shown_in_part(tmp_path, make, capsys):
    refs = [ImageRef(f"n{i}.jpg", path=str(tmp_path / f"n{i}.jpg")) for i in range(30)]
    make(refs, tmp_path / "f", on_error="skip")
    out = capsys.readouterr().out
    assert out.count("skipped: image") == features.SHOWN < 30 and "30 images were left out" in out
    assert len(read_json(tmp_path / "f" / "skipped.json")) == 30


def rotation() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees
    return exif


ODD = {
    "a png named jpg": lambda: encoded(noise(1), "PNG"),
    "16-bit grey": lambda: encoded(Image.fromarray((np.arange(1200).reshape(30, 40) * 54).astype(np.uint16)), "PNG"),
    "cmyk": lambda: encoded(noise(1).convert("CMYK"), "JPEG"),
    "palette with transparency": lambda: encoded(noise(1).quantize(16), "PNG", transparency=3),
    "rotated by exif": lambda: encoded(noise(1), "JPEG", exif=rotation()),
    "very long": lambda: encoded(noise(1, 400, 5), "PNG"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ODD)
def test_odd_images_are_stored_as_a_run_without_cache_sees_them(tmp_path, make, tower_folder, kind):
    (tmp_path / "x.jpg").write_bytes(ODD[kind]())
    ref = ImageRef("x.jpg", path=str(tmp_path / "x.jpg"))
    rows = values(make([ref], tmp_path / "f"), [ref])[0]
    tower, _, _ = load_vision_tower(VisionConfig(tower=str(tower_folder)))
    wanted = tower(PixelSource(tower_folder).fetch([ref]).pixels)[0][0].numpy()
    np.testing.assert_allclose(rows[0], wanted, atol=2e-3, rtol=2e-3)
    if kind == "rotated by exif":
        assert decode(ref).size == (30, 40)


# ---- pixels without the processor


@pytest.mark.parametrize("change", [
    {}, {"crop_size": {"height": 30, "width": 20}}, {"resample": 2},
    {"do_center_crop": False, "size": {"height": 32, "width": 20}},
    {"image_processor_type": "SiglipImageProcessor", "size": {"height": 24, "width": 24}, "do_center_crop": False},
    {"image_processor_type": "BitImageProcessor"}, {"do_normalize": False}, {"image_mean": [0.1, 0.5, 0.9]},
])  # fmt: skip
def test_quick_pixels_are_the_processors(tmp_path, change):
    settings = json.loads((tiny.vision_tower(tmp_path) / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**settings, **change}))
    source = PixelSource(tmp_path)
    assert source._quick is not None
    images = [noise(i, w, h) for i, (w, h) in enumerate([(71, 33), (24, 24), (19, 90), (240, 100)])]
    wanted = source.processor(images=images, return_tensors="pt")["pixel_values"]
    assert torch.equal(source.pixels(images).pixels, torch.as_tensor(wanted))
    assert source.prepare(images[0]).dtype == np.uint8


def test_a_processor_that_does_otherwise_is_asked_itself(tmp_path, monkeypatch):
    source = PixelSource(tiny.vision_tower(tmp_path))
    real = type(source.processor).center_crop
    monkeypatch.setattr(type(source.processor), "center_crop", lambda self, *a, **k: real(self, *a, **k)[:, ::-1])
    assert quick_pixels.quick(source.processor, source.describe()) is None
    odd = PixelSource(tmp_path)
    images = [noise(0), noise(1, 60, 30)]
    wanted = torch.as_tensor(odd.processor(images=images, return_tensors="pt")["pixel_values"])
    assert odd._quick is None and torch.equal(odd.pixels(images).pixels, wanted)
    assert not torch.equal(wanted, source.pixels(images).pixels)


# ---- caches of the original systems


def originals(folder: Path, refs, rows: np.ndarray) -> None:
    """x.jpg -> x.npy, x.jpeg -> x.jnpy: the last three letters are replaced."""
    for ref, item in zip(refs, rows):
        np.save(io_open(folder / f"{ref.id[:-3]}npy"), item.astype(np.float32))


def io_open(path: Path):
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("wb")


def test_original_caches_are_read_beside_the_image_and_in_a_mirror(tmp_path, capsys):
    model = tiny.retriever("mire", tmp_path / "towers")
    refs = [tiny.image(tmp_path / "i", f"{i}.jpg", (40 * i, 90, 30)) for i in range(3)]
    refs.append(tiny.image(tmp_path / "i", "long.jpeg"))
    rows = np.random.default_rng(0).normal(size=(4, 10, 24)).astype(np.float32)
    query = [Query("q", "what", (refs[1],)), Query("r", "what", (refs[3],))]
    for folder in ("i", "mirror"):
        originals(tmp_path / folder, refs, rows)
        assert is_original(tmp_path / folder)
        source = visual_source(model, str(tmp_path / folder))
        assert "name no tower" in capsys.readouterr().out
        images = model.collate_queries(query, source).images
        assert np.array_equal(images.global_.numpy(), rows[[1, 3], 0])
        assert np.array_equal(images.patches.numpy(), rows[[1, 3], 1:])
    assert (tmp_path / "i" / "long.jnpy").is_file()


def test_training_reads_an_original_cache_and_writes_nothing_there(tmp_path):
    import train_retrieval
    from tests.test_pipeline import make_config

    config = make_config(tmp_path)
    names = [p.name for p in (tmp_path / "images").iterdir()]
    rows = np.random.default_rng(0).normal(size=(len(names), 10, 24))
    originals(tmp_path / "images", [ImageRef(n, data=b"x") for n in names], rows)
    before = sorted(p.name for p in (tmp_path / "images").iterdir())
    train_retrieval.run(["--config_path", str(config), f"visual.cache={tmp_path / 'images'}"])
    assert sorted(p.name for p in (tmp_path / "images").iterdir()) == before
    with pytest.raises(UserError, match="is only read; give the new cache another folder"):
        run_visual_embedder.run(["--config_path", str(config), f"visual.cache={tmp_path / 'images'}"])


def test_original_caches_that_do_not_fit_are_refused(tmp_path):
    ref = ImageRef("a.jpg", path=str(tmp_path / "else" / "a.jpg"))
    source = OriginalVisual(tmp_path, 24)
    with pytest.raises(UserError, match=r"'a\.jpg' has no stored features.*a\.npy"):
        source.fetch([ref])
    for bad in (np.zeros((10, 25)), np.zeros((1, 24)), np.zeros(24), np.zeros((10, 24), int)):
        np.save(tmp_path / "a.npy", bad)
        with pytest.raises(UserError, match=r"this model wants floats \[1 \+ P, 24\]"):
            source.fetch([ref])
    np.save(tmp_path / "a.npy", np.zeros((10, 24)))
    with pytest.raises(UserError, match=r"wants floats \[1 \+ 2², 24\]"):
        OriginalVisual(tmp_path, 24, grid=2).fetch([ref])
    np.save(tmp_path / "b.npy", np.zeros((5, 24)))
    with pytest.raises(UserError, match=r"'b\.jpg' have 5 rows, those of 'a\.jpg' 10"):
        source.fetch([ref, ImageRef("b.jpg", data=b"x")])
    with pytest.raises(UserError, match="has a box"):
        source.fetch([ImageRef("a.jpg", data=b"x", box=(0, 0, 2, 2))])
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match=r"a\.npy' cannot be read"):
        source.fetch([ref])
