"""Files of passages read through an index of their lines: formats, ids, the kept index, and what bad lines say."""

from __future__ import annotations

import gzip
import json
import os
import tracemalloc

import numpy as np
import pytest

import dataset.lines
from core.errors import UserError
from core.records import Document
from dataset.lines import LineCorpus, Lines, passage


def write(path, count=50, first=0):
    rows = ({"id": f"wiki_{i}", "text": f"text {i}", "more": i} for i in range(first, first + count))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def kept(monkeypatch):
    """Every index is kept, however small its file."""
    monkeypatch.setattr(dataset.lines, "KEPT_FROM", 0)


def test_a_corpus_is_a_sequence_of_documents(tmp_path):
    corpus = LineCorpus(write(tmp_path / "all_blocks.txt"))
    wanted = [Document(f"wiki_{i}", f"text {i}", meta={"more": i}) for i in range(50)]
    assert len(corpus) == 50 and list(corpus) == wanted and corpus[0] == wanted[0] and corpus[-1] == wanted[-1]
    assert [corpus[i] for i in (7, 3, 49)] == [wanted[i] for i in (7, 3, 49)]
    assert corpus[3].meta == {"more": 3}
    for part in (slice(None), slice(5), slice(40, None), slice(3, 30, 7), slice(None, None, -1), slice(60, 70)):
        assert list(corpus[part]) == wanted[part] and len(corpus[part]) == len(wanted[part])
    assert list(corpus[10:40][5:10]) == wanted[15:20]
    with pytest.raises(IndexError):
        corpus[50]


def test_a_slice_reads_nothing(tmp_path, monkeypatch):
    corpus = LineCorpus(write(tmp_path / "p.jsonl"))
    monkeypatch.setattr(LineCorpus, "_row", lambda *args: pytest.fail("a row was read"))
    assert len(corpus[10:20]) == 10


def test_by_id(tmp_path):
    corpus = LineCorpus(write(tmp_path / "p.jsonl"))
    assert all(corpus.get(f"wiki_{i}") == corpus[i] for i in range(50))
    assert corpus.get("wiki_50") is None and "wiki_50" not in corpus and "wiki_7" in corpus and corpus[7] in corpus
    view = corpus[10:20]
    assert "wiki_10" in view and "wiki_9" not in view and view.get("wiki_20") is None
    assert LineCorpus(write(tmp_path / "empty.jsonl", 0)).get("x") is None


def test_ids_with_one_hash_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset.lines, "_hash", lambda id_: len(id_))
    corpus = LineCorpus(write(tmp_path / "p.jsonl"))
    assert all(corpus.get(f"wiki_{i}") == corpus[i] for i in range(50)) and "wiki_99" not in corpus


@pytest.mark.parametrize(("name", "content"), [
    ("a.csv", 'kid,text\n7,"one, ""two"""\n8,"three\nfour"\n\n9,five\n'),
    ("a.csv", '\ufeffkid,text\r\n7,"one, ""two"""\r\n8,"three\nfour"\r\n9,five'),
    ("a.jsonl", '\n{"kid": 7, "text": "one, \\"two\\""}\n\n{"id": 8, "text": "three\\nfour"}\n'
                '{"id": "9", "text": "five"}'),
    ("a.tsv", '7\tone, "two"\n8\tthree\\nfour\n9\tfive\ttitle\n'),
])  # fmt: skip
def test_formats_ids_and_lines_of_a_text(tmp_path, name, content):
    (tmp_path / name).write_text(content, newline="", encoding="utf-8")
    corpus = LineCorpus(tmp_path / name)
    found = [(d.id, d.text.replace("\\n", "\n")) for d in corpus]
    assert (
        found
        == [("7", 'one, "two"'), ("8", "three\nfour"), ("9", "five")]
        == [(d.id, d.text.replace("\\n", "\n")) for d in map(corpus.get, ("7", "8", "9"))]
    )
    assert corpus[2].title == ("title" if name == "a.tsv" else "")
    assert [(d.id, d.text) for d in corpus[1:]] == [(d.id, d.text) for d in list(corpus)[1:]]


def test_other_fields_and_rows_without_ids(tmp_path):
    (tmp_path / "w.jsonl").write_text('{"docid": 3, "body": "x"}\n{"docid": 4, "body": "y"}\n')
    corpus = LineCorpus(tmp_path / "w.jsonl", lambda id_, row: Document(id_, row["body"]), ("docid",))
    assert [(d.id, d.text) for d in corpus] == [("3", "x"), ("4", "y")]
    rows = Lines(tmp_path / "w.jsonl", lambda place, row: (place, row["body"]), ())
    assert list(rows) == [("0", "x"), ("1", "y")] and rows[1] == ("1", "y")
    with pytest.raises(UserError, match="have no ids"):
        rows.get("3")


def test_repeated_ids(tmp_path, capsys):
    rows = [f'{{"id": "{i}", "text": "x"}}' for i in range(5)]
    (tmp_path / "same.jsonl").write_text("\n".join([*rows, rows[2], rows[2]]))
    corpus = LineCorpus(tmp_path / "same.jsonl")
    assert [d.id for d in corpus] == list("01234") and "repeats 2 rows word for word" in capsys.readouterr().err
    assert corpus.get("2").text == "x"
    (tmp_path / "other.jsonl").write_text("\n".join([*rows, "", '{"id": "2", "text": "y"}']))
    with pytest.raises(UserError, match=r"id '2' stands twice in .*\(lines 3 and 7\).*drop or rename"):
        LineCorpus(tmp_path / "other.jsonl")


@pytest.mark.parametrize(("bad", "reason"), [
    ("no json", "Expecting value"),
    ('["list"]', "not an object"),
    ('{"text": "x"}', "it has no id or kid"),
    ('{"id": true, "text": "x"}', "no string and no whole number"),
    ('{"id": " ", "text": "x"}', "empty id"),
    ('{"id": "1"}', "it has the text None"),
    ('{"id": "1", "text": "x", "title": 5}', "it has the title 5"),
    ('{"id": "1", "text": "\udce9"}', "not UTF-8"),
    ('{"id": "1", "text": ' + "[" * 200_000, r"recursion|Expecting value"),
])  # fmt: skip
def test_a_bad_line_is_named_by_its_number(tmp_path, bad, reason):
    lines = ['{"id": "a", "text": "x"}', "", bad, '{"id": "b", "text": "x"}']
    (tmp_path / "p.jsonl").write_text("\n".join(lines), encoding="utf-8", errors="surrogateescape")
    with pytest.raises(UserError, match=rf"line 3 of '.*p\.jsonl' is wrong \(.*({reason})"):
        LineCorpus(tmp_path / "p.jsonl")


def test_bad_csv_lines(tmp_path):
    for content, message in (
        ('kid,text\n1,"a\nb"\n2\n', "line 4 of .*it has the text None"),
        ("name,text\n1,a\n", "line 2 of .*it has no id or kid"),
        ('kid,text\n1,a\n2,"' + "x\n" * 100_000, "line 3 of .*field larger"),
    ):
        (tmp_path / "p.csv").write_text(content)
        with pytest.raises(UserError, match=message):
            LineCorpus(tmp_path / "p.csv")


def test_files_that_cannot_be_read(tmp_path):
    packed = tmp_path / "all_blocks.txt"
    packed.write_bytes(gzip.compress(b'{"id": "1", "text": "x"}\n'))
    with pytest.raises(UserError, match=r"is packed, .*unpack it first: gunzip"):
        LineCorpus(packed)
    with pytest.raises(UserError, match=r"passages file '.*nothing' does not exist"):
        LineCorpus(tmp_path / "nothing")
    with pytest.raises(UserError, match="cannot be read"):
        LineCorpus(tmp_path)


# ---- the kept index


def caches(folder):
    return sorted(folder.glob(".*.lines.npy"))


def test_a_large_files_index_is_kept_and_mapped(tmp_path, kept, monkeypatch):
    path = write(tmp_path / "all_blocks.txt")
    first = LineCorpus(path)
    assert len(caches(tmp_path)) == 1
    with monkeypatch.context() as patch:
        patch.setattr(LineCorpus, "_scan", lambda self: pytest.fail("the file was gone through again"))
        again = LineCorpus(path)
    assert isinstance(again._index, np.memmap) and list(again) == list(first)
    assert again.get("wiki_31") == first[31] and "wiki_77" not in again


def test_a_changed_file_is_gone_through_again(tmp_path, kept):
    path = write(tmp_path / "p.jsonl")
    LineCorpus(path)
    (old,) = caches(tmp_path)
    os.utime(old, ns=(0, 0))  # as if it were from long before the change
    write(path, 50, 50)
    assert [d.id for d in LineCorpus(path)] == [f"wiki_{i}" for i in range(50, 100)]
    (new,) = caches(tmp_path)
    assert new != old, "the index of the old file is removed"


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY", b"not numpy at all"])
def test_a_damaged_index_is_made_anew(tmp_path, kept, damage):
    path = write(tmp_path / "p.jsonl")
    wanted = list(LineCorpus(path))
    (cache,) = caches(tmp_path)
    cache.write_bytes(damage)
    assert list(LineCorpus(path)) == wanted
    assert cache.stat().st_size > len(damage), "and kept again"


def test_small_files_and_folders_that_cannot_be_written(tmp_path, monkeypatch, capsys):
    path = write(tmp_path / "p.jsonl")
    LineCorpus(path)
    assert not caches(tmp_path), "a small file's index is not worth keeping"
    monkeypatch.setattr(dataset.lines, "KEPT_FROM", 0)

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(dataset.lines, "atomic_file", refuse)
    assert len(LineCorpus(path)) == 50
    assert "cannot be written (Permission denied)" in capsys.readouterr().err


def test_memory_does_not_grow_with_the_text(tmp_path):
    """24 bytes a row, and nothing of its text: a row of 2,000 characters here."""
    path = tmp_path / "p.jsonl"
    with open(path, "w") as out:
        for i in range(5000):
            out.write(json.dumps({"id": f"wiki_{i}", "text": f"{i} " + "x" * 2000}) + "\n")
    tracemalloc.start()
    try:
        corpus = LineCorpus(path)
        assert sum(len(d.text) > 2000 for d in corpus) == 5000
        assert tracemalloc.get_traced_memory()[0] < 24 * 5000 + 100_000
        assert tracemalloc.get_traced_memory()[1] < 2_000_000, "the file has 10 million bytes"
    finally:
        tracemalloc.stop()


def test_passage_keeps_what_it_does_not_know():
    assert passage("1", {"id": "1", "text": "x", "kid": 2, "more": [3]}).meta == {"more": [3]}
