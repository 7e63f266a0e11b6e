"""``runs.check_data``: what it finds in whole downloads, in incomplete ones and in odd ones."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

import dataset
from core.errors import UserError
from dataset.lines import LineCorpus, Lines
from runs import check_data, looking
from tests import data_cases, data_cases_own, tiny
from tests.data_cases_own import jsonl
from tests.m2kr_case import tiny_m2kr, tiny_okvqa
from tests.wikilens_case import tiny_wikilens

CASES = {**data_cases.CASES, **data_cases_own.CASES}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.model_section("mire", tmp_path_factory.mktemp("towers"))


@pytest.fixture
def checked(tmp_path, model, capsys):
    """Runs the command on a ``data`` section: (status, findings, text on stdout)."""

    def run(section: dict, *words: str):
        (tmp_path / "c.yaml").write_text(yaml.safe_dump({"data": section, "model": model, "train": {"steps": 1}}))
        args = ["--config_path", str(tmp_path / "c.yaml"), *words]
        status = check_data.run([*args, "--json"])
        found = json.loads(capsys.readouterr().out)
        assert check_data.run(args) == status
        return status, found, capsys.readouterr().out

    return run


def section(name: str, root: Path) -> dict:
    if name == "vid2r":
        rows = [{"id": i, "image": "a.png", "question": f"q{i}", "document": f"passage {i}"} for i in range(6)]
        tiny.image(root, "a.png")
        return {"name": name, "path": data_cases.write_json(root / "v.json", rows), "image_dir": str(root),
                "valid_samples": 2}  # fmt: skip
    if name == "wikilens":
        tiny_wikilens(root / "wikilens")
        return {"name": name, "root": str(root / "wikilens")}
    if name == "m2kr":
        folder = str(tiny_m2kr(root))
        return {"name": name, "subset": "EVQA", "path": folder, "image_dir": folder}
    if name == "okvqa_flmr":
        folder = str(tiny_okvqa(root))
        return {"name": name, "path": f"{folder}/data", "passages": f"{folder}/passages",
                "image_dir": f"{folder}/images"}  # fmt: skip
    if name in CASES:
        return {"name": name, **CASES[name](root)}
    return {"name": name}


@pytest.mark.parametrize("name", [n for n in dataset.names() if n in CASES or n in
                                  ("vid2r", "m2kr", "okvqa_flmr", "flagfacts", "wikilens")])  # fmt: skip
def test_every_data_set_can_be_looked_at(name, checked, tmp_path):
    """Fixtures that leave out pictures are told so, and are otherwise in order."""
    status, found, text = checked(section(name, tmp_path), *(["--limit", "40"] if name == "flagfacts" else []))
    assert all("images looked at are missing" in p for p in found["problems"]), found["problems"]
    assert status == (1 if found["problems"] else 0) and found["data"] == name
    assert found["splits"] and all(s["queries"] and s["first"] for s in found["splits"].values())
    assert found["passages"]["looked_at"] and found["passages"]["first"]
    assert all(split in text for split in found["splits"]) and found["passages"]["first"][0] in text


def test_a_whole_download(checked, tmp_path):
    status, found, text = checked(section("jsonl", tmp_path))
    assert status == 0 and found["ok"] and text.endswith("nothing is missing\n") and "get_it" not in found
    assert found["splits"]["train"] == {
        "queries": 7, "empty": 0, "without_question": 0, "without_image": 2, "repeated_ids": 0, "passages": 6,
        "without_gold": 0, "gold_missing": 0, "first": ["1: which fish is 1 [1.png]", "2: which fish is 2 [2.png]"],
    }  # fmt: skip
    assert found["images"] == {"looked_at": 4, "resolved": 4}
    assert [f["key"] for f in found["files"]] == ["path", "test_path", "passages", "test_qrels", "image_dir"]


def test_missing_files_are_each_told_once_with_where_to_get_them(checked, tmp_path):
    made = section("infoseek", tmp_path)
    for key in ("test_path", "passages"):
        Path(made[key]).unlink()
    status, found, text = checked(made)
    assert status == 1
    assert sorted(found["problems"]) == [f"data.{k} '{made[k]}' is not there" for k in ("passages", "test_path")]
    assert "train" in found["splits"] and "test" not in found["splits"], "what is there is looked at all the same"
    assert "docs/DATA.md" in found["get_it"] and found["get_it"] in text and "MISSING  passages" in text


def test_missing_and_broken_images(checked, tmp_path):
    made = section("jsonl", tmp_path)
    (tmp_path / "images" / "0.png").unlink()
    (tmp_path / "images" / "1.png").write_bytes(b"no image")
    status, found, _ = checked(made)
    assert status == 1 and found["images"] == {"looked_at": 4, "resolved": 2}
    (problem,) = found["problems"]
    assert problem.startswith("2 of 4 images looked at are missing or broken") and "cannot be decoded" in problem


def test_some_images_or_all(checked, tmp_path, monkeypatch):
    monkeypatch.setattr(looking, "IMAGES", 1)
    made = section("evqa", tmp_path)
    _, some, _ = checked(made)
    _, every, _ = checked(made, "--all_images")
    assert some["images"]["looked_at"] <= 3 and every["images"]["looked_at"] == 3
    (tmp_path / "inat" / "train" / "001_Robin" / "8.jpg").unlink()
    assert checked(made)[0] == 0 and checked(made, "--all_images")[0] == 1, "no evaluation shows that one first"


def test_odd_things_are_counted(checked, tmp_path):
    made = section("jsonl", tmp_path)
    rows = [{"query_id": "a", "query_text": " ", "positive_document_ids": ["gone"]},
            {"query_id": "b", "query_text": "b", "positive_document_ids": []},
            {"query_id": "c", "query_text": "c", "positive_document_ids": ["gone", "1"]}]  # fmt: skip
    made |= {"test_path": jsonl(tmp_path / "t.jsonl", rows), "test_qrels": None}
    lines = Path(made["passages"]).read_text()
    Path(made["passages"]).write_text(lines + '{"docid": "empty"}\n')
    status, found, text = checked(made)
    test = found["splits"]["test"]
    counts = {key: test[key] for key in ("without_question", "without_image", "without_gold", "gold_missing")}
    assert counts == {"without_question": 1, "without_image": 3, "without_gold": 1, "gold_missing": 1}
    assert found["passages"]["empty"] == 1 and status == 0 and "1 without a question" in text


def test_passages_of_other_queries(checked, tmp_path):
    made = section("fashioniq", tmp_path)
    jsonl(Path(made["passages"]), [{"image": "B0.png", "content": "other"}])
    status, found, _ = checked(made)
    assert status == 1 and sum("do these passages belong to these queries?" in p for p in found["problems"]) == 3


def test_single_wrong_records_do_not_hide_the_others(checked, tmp_path):
    made = section("jsonl", tmp_path)
    jsonl(Path(made["test_path"]), [{"query_id": "t0", "query_text": 5}, {"query_id": "t1", "query_text": "fine"}])
    status, found, _ = checked(made)
    assert status == 1 and found["splits"]["test"]["first"] == ["t1: fine"]
    assert any("1 queries cannot be read, such as: question 't0' has the query_text 5" in p for p in found["problems"])


def test_nothing_in_it(checked, tmp_path):
    made = section("jsonl", tmp_path)
    Path(made["test_path"]).write_text("")
    Path(made["passages"]).write_text("")
    status, found, _ = checked(made)
    assert status == 1 and {"test: there are no queries", "passages: there are none"} <= set(found["problems"])


def test_fields_of_other_names(checked, tmp_path):
    """Where every text is empty nothing was read, and a run would learn nothing."""
    made = section("jsonl", tmp_path)
    jsonl(Path(made["test_path"]), [{"query_id": f"t{i}", "query": "what?"} for i in range(3)])
    jsonl(Path(made["passages"]), [{"docid": i, "passage": "a text"} for i in range(9)])
    status, found, text = checked(made)
    wanted = {"test: no query has a text or an image", "passages: none has a text or an image"}
    assert status == 1 and wanted <= {problem.partition(";")[0] for problem in found["problems"]}
    assert found["splits"]["test"]["empty"] == 3 and "3 without a question and without an image" in text


def test_a_split_of_no_file_is_no_problem(checked, tmp_path):
    status, found, _ = checked({**section("jsonl", tmp_path), "path": None})
    assert status == 0 and list(found["splits"]) == ["test"]


def test_a_data_set_that_cannot_be_built(checked):
    status, found, _ = checked({"name": "flagfacts", "root": "nowhere"})
    assert status == 1 and found["problems"] == ["data.root 'nowhere' is not there"]


def test_looking_downloads_nothing(checked, tmp_path, monkeypatch):
    monkeypatch.setattr("dataset.m2kr.fetch", lambda *a: pytest.fail("a download"))
    status, found, _ = checked({"name": "m2kr", "subset": "EVQA", "path": str(tmp_path), "repo": "a/b",
                                "image_dir": str(tmp_path)})  # fmt: skip
    assert status == 1 and any("there is no EVQA_data split 'train'" in p for p in found["problems"])


def test_a_large_corpus_is_not_held(checked, tmp_path, monkeypatch):
    """Of 5,000 passages some hundred are made: the sample and the relevant ones, not all for their ids."""
    made = section("jsonl", tmp_path)
    jsonl(Path(made["passages"]), [{"docid": i, "text": f"text {i}"} for i in range(5000)])
    made |= {"test_path": None, "test_qrels": None}
    monkeypatch.setattr(looking, "PASSAGES", 50)
    taken = []
    read_whole = lambda self: pytest.fail(f"'{self.path}' is read from end to end")  # noqa: E731
    monkeypatch.setattr(LineCorpus, "__iter__", read_whole, raising=False)
    real = Lines._at
    monkeypatch.setattr(Lines, "_at", lambda self, *a: taken.append(self.path) or real(self, *a))
    status, found, _ = checked(made)
    assert status == 0 and found["splits"]["train"]["passages"] == 5000
    assert 50 <= taken.count(Path(made["passages"])) <= 250  # the command runs twice


def test_every_data_set_has_its_row_and_section_in_the_page():
    page = (Path(__file__).resolve().parents[1] / "docs" / "DATA.md").read_text(encoding="utf-8")
    headings = re.findall(r"^##+ (.+)$", page, re.M)
    anchors = {"#" + re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
    for name in dataset.names():
        told = check_data.get_it(name)
        assert told.startswith("get it from: "), f"the table of docs/DATA.md lacks `{name}`"
        assert re.search(r"docs/DATA\.md(#\S+)", told)[1] in anchors, f"docs/DATA.md lacks the section of `{name}`"
    assert check_data.get_it("nothing").startswith("docs/DATA.md says")


def test_no_config():
    with pytest.raises(UserError, match="give --config_path"):
        check_data.run([])
