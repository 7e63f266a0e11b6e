"""The engine that the terminal, the page and the HTTP interface share."""

from __future__ import annotations

import io
import json
import re
import shutil
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from core.errors import UserError
from core.records import ImageRef
from evaluation.explain import as_json
from models import names
from runs import search
from runs.common import query_encoder
from searcher import schema
from searcher.engine import Answer, Hit
from searcher.errors import Refused
from searcher.images import opened, sniff
from tests import tiny
from tests.searcher_case import DOCUMENTS, encoded, engine
from tests.test_pipeline import finished, make_config  # noqa: F401 (a fixture)

KINDS = ["JPEG", "PNG", "WEBP", "GIF"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return engine(tmp_path_factory.mktemp("engine"))


def asked(made, n: int) -> list:
    """Questions, pictures and both, by turns."""
    texts = [f"which {DOCUMENTS[i].text[4:9]}" if i % 3 != 1 else "" for i in range(n)]
    images = [ImageRef(f"i{i}", data=encoded(color=(20 * i, 200, 90))) if i % 3 != 0 else None for i in range(n)]
    return [made.prepare(text, image) for text, image in zip(texts, images)]


def test_a_batch_answers_as_each_alone(made):
    queries = asked(made, 7)
    together = made.search(queries, 5)
    assert {one.batch for one in together} == {7} and len({tuple(h.id for h in one.results) for one in together}) > 1
    for query, one in zip(queries, together):
        alone = made.search([query], 5)[0]
        assert [h.id for h in alone.results] == [h.id for h in one.results]
        assert [h.score for h in alone.results] == pytest.approx([h.score for h in one.results], abs=1e-5)


def test_it_answers_as_the_index_does(made):
    """Pixels decoded beforehand give what the collator, decoding itself, gives."""
    for query, answer in zip(asked(made, 3), made.search(asked(made, 3), 4)):
        ranking = made.index.search(query_encoder(made.retriever)([query.query]), 4)[0]
        assert [h.id for h in answer.results] == list(ranking.ids)
        assert [h.score for h in answer.results] == pytest.approx(ranking.scores, abs=1e-5)
        first = answer.results[0]
        assert first.rank == 1 and first.title.startswith("Title") and first.text == made.document(first.id).text


def test_fewer_passages_than_asked_for(tmp_path, made):
    assert len(made.search([made.prepare("which")], 99)[0].results) == len(DOCUMENTS)
    few = engine(tmp_path, limit=3)
    found = few.search([few.prepare("which")], 99)[0].results
    assert {h.id for h in found} == {"d0", "d1", "d2"} and few.describe()["index"]["documents"] == 3


def test_queries_that_are_none(made, tmp_path):
    with pytest.raises(UserError, match="the query is empty"):
        made.prepare(" \n")
    with pytest.raises(UserError, match="do not contain 'nobody'"):
        made.explain(made.prepare("which"), ["nobody"])
    plain = engine(tmp_path, "colbert")
    assert not plain.sees_images and plain.describe()["model"]["images"] is False
    with pytest.raises(UserError, match=r"\(colbert\) reads text only"):
        plain.prepare("", ImageRef("i", data=encoded()))


def test_passages_that_are_not_here(tmp_path):
    """An index may hold more than the passages file: such a hit has no text, and is a hit."""
    some = engine(tmp_path)
    some.find = {d.id: d for d in DOCUMENTS[:2]}.get
    found = some.search([some.prepare("which")], 30)[0].results
    assert len(found) == 30 and sum(h.text != "" for h in found) == 2


@pytest.mark.parametrize("family", [n for n in names() if n != "mire"])
def test_every_family_serves(tmp_path, family):
    made = engine(tmp_path, family)
    image = ImageRef("i", data=encoded()) if made.sees_images else None
    made.warm_up()
    query = made.prepare("which bird", image)
    best = made.search([query], 1)[0].results[0]
    found = as_json(made.explain(query, [best.id]))
    assert found["passages"][0]["id"] == best.id and (found["picture"] is not None) == made.sees_images
    assert found["passages"][0]["score"] == pytest.approx(best.score, abs=0.05)  # the index keeps 16 bits


# ---- images of strangers


@pytest.mark.parametrize("kind", KINDS)
def test_images_are_told_by_their_bytes(kind):
    data = encoded(kind=kind)
    assert sniff(data) == kind and opened(data, 10_000).size == (40, 30)


def test_a_photo_taken_sideways_is_turned():
    image = Image.new("RGB", (40, 20), (200, 30, 30))
    exif = image.getexif()
    exif[0x0112] = 6  # the camera was turned
    out = io.BytesIO()
    image.save(out, "JPEG", exif=exif)
    assert opened(out.getvalue(), 10_000).size == (20, 40)


def test_only_the_first_of_many_frames():
    frames = [Image.new("RGB", (30, 30), (i, 80, 200 - i)) for i in range(0, 200, 10)]
    for kind in ("GIF", "WEBP", "PNG"):
        out = io.BytesIO()
        frames[0].save(out, kind, save_all=True, append_images=frames[1:])
        seen = np.asarray(opened(out.getvalue(), 900)).mean((0, 1))  # one frame is 900 pixels
        assert np.abs(seen - [0, 80, 200]).max() < 8, kind


@pytest.mark.parametrize(("data", "status", "message"), [
    (b"", 422, "is empty"),
    (b"hello", 415, "5 bytes are none of JPEG, PNG"),
    (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "none of"),
    (encoded(kind="TIFF"), 415, "none of"),
    (encoded(kind="PNG")[:60], 422, "damaged PNG"),
    (encoded((200, 200), "JPEG")[:400], 422, "damaged JPEG"),
    (b"\x89PNG\r\n\x1a\n" + encoded(kind="JPEG"), 422, "damaged PNG"),
    (encoded((101, 100)), 413, "101 x 100 pixels; send 0.0101 megapixels|101 x 100 pixels; send 0.01 megapixels"),
    (encoded((9000, 1)), 422, "9000 x 1 pixels; crop it"),
])  # fmt: skip
def test_what_is_refused(data, status, message):
    with pytest.raises(Refused, match=message) as found:
        opened(data, 10_000)
    assert found.value.status == status and "0x" not in found.value.detail


def test_a_jpeg_that_never_ends_is_refused_unread(monkeypatch):
    """One more scan over all pixels costs some 60 bytes: 16 MB of them would keep a decoder busy for hours."""
    out = io.BytesIO()
    Image.new("L", (64, 64), 128).save(out, "JPEG", progressive=True)
    data = out.getvalue()
    place = data.rindex(b"\xff\xda")
    scan, start = data[place:-2], data[:2]
    assert opened(data[:-2] + 20 * scan + data[-2:], 5000).size == (64, 64)
    hidden = b"\xff\xe1\x01\x02" + b"\xff\xda" * 128  # what a segment holds is no scan
    assert opened(start + hidden + data[2:], 5000).size == (64, 64)
    monkeypatch.setattr(Image, "open", lambda *a, **k: pytest.fail("it was opened"))
    for wrong in (data[:-2] + 200 * scan + data[-2:], start + b"\xff\xe1\x00\x02" * 3000 + data[2:]):
        with pytest.raises(Refused, match="over 100 scans or 2000 segments") as found:
            opened(wrong, 5000)
        assert found.value.status == 422


def test_grey_of_16_bits_is_converted_in_little_memory():
    """As 64-bit numbers the picture would be eight times as large, several times over."""
    image = Image.fromarray(np.arange(1 << 20, dtype=np.uint16).reshape(1024, 1024))
    out = io.BytesIO()
    image.save(out, "PNG")
    tracemalloc.start()
    try:
        seen = np.asarray(opened(out.getvalue(), 1 << 20))
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    assert (seen[..., 0] == np.round(np.asarray(image) / 257)).all()


def test_a_bomb_is_refused_unread(monkeypatch):
    """Headers that promise 64 million and 2.5 billion pixels are refused before a row is decoded."""
    loaded = []
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: loaded.append(self))
    for side, message in ((8_000, "8000 x 8000 pixels; send 40 megapixels"), (50_000, "too many pixels; send 40 mega")):
        body = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        header = struct.pack(">I", 13) + b"IHDR" + body + struct.pack(">I", zlib.crc32(b"IHDR" + body))
        with pytest.raises(Refused, match=message) as found:
            opened(b"\x89PNG\r\n\x1a\n" + header + encoded()[33:], 40_000_000)
        assert found.value.status == 413 and not loaded


# ---- the terminal


def test_the_terminal_prints_what_the_engine_says(finished, capsys):  # noqa: F811
    root, _ = finished
    words = ["which bird", "--image", str(root / "images" / "0.png"), "-k", "3"]
    search.run([*words, "--run", str(root / "run"), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert schema.Found.model_validate(found).model_dump() == found, "not what POST /search replies"
    assert [h["rank"] for h in found["results"]] == [1, 2, 3] and found["timings"]["batch"] == 1
    assert found["timings"]["total_ms"] >= found["timings"]["encode_ms"] > 0
    search.run([*words, "--index", str(root / "run" / "index")])  # an index in a run's folder names the run
    out = capsys.readouterr().out
    lines = [line.split() for line in out.splitlines() if re.match(r" ?\d+  ", line)]
    assert [(line[1], line[2]) for line in lines] == [(f"{h['score']:.3f}", h["id"]) for h in found["results"]]
    assert "\033" not in out and "encoded in" in out and found["results"][0]["text"][:20] in out


def test_an_index_without_a_run(finished, tmp_path, capsys):  # noqa: F811
    from runs.common import best_checkpoint

    root, _ = finished
    passages = tmp_path / "passages.jsonl"
    search.run(["which bird", "--run", str(root / "run"), "--json"])
    wanted = json.loads(capsys.readouterr().out)["results"]
    passages.write_text("\n".join(json.dumps({"id": h["id"], "text": f"mine {h['rank']}"}) for h in wanted))
    place = tmp_path / "elsewhere"
    shutil.copytree(root / "run" / "index", place)
    words = ["--index", str(place), "--checkpoint", str(best_checkpoint(root / "run")), "--passages", str(passages)]
    search.run(["which bird", *words, "--json"])
    found = json.loads(capsys.readouterr().out)["results"]
    assert [(h["id"], h["score"]) for h in found] == [(h["id"], h["score"]) for h in wanted]
    assert [h["text"] for h in found] == [f"mine {n}" for n in range(1, 6)]


@pytest.mark.parametrize(("words", "message"), [
    ([], "the query is empty"),
    (["x", "-k", "0"], "-k 0 asks for nothing"),
    (["x", "--run", "nowhere"], "'nowhere' is not a run's folder"),
    (["x", "--index", "nowhere", "--checkpoint", "c"], "name one with --run, or give --checkpoint, --index and --pass"),
])  # fmt: skip
def test_the_terminal_says_what_is_wrong(words, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        search.run(words)


def test_a_passage_does_not_command_the_terminal():
    hit = Hit(1, "d\x1b[2J", 1.0, "title\nof two lines", "red \x1b]0;name\x07 \x9b31m fish")
    lines = search.table(Answer([hit], 0, 0, 0, 0, 1), "fish", 80, colour=False)
    assert len(lines) == 2 and not [c for line in lines for c in line if not c.isprintable()]


def test_words_in_bold():
    assert (
        search.marked("Fish and fishing; a fir", "which fish fir")
        == "\033[1mFish\033[0m and \033[1mfish\033[0ming; a fir"
    )
    assert search.marked("anything", "a b") == "anything"


def test_the_index_of_passages_with_images(tmp_path):
    """Such an index names more of the weights than one of texts; the opener takes either."""
    from core.device import pick_device
    from index.exact import Index
    from runs.common import encode_corpus
    from runs.searching import engine_of
    from runs.settings import IndexSection

    made, documents = tiny.retriever("mire", tmp_path), tiny.mixed_documents(tmp_path)
    stream = encode_corpus(made, documents, 8)
    Index.build(tmp_path / "index", stream, dim=16, encoder=made.identity(images=True))
    found = engine_of(made, IndexSection(name="exact"), tmp_path / "index", documents, pick_device("cpu"))
    assert len(found.search([found.prepare("which")], 9)[0].results) == 4
    with torch.no_grad():
        next(made.fusion.parameters()).add_(1)
    with pytest.raises(UserError, match=r"another checkpoint \(fusion: index '\w+', now '\w+'\)"):
        engine_of(made, IndexSection(name="exact"), tmp_path / "index", documents, pick_device("cpu"))
