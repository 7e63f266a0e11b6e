"""The feature cache: the same bytes whoever helps, nothing half, nothing lost, nothing invented."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from core import features as loop
from core.errors import UserError
from core.files import only_writer, read_json
from core.records import ImageRef, Query
from core.store import Store, StoreWriter
from core.visual import OriginalVisual, StoredVisual, is_original
from core.workers import ahead, default_workers
from models.towers import pixels as quick_pixels
from models.towers.images import PixelSource, decode
from models.towers.vision import VisionConfig, load_vision_tower
from runs import features, run_visual_embedder
from runs.common import visual_source
from runs.settings import Visual
from tests import tiny
from tests.conftest import FULL

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


# ---- what is stored


def test_features_are_the_towers_own(tmp_path, make, tower_folder):
    refs = folder_of(tmp_path / "i")
    store = make(refs, tmp_path / "f")
    tower, _, _ = load_vision_tower(VisionConfig(tower=str(tower_folder)))
    global_, patches = tower(PixelSource(tower_folder).fetch(refs).pixels)
    wanted = torch.cat([global_[:, None], patches], 1).numpy()
    np.testing.assert_allclose(values(store, refs), wanted, atol=2e-3, rtol=2e-3)
    assert np.abs(np.diff(wanted[:, 0], axis=0)).max() > 0.1, "the images are too much alike to tell anything"
    assert store.complete and values(store, refs).dtype == np.float16


@pytest.mark.parametrize("workers", [2, 7])
def test_bytes_do_not_depend_on_the_workers(tmp_path, make, workers):
    refs = folder_of(tmp_path / "i")
    make(refs, tmp_path / "one", workers=1)
    make(refs, tmp_path / "many", workers=workers)
    assert data(tmp_path / "many") == data(tmp_path / "one") and len(data(tmp_path / "one")) > 8


def test_equal_content_is_encoded_once_and_has_all_its_names(tmp_path, make, capsys):
    refs = folder_of(tmp_path / "i")
    store = make(refs, tmp_path / "f")
    assert f"{COUNT} images" in capsys.readouterr().out
    rows = sum(len(np.load(p)) for p in (tmp_path / "f").glob("shard-*.npy"))
    assert rows == 10 * (COUNT - 3)
    assert np.array_equal(*store.get(["004.jpg", "006.jpg"]))
    assert not np.array_equal(*store.get(["004.jpg", "005.jpg"]))


def test_unchanged_files_are_not_read_again(tmp_path, make, monkeypatch, capsys):
    from models.towers import images

    refs = folder_of(tmp_path / "i")
    make(refs, tmp_path / "f")
    before = data(tmp_path / "f")
    read: list[str] = []
    real = images.read_bytes
    monkeypatch.setattr(images, "read_bytes", lambda ref: (read.append(ref.id), real(ref))[1])
    make(refs, tmp_path / "f")
    assert read == [] and data(tmp_path / "f") == before

    os.utime(refs[3].path, (1, 1))  # touched: read, found equal, and from then on known by its new time
    noise(99).save(refs[5].path)  # changed
    capsys.readouterr()
    changed = make(refs, tmp_path / "f")
    assert sorted(read) == ["003.jpg", "005.jpg"] and "1 encoded now" in capsys.readouterr().out
    make(refs, tmp_path / "f")
    assert len(read) == 2
    fresh = make(refs, tmp_path / "g")
    np.testing.assert_allclose(values(changed, refs), values(fresh, refs), atol=2e-3)


def test_bytes_in_memory_and_lines_of_a_tsv(tmp_path, make, capsys):
    import base64

    encoded = []
    for i in range(3):
        out = io.BytesIO()
        noise(i).save(out, "PNG")
        encoded.append(out.getvalue())
    lines = [b"id%d\t%s\n" % (i, base64.b64encode(d)) for i, d in enumerate(encoded)]
    (tmp_path / "t.tsv").write_bytes(b"".join(lines))
    offsets = [sum(map(len, lines[:i])) for i in range(3)]
    refs = [ImageRef(f"t{i}", tsv=(str(tmp_path / "t.tsv"), o)) for i, o in enumerate(offsets)]
    refs += [ImageRef(f"b{i}", data=d) for i, d in enumerate(encoded)]
    refs.append(ImageRef("b0", data=encoded[0], box=(0, 0, 20, 20)))
    shards = set()
    for encoded_now in (4, 0):
        store = make(refs, tmp_path / "f")
        assert len(store) == 7 and f"{encoded_now} encoded now" in capsys.readouterr().out
        shards.add(len(list((tmp_path / "f").glob("shard-*.json"))))
    found = values(store, refs)
    assert np.array_equal(found[:3], found[3:6]) and not np.array_equal(found[0], found[6])
    assert len(shards) == 1, "a run without work wrote a shard"


# ---- kills and errors

KILLED = """
import os, random, signal, sys
from core import features as loop, files
from runs import run_visual_embedder
loop.COMMIT_IMAGES = 4
rng, left = random.Random(int(sys.argv[1])), int(sys.argv[2])
calls = 0
def spy(real):
    def wrapped(*args, **more):  # before or after one of the calls that change files
        global calls
        calls += 1
        if calls == left and rng.random() < 0.5:
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            return real(*args, **more)
        finally:
            if calls == left:
                os.kill(os.getpid(), signal.SIGKILL)
    return wrapped
os.replace, os.fsync, os.unlink = map(spy, (os.replace, os.fsync, os.unlink))
run_visual_embedder.run(sys.argv[3:])
"""


def words(root: Path, tower: Path, out: Path, *more: str) -> list[str]:
    return ["--model_name", str(tower), "--data_path", str(root / "d.json"), "--image_dir", str(root / "i"),
            "--out", str(out), "--batch_size", "3", "--device", "cpu", *more]  # fmt: skip


def environment() -> dict:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def prepared(root: Path) -> list[ImageRef]:
    refs = folder_of(root / "i")
    (root / "d.json").write_text(json.dumps([{"image": ref.id} for ref in refs]))
    return refs


@pytest.mark.parametrize("seed", range(12 if FULL else 2))
def test_killed_at_any_write_and_run_again(tmp_path, make, tower_folder, seed):
    """SIGKILL around a seeded rename, fsync or removal, twice over; then as if nothing had been."""
    refs, rng = prepared(tmp_path), random.Random(seed)
    wanted = values(make(refs, tmp_path / "calm"), refs)
    for latest in (30, 10):
        command = [sys.executable, "-c", KILLED, str(seed), str(rng.randint(2, latest))]
        done = subprocess.run(
            [*command, *words(tmp_path, tower_folder, tmp_path / "f")], cwd=ROOT, env=environment(), capture_output=True
        )
        assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
        if (tmp_path / "f" / "spec.json").is_file():
            store = Store(tmp_path / "f")  # opens, and what it names is whole
            assert not store.complete
            for key in store.where:
                np.testing.assert_allclose(store.get([key])[0], wanted[int(key[:3])], atol=2e-3)
    store = make(refs, tmp_path / "f")
    np.testing.assert_allclose(values(store, refs), wanted, atol=2e-3)
    assert store.complete and not list((tmp_path / "f").glob(".*"))
    npy, lists = ({p.stem for p in (tmp_path / "f").glob(f"shard-*.{kind}")} for kind in ("npy", "json"))
    assert npy == lists, "rows without their list stayed behind"


def test_an_error_in_a_worker_ends_the_command_and_keeps_what_is_before_it(tmp_path, make, monkeypatch):
    refs = folder_of(tmp_path / "i", duplicates=False)
    real = PixelSource.prepare

    def dies(self, image):
        if np.array_equal(np.asarray(image), np.asarray(decode(refs[16]))):
            raise MemoryError("no memory for this one")
        return real(self, image)

    monkeypatch.setattr(PixelSource, "prepare", dies)
    with pytest.raises(MemoryError, match="no memory for this one"):
        make(refs, tmp_path / "f", on_error="skip")
    store = Store(tmp_path / "f")
    assert sorted(store.where) == [ref.id for ref in refs[:15]] and not store.complete


def test_features_that_overflow_are_an_error(tmp_path, make, monkeypatch):
    from models.towers.vision import VisionTower

    real = VisionTower.forward
    monkeypatch.setattr(VisionTower, "forward", lambda self, x: tuple(1e6 * t for t in real(self, x)))
    with pytest.raises(UserError, match=r"'000\.jpg' hold NaN or infinity in float16"):
        make(folder_of(tmp_path / "i"), tmp_path / "f")
    assert make(folder_of(tmp_path / "i"), tmp_path / "g", dtype="float32").complete


def test_one_writer_at_a_time(tmp_path, make):
    with only_writer(tmp_path / "f", "feature cache"), pytest.raises(UserError, match="another process is writing"):
        make([], tmp_path / "f")
    make([], tmp_path / "f")


# ---- several processes


def torchrun(*command: str) -> subprocess.CompletedProcess:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    return subprocess.run([*launch, *command], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=240)


RANKS = """
import sys
from core import features as loop
from runs import run_visual_embedder
loop.COMMIT_IMAGES = 4
run_visual_embedder.run(sys.argv[1:])
"""


def test_two_processes_make_one_store_and_another_number_goes_on(tmp_path, make, tower_folder):
    refs = prepared(tmp_path)
    (tmp_path / "i" / "020.jpg").write_bytes(b"broken")  # in the second process's share
    good = [ref for ref in refs if ref.id != "020.jpg"]
    wanted = values(make(refs, tmp_path / "one", on_error="skip"), good)
    make(refs[:9], tmp_path / "f")  # begun by one
    (tmp_path / "ranks.py").write_text(RANKS)
    done = torchrun(str(tmp_path / "ranks.py"), *words(tmp_path, tower_folder, tmp_path / "f", "visual.on_error=skip"))
    assert done.returncode == 0, done.stderr[-3000:]
    store = Store(tmp_path / "f")
    assert store.complete and read_json(tmp_path / "f" / "manifest.json") == {"items": COUNT - 1, "skipped": 1}
    np.testing.assert_allclose(values(store, good), wanted, atol=2e-3)
    assert [line["id"] for line in read_json(tmp_path / "f" / "skipped.json")] == ["020.jpg"]
    assert done.stdout.count("skipped: image '020.jpg'") == 1
    numbers = sorted(int(p.stem[6:]) for p in (tmp_path / "f").glob("shard-*.json"))
    assert {n % 2 for n in numbers if n > 2} == {0, 1}, "one process did it all"
    assert values(make(good, tmp_path / "f"), good).tobytes() == values(store, good).tobytes()


def test_shares_cover_all_images_once():
    refs = [ImageRef(f"{i}", data=b"x") for i in range(1000)]
    for world in (1, 2, 3, 7):
        parts = [loop.share(refs, rank, world) for rank in range(world)]
        assert sorted(int(ref.id) for part in parts for ref in part) == list(range(1000))
        assert max(map(len, parts)) - min(map(len, parts)) <= loop.COMMIT_IMAGES


# ---- the key


def test_options_that_change_numbers_are_part_of_the_key(tmp_path, make):
    refs = folder_of(tmp_path / "i")
    plain = make(refs, tmp_path / "f").spec
    assert "precision" not in plain and "draft" not in plain
    for change, field in (({"draft": True}, "draft"), ({"precision": "bf16"}, "precision"),
                          ({"dtype": "float32"}, "dtype")):  # fmt: skip
        with pytest.raises(UserError, match=f"made by something else .*{field}: stored"):
            make(refs, tmp_path / "f", **change)
        other = make(refs, tmp_path / field, **change)
        assert {k for k in {*plain, *other.spec} if plain.get(k) != other.spec.get(k)} == {field}


def test_auto_precision_is_the_one_the_cache_was_begun_with(tmp_path, make):
    refs = folder_of(tmp_path / "i")
    half = make(refs[:5], tmp_path / "f", precision="bf16")
    assert make(refs, tmp_path / "f").spec == half.spec
    assert features.pick_precision("auto", torch.device("cuda"), tmp_path / "new") == "fp16"
    assert features.pick_precision("auto", torch.device("cpu"), tmp_path / "new") == "fp32"


def test_a_half_precision_tower_is_close_and_leaves_the_retrievers_weights(tmp_path, make):
    refs = folder_of(tmp_path / "i")
    full, half = make(refs, tmp_path / "a"), make(refs, tmp_path / "b", precision="bf16")
    a, b = values(full, refs).astype(np.float32), values(half, refs).astype(np.float32)
    assert 0 < np.abs(a - b).max() < 0.1
    again = values(make(refs, tmp_path / "c"), refs)
    assert np.array_equal(again, values(full, refs)), "the tower was changed"


def test_a_model_reads_a_cache_of_another_precision_and_draft(tmp_path, make, tower_folder):
    model = tiny.retriever("mire", tmp_path / "towers")
    refs = folder_of(tmp_path / "i", 4)
    spec = Visual(batch_size=3, precision="bf16", draft=True, dtype="float32")
    features.build(refs, model.vision, model.pixel_source(), tmp_path / "f", spec)
    source = visual_source(model, str(tmp_path / "f"))
    assert model.collate_queries([Query("q", "what", (refs[1],))], source).images.patches.dtype == torch.float32


def test_draft_decodes_small_and_close(tmp_path, make):
    out = io.BytesIO()
    noise(3, 800, 600).save(out, "JPEG", quality=92)
    ref = ImageRef("x", data=out.getvalue())
    assert decode(ref).size == (800, 600) and decode(ref, draft=24).size == (100, 75)
    assert decode(ref, draft=200).size == (400, 300) and decode(ref, draft=700).size == (800, 600)
    boxed = ImageRef("x", data=ref.data, box=(700, 500, 800, 600))
    assert np.array_equal(np.asarray(decode(boxed, draft=24)), np.asarray(decode(boxed)))
    (tmp_path / "i").mkdir()
    (tmp_path / "i" / "x.jpg").write_bytes(ref.data)
    refs = [ImageRef("x.jpg", path=str(tmp_path / "i" / "x.jpg"))]
    a, b = (values(make(refs, tmp_path / str(d), draft=d), refs).astype(np.float32) for d in (False, True))
    assert 0 < np.abs(a - b).max() < 0.2
    with pytest.raises(UserError, match="cannot be decoded"):
        decode(ImageRef("x", data=ref.data[:3000]), draft=24)


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


# ---- work ahead


def test_ahead_keeps_the_order_and_the_bound():
    begun: list[int] = []
    taken = []
    for item, result in ahead(lambda i: (begun.append(i), i * i)[1], range(50), workers=3, limit=5):
        taken.append(item)
        assert result == item * item and len(begun) - len(taken) <= 5
    assert taken == list(range(50)) and default_workers() >= 1


def test_ahead_raises_in_its_turn_and_stops():
    begun: list[int] = []

    def work(i):
        begun.append(i)
        return 1 // (i - 7)

    taken = []
    with pytest.raises(ZeroDivisionError):
        for item, _ in ahead(work, range(1000), workers=2, limit=4):
            taken.append(item)
    assert taken == list(range(7)) and len(begun) < 20


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


# ---- the command


def test_visual_keys_without_a_yaml(tmp_path, tower_folder):
    prepared(tmp_path)
    run_visual_embedder.run(words(tmp_path, tower_folder, tmp_path / "f", "visual.draft=true", "--workers", "3"))
    assert Store(tmp_path / "f").spec["draft"] is True
    for wrong in ("visual.drafts=true", "data.limit=3", "visual.workers=0"):
        with pytest.raises(UserError, match="the configuration has errors"):
            run_visual_embedder.run(words(tmp_path, tower_folder, tmp_path / "g", wrong))


def test_shards_of_processes_do_not_meet(tmp_path):
    spec = {"kind": "x", "dtype": "float16"}
    writers = [StoreWriter(tmp_path, spec, part=(rank, 3)) for rank in range(3)]
    for turn in range(2):
        for rank, writer in enumerate(writers):
            writer.add(f"{turn}{rank}", f"d{turn}{rank}", np.full((1, 2), 10 * turn + rank))
            writer.commit()
    store = writers[0].finish()
    assert [int(store.get([f"{t}{r}"])[0][0, 0]) for t in range(2) for r in range(3)] == [0, 1, 2, 10, 11, 12]
    assert len(list(tmp_path.glob("shard-*.npy"))) == 6
