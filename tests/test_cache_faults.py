"""A feature cache that is damaged, another's, or asked for in a wrong way: one sentence each, and nothing silent."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
import torch

from core import store as stores
from core.device import pick_device
from core.errors import UserError
from core.records import ImageRef
from core.store import Store, StoreWriter, write_store
from core.visual import StoredVisual
from runs import features, run_visual_embedder
from tests.test_pipeline import make_config
from tests.visual_cases import data, folder_of, make, noise, tower_folder, values, words  # noqa: F401

# ---- two data sets in one cache


def test_features_of_another_data_set_are_never_given_silently(tmp_path, make, capsys):  # noqa: F811
    ours = folder_of(tmp_path / "ours", 4, duplicates=False)
    make(ours, tmp_path / "f")
    StoredVisual(Store(tmp_path / "f")).fetch(ours)
    theirs = [ImageRef(ref.id, path=str(tmp_path / "theirs" / ref.id)) for ref in ours]
    (tmp_path / "theirs").mkdir()
    for i, ref in enumerate(theirs):
        noise(50 + i, 60, 50).save(ref.path)
    assert "with other content" not in capsys.readouterr().out
    source = StoredVisual(make(theirs, tmp_path / "f"))
    out = capsys.readouterr().out
    assert "4 images stood in" in out and "give each its own visual.cache" in out
    source.fetch(theirs)
    with pytest.raises(UserError, match=r"image '002\.jpg' in '.*f' are of another file.*ours/002\.jpg' has \d+; run"):
        source.fetch([ours[2]])  # also when the same name was fetched of the right folder before


def test_a_changed_image_is_an_error_until_the_cache_is_built_again(tmp_path, make):  # noqa: F811
    refs = folder_of(tmp_path / "i", 3)
    make(refs, tmp_path / "f")
    noise(99, 80, 80).save(refs[1].path)
    with pytest.raises(UserError, match=r"'001\.jpg' in .* are of another file: it had \d+ bytes"):
        StoredVisual(Store(tmp_path / "f")).fetch(refs)
    make(refs, tmp_path / "f")
    StoredVisual(Store(tmp_path / "f")).fetch(refs)


def test_copied_touched_and_deleted_images_are_accepted_and_looked_at_once(tmp_path, make, monkeypatch):  # noqa: F811
    refs = folder_of(tmp_path / "i", 3)
    make(refs, tmp_path / "f")
    shutil.copytree(tmp_path / "f", tmp_path / "g")
    os.utime(refs[0].path, (1, 1))
    os.unlink(refs[1].path)
    source = StoredVisual(Store(tmp_path / "g"))
    asked: list[str] = []
    real = os.stat
    monkeypatch.setattr(os, "stat", lambda path, *a, **k: (asked.append(str(path)), real(path, *a, **k))[1])
    for _ in range(3):
        source.fetch(refs)
    assert [asked.count(ref.path) for ref in refs] == [1, 1, 1]


# ---- damage


def cut(path, left: int = 200) -> None:
    path.write_bytes(path.read_bytes()[:left])


def listing(change):
    """Damage that rewrites a shard's list."""

    def spoil(folder):
        path = folder / "shard-00001.json"
        path.write_text(json.dumps(change(json.loads(path.read_text()))))

    return spoil


def with_item(item):
    return listing(lambda value: {"items": [*value["items"], item]})


DAMAGE = {
    "rows gone": (lambda f: (f / "shard-00001.npy").unlink(), r"shard-00001\.npy' is missing"),
    "rows cut off": (lambda f: cut(f / "shard-00001.npy"), r"shard-00001\.npy' is cut off"),
    "rows empty": (lambda f: cut(f / "shard-00001.npy", 0), r"shard-00001\.npy' is cut off"),
    "another shard's rows": (
        lambda f: np.save(f / "shard-00001.npy", np.zeros((7, 24), np.float16)),
        r"shard-00001\.npy' holds float16 \[7, 24\], its list says float16 \[40, d\]",
    ),
    "another type": (
        lambda f: np.save(f / "shard-00001.npy", np.zeros((40, 24), np.float32)),
        r"holds float32 \[40, 24\]",
    ),
    "list cut off": (lambda f: cut(f / "shard-00001.json", 30), r"shard-00001\.json' is no list of items"),
    "list not text": (lambda f: (f / "shard-00001.json").write_bytes(b"\xff\xfe\x00"), "is no list of items"),
    "list without items": (listing(lambda value: {}), "is no list of items"),
    "list of nothing known": (listing(lambda value: {"items": [5]}), "is no list of items"),
    "list an array": (listing(lambda value: value["items"]), "is no list of items"),
    "length a word": (with_item(["k", "d", "10", None]), r"lists \('k', 'd', '10', None\), which is no item"),
    "length negative": (with_item(["k", "d", -1]), "which is no item"),
    "key a number": (with_item([7, "d", 1, None]), "which is no item"),
    "unknown digest": (with_item(["k", "nowhere", None, None]), "names content of 'k' that no shard has"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_refused_by_readers_and_mended_by_the_builder(tmp_path, make, capsys, kind):  # noqa: F811
    refs = folder_of(tmp_path / "i", 12, duplicates=False)
    wanted = values(make(refs, tmp_path / "f"), refs)
    spoil, message = DAMAGE[kind]
    spoil(tmp_path / "f")
    with pytest.raises(UserError, match=rf"the store '.*f' is damaged \('.*{message}.*run_visual_embedder"):
        Store(tmp_path / "f")
    capsys.readouterr()
    store = make(refs, tmp_path / "f")
    out = capsys.readouterr().out
    assert "shard-00001" in out and "4 encoded now" in out and out.count("note: ") == 1
    np.testing.assert_allclose(values(store, refs), wanted, atol=2e-3)
    assert store.complete and not store.damaged
    make(refs, tmp_path / "f")
    assert "0 encoded now" in capsys.readouterr().out


def test_names_of_lost_content_are_lost_with_it(tmp_path, make):  # noqa: F811
    refs = folder_of(tmp_path / "i", 5, duplicates=False)
    again = [ImageRef(f"again/{ref.id}", path=ref.path) for ref in refs]
    make(refs, tmp_path / "f")
    wanted = values(make([*refs, *again], tmp_path / "f"), again)
    (tmp_path / "f" / "shard-00000.npy").unlink()
    store = make([*refs, *again], tmp_path / "f")
    np.testing.assert_allclose(values(store, again), wanted, atol=2e-3)


def test_a_dropped_shard_makes_the_store_incomplete_until_it_is_made_again(tmp_path):
    spec = {"kind": "x", "dtype": "float16"}
    items = [(f"k{i}", f"d{i}", np.full((1, 2), i)) for i in range(3)]
    write_store(tmp_path / "s", spec, items)
    cut(tmp_path / "s" / "shard-00000.npy", 100)
    writer = StoreWriter(tmp_path / "s", spec)
    assert not Store(tmp_path / "s").complete and not writer.has("k0", "d0")
    assert [int(x[0, 0]) for x in write_store(tmp_path / "s", spec, items).get(["k0", "k1", "k2"])] == [0, 1, 2]


def test_a_disk_that_fails_is_no_damage(tmp_path, monkeypatch):
    """What cannot be read now may be read later: nothing is dropped."""
    write_store(tmp_path / "s", {"dtype": "float16"}, [("k", "d", np.zeros((1, 2)))])
    before = data(tmp_path / "s")

    def fails(*args, **more):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(np.lib.format, "open_memmap", fails)
    with pytest.raises(UserError, match=r"shard-00000\.npy' cannot be read \(Input/output error\)"):
        StoreWriter(tmp_path / "s", {"dtype": "float16"})
    assert data(tmp_path / "s") == before


@pytest.mark.parametrize("text", ["[]", "{", "", "7", '{"dtype": "float17"}'])
def test_a_damaged_spec_is_an_error_for_all(tmp_path, make, text):  # noqa: F811
    refs = folder_of(tmp_path / "i", 3)
    make(refs, tmp_path / "f")
    (tmp_path / "f" / "spec.json").write_text(text)
    for act in (lambda: Store(tmp_path / "f"), lambda: make(refs, tmp_path / "f")):
        with pytest.raises(UserError, match=r"spec\.json' .*; delete the folder '.*f' and build the store again"):
            act()


def test_few_shards_are_open_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "OPEN", 3)
    items = [(f"k{i}", f"d{i}", np.full((1, 2), i)) for i in range(8)]
    writer = StoreWriter(tmp_path / "s", {"dtype": "float16"}, shard_rows=1)
    for item in items:
        writer.add(*item)
    store = writer.finish()
    order = [5, 0, 7, 5, 1, 2, 3, 4, 6, 0]
    assert [int(x[0, 0]) for x in store.get([f"k{i}" for i in order])] == order
    assert len(store._rows) == 3


# ---- the command


@pytest.mark.parametrize("rows, message", [
    ({"image": "a.jpg"}, "holds a dict; write a JSON list"),
    (["a.jpg"], "record 0 .* is 'a.jpg'; write an object"),
    ([{"image": "a.jpg"}, {"image": 5}], "record 1 .* has the image 5; write a file name"),
    ([{"image": ""}], "record 0 .* has the image ''; write a file name"),
    ([{"image_id": "abc"}], "has the image_id 'abc'; write a whole number"),
    ([{"image_id": True}], "has the image_id True"),
    ([{"image_id": -3}], "has the image_id -3"),
    ([{"image_id": 2.5}], "has the image_id 2.5"),
    ([{"image": None, "image_id": None}], "record 0 .* has neither 'image' nor 'image_id'"),
    ([{}], "record 0 .* has neither"),
    ([], "has no records"),
])  # fmt: skip
def test_lists_that_name_no_images_are_refused(tmp_path, tower_folder, rows, message):  # noqa: F811
    (tmp_path / "d.json").write_text(json.dumps(rows))
    (tmp_path / "i").mkdir()
    with pytest.raises(UserError, match=message):
        run_visual_embedder.run(words(tmp_path, tower_folder, tmp_path / "f"))
    assert not (tmp_path / "f").exists()


def test_a_folder_instead_of_a_list_is_refused(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        list(features.listed(str(tmp_path), "i"))


def test_both_kinds_of_names_are_listed(tmp_path):
    (tmp_path / "d.json").write_text('[{"image": "a/b.png"}, {"image_id": 42}, {"image": null, "image_id": "7"}]')
    names = ["a/b.png", "000000000042.jpg", "000000000007.jpg"]
    assert [ref.id for ref in features.listed(str(tmp_path / "d.json"), "i")] == names


def test_places_that_are_no_cache_are_refused_and_left_alone(tmp_path, tower_folder):  # noqa: F811
    folder_of(tmp_path / "i", 3)
    (tmp_path / "d.json").write_text('[{"image": "000.jpg"}]')
    (tmp_path / "file").write_text("x")
    model = shutil.copytree(tower_folder, tmp_path / "model")
    before = data(model)
    for out, message in ((tmp_path / "file", "is a file"), (tmp_path / "file" / "below", "file' is a file"),
                         (model, "is no store and holds other things")):  # fmt: skip
        for more in ((), ("--check",)):
            with pytest.raises(UserError, match=message):
                run_visual_embedder.run(words(tmp_path, tower_folder, out, *more))
    assert data(model) == before
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / ".gitkeep").write_text("")
    run_visual_embedder.run(words(tmp_path, tower_folder, tmp_path / "empty"))
    assert Store(tmp_path / "empty").complete


@pytest.mark.parametrize("name", ["foo", "", "cud", "cuda:x", "meta", "cpu:x"])
def test_unknown_devices_are_named(name):
    with pytest.raises(UserError, match=f"device '{name}' is unknown; use auto, cpu, mps, cuda"):
        pick_device(name)


def test_a_gpu_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(UserError, match="device 'cuda:2' is not here, this machine has 2 GPUs"):
        pick_device("cuda:2")


def test_an_unknown_device_is_named_before_anything_is_read(tmp_path, tower_folder):  # noqa: F811
    for more in ((), ("--check",)):
        with pytest.raises(UserError, match="device 'foo' is unknown"):
            run_visual_embedder.run([*words(tmp_path, tower_folder, tmp_path / "f", *more), "--device", "foo"])


@pytest.mark.parametrize("option", ["--model_name", "--data_path", "--image_dir"])
def test_options_that_a_config_decides_are_refused(tmp_path, option):
    with pytest.raises(UserError, match=f"so {option} would be ignored"):
        run_visual_embedder.run(["--config_path", str(make_config(tmp_path)), option, "x"])


def test_check_names_what_is_missing(tmp_path, tower_folder, capsys):  # noqa: F811
    config = make_config(tmp_path)

    def said(*more) -> str:
        run_visual_embedder.run([*more, "--check"])
        out = capsys.readouterr().out
        assert out.count("check: ") == 1
        return out

    whole = ["--config_path", str(config)]
    assert "for 24 images; nothing is missing" in said(*whole)
    assert f"missing: {tmp_path}/none/config.json" in said(*whole, f"model.vision.tower={tmp_path}/none")
    hub = said(*whole, "model.vision.tower=some/tower")
    assert "a hub name: the tower is downloaded unless it was before); nothing is missing" in hub
    (tmp_path / "images" / "4.png").unlink()
    assert f"missing: {tmp_path}/images/4.png\n" in said(*whole)
    shutil.rmtree(tmp_path / "images")
    assert said(*whole).endswith(", 21 more images\n")
    assert "missing: nothing.json\n" in said(*whole, "data.path=nothing.json")
    assert f"missing: {tmp_path}/d.json, {tmp_path}/i\n" in said(*words(tmp_path, tower_folder, tmp_path / "f"))
    assert not (tmp_path / "f").exists() and not (tmp_path / "features").exists()
