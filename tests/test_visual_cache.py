"""The feature cache: the same bytes whoever helps, nothing half, nothing lost, nothing invented."""

# ruff: noqa: F811 (fixtures that come by import)

from __future__ import annotations

import io
import os
import random
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from core import features as loop
from core.errors import UserError
from core.files import only_writer, read_json
from core.records import ImageRef, Query
from core.store import Store, StoreWriter
from core.workers import ahead, default_workers
from models.towers.images import PixelSource, decode
from models.towers.vision import VisionConfig, load_vision_tower
from runs import features, run_visual_embedder
from runs.common import visual_source
from runs.settings import Visual
from tests import tiny
from tests.conftest import FULL
from tests.visual_cases import (  # noqa: F401
    COUNT,
    ROOT,
    data,
    environment,
    folder_of,
    make,
    noise,
    prepared,
    tower_folder,
    values,
    words,
)

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
