"""VL-ICT out of WIT: the rules, what is counted, and a build that is killed."""

from __future__ import annotations

import csv
import gzip
import json

import pytest

import dataset.wit
from core.errors import UserError
from dataset.wit import COLUMNS, REASONS, Titles, build, record
from runs.build_vl_ict import run

TITLES = {"St. Louis": "Q38022", "Java (island)": "Q3757", "Cap": "Q1058632", "C++": "Q2407"}


def titles(root):
    path = root / "titles.jsonl"
    rows = ({"wikidata_id": id_, "wikipedia_title": title} for title, id_ in TITLES.items())
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def row(title, text, caption="", language="en"):
    return dict(zip(COLUMNS, (language, title, text, caption), strict=True))


def wit(path, rows):
    """As released: more columns than are wanted, and quoted fields that go over lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", newline="", encoding="utf-8") as out:
        writer = csv.writer(out, delimiter="\t")
        writer.writerow(["page_url", *COLUMNS, "mime_type"])
        writer.writerows(["u", *r.values(), "image/jpeg"] for r in rows)
    return path


@pytest.mark.parametrize(("given", "wanted"), [
    (row("St. Louis", "The city of St. Louis is old. St. Louis has an arch. It is of steel."),
     ("The city of _ is old.", "St. Louis has an arch. It is of steel.", "Q38022")),
    (row("Cap", "First it is so. A Cap and a Cap. Then more. And more"),
     ("A _ and a _.", "Then more. And more", "Q1058632")),
    (row("Java (island)", "Java is an island. It has\nvolcanoes."), ("_ is an island.", "It has\nvolcanoes.", "Q3757")),
    (row("Cap", "The red hat is seen. More.", " red hat "), ("The _ is seen.", "More.", "Q1058632")),
    (row("C++", "C++ is a language. C++ is old."), ("_ is a language.", "C++ is old.", "Q2407")),
    (row("Cap", "The Cap. Yes.", language="de"), "language"),
    (row("Nowhere", "Nowhere is. Yes."), "title"),
    (row("Cap", "Nothing here. At all."), "mention"),
    (row("Cap", "A Cap is one sentence."), "sentence"),
    (row("Cap", "First it is so. The Cap is last. "), "following"),
])  # fmt: skip
def test_rules(given, wanted, tmp_path):
    found = record(given, Titles(titles(tmp_path)))
    assert (found if isinstance(found, str) else tuple(found.values())) == wanted


ROWS = [row("Cap", f"Cap {i} is a hat. It has number {i}.") for i in range(6)]


def test_the_command_and_the_data_set(tmp_path, capsys):
    wit(tmp_path / "tsv" / "wit_v1.train.all-00000-of-00010.tsv.gz", [*ROWS[:4], row("Cap", "x", language="de")])
    wit(tmp_path / "tsv" / "wit_v1.train.all-00001-of-00010.tsv", [*ROWS[2:], ROWS[2], row("C++", "No. Yes.")])
    words = ["--data_dir", str(tmp_path / "tsv"), "--titles", str(titles(tmp_path))]
    target = tmp_path / "vl_ict_train.json"
    run([*words, "--save_path", str(target), "--check"])
    assert "nothing is missing" in capsys.readouterr().out and not target.exists()
    run([*words, "--save_path", str(target)])
    out = capsys.readouterr().out
    wanted = {"rows": 11, "language": 1, "mention": 1, "repeated": 3}
    for reason, what in REASONS.items():
        assert f"{wanted.get(reason, 0):>12,}  {what}\n" in out
    assert "6  records written to" in out and list(tmp_path.glob("*.parts")) == []
    (tmp_path / "images" / "Q105").mkdir(parents=True)
    (tmp_path / "images" / "Q105" / "Q1058632.jpg").touch()
    module = dataset.module("vl_ict")
    data = module.build(module.Config(path=str(target), image_dir=str(tmp_path / "images"), valid_samples=2))
    assert sorted(q.text for s in ("train", "valid") for q in data.queries(s)) == [f"_ {i} is a hat." for i in range(6)]
    with pytest.raises(UserError, match="is there already; add --overwrite"):
        run([*words, "--save_path", str(target)])
    run([*words, "--save_path", str(target), "--overwrite", "--limit", "2"])
    assert len(json.loads(target.read_text())) == 4


def test_a_killed_build_goes_on(tmp_path, monkeypatch):
    files = [wit(tmp_path / "tsv" / f"{i}.tsv", ROWS[2 * i : 2 * i + 2]) for i in range(3)]
    found, target = Titles(titles(tmp_path)), tmp_path / "out.json"
    build(files, found, target)
    whole = target.read_text()
    target.unlink()
    read = dataset.wit.rows

    def killed(path):
        for i, made in enumerate(read(path)):
            if path == files[1] and i == 1:
                raise KeyboardInterrupt
            yield made

    monkeypatch.setattr(dataset.wit, "rows", killed)
    with pytest.raises(KeyboardInterrupt):
        build(files, found, target)
    assert not target.exists(), "no half file"
    again = []
    monkeypatch.setattr(dataset.wit, "rows", lambda path: again.append(path) or read(path))
    counts = build(files, found, target)
    assert again == files[1:] and target.read_text() == whole and counts["rows"] == counts["written"] == 6


def test_bad_files(tmp_path):
    found = Titles(titles(tmp_path))
    whole = wit(tmp_path / "a.tsv.gz", ROWS * 500).read_bytes()
    (tmp_path / "b.tsv.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "c.tsv").write_text("language\tpage_title\nen\tx\n")
    (tmp_path / "d.tsv").write_text("\t".join(COLUMNS) + "\nen\tx\ty\n")
    for name, message in (
        ("b.tsv.gz", r"is damaged behind row \d+ .*download it again"),
        ("c.tsv", "has no column context_page_description, caption_reference_description"),
        ("d.tsv", r"row 1 of '.*d\.tsv' has 3 columns, not 4"),
    ):
        with pytest.raises(UserError, match=message):
            build([tmp_path / name], found, tmp_path / "out.json")
    with pytest.raises(UserError, match=r"holds no .tsv and no .tsv.gz"):
        (tmp_path / "empty").mkdir()
        run(["--data_dir", str(tmp_path / "empty")])
    with pytest.raises(UserError, match="is no folder"):
        run(["--data_dir", str(tmp_path / "nothing")])
    (tmp_path / "t.jsonl").write_text('{"wikipedia_title": "x"}\n')
    with pytest.raises(UserError, match=r"line 1 of .*it has the wikidata_id None"):
        Titles(tmp_path / "t.jsonl")
