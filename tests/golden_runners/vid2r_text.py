"""ViD2R's text rules, ids, negatives, neural stage and passages, through the commands themselves.

The tagger answers from the case's table, and the search from its fixed results; everything else is what a user runs.
What the published scripts crash on is dropped here with the exception as its reason.
"""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

from core.errors import UserError
from core.protocols import Ranking
from dataset.vid2r_rules import STOPS
from runs import convert_tasks, neural_filtering
from runs.recipe_filter import SOLVED
from tests.golden_case import Case

RULES = {"mire": "legacy-mire", "xknow": "legacy-xknow"}
NOTHING_KEPT = {"xknow": "AttributeError: 'NoneType' object has no attribute 'endswith'", "mire": None}
"""What each script says when no sample survives."""

PROVENANCE = ("kb_ids", "kb_scores", "filter_rank", "filter_score")


def run(case: Case) -> None:
    nouns = {}
    for path in case.path.rglob("nouns_by_phrase.json"):
        nouns |= {phrase: facts["nouns"] for phrase, facts in load(path).items()}
        tagged = {p: [t for t, tag in f["tokens"] if tag in ("NOUN", "PROPN")] for p, f in load(path).items()}
        assert tagged == {p: nouns[p] for p in tagged}
    with tempfile.TemporaryDirectory() as folder, mock.patch("runs.recipe_text.noun_tagger", lambda: nouns.__getitem__):
        tries = Tries(case, Path(folder))
        known = {"case.json", "nouns_by_phrase.json", "rule_notes.json"}
        for path in sorted(case.path.rglob("*")):
            if path.is_dir() or path.name in known:
                continue
            part = getattr(tries, path.parent.name, None)
            assert part is not None, f"{path} is of a part that is not known"
            part(path)


def load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


class Tries:
    """One method per folder of a case; it is handed every file of it."""

    def __init__(self, case: Case, folder: Path) -> None:
        self.case, self.folder, self.count = case, folder, 0

    def compare(self, name: str, expected: Any, ours: Any) -> None:
        self.case.compare(name, expected, ours, "exact")

    def filtered(self, given: Any, system: str, *flags: str, lines: bool = False) -> tuple[list[dict], dict]:
        """(records, counts) of the command on these conversations."""
        self.count += 1
        source = self.folder / f"in{self.count}.{'jsonl' if lines else 'json'}"
        text = "\n".join(json.dumps(c) for c in given) if lines else json.dumps(given, indent=1)
        source.write_text(text, encoding="utf-8")
        save = self.folder / f"out{self.count}.json"
        words = ["--data_paths", str(source), "--rules", RULES[system], "--save_path", str(save), *flags]
        try:
            neural_filtering.run(words)
        except UserError as error:
            assert "no pair was kept" in str(error)
        return load(save), load(self.folder / f"out{self.count}.counts.json")

    def filter(self, path: Path) -> None:
        if path.name == "llava_input.json":
            return
        system, length = re.fullmatch(r"expected_(mire|xknow)_drop_len(\d+)\.json", path.name).groups()
        given = load(path.parent / "llava_input.json")
        for lines in (False, True):
            records, _ = self.filtered(given, system, "--skip_neural", "--drop_len", length, lines=lines)
            self.compare(f"{path.stem}, {'lines' if lines else 'list'}", load(path), records)
            assert [list(r) for r in records] == [list(r) for r in load(path)], "fields in another order"

    def negatives(self, path: Path) -> None:
        if path.name == "llava_input.json":
            return
        given = load(path.parent / "llava_input.json")
        if path.name == "neural_stage.json":
            return self._neural(given, load(path))
        (system,) = re.fullmatch(r"expected_(mire|xknow)_save_negative\.json", path.name).groups()
        records, _ = self.filtered(given, system, "--skip_neural", "--save_negative")
        self.compare(path.stem, load(path), records)

    def _neural(self, given: Any, facts: dict) -> None:
        results = facts["search_results_by_question"]

        class Search(Fixed):
            def found(self, text: str) -> list[str]:
                places = {document.text: document.id for document in self.corpus}
                return [places[result] for result in results.get(text, [])]

        with mock.patch("runs.recipe_search.Searcher", Search):
            records, counts = self.filtered(given, "xknow", "--n_cands", str(facts["n_cands"]))
        before = counts["pairs"]["kept"] + counts["pairs"]["dropped"].get(SOLVED, 0)
        ours = {
            "would_stay": [record["id"] for record in records],
            "printed": [f"Filtered: {before} -> {counts['pairs']['kept']}."],
            "saved_by_reference": self.filtered(given, "xknow", "--skip_neural")[0],
        }
        for key in facts.keys() - {"n_cands", "search_results_by_question", "note"}:
            self.compare(f"neural stage/{key}", facts[key], ours[key])

    def quirks(self, path: Path) -> None:
        assert path.name == "cases.json", path
        for quirk in load(path):
            for system in quirk.keys() - {"note", "input"}:
                records, counts = self.filtered(quirk["input"], system, "--skip_neural")
                stops = {r: s for r, s in counts["samples"].items() if r.startswith(STOPS)}
                error = NOTHING_KEPT[system] if not records else None
                if stops:
                    first = min(
                        stops, key=lambda reason: (stops[reason]["at"], int(stops[reason]["id"].rpartition("_")[2]))
                    )
                    error = first.removeprefix(STOPS)
                ours = {"error": error, "out": None if error else records}
                self.compare(f"{quirk['note']}, {system}", quirk[system], ours)

    def convert(self, path: Path) -> None:
        if not path.name.startswith("expected_"):
            assert path.name in ("input.json", "top3_rows.json", "wiki.jsonl"), path
            return
        name = re.fullmatch(r"expected_(mire|xknow)_(?:default|(remove_bracket)?_?(?:n_cands(\d+))?)\.json", path.name)
        system, bracket, n_cands = name.groups()
        rows = load(path.parent / "top3_rows.json")

        class Search(Fixed):
            def found(self, text: str) -> list[str]:
                return [str(row) for row in rows[text]]

        save, index = self.folder / f"{path.stem}.json", self.folder / f"{path.stem}.index"
        base = str(path.parent / "wiki.jsonl")
        given = str(path.parent / "input.json")
        words = ["--data_path", given, "--db_pool", base, "--template", RULES[system]]
        words += ["--index", str(index), "--indexing", "--save_path", str(save)]
        words += ["--remove_bracket"] if bracket else []
        words += ["--n_cands", n_cands] if n_cands else []
        with mock.patch("runs.recipe_search.Searcher", Search):
            convert_tasks.run(words)
        records = load(save)
        assert all("kb_ids" in record and "kb_scores" in record for record in records)
        self.compare(path.stem, load(path), [{k: v for k, v in r.items() if k not in PROVENANCE} for r in records])


class Fixed:
    """Stands for ``recipe_search.Searcher``: no model, no index, fixed results."""

    def __init__(self, checkpoint, device, corpus, path, *_, **__) -> None:
        self.corpus, self.path = corpus, Path(path)

    def build(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / "manifest.json").write_text("{}")

    def open(self) -> Fixed:
        return self

    def __call__(self, texts, k: int) -> list[Ranking]:
        ids = [self.found(text)[:k] for text in texts]
        return [Ranking(tuple(found), tuple(float(-i) for i in range(len(found)))) for found in ids]
