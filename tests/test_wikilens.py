"""WikiLens: what its builder promises, checked on a tiny one made by the same code, and the table it is built from."""

from __future__ import annotations

import json
import random
import re
from collections import Counter

import pytest
from PIL import Image

import dataset
from core.config import check
from core.errors import UserError
from core.files import sha256
from scripts.build_wikilens import EXCLUSIVE, bounds, draw_scenes
from scripts.wikilens_questions import NOUNS, wordings
from scripts.wikilens_sources import HELD_OUT, concepts
from tests.wikilens_case import CONCEPTS, tiny_wikilens

SPLITS = ("train", "dev", "test", "test_artwork", "test_concept", "test_photo")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    out = tmp_path_factory.mktemp("wikilens") / "data"
    tiny_wikilens(out, photos=True)
    return out


@pytest.fixture(scope="module")
def splits(root):
    return {split: json.loads((root / f"{split}.json").read_text()) for split in SPLITS}


def wikilens(root, **changes):
    module = dataset.module("wikilens")
    return module.build(check(module.Config, {"name": "wikilens", "root": str(root), **changes}, "data"))


def test_no_picture_of_a_thing_is_in_two_splits(root, splits):
    singles = {split: {r["image"] for r in rows if r["setting"] == "single"} for split, rows in splits.items()}
    for split, images in singles.items():
        assert images
        for other in set(singles) - {split}:
            assert not images & singles[other], (split, other)
    styles = {split: {image.split(".")[-2] for image in images} for split, images in singles.items()}
    assert styles["test_artwork"] == {HELD_OUT} and styles["test_photo"] == {"one"}
    assert all(HELD_OUT not in styles[s] for s in ("train", "dev", "test", "test_concept"))


def test_held_out_concepts_are_in_one_split_only(root, splits):
    held = set(json.loads((root / "manifest.json").read_text())["held_out_concepts"])
    shown = {split: {r["concept"] for r in rows} for split, rows in splits.items()}
    assert shown["test_concept"] == held and not held & shown["train"]
    for split in ("dev", "test", "test_artwork", "test_photo"):
        assert shown[split] <= shown["train"]
    assert not {r["positive"] for r in splits["test_concept"] if r["asked"].endswith("name")} & {
        r["positive"] for r in splits["train"]
    }


def test_dev_and_test_wordings_never_occur_in_training(splits):
    train = {r["question"] for r in splits["train"]}
    for split in SPLITS[1:]:
        assert not train & {r["question"] for r in splits[split]}
    assert not {r["question"] for r in splits["dev"]} & {r["question"] for r in splits["test"]}


def test_the_question_says_which_thing_of_a_scene_is_meant(splits):
    kinds = {c.title: c.kind for c in CONCEPTS}
    seen = 0
    for rows in splits.values():
        scenes = {r["image"]: {} for r in rows if r["setting"] == "scene"}
        for r in rows:
            if r["setting"] == "scene":
                assert r["asked"].split(":")[0] == kinds[r["concept"]]
                scenes[r["image"]].setdefault(r["concept"], set()).add(r["asked"])
        for things in scenes.values():
            of = [kinds[t] for t in things]
            assert len(of) == len(set(of)) == 3
            assert not any(len(group & set(of)) > 1 for group in EXCLUSIVE)
            seen += 1
    assert seen == 6 * len(SPLITS)


def test_records_point_at_their_article_and_picture(root, splits):
    leads = {p["id"]: p["text"] for p in map(json.loads, (root / "passages.jsonl").read_text().splitlines())}
    for split, rows in splits.items():
        assert len({r["id"] for r in rows}) == len(rows)
        for r in rows:
            assert r["document"] == leads[r["positive"]]
            with Image.open(root / r["image"]) as image:
                assert image.size == (224, 224) and image.mode == "RGB"
        assert Counter(r["setting"] for r in rows).keys() == {"single", "scene"}, split


def test_photographs_change_nothing_but_their_split(root, tmp_path):
    tiny_wikilens(tmp_path / "plain")
    for split in SPLITS[:-1]:
        assert sha256(tmp_path / "plain" / f"{split}.json") == sha256(root / f"{split}.json")
    assert not (tmp_path / "plain" / "test_photo.json").exists()
    for image in sorted((tmp_path / "plain").rglob("*.jpg")):
        assert sha256(image) == sha256(root / image.relative_to(tmp_path / "plain"))
    plain = wikilens(tmp_path / "plain")
    assert "test_photo" in wikilens(root).test_splits and "test_photo" not in plain.test_splits
    with pytest.raises(UserError, match=r"no split 'test_photo'.*--photos"):
        plain.queries("test_photo")


def test_bounds_by_hand():
    rows = [{"asked": a, "image": i, "positive": p} for a, i, p in [
        ("x", "1", "A"), ("x", "2", "A"), ("x", "3", "B"), ("y", "1", "C")]]  # fmt: skip
    # asked: x -> A twice, y -> C once: 3 of 4; pictures: 1 has two answers, so one of its two: 3 of 4.
    assert bounds(rows) == {"question_only": {"Success@1": 0.75, "Success@5": 1.0},
                            "image_only": {"Success@1": 0.75, "Success@5": 1.0}}  # fmt: skip


def test_scenes_that_cannot_be_drawn_are_an_error():
    with pytest.raises(UserError, match="2 pictures have no three kinds"):
        draw_scenes([("a", "s"), ("b", "s")], {"a": "food", "b": "plant"}, 1, random.Random(0))


def test_draws(root):
    data = wikilens(root)
    first, later = data.examples("train", 0, 3), data.examples("train", 1, 3)
    assert [e.query.text for e in first] != [e.query.text for e in later], "wordings are redrawn"
    assert [e.query.images for e in first] == [e.query.images for e in later]
    answers = {}
    for r in json.loads((root / "train.json").read_text()):
        answers.setdefault(r["image"], set()).add(r["positive"])
        answers.setdefault(r["asked"], set()).add(r["positive"])
    for example in first:
        asked, shown = example.negatives
        assert asked.id != shown.id and example.positive.id not in (asked.id, shown.id)
        others = answers[example.query.meta["asked"]] - {example.positive.id}
        assert asked.id in others or not others
        if example.query.meta["setting"] == "scene":
            assert shown.id in answers[example.query.images[0].id]
    many = wikilens(root, hard_negatives=20).examples("train", 0, 0)[0]
    assert len({d.id for d in many.negatives} | {many.positive.id}) == 21
    with pytest.raises(UserError, match=r"hard_negatives is .* or more, but there are"):
        wikilens(root, hard_negatives=500).examples("train", 0, 0)[0]


def test_absent_folder(tmp_path):
    with pytest.raises(UserError, match=r"holds no WikiLens .*build_wikilens\.py --fetch"):
        wikilens(tmp_path)


# ---- the table and the wordings


def test_table_of_concepts():
    table = concepts()
    titles = [c.title for c in table]
    assert len(titles) == len(set(titles)) > 400
    assert {c.kind for c in table} == set(NOUNS) - {"thing"}
    icons = [icon for c in table for icon in c.icons]
    assert all(c.icons for c in table) and len(icons) == len(set(icons)), "one icon is one thing"
    photos = [p for c in table for p in c.photos]
    assert len(photos) == len(set(photos)) > 130


def test_wordings_name_no_concept():
    # Kinds are named on purpose ("tool"), things are not.
    names = {re.sub(r" \(.*", "", c.title).lower() for c in concepts()}
    asked = {q for parts in wordings().values() for questions in parts.values() for q in questions}
    named = re.compile(r"\b(" + "|".join(map(re.escape, sorted(names))) + r")s?\b")
    assert [q for q in asked if named.search(q.lower())] == []
    for key, parts in wordings().items():
        assert len(parts["train"]) >= 16 and len(parts["dev"]) >= 4 and len(parts["test"]) >= 6, key
