"""The report page: its sums, its marks, what stands in it, and how it behaves in a browser."""

from __future__ import annotations

import json
import re

import pytest

from core.errors import UserError
from core.protocols import Ranking
from evaluation import against, report_curves, report_examples, report_page, report_types
from evaluation.report_marks import Mark, by_split, marked_rows, marks
from evaluation.report_runs import System, joined, open_runs, over_k, systems
from runs import report as command
from tests import browser
from tests.report_case import make_run

EVIL = (
    "</script><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\"> "
    "{{data}} \u2028 x0.1"
)
GOOD, BAD, NONE = [1] * 12, [3, 0] * 6, [0] * 12
KIND = "image+question"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    first = {"test": {KIND: GOOD, f"{KIND}, no image": BAD}, "test_new": {KIND: BAD}}
    return [
        make_run(root / "one", first, EVIL),
        make_run(root / "<b>two & 'three'", {"test": {KIND: [2, *GOOD[1:]]}, "test_new": {KIND: NONE}}, EVIL),
    ]


def found(*words) -> list[System]:
    return systems(open_runs([str(word) for word in words]))


def embedded(path) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(), re.S)[1])


# ---- which runs


def test_labels_are_as_short_as_they_can_be(tmp_path):
    a = make_run(tmp_path / "x" / "a", {"test": {"question": GOOD}})
    b = make_run(tmp_path / "x" / "b", {"test": {"image": GOOD}})
    c = make_run(tmp_path / "y" / "a", {"test": {"question": BAD}})
    assert [s.label for s in found(a, b)] == ["question", "image"]
    assert [s.label for s in found(a, c)] == ["x/a", "y/a"]
    assert [s.label for s in found(a, b, c)] == ["x/a: question", "b: image", "y/a: question"]
    assert [s.label for s in found(f"mine={a}", c)] == ["mine", "a"]
    assert list(joined(found(a, c))["test"]) == ["x/a", "y/a"]
    with pytest.raises(UserError, match="two runs are called 'mine'"):
        found(f"mine={a}", f"mine={c}")
    with pytest.raises(UserError, match=r"report\.json' does not exist"):
        found(tmp_path)


def test_files_of_another_evaluation_are_refused(tmp_path):
    run = make_run(tmp_path / "a", {"test": {"question": GOOD}})
    other = make_run(tmp_path / "b", {"test": {"question": BAD}})
    for suffix in ("jsonl", "trec"):
        file = run / "runs" / f"test.question.{suffix}"
        kept = file.read_bytes()
        file.write_bytes((other / "runs" / file.name).read_bytes())
        (system,) = found(run)
        with pytest.raises(UserError, match=r"Success@1 0.0000 over 12 .* 1.0000 over 12; evaluate again"):
            print(system.answers, system.curves)
        file.write_bytes(kept)
    assert found(run)[0].curves["Success"][0] == (1, 1.0)


# ---- marks


def system(label: str, value: float, per_query=None, queries: int = 10) -> System:
    made = System(
        label, None, "test", label, {"queries": queries, "M@1": value, "M@1 95%": [0, 1], "ms per query": 1.0}
    )
    scores = {} if per_query is None else {"M@1": {f"q{i}": v for i, v in enumerate(per_query)}}
    rankings = {f"q{i}": Ranking((), ()) for i in range(len(per_query or []))}
    made.__dict__["answers"] = type("Answers", (), {"scores": scores, "rankings": rankings, "facts": {}})()
    return made


def test_best_second_and_ties():
    given = [system("a", 0.5), system("b", 0.7), system("c", 0.5 + 1e-12), system("d", 0.1), system("e", 0.7)]
    column = marks(given)["M@1"]
    assert {k: m.place for k, m in column.items()} == {"a": "second", "b": "best", "c": "second", "d": "", "e": "best"}
    assert all(m.near is None for m in column.values())  # nothing is known per query
    assert set(marks(given)) == {"M@1"}
    # Nothing is second with nothing; all alike, or alone: there is no best.
    assert marks([system("a", 0.5), system("b", 0.0)])["M@1"] == {"a": Mark("best"), "b": Mark()}
    assert marks([system("a", 0.5), system("b", 0.5)])["M@1"] == {"a": Mark(), "b": Mark()}
    assert marks([system("a", 0.5)])["M@1"] == {"a": Mark()}


def test_what_cannot_be_told_from_the_best():
    best = [1.0] * 30 + [0.0] * 10
    close, far = [0.0, *best[1:]], [0.0] * 40
    given = [system("best", 0.75, best, 40), system("close", 0.725, close, 40), system("far", 0.0, far, 40)]
    column = marks(given)["M@1"]
    assert column == {"best": Mark("best"), "close": Mark("second", True), "far": Mark("", False)}
    rows = marked_rows(joined(given), {"test": {"M@1": column}})
    assert [row["M@1"] for row in rows] == ["**0.750**", "_0.725_ ≈", 0.0]


def test_only_equal_queries_are_ranked():
    assert marks([system("a", 0.5), system("b", 0.7, queries=11)]) is None
    one, other = system("a", 0.5, [1, 0]), system("b", 0.7, [1, 1])
    other.answers.rankings["new"] = other.answers.rankings.pop("q0")
    assert marks([one, other]) is None


# ---- over k


def test_success_and_recall_over_k_by_hand():
    qrels = {"a": {"1": 1, "2": 2, "no": 0}, "b": {"3": 1}, "c": {"4": 1}, "d": {"5": 0}}
    rankings = {"a": Ranking(("1", "x", "2"), (3, 2, 1)), "b": Ranking(("x", "3"), (2, 1)), "d": Ranking(("5",), (1,))}
    curves = over_k(rankings, qrels, 4)
    assert curves["Success"] == [(1, 0.25), (2, 0.5), (3, 0.5)]
    assert curves["Recall"] == [(1, 0.125), (2, 0.375), (3, 0.5)]
    # One relevant passage each: Recall is the same curve.
    assert over_k(rankings, {"b": {"3": 1}}, 2) == {"Success": [(1, 0), (2, 0.5), (3, 0.5)]}


def test_without_rankings_the_metrics_make_the_curve(tmp_path):
    run = make_run(tmp_path / "a", {"test": {"question": BAD}})
    (run / "runs" / "test.question.qrels").unlink()
    assert found(run)[0].curves == {"Success": [(1, 0.0), (5, 0.5)]}


def test_drawn_lines_end_where_they_should():
    svg = report_curves.svg("Success", {"a<b": [(1, 0.0), (10, 1.0)]}, ["a<b"], [1, 10])
    left, right = report_curves.LEFT, report_curves.WIDTH - report_curves.RIGHT
    low, high = report_curves.HEIGHT - report_curves.BOTTOM, report_curves.TOP
    assert (
        f'd="M{float(left)} {float(low)}L{float(right)} {float(high)}"' in svg and "a&lt;b: @1 0.000, @10 1.000" in svg
    )
    both = {report_curves.swatch(i).replace(f"--c{i % 8}", "") for i in range(24)}
    assert len(both) == 12 and report_curves.swatch(8) != report_curves.swatch(0)  # colour, dash and marker together


# ---- by type


def test_types_sum_up_to_the_whole(folders):
    given = found(*folders)
    report = joined(given)
    made = report_types.breakdown(given, report)
    assert set(made) == {"all splits", "test", "test_new"} and set(made["test"]) == {
        "parity"
    }  # "number" divides nothing
    for split in ("test", "test_new"):
        table = made[split]["parity"]
        assert table["values"] == ["even", "odd"] and sum(table["queries"]) == 12
        for metric, columns in table["metrics"].items():
            for label, values in columns.items():
                total = sum(v * n for v, n in zip(values, table["queries"])) / 12
                assert total == pytest.approx(report[split][label][metric], abs=1e-6)
    ablation = made["test"]["parity"]["metrics"]["Success@5"]["one: image+question, no image"]
    assert ablation == [1.0, 0.0]
    assert made["all splits"]["split"]["metrics"]["Success@5"]["one: image+question"] == [1.0, 0.5]


# ---- examples


def test_examples_are_bounded_shared_and_each_thing_once(folders):
    given = found(*folders)
    made = report_examples.joined(given, 5)
    part = made["splits"]["test"]
    shown = [q["id"] for q in part["queries"]]
    assert len(shown) == 5 and part["of"] == 12 and all(list(run) == shown for run in part["runs"].values())
    assert shown == sorted(shown, key=lambda q: int(q.split("q")[-1])) != [f"test:q{i}" for i in range(5)]
    assert len(made["pictures"]) == 3 and made["refused"] == 0
    assert all(len(query["images"]) == 1 for query in part["queries"])
    assert part["runs"]["one: image+question, no image"][shown[0]]["without"] == ["image"]
    assert part["runs"]["one: image+question"][shown[0]]["without"] == []
    assert report_examples.joined(given, 0)["splits"] == {}


def test_queries_that_all_runs_hold_come_first(tmp_path):
    whole = make_run(tmp_path / "a", {"test": {"question": GOOD}})
    few = make_run(tmp_path / "b", {"test": {"image": BAD}}, sample=3)
    part = report_examples.joined(found(whole, few), 4)["splits"]["test"]
    assert {f"test:q{i}" for i in range(3)} <= {q["id"] for q in part["queries"]} and len(part["queries"]) == 4


@pytest.mark.parametrize(
    "uri", [None, "", "https://example.org/a.png", "data:image/svg+xml;base64,AAAA", 'data:image/png;base64,AA" x="']
)
def test_only_encoded_pictures_are_embedded(uri):
    gallery = report_examples.Gallery()
    assert gallery.add([{"id": "a", "thumbnail": uri}]) == [] and gallery.refused == {"a"} and not gallery.uris


def test_pictures_have_a_budget():
    gallery = report_examples.Gallery(budget=60)
    one, two = ("data:image/png;base64," + letter * 20 for letter in "AB")
    assert gallery.add([{"id": "a", "thumbnail": one}, {"id": "b", "thumbnail": two}]) == [0]
    assert gallery.add([{"id": "c", "thumbnail": one}]) == [0] and gallery.refused == {"b"}


# ---- published numbers


def test_published_files_are_what_they_say():
    """The averages that the papers give beside the rows hold for the rows as copied."""
    averages = {("local", "UniIR CLIP_SF-L"): 0.506, ("local", "UniIR BLIP_FF-L"): 0.468,
                ("local", "CLIP-L (zero-shot)"): 0.325, ("local", "UniIR CLIP_SF-L (run again)"): 0.502,
                ("union", "UniIR CLIP_SF-L"): 0.489, ("union", "UniIR CLIP_FF-L"): 0.433,
                ("union", "UniIR BLIP_SF-L"): 0.427, ("union", "UniIR BLIP_FF-L"): 0.455,
                ("union", "UniIR BLIP_FF-L, 384 px"): 0.466,
                ("union", "UniIR BLIP_FF-L (run again)"): 0.443}  # fmt: skip
    rows = against.published("mbeir")["rows"]
    for (pool, model), average in averages.items():
        values = [row[model] for row in rows if row["split"].startswith(f"mbeir_{pool}.") and model in row]
        assert len(values) == 16 and sum(values) / 16 == pytest.approx(average, abs=6e-4)
    # Counts of 5,046 questions are whole numbers.
    for row in against.published("okvqa")["rows"]:
        for model, value in row.items():
            if model.startswith("Ret-XKnow") and row["metric"].startswith("PseudoSuccess"):
                assert abs(value * 5046 - round(value * 5046)) < 0.26, row
    for name in against.names():
        for row in against.published(name)["rows"]:
            assert against.published(name)["source"] and "@" in row["metric"] and row["published as"]


def test_published_rows_stand_under_the_runs_and_take_no_mark(tmp_path):
    run = make_run(tmp_path / "a", {"m2kr.EVQA": {"PreFLMR_ViT-B": BAD, "mine": NONE}})
    given = found(run)
    page = report_page.render("t", given, by_split(joined(given), given), report_examples.joined(given))
    rows = re.findall(r"<tr class='published'>.*?</tr>", page)
    assert len(rows) == 3 and "PreFLMR_ViT-G" in rows[0] and "0.625" in rows[0] and "published as Recall@5" in rows[0]
    assert not any("class='n best" in row for row in rows) and "<td class='n best'>" in page
    assert "<li id='source1'>README and docs/Datasets.md of <a rel='noreferrer' href='https://github.com/" in page
    # A data set's name is as good as the split's.
    assert [r["model"] for r in against.references("test", "okvqa_gs")][-1].startswith("FLMR")
    assert against.references("test", "flagfacts") == []


# ---- the command and the file


@pytest.fixture(scope="module")
def page(folders, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "seen"
    command.run([*map(str, folders), "--out", str(out)])
    return out / "report.html"


def test_the_command_writes_everything(page, folders, capsys, tmp_path):
    assert sorted(p.name for p in page.parent.iterdir()) == [
        f"report.{s}" for s in ("csv", "html", "json", "md", "png")
    ]
    table = (page.parent / "report.md").read_text()
    assert "| **1.000** [1.000, 1.000]" in table and "_0.917_ ≈" in table
    command.run([str(folders[0]), "--out", str(tmp_path / "o"), "--examples", "0"])
    assert (
        "no examples" in capsys.readouterr().out
        and embedded(tmp_path / "o" / "report.html")["examples"]["splits"] == {}
    )
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "report.json").write_text("{}")
    with pytest.raises(UserError, match=r"no report.json of .* holds a metric"):
        command.run([str(tmp_path / "empty"), "--out", str(tmp_path / "o")])
    with pytest.raises(UserError, match="is one of the runs"):
        command.run([str(folders[0]), "--out", str(folders[0])])
    with pytest.raises(UserError, match="--examples -1 is below 0"):
        command.run([str(folders[0]), "--out", str(tmp_path), "--examples", "-1"])


def test_the_page_needs_nothing_else(page):
    text = page.read_text()
    head, data = text.split('<script type="application/json"')[0], embedded(page)
    assert (
        text.count("</script>") == 2 and "default-src 'none'" in head and "unsafe-inline'; script-src 'sha256-" in head
    )
    outside = re.sub(r'<script type="application/json".*?</script>', "", text, flags=re.S)
    assert not re.search(r"(?:src|href)=(?!['\"]?(?:#|data:))|@import|url\(|https?:", outside)
    assert "<b>two" not in outside and "&lt;b&gt;two" in outside
    texts = {d["text"] for d in data["examples"]["splits"]["test"]["documents"].values()}
    assert EVIL in texts and len(data["examples"]["pictures"]) == 3
    assert "3 systems on 2 splits, 24 queries." in text


def test_colours_can_be_read():
    """WCAG: 4.5 for text, 3 for lines, in both schemes."""
    css = (report_page.FOLDER / "report_page.css").read_text()
    for scheme in re.findall(r":root \{(.*?)\}", css, re.S):
        named = dict(re.findall(r"--(\w+): (#[0-9a-f]+)", scheme))
        for ground in ("paper", "card"):
            for ink in ("ink", "soft", "accent", "good", "bad", "near"):
                assert contrast(named[ink], named[ground]) >= 4.5, (ink, ground)
            for n in range(report_curves.COLOURS):
                assert contrast(named[f"c{n}"], named[ground]) >= 3, (n, ground)
        assert contrast(named["good"], named["goodbg"]) >= 4.5 and contrast(named["ink"], named["mark"]) >= 4.5


def contrast(one: str, other: str) -> float:
    def light(colour: str) -> float:
        digits = colour[1:] if len(colour) == 7 else "".join(c * 2 for c in colour[1:])
        parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((light(one), light(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


# ---- in a browser


@pytest.fixture(scope="module")
def chromium():
    with browser.browser() as started:
        yield started


def test_looking_through_the_examples(page, chromium):
    with browser.opened(chromium, page) as (tab, seen):
        assert tab.title() == "seen: retrieval report" and tab.locator("h1").inner_text() == "seen"
        image = browser.picture(tab)
        assert image.size == browser.DESKTOP and browser.colours(image) > 200
        assert "12 of 12 queries of “test”" in tab.inner_text(
            "#sample"
        ) and "3 pictures are embedded" in tab.inner_text("#sample")
        assert tab.locator(".query").count() == 12
        assert tab.evaluate("[...document.querySelectorAll('img')].every(i => i.complete && i.naturalWidth === 48)")
        # What a passage holds is text: shown, not run.
        assert "document.title='taken'" in tab.inner_text("#detail") and tab.locator("#detail script").count() == 0
        assert tab.locator("#detail mark").first.inner_text() == "x0.1"  # the answer
        # Keys: down the list, anywhere, and swapping the systems.
        tab.focus("#list")
        tab.keyboard.press("ArrowDown")
        assert "flag number 1" in tab.inner_text("#detail h3")
        assert tab.get_attribute(".query[aria-selected=true]", "data-id") == "test:q1"
        tab.locator("h1").click()
        tab.keyboard.press("j")
        tab.keyboard.press("j")
        tab.keyboard.press("k")
        assert "flag number 2" in tab.inner_text("#detail h3")
        before = tab.locator(".ranked h4").all_inner_texts()
        tab.keyboard.press("x")
        assert tab.locator(".ranked h4").all_inner_texts() == before[::-1] and len(before) == 2
        tab.keyboard.press("/")
        tab.keyboard.type("odd")
        assert tab.inner_text("#count") == "6 of 12 examples" and tab.input_value("#search") == "odd"
        assert seen.errors == [] and seen.requests == []


def test_two_runs_on_one_query(page, chromium):
    with browser.opened(chromium, page) as (tab, seen):
        tab.select_option("#a", "one: image+question")
        tab.select_option("#b", "<b>two & 'three': image+question")
        tab.select_option("#filter", "gained")
        assert tab.inner_text("#count") == "1 of 12 examples" and "flag number 0" in tab.inner_text("#detail h3")
        assert [t.strip() for t in tab.locator(".ranked > div > p").all_inner_texts()] == ["✓ rank 1", "✗ rank 2"]
        assert tab.locator(".ranked .hit.relevant .rank").all_inner_texts() == ["1.", "2."]
        tab.select_option("#depth", "3")
        assert tab.inner_text("#count").startswith("0 of 12") and tab.inner_text("#detail") == ""
        tab.select_option("#filter", "both")
        assert tab.inner_text("#count") == "12 of 12 examples"
        tab.select_option("#b", "")
        assert tab.locator("#filter option").all_inner_texts() == ["all", "right", "wrong"]
        tab.select_option("#split", "test_new")
        tab.select_option("#filter", "wrong")
        assert tab.inner_text("#count") == "6 of 12 examples"
        assert tab.locator(".hit:visible").count() == 5
        tab.locator(".rest").click()
        assert tab.locator(".hit:visible").count() == 10
        assert seen.errors == [] and seen.requests == []


def test_types_and_curves(page, chromium):
    with browser.opened(chromium, page) as (tab, seen):
        tab.select_option("#typeSplit", "test")
        tab.select_option("#typeMetric", "Success@5")
        rows = [row.split("\t") for row in tab.inner_text("#typeTable table").split("\n")]
        assert [row[:2] for row in rows[1:]] == [["even", "6"], ["odd", "6"]] and rows[2].count("0.000") == 1
        button = tab.locator(".legend button").first
        line = tab.locator('.line[data-system="0"]').first
        button.click()
        assert button.get_attribute("aria-pressed") == "false" and not line.is_visible()
        button.click()
        assert line.is_visible() and tab.locator("svg.curves").count() == 2
        assert seen.errors == []


@pytest.mark.parametrize("dark", [False, True])
def test_on_a_phone(page, chromium, dark):
    with browser.opened(chromium, page, browser.PHONE, dark, has_touch=True) as (tab, seen):
        assert tab.evaluate("document.documentElement.scrollWidth") == browser.PHONE[0]
        image = browser.picture(tab)
        assert (sum(image.getpixel((2, 2))) < 150) == dark and browser.colours(image) > 200
        tab.locator(".query").nth(3).tap()
        assert "flag number 3" in tab.inner_text("#detail h3")
        unnamed = tab.evaluate(
            "[...document.querySelectorAll('select, input')].filter(e => !e.labels.length).map(e => e.id)"
        )
        assert unnamed == [] and seen.errors == []


def test_without_javascript_the_numbers_stand(page, chromium):
    with browser.opened(chromium, page, java_script_enabled=False) as (tab, _):
        assert "0.917" in tab.inner_text("#results") and tab.locator("svg.curves").first.is_visible()
        assert "drawn with JavaScript" in tab.inner_text("main")
