"""The page in a real browser: asking, seeing, hovering, going back, and what it says when something is wrong."""

from __future__ import annotations

import itertools
import time

import pytest

from searcher.guard import Limits
from tests.browser import DESKTOP, PHONE, browser, colours, opened, picture
from tests.searcher_case import encoded, engine, examples, served

CAMERA = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")


@pytest.fixture(scope="module")
def chromium():
    with browser(CAMERA) as started:
        yield started


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    made = tmp_path_factory.mktemp("page")
    (made / "flag.png").write_bytes(encoded((64, 48)))
    (made / "other.jpg").write_bytes(encoded((48, 64), "JPEG", (10, 160, 60)))
    (made / "words.txt").write_text("no picture")
    (made / "broken.png").write_bytes(encoded()[:70])
    return made


@pytest.fixture(scope="module")
def made(root):
    return engine(root)


@pytest.fixture(scope="module")
def base(made, root):
    with served(made, limits=Limits(max_bytes=50_000), examples=examples(root)[:2]) as address:
        yield address


@pytest.fixture
def page(chromium, base):
    """(page, Seen) of the page, ready; at the end nothing went wrong in it and it asked nobody else."""
    with opened(chromium, base) as (page, seen):
        page.wait_for_selector("#examples button")
        yield page, seen
    assert not seen.errors and not [r for r in seen.requests if not r.startswith("blob:")]


def ask(page, question: str = "", file=None) -> None:
    if file is not None:
        page.set_input_files("#file", file)
    page.fill("#question", question)
    page.click("#go")
    page.wait_for_selector("#go:not([disabled])")


def until(page, expression: str, seconds: float = 20) -> None:
    """Playwright's own wait_for_function needs eval, which the page's policy forbids."""
    end = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < end, expression
        page.wait_for_timeout(20)


def titles(page) -> list[str]:
    return page.locator("#results h3").all_inner_texts()


def heat(page) -> str:
    return page.evaluate("document.querySelector('#look canvas').toDataURL()")


def test_upload_ask_see_and_hover(page, root, made):
    page, _ = page
    assert "30 passages" in page.inner_text("#about") and page.locator("#results li").count() == 0
    ask(page, "which bird eats cheese", root / "flag.png")
    page.wait_for_selector("#results .passage")
    assert len(titles(page)) == 5 and titles(page)[0].startswith("Title")
    assert "5 passages in" in page.inner_text("#state") and page.locator("#speed .track span").count() == 5
    assert page.locator("#results .why:visible").count() == 1  # the best one's reasons are open
    before = heat(page)
    word = page.locator("#look .words button", has_text="cheese")
    word.hover()
    assert heat(page) != before and "“cheese”: most at row" in page.inner_text("#look .said")
    page.mouse.move(0, 0)
    assert heat(page) == before
    page.locator("#results .passage span[tabindex]").first.focus()  # by keyboard as well
    assert page.locator("#results tr.on").count() > 0
    page.locator("#results tr[tabindex]").last.hover()
    assert page.locator("#results .passage span.on").count() == 1
    second = page.locator("#results li").nth(1)
    second.locator(".more").click()
    second.locator(".passage").wait_for()
    assert second.locator(".more").get_attribute("aria-expanded") == "true"
    second.locator(".more").click()
    assert not second.locator(".why").is_visible() and second.locator(".body > p").is_visible()


def test_the_questions_words_are_marked(page):
    page, _ = page
    ask(page, "Where is the mountain, and what of islands?")
    page.locator("#results li").first.locator(".more").click()
    marks = {m.lower() for m in page.locator("#results mark").all_inner_texts()}
    shown = " ".join(page.locator("#results .body > p").all_inner_texts())
    assert marks == {w for w in ("mountain", "island") if w in shown} and marks


def test_a_picture_alone_and_a_question_alone(page, root):
    page, _ = page
    ask(page, file=root / "other.jpg")
    page.wait_for_selector("#look canvas")
    assert len(titles(page)) == 5 and "(a picture alone)" in page.inner_text("#history")
    page.click("#remove")
    ask(page, "which fish")
    page.wait_for_selector("#results .passage")
    assert not page.locator("#look").is_visible() and page.locator("#history li").count() == 2


def test_going_back_asks_nothing(page, root):
    page, _ = page
    ask(page, "which bird", root / "flag.png")
    first = titles(page)
    page.wait_for_selector("#look canvas")
    page.click("#remove")
    ask(page, "red snow food")
    page.wait_for_selector("#results .passage")
    page.route("**/search", lambda route: route.abort())
    page.locator("#history button").last.click()
    assert titles(page) == first and page.input_value("#question") == "which bird"
    page.wait_for_selector("#look canvas")
    assert page.locator("#history button").last.get_attribute("aria-current") == "true"


def test_examples(page):
    page, _ = page
    until(page, "document.querySelector('#examples img').naturalWidth > 0")
    page.locator("#examples button").first.click()
    page.wait_for_selector("#results li")
    assert page.input_value("#question") == "which bird" and page.locator("#preview").is_visible()
    page.locator("#examples button").last.click()
    until(page, "document.querySelectorAll('#history li').length === 2")
    assert not page.locator("#preview").is_visible()


DATA = """async ([url, name, type, event]) => {
  const blob = await (await fetch(url)).blob(), data = new DataTransfer();
  data.items.add(new File([blob], name, {type}));
  const made = event === "paste" ? new ClipboardEvent("paste", {clipboardData: data, bubbles: true})
                                 : new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true});
  document.getElementById("drop").dispatchEvent(made);
}"""


def test_words_are_dropped_and_pasted_as_words(page):
    """Office programs put a picture of copied words beside them."""
    page, _ = page
    prevented = page.evaluate("""() => {
      const both = new DataTransfer(), words = new DataTransfer(), all = {bubbles: true, cancelable: true};
      both.items.add(new File(["x"], "x.png", {type: "image/png"}));
      for (const one of [both, words]) one.setData("text/plain", "words");
      both.setData("text/html", "<b>words</b>");
      return [new ClipboardEvent("paste", {...all, clipboardData: both}),
        new DragEvent("dragover", {...all, dataTransfer: words}), new DragEvent("drop", {...all, dataTransfer: words})]
        .map(event => !document.getElementById("question").dispatchEvent(event));
    }""")
    assert prevented == [False] * 3 and not page.locator("#preview").is_visible()


def test_the_heat_map_of_a_long_question(page):
    """600 words on 400 patches: more numbers than a call can have arguments."""
    page, _ = page
    page.evaluate("""() => Why.look({picture: {uri: "data:,", width: 9, height: 9, grid: [20, 20]},
      words: Array.from({length: 600}, (_, i) => ({text: "w" + i, pieces: [i], marker: false})),
      maps: {unit: "cosine", heads: ["1"], whole: [Array(400).fill(.5)],
        words: [Array.from({length: 600}, (_, i) => Array(400).fill(i / 600))]}}, document.getElementById("look"))""")
    assert page.locator("#look .words button").count() == 601


@pytest.mark.parametrize("event", ["drop", "paste"])
def test_dropping_and_pasting(page, event):
    page, _ = page
    page.evaluate(DATA, ["examples/0/image", "x.png", "image/png", event])
    page.wait_for_selector("#preview img[src^=blob]")
    page.click("#go")
    page.wait_for_selector("#results li")


def test_the_camera(page):
    page, _ = page
    page.click("#webcam")
    until(page, "document.querySelector('video').videoWidth > 0")
    page.click("#snap")
    page.wait_for_selector("#preview img[src^=blob]")
    assert not page.locator("#camera").is_visible()
    assert page.evaluate("document.querySelector('video').srcObject.getTracks()[0].readyState") == "ended"
    assert page.get_attribute("#shown", "alt") == "Your picture: camera.jpg"


def test_the_call_works_in_a_terminal(page, root, tmp_path):
    import json
    import shutil
    import subprocess

    page, _ = page
    ask(page, "which bird's $HOME `x`", root / "flag.png")
    command = page.text_content("#curl")
    assert "image=@flag.png" in command and "-F k=5" in command
    if shutil.which("curl") is None:
        pytest.fail("curl is not installed; apt-get install curl")
    found = subprocess.run(["sh", "-c", command], cwd=root, capture_output=True, text=True, check=True)
    assert [h["title"] for h in json.loads(found.stdout)["results"]] == titles(page)


# ---- what is wrong


def test_errors_are_said(chromium, base, root):
    with opened(chromium, base) as (page, seen):
        page.wait_for_selector("#examples button")
        page.click("#go")
        assert "Show a picture or type a question" in page.inner_text("#problem")
        assert page.evaluate("document.activeElement.id") == "question"
        page.set_input_files("#file", root / "words.txt")
        assert "“words.txt” is no picture" in page.inner_text("#problem")
        (root / "large.png").write_bytes(encoded() + bytes(60_000))
        page.set_input_files("#file", root / "large.png")
        assert "this server takes 0.05 MB" in page.inner_text("#problem")
        assert not page.locator("#preview").is_visible() and not seen.errors
        ask(page, file=root / "broken.png")
        page.wait_for_selector("#problem:visible")
        assert "damaged PNG" in page.inner_text("#problem")
        page.click("#remove")
        page.route("**/search", lambda route: route.abort())
        ask(page, "which bird")
        page.wait_for_selector("#problem button")
        assert "cannot be reached" in page.inner_text("#problem")
        page.unroute("**/search")
        page.click("#problem button")
        page.wait_for_selector("#results li")
        assert not page.locator("#problem").is_visible()


def test_a_full_server(chromium, base):
    with opened(chromium, base) as (page, _):
        page.wait_for_selector("#examples button")
        page.route(
            "**/search",
            lambda route: route.fulfill(status=503, body='{"detail": "64 requests are waiting; try again."}'),
        )
        ask(page, "which bird")
        page.wait_for_selector("#problem button")
        assert "64 requests are waiting" in page.inner_text("#problem")
        page.route("**/search", lambda route: route.fulfill(status=502, body="<html>Bad Gateway</html>"))
        page.click("#problem button")
        until(page, "document.getElementById('problem').textContent.includes('502')")


def test_the_token_is_asked_for(chromium, made, root):
    token = "öffne dich €"  # beyond what a header's letters are
    with (
        served(made, token=token, examples=examples(root)[:2]) as address,
        opened(chromium, address) as (page, _),
    ):
        page.wait_for_selector("#token")
        for given in ("wrong", token):
            page.wait_for_selector("#tokenCard:not([hidden])")
            page.fill("#token", given)
            page.press("#token", "Enter")
        page.wait_for_selector("#examples button")
        until(page, "document.querySelector('#examples img').naturalWidth > 0")
        ask(page, "which bird")
        page.wait_for_selector("#results .passage")
        assert token not in page.text_content("#curl") and "$SEARCHER_TOKEN" in page.text_content("#curl")


def test_a_model_that_reads_text_only(chromium, tmp_path):
    with served(engine(tmp_path, "colbert")) as address, opened(chromium, address) as (page, seen):
        until(page, "document.getElementById('hint').textContent.includes('text only')")
        assert not page.locator("#drop").is_visible() and not page.locator("#exampleCard").is_visible()
        ask(page, "which bird")
        page.wait_for_selector("#results .passage")
        assert not seen.errors


# ---- how it looks


@pytest.mark.parametrize(("size", "dark"), itertools.product((DESKTOP, PHONE), (False, True)))
def test_it_fits_and_can_be_read(chromium, base, root, size, dark):
    with opened(chromium, base, size, dark) as (page, seen):
        page.wait_for_selector("#examples button")
        assert colours(picture(page)) > 200
        ask(page, "which bird eats cheese", root / "flag.png")
        page.wait_for_selector("#look canvas")
        page.locator("#call summary").click()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, ground[4:-1].split(","))) < 200) == dark
        assert not [f"{n} {r:.1f}" for n, r in page.evaluate(CONTRAST) if r < 4.5] and not seen.errors
        small = page.evaluate("[...document.querySelectorAll('button, select, .button')].filter(b => b.offsetParent"
                              " && b.getBoundingClientRect().height < 24).map(b => b.outerHTML)")  # fmt: skip
        assert not small  # fingers


def test_on_a_phone_the_heat_map_stands_with_the_reasons(chromium, base, root):
    with opened(chromium, base, PHONE) as (page, seen):
        ask(page, "which bird eats cheese", root / "flag.png")
        page.wait_for_selector("#why1 #look canvas")
        page.locator("#results .more").nth(1).click()
        page.wait_for_selector("#why2 #look canvas")
        page.locator("#results .more").nth(0).click()  # closes the first, which has it no more
        assert page.locator("#look").is_visible()
        page.click("#remove")
        ask(page, "which fish")
        page.wait_for_selector("#results .passage")
        assert page.locator("#look").count() == 1 and not page.locator("#look").is_visible()
        page.locator("#history button").last.click()
        page.wait_for_selector("#why1 #look canvas")
        page.set_viewport_size({"width": DESKTOP[0], "height": DESKTOP[1]})  # turned, say
        page.wait_for_selector("main > #look canvas")
        assert not seen.errors


CONTRAST = """() => {
  const light = c => c.map(v => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
  const value = c => { const [r, g, b] = light(c); return .2126 * r + .7152 * g + .0722 * b; };
  const parse = text => text.match(/[\\d.]+/g).map(Number);
  const under = node => {
    for (; node; node = node.parentElement) {
      const c = parse(getComputedStyle(node).backgroundColor);
      if (c.length < 4 || c[3] === 1) return c.slice(0, 3);
    }
    return [255, 255, 255];
  };
  const kinds = "h1, h2, h3, p, label, summary, #curl, .meta, .rank, button:not(.marker), td, li";
  return [...document.querySelectorAll(kinds)]
    .filter(n => n.offsetParent && n.textContent.trim() && !getComputedStyle(n).backgroundColor.startsWith("color"))
    .map(n => {
      const a = value(parse(getComputedStyle(n).color)), b = value(under(n));
      return [n.tagName + " " + n.textContent.slice(0, 30), (Math.max(a, b) + .05) / (Math.min(a, b) + .05)];
    });
}"""


def test_the_keyboard_and_names(page, root):
    page, _ = page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    reached = []
    for _ in range(10):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert [r for r in reached if r in ("file", "webcam", "question", "go", "k")] == [
        "file",
        "webcam",
        "question",
        "go",
        "k",
    ]
    page.focus("#question")
    page.keyboard.type("which bird")
    page.keyboard.press("Enter")
    page.wait_for_selector("#results .passage")
    page.set_input_files("#file", root / "flag.png")
    nameless = page.evaluate(
        "[...document.querySelectorAll('button, input, select, textarea, a, img')].filter(n => n.offsetParent && !("
        "n.textContent.trim() || n.getAttribute('aria-label') || (n.labels && n.labels.length) || n.hasAttribute('alt')"
        ")).map(n => n.outerHTML)"
    )
    assert not nameless
    levels = page.evaluate("[...document.querySelectorAll('h1, h2, h3')].map(h => h.tagName)")
    assert levels.count("H1") == 1


def test_what_passages_hold_is_text(chromium, tmp_path):
    from core.records import Document

    nasty = [Document("<b>x</b>", "<img src=x onerror=alert(1)> fish </script>", title="<script>alert(1)</script>")]
    with served(engine(tmp_path, documents=nasty)) as address, opened(chromium, address) as (page, seen):
        page.on("dialog", lambda dialog: pytest.fail("a script of a passage ran"))
        ask(page, "fish <i>x</i>")
        page.wait_for_selector("#results .passage")
        assert titles(page) == ["<script>alert(1)</script>"] and page.locator("#results img, #results b").count() == 0
        time.sleep(0.1)
        assert not seen.errors


def test_the_page_of_the_interface(chromium, base):
    with opened(chromium, base + "docs") as (page, seen):
        page.wait_for_selector("section table")
        assert {"/search", "/explain", "/upload"} <= set(page.locator("h2 code").all_inner_texts())
        names = set(page.locator("td code").all_inner_texts())
        assert {"searchText", "documents", "results[].rank", "timings.encode_ms"} <= names and not seen.errors
