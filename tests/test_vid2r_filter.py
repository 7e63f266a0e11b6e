"""runs.neural_filtering and runs.data_filtering on whole files: counts, shards, kills, full disks, bad input."""

from __future__ import annotations

import errno
import json
import os
import random
import sys
from pathlib import Path

import pytest

from core.errors import UserError
from dataset.vid2r_rules import NO_TAGGER
from runs import data_filtering, neural_filtering, recipe_filter, recipe_search, recipe_text, shares
from tests import tiny
from tests.conftest import FULL
from tests.vid2r_case import CONVERSATIONS, FILES, WordSearch, killed


@pytest.fixture
def words(monkeypatch):
    """Word overlap instead of a model, small blocks, a commit after each."""
    monkeypatch.setattr(recipe_search, "Searcher", WordSearch)
    monkeypatch.setattr(WordSearch, "asked", [])
    monkeypatch.setattr(recipe_text, "BLOCK", 16)
    monkeypatch.setattr(shares, "COMMIT_SECONDS", 0.0)


def filtered(save: Path, *flags, data=FILES) -> tuple[list[dict], dict]:
    neural_filtering.run(["--data_paths", *map(str, data), "--save_path", str(save), *map(str, flags)])
    return json.loads(save.read_text()), json.loads(save.with_name(f"{save.stem}.counts.json").read_text())


def files(save: Path) -> list[bytes]:
    """The output and its counts, without the path that stands in neither."""
    return [save.read_bytes(), save.with_name(f"{save.stem}.counts.json").read_bytes()]


# ---- counts


@pytest.mark.parametrize("rules", ["clean", "legacy-mire", "legacy-xknow"])
def test_everything_that_is_read_is_counted(tmp_path, capsys, monkeypatch, rules):
    monkeypatch.setitem(sys.modules, "spacy", None)
    records, counts = filtered(tmp_path / "out.json", "--skip_neural", "--rules", rules)
    told, pairs = counts["conversations"], counts["pairs"]
    assert told["read"] == len(CONVERSATIONS) == 200
    assert told["skipped"] == {"image of Visual Genome": 2, "image path leaves its folder": 3, "no image": 11,
                               "no turns": 3, "not an object": 4}  # fmt: skip
    assert told["read"] == told["used"] + sum(told["skipped"].values())
    turns = [len(c["conversations"]) // 2 for c in CONVERSATIONS if isinstance(c, dict) and usable(c)]
    assert pairs["found"] == sum(turns) and told["used"] == len(turns)
    assert pairs["found"] == pairs["kept"] + sum(pairs["dropped"].values()) and pairs["kept"] == len(records) > 120
    assert set(counts["samples"]) == set(told["skipped"]) | set(pairs["dropped"])
    assert pairs["dropped"]["turn order"] == 4 and pairs["dropped"]["turn without text"] == 1
    printed = capsys.readouterr()
    assert f"pairs: {pairs['found']} found, {pairs['kept']} kept" in printed.out
    assert not (tmp_path / "out.json.work").exists()
    if rules != "legacy-xknow":
        assert "en_core_web_sm is not installed" in printed.err and "python -m spacy download" in printed.err
        assert counts["notes"][NO_TAGGER] > 5
    if rules == "clean":
        ids = [record["id"] for record in records]
        assert len(set(ids)) == len(ids) and "twice_0#4" in ids
        assert any("Élan" in r["document"] for r in records) and not any(r["document"][-4:] == "casi" for r in records)


def usable(conversation: dict) -> bool:
    image, turns = conversation.get("image"), conversation.get("conversations")
    if not isinstance(image, str) or not image or not isinstance(turns, list):
        return False
    return len(turns) > 1 and "VG_100K" not in image and ".." not in image and image[0] != "/"


def test_the_other_names_and_flags_of_the_originals(tmp_path, capsys):
    save = tmp_path / "a.json"
    first, _ = filtered(save, "--skip_neural", "--n_bits", 2, "--n_ranks", 4, "--n_cands", 3, "--drop_len", 30)
    assert "--n_ranks=4 is accepted and ignored" in capsys.readouterr().err
    data_filtering.run(["--data_paths", *FILES, "--n_cands", "10", "--save_path", str(tmp_path / "b.json")])
    paths = ["--data_path1", FILES[0], "--data_path2", FILES[1]]
    neural_filtering.run([*paths, "--skip_neural", "--save_path", str(tmp_path / "c.json")])
    assert save.read_bytes() == (tmp_path / "b.json").read_bytes() == (tmp_path / "c.json").read_bytes()
    assert first == json.loads(save.read_text()) and save.read_text() == json.dumps(first, indent=2, ensure_ascii=False)
    filtered(save, "--skip_neural")
    assert "complete:" in capsys.readouterr().out
    neural_filtering.run(["--check", "--data_paths", "gone.json", "--colbert_ckpt", "nowhere"])
    assert "missing: gone.json, nowhere" in capsys.readouterr().out
    for flag, message in (("--drop_len", "-1: give 0 or more"), ("--n_cands", "0: give 1 or more")):
        with pytest.raises(UserError, match=f"{flag} {message}"):
            neural_filtering.run(["--check", flag, message.partition(":")[0]])


def test_images_that_are_not_there_are_counted(tmp_path):
    image = next(c["image"] for c in CONVERSATIONS if isinstance(c, dict) and usable(c))
    (tmp_path / "images" / image).parent.mkdir(parents=True)
    (tmp_path / "images" / image).touch()
    records, counts = filtered(tmp_path / "a.json", "--skip_neural", "--image_dir", tmp_path / "images")
    assert {record["image"] for record in records} == {image}
    skipped = counts["conversations"]["skipped"]
    assert skipped["image file missing"] > 150 and sum(skipped.values()) == 199


def test_names_that_no_file_can_have_are_counted(tmp_path):
    """Halves of surrogate pairs, and longer than a file system takes."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "x.jpg").touch()
    turns = [{"from": "human", "value": "Where?"}, {"from": "gpt", "value": "It lies in the old harbour of the town."}]
    given = [{"id": i, "image": image, "conversations": turns} for i, image in
             [("a", "x.jpg"), ("b", "\ud800.jpg"), ("\ud800", None), ("d", "x" * 5000), ("e", "\0.jpg")]]  # fmt: skip
    (tmp_path / "in.json").write_text(json.dumps(given))
    records, counts = filtered(tmp_path / "a.json", "--skip_neural", "--image_dir", tmp_path / "images",
                               data=[tmp_path / "in.json"])  # fmt: skip
    assert [record["id"] for record in records] == ["a_0"]
    assert counts["conversations"]["skipped"] == {"image file missing": 2, "no image": 1, "not UTF-8": 1}
    assert counts["samples"]["not UTF-8"]["image"] == "\\ud800.jpg"


def test_shards_remember_nothing_of_a_conversation_whose_image_is_missing(tmp_path, monkeypatch):
    """MIRe's rules carry a question on to later responses: every shard must see the same earlier ones."""
    monkeypatch.setattr(recipe_text, "noun_tagger", lambda: str.split)
    monkeypatch.setattr(recipe_text, "BLOCK", 1)
    (tmp_path / "x.jpg").touch()
    images = {"x.jpg": "What reaches far into the sea?", "gone.jpg": "Who stands near the window?"}
    told = {"from": "gpt", "value": "A pier."}
    given = [{"id": image, "image": image, "conversations": [{"from": "human", "value": f"{asked}\nOne word."}, told]}
             for image, asked in images.items()]  # fmt: skip
    last = [{"from": "human", "value": "What is it?"}, told]
    given.append({"id": "2", "image": "x.jpg", "conversations": last})
    (tmp_path / "in.json").write_text(json.dumps(given))
    words = ["--skip_neural", "--rules", "legacy-mire", "--image_dir", tmp_path]
    records, _ = filtered(tmp_path / "a.json", *words, data=[tmp_path / "in.json"])
    assert "sea" in records[1]["document"] and records[1]["id"] == "2_0"
    for turn in range(7):  # more shards than conversations
        neural_filtering.run(["--data_paths", str(tmp_path / "in.json"), "--save_path", str(tmp_path / "b.json"),
                              "--shard", f"{turn}/7", *map(str, words)])  # fmt: skip
    assert files(tmp_path / "a.json") == files(tmp_path / "b.json")


# ---- the neural filter


def test_what_the_text_alone_finds_is_dropped(tmp_path, words):
    kept, counts = filtered(tmp_path / "a.json", "--n_cands", 2, "--save_negative", "--batch_size", 8)
    everything, _ = filtered(tmp_path / "b.json", "--skip_neural", "--save_negative")
    texts = list(dict.fromkeys(record["document"] for record in everything))

    def rank(record) -> int:
        asked = set(record["question"].lower().split())
        score = [len(asked & set(text.lower().split())) for text in texts]
        order = sorted(range(len(texts)), key=lambda i: (-score[i], i))
        return order.index(texts.index(record["document"])) + 1

    expected = [record for record in everything if rank(record) > 2]
    assert 20 < len(expected) < len(everything) - 20
    plain = [{k: v for k, v in record.items() if not k.startswith("filter_")} for record in kept]
    assert plain == expected, "negatives are those of all pairs, dropped ones too"
    for record in kept:
        true = rank(record)
        assert record["filter_rank"] == (true if true <= recipe_filter.DEPTH else None)
    assert counts["pairs"]["dropped"][recipe_filter.SOLVED] == len(everything) - len(expected)
    assert counts["pairs"]["found"] == counts["pairs"]["kept"] + sum(counts["pairs"]["dropped"].values())
    assert counts["samples"][recipe_filter.SOLVED]["rank"] in (1, 2)


def test_a_real_retriever_goes_on_where_it_was_interrupted(tmp_path, monkeypatch):
    tower = tiny.text_tower(tmp_path / "colbert", positions=512)
    flags = ["--colbert_ckpt", tower, "--batch_size", 8, "--limit", 30, "--rules", "legacy-xknow"]
    monkeypatch.setattr(shares, "COMMIT_SECONDS", 0.0)
    filtered(tmp_path / "a.json", *flags, data=[FILES[1]])
    real, texts = recipe_search.Searcher.__call__, []

    def call(self, asked, k):
        if len(texts) == 3:
            texts.append("stop")
            raise KeyboardInterrupt
        texts.append(len(asked))
        return real(self, asked, k)

    monkeypatch.setattr(recipe_search.Searcher, "__call__", call)
    with pytest.raises(KeyboardInterrupt):
        filtered(tmp_path / "b.json", *flags, data=[FILES[1]])
    filtered(tmp_path / "b.json", *flags, data=[FILES[1]])
    assert files(tmp_path / "a.json") == files(tmp_path / "b.json")
    pairs = json.loads(files(tmp_path / "b.json")[1])["pairs"]
    assert texts.pop(3) == "stop"
    assert sum(texts) == pairs["kept"] + pairs["dropped"].get(recipe_filter.SOLVED, 0)


# ---- shards and kills


@pytest.mark.parametrize("rules", ["clean", "legacy-mire"])
def test_shards_merge_to_the_same_bytes(tmp_path, words, monkeypatch, capsys, rules):
    monkeypatch.setattr(recipe_text, "noun_tagger", lambda: lambda text: text.split()[-2:])
    flags = ["--rules", rules, "--n_cands", 1, "--batch_size", 8, "--save_negative"]
    filtered(tmp_path / "a.json", *flags)
    for turn in ("2/3", "0/3", "1/3", "0/3", "2/3"):
        neural_filtering.run(["--data_paths", *FILES, "--save_path", str(tmp_path / "b.json"), "--shard", turn,
                              *map(str, flags)])  # fmt: skip
    assert files(tmp_path / "a.json") == files(tmp_path / "b.json")
    assert "still to come: 0/3, 1/3" in capsys.readouterr().out


def command(save: Path):
    return lambda: filtered(save, "--n_cands", 1, "--batch_size", 16, "--save_negative", "--rules", "legacy-mire")


def test_a_killed_run_ends_with_the_same_bytes_and_does_nothing_twice(tmp_path, words, monkeypatch):
    monkeypatch.setattr(recipe_text, "noun_tagger", lambda: lambda text: text.split()[-2:])
    command(tmp_path / "a.json")()
    expected, asked = files(tmp_path / "a.json"), len(WordSearch.asked)
    events = killed(command(tmp_path / "n.json"), -1, 0)
    assert events > 40 and files(tmp_path / "n.json") == expected
    rng, stages = random.Random(5), set()
    for at in range(events) if FULL else sorted(rng.sample(range(events), 8)):
        save = tmp_path / f"{at}.json"
        killed(command(save), at, seed=at)
        state = save.with_name(save.name + ".work") / "search" / "0-of-1" / "state.json"
        done = json.loads(state.read_text())["place"][2] if state.is_file() else 0
        stages_done = save.exists()  # only the counts were missing, or nothing but cleaning up
        stages.add((save.exists(), done > 0))
        WordSearch.asked.clear()
        command(save)()
        assert files(save) == expected, f"killed at event {at}"
        assert len(WordSearch.asked) == (0 if stages_done else asked - done)
        assert not save.with_name(save.name + ".work").exists()
    assert len(stages) >= 2


def test_a_full_disk_is_said_and_loses_nothing(tmp_path, words, monkeypatch):
    command(tmp_path / "a.json")()
    real, left = os.fsync, [9]

    def full(fd):
        left[0] -= 1
        if left[0] == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"disk is full .*run the same command again"):
        command(tmp_path / "b.json")()
    place = json.loads((tmp_path / "b.json.work" / "text" / "0-of-1" / "state.json").read_text())["place"]
    assert place[2] > 0
    command(tmp_path / "b.json")()
    assert files(tmp_path / "a.json") == files(tmp_path / "b.json")


# ---- what is refused


def test_another_job_does_not_take_over_what_is_there(tmp_path, words):
    save = tmp_path / "a.json"
    filtered(save, "--skip_neural")
    before = files(save)
    with pytest.raises(UserError, match=r"was made otherwise .*--overwrite"):
        filtered(save, "--skip_neural", "--drop_len", 60)
    assert files(save) == before
    again = ["--skip_neural", "--drop_len", 60, "--overwrite"]
    killed(lambda: filtered(save, *again), 8, 0)
    assert save.read_bytes() == before[0], "the old stays until the new is complete"
    records, _ = filtered(save, *again)
    assert len(records) < len(json.loads(before[0]))
    killed(lambda: filtered(tmp_path / "b.json", "--skip_neural"), 6, 0)
    with pytest.raises(UserError, match=r"unfinished and of another job \(drop_len: 30 there, 31 now\)"):
        filtered(tmp_path / "b.json", "--skip_neural", "--drop_len", 31)
    filtered(tmp_path / "b.json", "--skip_neural", "--drop_len", 60, "--overwrite")
    assert (tmp_path / "b.json").read_bytes() == save.read_bytes()


def test_bad_input_is_named(tmp_path, words):
    good = [c for c in CONVERSATIONS if isinstance(c, dict) and usable(c)][:20]
    cut = tmp_path / "cut.json"
    cut.write_text(json.dumps(good)[:-40])
    with pytest.raises(UserError, match=r"cut.json' is not valid JSON at byte \d+, behind 19 conversations"):
        filtered(tmp_path / "a.json", "--skip_neural", data=[cut])
    cut.write_text("[]")
    with pytest.raises(UserError, match="nothing in"):
        filtered(tmp_path / "a.json", "--skip_neural", "--overwrite", data=[cut])
    with pytest.raises(UserError, match="does not exist"):
        filtered(tmp_path / "b.json", "--skip_neural", data=[tmp_path / "gone.json"])
    refused = [
        (["--rules", "mine"], "--rules mine: there are clean"),
        (["--shard", "3/3"], "from 0 to n - 1"),
        (["--batch_size", 0], "--batch_size 0"),
        (["--n_cands", 500], r"more than the \d+ distinct"),
        (["--drop_len", 9999, "--skip_neural"], "no pair was kept"),
    ]
    for flags, message in refused:
        with pytest.raises(UserError, match=message):
            filtered(tmp_path / f"{abs(hash(message))}.json", *flags)


def test_the_tagger_when_it_is_there(monkeypatch):
    class Word:
        def __init__(self, text):
            self.text, self.pos_ = text, "NOUN" if text.islower() else "PROPN" if text.istitle() else "X"

    class Spacy:
        @staticmethod
        def load(name, disable):
            assert name == "en_core_web_sm" and "tagger" not in disable
            return lambda text: [Word(word) for word in text.split()]

    monkeypatch.setitem(sys.modules, "spacy", Spacy)
    assert recipe_text.noun_tagger()("the OLD tower London") == ["the", "tower", "London"]
