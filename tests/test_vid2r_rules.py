"""ViD2R's pure parts: reading conversations, text rules, sentences, ids, passages, near-duplicates."""

from __future__ import annotations

import gzip
import json
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import UserError
from core.records import Document
from dataset import conversations, near_duplicates, sentences, vid2r_ids, vid2r_passages, vid2r_rules
from dataset.conversations import escapes, items, turn_pairs, why_not
from dataset.knowledge_base import KnowledgeBase
from dataset.ledger import Ledger
from runs import recipe_negatives
from tests.conftest import FULL

# ---- reading


def written(path, values, kind: str):
    if kind == "lines":
        raw = "\n".join(json.dumps(v, ensure_ascii=False) for v in values) + "\n\n"
    else:
        raw = json.dumps(values, ensure_ascii=False, indent=None if kind == "dense" else 2)
    raw = ("\ufeff" if kind == "marked" else "").encode() + raw.encode()
    path.write_bytes(gzip.compress(raw, mtime=0) if kind == "packed" else raw)
    return path


@pytest.mark.parametrize("kind", ["list", "dense", "lines", "packed", "marked"])
def test_every_layout_reads_the_same_and_goes_on_anywhere(tmp_path, monkeypatch, kind):
    values = [{"id": i, "text": "größe 東京 " * (i % 7), "n": [1, 2.5e3, {"x": None}]} for i in range(60)] + [
        7,
        "s",
        12,
    ]
    path = written(tmp_path / "x.json", values, kind)
    for chunk in (7, 64, 1 << 20):
        monkeypatch.setattr(conversations, "CHUNK", chunk)
        found = list(items(path))
        assert [item.value for item in found] == values and [item.number for item in found] == list(range(63))
        for behind in (0, 1, 30, 61, 62):
            rest = list(items(path, found[behind].end, behind + 1))
            assert [item.value for item in rest] == values[behind + 1 :]
            assert [item.end for item in rest] == [item.end for item in found[behind + 1 :]]


def test_a_list_of_any_length_is_read_through_a_small_window(tmp_path, monkeypatch):
    monkeypatch.setattr(conversations, "CHUNK", 4096)
    path = written(tmp_path / "x.json", [{"i": i, "text": "w" * 300} for i in range(20_000)], "dense")
    widest = 0
    real = conversations._Array._read

    def read(self):
        nonlocal widest
        real(self)
        widest = max(widest, len(self.text))

    monkeypatch.setattr(conversations._Array, "_read", read)
    assert sum(1 for _ in items(path)) == 20_000
    assert 4096 <= widest < 3 * 4096 and path.stat().st_size > 500 * widest


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b'[{"a": 1}, {"a": 2} {"a": 3}]', "byte 20, behind 2 conversations .*comma"),
        ('[{"ä": 1}, {"a": }]'.encode(), "byte 18, behind 1 conversations"),
        (b'[{"a": 1}, {"a": 2}', "byte 19, behind 2 conversations .*the file ends"),
        (b'[{"a": 1}] x', "byte 11, behind 1 conversations .*behind the end"),
        (b"  ", "is empty"),
        (b'{\n "a": [1]\n}', "neither a JSON array nor JSON lines"),
        (gzip.compress(b"[" + b"1, " * 99, mtime=0)[:-9], "is damaged .*download it again"),
        (gzip.compress(b"[1, 2, 3]", mtime=0)[:-8] + bytes(8), "is damaged .*CRC"),
        (gzip.compress(b"[1, 2, 3]", mtime=0)[:10] + b"\xff" * 9, "is damaged .*decompressing"),
    ],
)
def test_broken_json_is_named_with_its_position(tmp_path, raw, message):
    (tmp_path / "x.json").write_bytes(raw)
    with pytest.raises(UserError, match=message):
        list(items(tmp_path / "x.json"))


def test_what_is_not_utf8_or_no_json_costs_one_item(tmp_path):
    (tmp_path / "x.json").write_bytes(b'[{"a": "x"}, {"a": "\xff\xfe"}, {"a": "\xc3\xa4"}]')
    assert [(i.value, i.problem) for i in items(tmp_path / "x.json")] == [
        ({"a": "x"}, None), (None, "not UTF-8"), ({"a": "ä"}, None),
    ]  # fmt: skip
    (tmp_path / "x.jsonl").write_bytes(b'{"a": 1}\n{"a": \n{"a": "\xff"}\n{"a": 2}\n')
    assert [i.problem for i in items(tmp_path / "x.jsonl")] == [None, "broken JSON", "not UTF-8", None]


def test_conversations_that_are_of_no_use_say_why(tmp_path):
    good = {"image": "a/b.jpg", "conversations": [{}, {}]}
    cases = [(good, None), ({**good, "image": "vg/VG_100K_2/1.jpg"}, "image of Visual Genome"), ([], "not an object"),
             ({**good, "image": "a/../../b.jpg"}, "image path leaves its folder"), ({"image": "x"}, "no turns"),
             ({**good, "image": "a\ud800.jpg"}, "not UTF-8"), ({**good, "conversations": [{}]}, "no turns"),
             ({**good, "image": 3}, "no image")]  # fmt: skip
    for value, reason in cases:
        assert why_not(conversations.Item(0, value, 0)) == reason
    assert why_not(conversations.Item(0, good, 0), tmp_path) == "image file missing"
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.jpg").touch()
    assert why_not(conversations.Item(0, good, 0), tmp_path) is None
    inside, outside = ["a/b.jpg", "a/../b", "..a/b"], ["/a", "..", "a/../..", "C:\\x", "\\\\host\\x", "../a"]
    assert [escapes(p) for p in inside + outside] == [False] * 3 + [True] * 6
    turn = {"from": "human", "value": "q\ud800"}, {"from": "gpt", "value": "r"}
    assert [problem for *_, problem in turn_pairs(list(turn))] == ["not UTF-8"]


# ---- rules


def refined(rules: str, question: str, response: str, nouns=None, drop_len: int = 0) -> str:
    """The response that is kept, or the reason in brackets."""
    context = vid2r_rules.Context(drop_len, nouns)
    draft, dropped, _ = vid2r_rules.refine(rules, question, response, context)
    return f"({dropped})" if draft is None else draft.response


@pytest.mark.parametrize(
    ("question", "response", "kept"),
    [
        ("Where?", "They meet in the old casino.", "They meet in the old casino."),
        ("What?", "It is a tape measure. Her eyes, no?", "It is a tape measure. Her eyes, no?"),
        ("What?", "Yes, NASA built it in Florida.", "NASA built it in Florida."),
        ("What?", "Certainly! Sure. Of course, it rains a lot.", "It rains a lot."),
        ("What?", "No. 5 is the tram to the harbour.", "No. 5 is the tram to the harbour."),
        ("What?", "In the scenery of the hills lies a house.", "In the scenery of the hills lies a house."),
        ("What?", "In this photo, a boy runs. He is happy in the picture.", "A boy runs. He is happy."),
        ("What?", "It hangs in the picture frame on the left.", "It hangs in the picture frame on the left."),
        ("What?", "In the photo booth, two girls laugh.", "In the photo booth, two girls laugh."),
        ("What?", "In the picture on the wall, a ship sails.", "In the picture on the wall, a ship sails."),
        ("What?", "In the picture two ships sail.", "Two ships sail."),
        ("What?", "Two dogs are  in the image. So is this in the photo.", "Two dogs are in the image. So is this."),
        ("What?", "The image shows that Rome is old.", "Rome is old."),
        ("Based on the map, where is it?", "Based on the map, it is in Peru.", "It is in Peru."),
        ("The man, is he old?", "The man, who is grey, is old enough.", "The man, who is grey, is old enough."),
        ("HOW MANY cats?", "There are two of them there.", "(counting question)"),
        ("So what colour is it?", "It is as blue as the sea.", "(colour question)"),
        ("What colored the water?", "It was the ink of a squid.", "It was the ink of a squid."),
        ("What?", "Unanswerable", "(unanswerable)"),
        ("What?", "1,234.5", "(number alone)"),
        ("Reference OCR token: A, B", "It is a sign at the harbour.", "(no question)"),
        ("What?", " ,; ", "(nothing left)"),
    ],
)  # fmt: skip
def test_clean_rules_leave_words_and_case_alone(question, response, kept):
    assert refined("clean", question, response) == kept


def test_short_responses_get_nouns_of_their_own_question_only():
    asked = []

    def nouns(text):
        asked.append(text)
        return ["harbour", "tower"]

    line = "\nAnswer the question using a single word or phrase."
    assert refined("clean", f"What stands there?{line}", "A Crane", nouns) == "A Crane (harbour, tower)"
    assert asked == ["What stands there?"]
    context = vid2r_rules.Context(0, None)
    assert vid2r_rules.refine("clean", "What?", "A crane", context)[0].response == "A crane"
    assert context.notes == {vid2r_rules.NO_TAGGER: 1}
    assert refined("clean", "What?", "A crane", drop_len=30) == "(too short)"


def test_every_step_has_a_name_of_its_own():
    for rules, steps in vid2r_rules.RULES.items():
        names = [vid2r_rules.name_of(step) for step in steps]
        assert len(set(names)) == len(names), rules


# ---- sentences


@pytest.mark.parametrize(
    "parts",
    [
        ["Dr. Smith saw the U.S. Open. ", "He won 3.5 points! ", "J. R. R. Tolkien wrote. ", "Who? ", "Me."],
        ["It was made in the U.S. ", "The rest came later."],
        ["He said \"Stop.\" ", "Then he left (see fig. 3). ", "See no. 5 there. ", "No. ", "He stayed."],
        ["It cost 3 approx. five dollars... and more. ", "Really?! ", "Yes."],
        ["A title\n", "A text. ", "An end"],
        ["東京。", "大阪！", "End."],
        ["Lions etc. live here. ", "Vitamin C helps."],
    ],
)  # fmt: skip
def test_sentences_end_where_they_end(parts):
    assert sentences.split("".join(parts)) == parts
    assert sentences.first(f"  {''.join(parts)} ", 1) == parts[0].strip()


@settings(max_examples=300 if FULL else 60, deadline=None)
@given(st.text("aB .!?\n\"'1。", max_size=60))
def test_sentences_joined_are_the_text(text):
    assert "".join(sentences.split(text)) == text
    assert all(part.strip() for part in sentences.split(text.strip()))


# ---- ids and negatives, against what the published rule says when everything is in memory


def drawn(rng: random.Random) -> list[dict]:
    return [
        {"n": i, "image": f"i{rng.randint(0, 3)}", "id": f"x{rng.randint(0, 5)}{rng.choice(['', ' '])}",
         "question": f"q{rng.randint(0, 2)}", "document": "d"}
        for i in range(rng.randint(1, 14))
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(200 if FULL else 40))
def test_ids_and_negatives_as_with_everything_in_memory(seed):
    rows = drawn(random.Random(seed))
    expected, rng = [dict(row) for row in rows], random.Random(0)
    for row in expected:
        ids = [other["id"].strip() for other in expected if other["image"] == row["image"]]
        if len(set(ids)) < len(ids):
            row["id"] += f"_{rng.choice('abcdefghijkl')}{rng.randint(0, 9)}"

    def again():
        return iter([dict(row) for row in rows])

    found = list(vid2r_ids.own_ids(again, "legacy-mire"))
    assert [row for row, _ in found] == expected
    assert [changed for _, changed in found] == [a["id"] != b["id"] for a, b in zip(rows, expected)]
    negatives = vid2r_ids.Negatives(expected)
    for row in expected:
        others = [o for o in expected if o["image"] == row["image"] and o["question"] != row["question"]]
        assert negatives.of(row) == others
    clean = [row["id"] for row, _ in vid2r_ids.own_ids(again, "clean")]
    assert len(set(clean)) == len(clean)
    first = [row["id"] for i, row in enumerate(rows) if row["id"] not in [r["id"] for r in rows[:i]]]
    assert [id_ for id_ in clean if "#" not in id_] == first


def test_a_numbered_id_does_not_meet_one_that_was_there():
    rows = [{"id": id_} for id_ in ("a", "a", "a#2", "a")]
    assert [row["id"] for row, _ in vid2r_ids.own_ids(lambda: iter(rows), "clean")] == ["a", "a#3", "a#2", "a#4"]


def test_hard_negatives_are_topped_up():
    found, none = list("abcdef"), [False] * 6
    assert recipe_negatives.hard_negatives(found, [True, False] * 3, 2, "clean", none) == ["b", "d", "f"]
    assert recipe_negatives.hard_negatives(found, [True, False] * 3, 5, "legacy", none) == ["b", "d", "f", "e", "f"]
    assert recipe_negatives.hard_negatives(found, [True] * 6, 2, "legacy", none) == ["e", "f"]
    gold = [False] * 5 + [True]
    assert recipe_negatives.hard_negatives(found, [True] * 6, 2, "clean", gold) == ["e", "d"]
    assert recipe_negatives.hard_negatives(found, [True] * 6, 9, "clean", gold) == ["e", "d", "c", "b", "a"]


# ---- passages and the knowledge base


def test_passages_of_the_clean_template():
    article = "Dr. No is a film. It was shot in the U.S. It is old. More."
    lead = vid2r_passages.lead(article, "clean")
    assert lead == "Dr. No is a film. It was shot in the U.S."
    record = {"id": "1", "document": "A film (from 1962 (UK)).", "negs": []}
    made = vid2r_passages.converted(record, [lead, "", "Two."], "clean")
    assert made == {**record, "document": f"{lead} A film (from 1962 (UK)). Two.", "answer": "A film (from 1962 (UK))."}
    made = vid2r_passages.converted(record, ["One.", "Two."], "clean", remove_bracket=True)
    assert made["document"] == "Title: A film. content: One. Two." and made["answer"] == "A film."


def test_knowledge_bases(tmp_path):
    rows = [{"wikidata_id": "Q1", "wikipedia_title": "T", "wikipedia_content": " One. "}, {"id": 7, "text": "Two."},
            {"wikidata_id": "Q1", "wikipedia_content": None}]  # fmt: skip
    raw = "\n".join(map(json.dumps, rows)).encode()
    (tmp_path / "kb.jsonl.gz").write_bytes(gzip.compress(raw, mtime=0))
    base = KnowledgeBase(tmp_path / "kb.jsonl.gz")
    assert list(base) == [Document("0", "One.", title="T"), Document("1", "Two."), Document("2", "")]
    assert [d.id for d in base] == ["0", "1", "2"] and [d.meta["kb_id"] for d in base] == ["Q1", "7", "Q1"]
    for line, message in ((b'{"title": "x"}', "line 4 .*no wikipedia_content or text"), (b"\xff", "line 4 .*not UTF-8"),
                          (b'{"text": 3}', "line 4 .*the text 3"), (b"{", "line 4 of"),
                          (b'{"text": "\\ud800"}', "line 4 .*half a surrogate pair")):  # fmt: skip
        (tmp_path / "bad.jsonl").write_bytes(raw + b"\n" + line)
        with pytest.raises(UserError, match=message):
            KnowledgeBase(tmp_path / "bad.jsonl")
    (tmp_path / "empty.jsonl").write_bytes(b"\n")
    with pytest.raises(UserError, match="is empty"):
        KnowledgeBase(tmp_path / "empty.jsonl")


# ---- counts


def test_ledgers_add_up_and_refuse_what_does_not():
    parts = []
    for first in (5, 2):
        part = Ledger()
        part.read = part.used = part.found = 3
        part.kept = 2
        part.drop("short", first, question="q" * 500)
        parts.append(Ledger.of(json.loads(json.dumps(part.as_json()))))
    whole = Ledger.sum(parts)
    assert (whole.found, whole.kept, whole.dropped["short"]) == (6, 4, 2)
    assert whole.samples["short"]["at"] == 2 and len(whole.samples["short"]["question"]) == 200
    whole.skip("not UTF-8", 3, image="a\ud800.jpg")
    assert whole.samples["not UTF-8"]["image"] == "a\\ud800.jpg"
    whole.read += 1
    whole.check()
    whole.kept -= 1
    with pytest.raises(AssertionError, match="do not add up"):
        whole.check()


# ---- near-duplicates


def test_near_duplicates_are_found_and_others_are_not():
    rng = random.Random(3)
    vocabulary = [f"word{i}" for i in range(500)]
    texts = [" ".join(rng.choices(vocabulary, k=60)) for _ in range(300)]
    planted = {}
    for i in range(0, 100, 10):
        changed = texts[i].split()
        changed[-1] = "else"
        planted[i, len(texts)] = near_duplicates.similarity(texts[i], " ".join(changed))
        texts.append(" ".join(changed))
    marks = near_duplicates.signatures(texts)
    found = list(map(tuple, near_duplicates.alike(marks).tolist()))
    assert min(planted.values()) > 0.9 and found == sorted(planted)
    assert all(abs(float((marks[i] == marks[j]).mean()) - planted[i, j]) < 0.2 for i, j in planted)
    assert near_duplicates.similarity("one two three", "four five six") == 0
    assert near_duplicates.alike(near_duplicates.signatures(["c", "a b", "c", "a b", "c"])).tolist() == [
        [0, 2], [0, 4], [1, 3], [2, 4],
    ]  # fmt: skip
    assert near_duplicates.alike(near_duplicates.signatures(["a"])).shape == (0, 2)


def test_estimated_similarities_are_those_of_the_texts():
    """Texts that share some of their runs: the estimate follows the truth, and few that are below it are reported."""
    rng = random.Random(5)
    vocabulary = [f"word{i}" for i in range(500)]
    truth, estimate = [], []
    for shared in range(4, 60, 2):
        common = rng.choices(vocabulary, k=shared)
        one, two = (" ".join(common + rng.choices(vocabulary, k=60 - shared)) for _ in range(2))
        marks = near_duplicates.signatures([one, two])
        truth.append(near_duplicates.similarity(one, two))
        estimate.append(float((marks[0] == marks[1]).mean()))
        if truth[-1] < 0.5:
            assert not len(near_duplicates.alike(marks))
    errors = np.array(estimate) - truth
    assert abs(errors.mean()) < 0.05 and np.sqrt((errors**2).mean()) < 0.12 and np.corrcoef(truth, estimate)[0, 1] > 0.9
