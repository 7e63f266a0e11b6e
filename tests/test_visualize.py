"""Pictures of a query: the computation equals MaxSim and the encoder's maps, and both files show exactly it."""

from __future__ import annotations

import json
import re
from math import isqrt

import numpy as np
import pytest
import torch
from PIL import Image

from core.errors import UserError
from core.maxsim import maxsim
from core.records import Document, Query
from core.tokens import Rows, TokenBatch
from evaluation import explain as pure
from evaluation import page, pictures
from evaluation.explain import Piece, words_of
from models.originals import load_original, save_original
from runs import visualize
from runs.explaining import explain, pieces_of, share_seen
from tests import tiny
from tests.test_pipeline import finished, make_config  # noqa: F401 (a fixture)

FAMILIES = ("colbert", "mire", "ret_xknow", "mire_preflmr")
DOCUMENTS = [Document("d", "the climate is mild, and the river is cold."), Document("empty", "")]


def query_for(family: str, folder, text: str = "which climates, here?") -> Query:
    return Query("q", text, () if family == "colbert" else (tiny.image(folder),))


def texts(words) -> list[str]:
    return [w.text for w in words if not w.marker]


# ---- the pure part


def test_words_are_what_touches():
    pieces = [Piece("[CLS]", " ", True), Piece("Un", " "), Piece("seen"), Piece("'"), Piece("s"), Piece("x", " "),
              Piece("[MASK]", " ", True), Piece("[MASK]", " ", True)]  # fmt: skip
    found = words_of(pieces)
    assert [w.text for w in found] == ["[CLS]", "Unseen", "'", "s", "x", "[MASK] ×2"]
    assert [w.pieces for w in found] == [[0], [1, 2], [3], [4], [5], [6, 7]]


def test_attention_of_a_word_is_the_mean_of_its_tokens():
    torch.manual_seed(0)
    attention = torch.randn(2, 4, 6).softmax(-1)
    words = words_of([Piece("[CLS]", "", True), Piece("cli"), Piece("mate"), Piece("[MASK]", " ", True)])
    maps = pure.attention_maps(attention, words, torch.tensor([True, True, True, False]))
    assert maps.heads == ["mean", "1", "2"] and np.shape(maps.words) == (3, 3, 6)
    assert maps.words[2][1] == pytest.approx(((attention[1, 1] + attention[1, 2]) / 2).tolist())
    assert maps.words[0][0] == pytest.approx(attention[:, 0].mean(0).tolist())
    assert maps.whole[1] == pytest.approx(attention[0, :3].mean(0).tolist())
    assert all(sum(m) == pytest.approx(1, abs=1e-5) for head in maps.words for m in head)
    with pytest.raises(UserError, match=r"attention of 3 tokens"):
        pure.attention_maps(attention, words, torch.ones(3, dtype=torch.bool))


@pytest.mark.parametrize(("patches", "size", "grid"), [
    (49, (224, 224), [7, 7]), (12, (300, 400), [3, 4]), (12, (400, 300), [4, 3]), (7, (10, 70), [1, 7]),
])  # fmt: skip
def test_the_grid_follows_the_picture(patches, size, grid):
    assert pure.grid_of(patches, *size) == grid


def test_the_part_that_the_tower_saw():
    clip = {"do_resize": True, "size": {"shortest_edge": 224}, "do_center_crop": True,
            "crop_size": {"height": 224, "width": 224}}  # fmt: skip
    assert share_seen(clip, (400, 400)) == pytest.approx(1) and share_seen(clip, (800, 400)) == pytest.approx(0.5)
    assert share_seen(clip, (200, 800)) == pytest.approx(0.25)
    dino = {**clip, "size": {"shortest_edge": 256}}
    assert share_seen(dino, (100, 100)) == pytest.approx((224 / 256) ** 2)
    assert share_seen({"do_resize": True, "size": {"height": 224, "width": 224}}, (800, 400)) == 1


def test_matches_add_up_to_maxsim():
    torch.manual_seed(0)
    rows = Rows(("global", "global", "text", "text", "text"), torch.tensor([0, 1, 0, 1, 2]))
    query = TokenBatch(torch.randn(1, 5, 8), torch.tensor([[True, True, True, False, True]]), rows)
    document = TokenBatch(torch.randn(1, 6, 8), torch.tensor([[True, False, True, True, False, True]]))
    score, found = pure.match(query, document)
    assert score == pytest.approx(maxsim(query, document).item()) == pytest.approx(sum(m.similarity for m in found))
    assert sum(m.share for m in found) == pytest.approx(1)
    sims = query.embeddings[0] @ document.embeddings[0].T
    sims[:, ~document.mask[0]] = -torch.inf
    assert [m.token for m in found] == sims.argmax(1)[query.mask[0]].tolist()
    nothing = TokenBatch(torch.randn(1, 6, 8), torch.zeros(1, 6, dtype=torch.bool))
    score, found = pure.match(query, nothing)
    assert score == 0 and {(m.token, m.similarity, m.share) for m in found} == {(None, 0.0, 0.0)}
    with pytest.raises(UserError, match="one query and one document, got 1 and 2"):
        pure.match(query, TokenBatch.cat([document, document]))


def test_tokens_stand_where_they_stood_in_the_text(tmp_path):
    made = tiny.retriever("colbert", tmp_path)
    text = "What is  [MASK] the CLIMATE, here?"
    ids = made.collate_documents([Document("d", text)])["ids"][0].tolist()
    pieces = pieces_of(made.tokenizer, ids, text)
    assert len(pieces) == len(ids) and pieces[1] == Piece("[D]", " ", True)
    shown = "".join(p.before + p.text for p in pieces if not p.marker)
    assert " ".join(shown.split()) == "What is the CLIMATE, here?"
    assert "CLIMATE" in texts(words_of(pieces)) and "here" in texts(words_of(pieces))  # "here" is four tokens
    other = pieces_of(made.tokenizer, ids, "another text")  # falls back to the vocabulary's own words
    assert "climate" in texts(words_of(other)) and "here" in texts(words_of(other))


# ---- with retrievers


@pytest.mark.parametrize("family", FAMILIES)
def test_an_explanation_is_what_the_retriever_computes(tmp_path, family):
    made = tiny.retriever(family, tmp_path)
    query = query_for(family, tmp_path)
    found = explain(made, query, DOCUMENTS)
    with torch.no_grad():
        batch = made.collate_queries([query])
        shown = {} if family == "colbert" else {"return_relevance": True}
        tokens = made.encode_queries(batch, **shown)
        scores = [maxsim(tokens, made.encode_documents(made.collate_documents([d]))).item() for d in DOCUMENTS]
    assert [p.score for p in found.passages] == pytest.approx(scores)
    assert len(found.rows) == int(tokens.mask.sum()) == len(found.passages[0].matches)
    for passage in found.passages:
        assert sum(m.similarity for m in passage.matches) == pytest.approx(passage.score, abs=1e-5)
        assert sum(passage.kinds.values()) == pytest.approx(passage.score, abs=1e-5)
        assert sum(pure.received(passage)) == pytest.approx(passage.score, abs=1e-5)
        assert all(passage.tokens[m.token].stored for m in passage.matches if m.token is not None)
    assert any(not t.stored and t.text == "," for t in found.passages[0].tokens)
    assert texts(found.words) == ["which", "climates", ",", "here", "?"]
    if family == "colbert":
        assert found.picture is None and found.maps is None and "reads text only" in found.notes[0]
        return
    side = isqrt(made.visual_features(batch.images).patches.shape[1])
    assert found.picture.grid == [side, side]
    climates = found.words[[w.text for w in found.words].index("climates")]
    assert len(climates.pieces) == 2
    if family == "mire":
        wanted = tokens.extras["relevance"][0, :, climates.pieces].mean((0, 1))
        assert found.maps.words[0][found.words.index(climates)] == pytest.approx(wanted.tolist(), abs=1e-6)
        assert [r.head for r in found.rows if r.kind == "pooled"] == [0, 1]
    elif family == "ret_xknow":
        assert found.maps.whole[0] == pytest.approx(tokens.extras["relevance"][0].tolist(), abs=1e-6)
        # The question's map is the best of its words.
        assert np.max(found.maps.words[0], 0) == pytest.approx(np.array(found.maps.whole[0]))
        window = made.fusion.window(int(tokens.extras["cell"][0]), side * side)
        assert [r.patches for r in found.rows if r.kind == "cell"] == [window] * 4 and len(window) == 25
    else:
        assert found.maps is None and any("has no map of words" in n for n in found.notes)
        assert [r.patches for r in found.rows if r.kind == "mapped"] == [[i] for i in range(side * side)]


@pytest.mark.parametrize("kernel", [3, 4, 5])
def test_the_window_of_a_cell_is_what_moves_it(tmp_path, kernel):
    """Changing a patch changes exactly the cells in whose window it lies (layer norms mix all cells, so: without)."""
    from models.fusion import QuerySampler

    torch.manual_seed(0)
    made, side = QuerySampler(6, 8, 4, 3, kernel, 144), 12
    for name in ("conv", "conv1", "conv2"):
        if hasattr(made, name):
            setattr(made, name, getattr(made, name)[0])
    grid, relevance = torch.randn(1, 8, side, side), torch.zeros(1, 1, side, side)
    with torch.no_grad():
        before = made._convolved(grid, relevance).flatten(2)
        for patch in (0, 40, 77, 143):
            moved = grid.clone()
            moved.flatten(2)[..., patch] += 1
            changed = (made._convolved(moved, relevance).flatten(2) != before).any(1)[0]
            assert changed.tolist() == [patch in made.window(c, 144) for c in range(before.shape[2])], patch


@pytest.mark.parametrize(("cells", "count"), [("all", 16), ("best", 1)])
def test_all_cells_or_the_best(tmp_path, cells, count):
    made = tiny.retriever("ret_xknow", tmp_path, cells=cells)
    rows = [r for r in explain(made, query_for("ret_xknow", tmp_path)).rows if r.kind == "cell"]
    assert len(rows) == 4 * count and len({tuple(r.patches) for r in rows}) == count


def test_the_picture_is_what_the_tower_saw(tmp_path):
    """De-normalised pixels: the middle of the image, in its colours."""
    import base64
    import io

    made = tiny.retriever("mire", tmp_path)
    wide = Image.new("RGB", (80, 40), (250, 10, 10))
    wide.paste((10, 20, 250), (20, 0, 60, 40))
    wide.save(tmp_path / "wide.png")
    found = explain(made, Query("q", "", (tiny.ImageRef("w", path=str(tmp_path / "wide.png")),)))
    seen = np.asarray(Image.open(io.BytesIO(base64.b64decode(found.picture.uri.split(",")[1]))))
    assert seen.shape == (24, 24, 3) and (found.picture.width, found.picture.height) == (24, 24)
    assert np.abs(seen[4:-4, 4:-4].astype(int) - [10, 20, 250]).max() <= 1
    assert any("50%" in n for n in found.notes) and any("no question" in n for n in found.notes)
    assert all(w.marker for w in found.words) and found.maps is not None


def test_published_padding_is_in_the_pooled_map(tmp_path):
    query = query_for("mire", tmp_path, "fish")
    legacy = explain(tiny.retriever("mire", tmp_path / "a", mask_policy="legacy"), query)
    clean = explain(tiny.retriever("mire", tmp_path / "b", mask_policy="clean"), query)
    assert legacy.words[-1].text.startswith("[MASK] ×") and any("padding" in n for n in legacy.notes)
    assert "[MASK]" not in {w.text[:6] for w in clean.words} and not any("padding" in n for n in clean.notes)
    assert np.ptp(legacy.maps.whole[0]) < np.ptp(clean.maps.whole[0])  # padding looks everywhere alike
    assert legacy.maps.words[0][-1] == pytest.approx([1 / 9] * 9)


# ---- the files


def embedded(path) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(), re.S)[1])


@pytest.mark.parametrize("family", FAMILIES)
def test_both_files_show_the_explanation(tmp_path, family):
    made = tiny.retriever(family, tmp_path)
    documents = [*DOCUMENTS, Document("sign", "</script><b>$x$ & fish")]
    found = explain(made, query_for(family, tmp_path, "which <b>bird</b> costs $5 or $6?"), documents)
    page.write(found, tmp_path / "p.html")
    pictures.draw(found, tmp_path / "p.png")
    text = (tmp_path / "p.html").read_text()
    assert "://" not in text and "default-src 'none'" in text and text.count("</script>") == 2
    assert not re.search(r"(?:src|href)=|@import|url\(", text.replace("img-src data:", "")) and "<b>bird" not in text
    assert embedded(tmp_path / "p.html") == json.loads(json.dumps(pure.as_json(found)))
    picture = Image.open(tmp_path / "p.png")
    picture.load()
    assert 600 < picture.width < 3000 and 400 < picture.height < 3000
    assert len(np.unique(np.asarray(picture.convert("L")))) > 50


def test_a_picture_without_passages_and_a_question_alone(tmp_path):
    made = tiny.retriever("mire", tmp_path)
    for name, query in (("a", query_for("mire", tmp_path)), ("b", Query("q", "what is it"))):
        pictures.draw(explain(made, query), tmp_path / f"{name}.png")
    sizes = [Image.open(tmp_path / f"{name}.png").size for name in "ab"]
    assert sizes[0][1] > 250 and sizes[1][1] < 200  # the second has nothing to draw but the question


# ---- the command


def test_the_command_on_a_run(finished, tmp_path, capsys):  # noqa: F811
    from runs import search

    root, _ = finished
    image = str(root / "images" / "0.png")
    search.run(["which bird", "--image", image, "--run", str(root / "run"), "-k", "3"])
    ranked = [line.split()[2] for line in capsys.readouterr().out.splitlines() if line[:2].strip().isdigit()]
    visualize.run(["which bird", "--image", image, "--run", str(root / "run"), "--out", str(tmp_path / "x")])
    out = capsys.readouterr().out
    assert [p["id"] for p in embedded(tmp_path / "x.html")["passages"]] == ranked and f"{tmp_path / 'x'}.png" in out
    visualize.run(["which bird", "--run", str(root / "run"), "--passage_id", ranked[2], "--passage", "a red fish"])
    made = embedded(root / "run" / "pictures" / "which-bird.html")
    assert [p["id"] for p in made["passages"]] == ["passage 1", ranked[2]] and made["picture"] is None
    visualize.run(["--image", image, "--run", str(root / "run"), "-k", "0"])
    assert embedded(root / "run" / "pictures" / "0.html")["passages"] == []
    with pytest.raises(UserError, match="do not contain 'nobody'"):
        visualize.run(["which", "--run", str(root / "run"), "--passage_id", "nobody"])


def test_the_command_on_an_original_checkpoint(tmp_path):
    save_original(tiny.retriever("mire", tmp_path / "towers"), tmp_path / "original")
    query, text = query_for("mire", tmp_path), "the river is cold"
    found = tmp_path / "y"
    visualize.run([query.text, "--image", query.images[0].path, "--checkpoint", str(tmp_path / "original"),
                   "--passage", text, "--out", str(found)])  # fmt: skip
    score = embedded(tmp_path / "y.html")["passages"][0]["score"]
    made = load_original(tmp_path / "original")
    with torch.no_grad():
        batches = made.collate_queries([query]), made.collate_documents([Document("d", text)])
        assert score == pytest.approx(maxsim(*_encoded(made, *batches)).item(), rel=1e-5)


def _encoded(made, queries, documents):
    return made.encode_queries(queries), made.encode_documents(documents)


@pytest.mark.parametrize("suffix", ["", ".png", ".html", ".v2"])
def test_out_may_be_named_as_one_of_its_two_files(suffix, capsys):
    visualize.run(["what", "--checkpoint", "x", "--out", f"d{suffix}", "--check"])
    name = "d.v2" if suffix == ".v2" else "d"
    assert f"write '{name}.png' and '{name}.html'" in capsys.readouterr().out


def test_a_place_that_cannot_be_written_is_noticed_before_the_model_is_loaded(tmp_path):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file" / "d", "/proc/x/d"):
        with pytest.raises(UserError, match=r"nothing can be written to .* give another --out"):
            visualize.run(["what", "--checkpoint", "gone", "--out", str(out)])


@pytest.mark.parametrize(("words", "message"), [
    ([], "query is empty"),
    (["what"], "no retriever is named"),
    (["what", "--checkpoint", "x", "-k", "3"], "need the passages of a run"),
    (["what", "--checkpoint", "x", "--passage_id", "3"], "need the passages of a run"),
    (["what", "--run", "x", "-k", "-1"], "-k -1 is below 0"),
])  # fmt: skip
def test_wrong_options(words, message):
    with pytest.raises(UserError, match=message):
        visualize.run(words)


def test_wrong_files(tmp_path, capsys):
    made = tiny.retriever("mire", tmp_path / "towers")
    made.save_pretrained(tmp_path / "m")
    start = ["what", "--checkpoint", str(tmp_path / "m"), "--out", str(tmp_path / "z")]
    with pytest.raises(UserError, match="is missing: no file"):
        visualize.run([*start, "--image", str(tmp_path / "gone.png")])
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="cannot be decoded"):
        visualize.run([*start, "--image", str(tmp_path / "bad.png")])
    visualize.run([*start, "--image", str(tmp_path / "gone.png"), "--check"])
    assert f"missing: {tmp_path / 'gone.png'}" in capsys.readouterr().out
    assert not (tmp_path / "z.html").exists()
    tiny.retriever("colbert", tmp_path / "c").save_pretrained(tmp_path / "text")
    with pytest.raises(UserError, match="reads text only"):
        visualize.run(["what", "--checkpoint", str(tmp_path / "text"), "--image", str(tmp_path / "bad.png")])
