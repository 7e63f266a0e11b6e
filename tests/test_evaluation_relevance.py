"""Which passages hold an answer: the rules against brute force, one pass per passage, and what is kept."""

from __future__ import annotations

import re
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.answers import SUBSTRING, WORDS, Range, Rule, normalised, numbers
from core.errors import UserError
from core.protocols import Ranking
from core.records import Document
from evaluation.relevance import Kept, Passages, hits

# ---- the rules


@pytest.mark.parametrize(
    ("answers", "passage", "expected"),
    [
        (["paris"], "PARIS is a city", True),
        (["paris"], "in parish registers", False),
        (["art"], "a party; state of the art.", True),
        (["new york"], "in New\n  York, USA", True),
        (["c++"], "a C++ compiler", True),
        (["c++"], "C++11 is newer", True),  # its last character is no part of a word that 11 could go on with
        (["c"], "a C++ compiler", True),
        (["$5 (approx"], "costs $5 (approx. five)", True),  # no regular expression, and taken as it stands
        (["a.c"], "abc", False),
        (["straße"], "STRASSE 5", True),
        (["ﬁsh"], "a fish", True),
        (["café"], "cafe\u0301", True),
        (["cafe"], "café", False),
        (["cafe"], "cafe\u0301s", False),
        (["東京"], "私は東京に住む", True),
        (["กรุงเทพ"], "ฉันอยู่กรุงเทพฯ", True),
        (["x_y"], "x_yz", False),
        (["", " "], "anything", False),
        ([], "anything", False),
        ([Range(1960, 1962)], "finished in 1962.", True),
        ([Range(1960, 1961)], "finished in 1962.", False),
        ([Range(1e6, 2e6)], "1,250,000 people", True),
        ([Range(-5, -3)], "at -4.5 degrees", True),
        (["no such", Range(2, 2)], "two, or 2.0km", True),
    ],
)  # fmt: skip
def test_words(answers, passage, expected):
    assert WORDS.holds(answers, passage) is expected


def test_numbers():
    text = "It is 1,234.5 m, -3 degrees, 10-20 of 1,23 and A380, v1.2.3 (5%), 20km in 1962."
    assert list(numbers(text)) == [1234.5, -3, 10, 20, 1, 5, 20, 1962]
    for low, high in ((2, 1), (0, float("nan")), (float("-inf"), 0)):
        with pytest.raises(UserError, match="answer range"):
            Range(low, high)


LETTERS = "abB .-_'ß\u0301\u0308éÉı東ﬁ1\n"


def brute(answers: list[str], passage: str) -> bool:
    """Every place of every answer, one by one."""
    text = normalised(passage)
    blankless = re.compile("[\u3400-\u9fff]")
    part = [
        c != " " and not blankless.match(c) and (c.isalnum() or c == "_" or unicodedata.category(c)[0] == "M")
        for c in text
    ]
    for answer in filter(None, map(normalised, answers)):
        first = answer[0].isalnum() or answer[0] == "_" or unicodedata.category(answer[0])[0] == "M"
        first = first and not blankless.match(answer[0])
        last = answer[-1].isalnum() or answer[-1] == "_" or unicodedata.category(answer[-1])[0] == "M"
        last = last and not blankless.match(answer[-1])
        for start in range(len(text) - len(answer) + 1):
            end = start + len(answer)
            if text[start:end] != answer:
                continue
            grown = end < len(text) and (unicodedata.combining(text[end]) or (last and part[end]))
            if not grown and not (first and start and part[start - 1]):
                return True
    return False


@given(st.lists(st.text(LETTERS, max_size=3), max_size=3), st.text(LETTERS, max_size=12))
def test_words_against_brute_force(answers, passage):
    assert WORDS.holds(answers, passage) == brute(answers, passage)


ALL = st.characters(max_codepoint=0xDFF, exclude_categories=["Cs"])
"""Below the scripts without blanks, of which ``brute`` knows the Chinese signs only."""


@given(st.lists(st.text(ALL, max_size=2), max_size=3), st.text(ALL, max_size=20))
def test_any_string_can_be_an_answer(answers, passage):
    """Nothing is a pattern, nothing raises; and what stands between blanks is found."""
    assert WORDS.holds(answers, passage) == brute(answers, passage)
    for answer in answers:
        if normalised(answer) and not unicodedata.combining(normalised(answer)[0]):
            assert WORDS.holds([answer], f"x {answer} y")


# ---- many at once


class Corpus(list):
    """Counts how often it is gone through."""

    passes = 0

    def __iter__(self):
        self.passes += 1
        return super().__iter__()


def counting() -> tuple[Rule, list[str], list[tuple]]:
    """WORDS, with what it prepares and what it compiles written down."""
    prepared, compiled = [], []
    return (
        Rule(
            "words", lambda t: prepared.append(t) or WORDS.text(t), lambda a: compiled.append(tuple(a)) or WORDS.test(a)
        ),
        prepared,
        compiled,
    )


def world(queries: int = 30, passages: int = 40, depth: int = 10):
    words = [f"w{i}" for i in range(25)]
    rng = np.random.default_rng(0)
    corpus = Corpus(Document(f"d{i}", " ".join(rng.choice(words, 6))) for i in range(passages))
    answers = {f"q{i}": tuple(rng.choice(words, 2)) for i in range(queries)}
    rankings = {
        q: Ranking(tuple(f"d{i}" for i in rng.permutation(passages)[:depth]), tuple(range(depth, 0, -1)))
        for q in answers
    }
    return corpus, answers, rankings


def test_every_passage_is_read_prepared_and_every_answer_compiled_once():
    corpus, answers, rankings = world()
    rule, prepared, compiled = counting()
    got = hits(rankings, answers, Passages(corpus), rule)
    wanted = {d for r in rankings.values() for d in r.ids}
    assert corpus.passes == 1 and len(prepared) == len(wanted) and len(compiled) == len(answers)
    texts = {d.id: d.text for d in corpus}
    assert got == {q: [WORDS.holds(answers[q], texts[d]) for d in r.ids] for q, r in rankings.items()}
    assert 0 < sum(map(sum, got.values())) < 300  # the case is not empty
    cut = hits(rankings, answers, Passages(corpus), WORDS, depth=3)
    assert cut == {q: found[:3] for q, found in got.items()}


def test_what_was_judged_is_kept(tmp_path, capsys):
    corpus, answers, rankings = world()
    file = tmp_path / "kept" / "x.npz"
    first = hits(rankings, answers, Passages(corpus), WORDS, depth=5, kept=Kept(file))
    rule, prepared, _ = counting()
    assert hits(rankings, answers, Passages(corpus), rule, depth=5, kept=Kept(file)) == first
    assert prepared == [], "kept judgements were made again"
    deeper = hits(rankings, answers, Passages(corpus), rule, kept=Kept(file))
    assert deeper == hits(rankings, answers, Passages(corpus), WORDS) and prepared
    assert [p.name for p in file.parent.iterdir()] == ["x.npz"]
    # Another text, another answer, another rule: judged anew.
    changed = Corpus(Document(d.id, d.text + " w0") for d in corpus)
    again = {q: (*a, "W1") for q, a in answers.items()}
    for c, a, r in ((changed, answers, WORDS), (corpus, again, WORDS), (corpus, answers, SUBSTRING)):
        assert hits(rankings, a, Passages(c), r, kept=Kept(file)) == hits(rankings, a, Passages(c), r)
    for damage in (b"", b"PK nothing", file.read_bytes()[:-40]):
        file.write_bytes(damage)
        assert hits(rankings, answers, Passages(corpus), WORDS, depth=5, kept=Kept(file)) == first
        assert "is made anew" in capsys.readouterr().out and len(Kept(file).keys)


def test_ids_do_not_count_but_texts(tmp_path):
    """Judgements are found again under other ids, and not confused under the same."""
    kept = tmp_path / "k.npz"
    one = {"q": Ranking(("d",), (1.0,))}
    assert hits(one, {"q": ["a"]}, Passages([Document("d", "a b")]), WORDS, kept=Kept(kept)) == {"q": [True]}
    assert hits(one, {"q": ["a"]}, Passages([Document("d", "b")]), WORDS, kept=Kept(kept)) == {"q": [False]}
    rule, prepared, _ = counting()
    other = {"r": Ranking(("e",), (1.0,))}
    assert hits(other, {"r": ["a"]}, Passages([Document("e", "a b")]), rule, kept=Kept(kept)) == {"r": [True]}
    assert prepared == []


def test_nothing_to_judge(tmp_path):
    for rankings in ({}, {"q": Ranking((), ())}):
        assert hits(rankings, {"q": ["a"]}, Passages([]), WORDS, kept=Kept(tmp_path / "k")) == {q: [] for q in rankings}


class Lines(Corpus):
    """A corpus on disk: single passages can be asked for."""

    asked = 0

    def get(self, id_):
        self.asked += 1
        return next((d for d in list.__iter__(self) if d.id == id_), None)


def test_few_passages_of_a_large_corpus_are_read_alone():
    corpus = Lines(Document(f"d{i}", "a") for i in range(100))
    passages = Passages(corpus)
    passages.fetch(["d1", "d2"], also=["gone"])
    passages.fetch(["d2"])
    assert (corpus.passes, corpus.asked) == (0, 3) and passages["d1"].text == "a" and "gone" not in passages
    passages.fetch([f"d{i}" for i in range(50)])
    assert (corpus.passes, corpus.asked) == (1, 3)
    with pytest.raises(UserError, match=r"answers with 'gone', which the passages .* \(1 such\); index them anew"):
        passages.fetch(["gone"])
