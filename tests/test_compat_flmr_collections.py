"""FLMR's own API: collections, their indexes, searches and reranking."""

# ruff: noqa: F811 (fixtures that come by import)

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from compat.flmr import (
    FLMRModelForRetrieval,
    Ranking,
    create_searcher,
    index_custom_collection,
    search_custom_collection,
)
from core.errors import UserError
from core.records import ImageRef
from core.tokens import TokenBatch
from tests.compat_flmr_case import (  # noqa: F401
    ASKED,
    COLBERT,
    GOLDEN,
    HUB,
    TEXTS,
    WIDTH,
    asked,
    brute_force,
    model,
    picture,
    tokens,
    where,
)

# ---- collections


def test_documents_with_images_and_with_features(model, where, tmp_path):
    paths = [picture(tmp_path / f"{i}.png", i) for i in range(len(TEXTS))]
    pixels = model.pixel_source().fetch([ImageRef(p, path=p) for p in paths]).pixels
    with torch.no_grad():
        features, _ = model.vision(pixels)
        words = tokens(model.context_tokenizer, TEXTS)
        wanted = model.doc(**words, pixel_values=pixels, concat_output_from_vision_encoder=True)
    scores = brute_force(asked(model), wanted.late_interaction_output, wanted.context_mask)
    collections = {
        "files": [(text, None, path) for text, path in zip(TEXTS, paths)],
        "features": [(text, row.numpy(), None) for text, row in zip(TEXTS, features)],
        "tensors": list(zip(TEXTS, features, [None] * len(TEXTS))),
    }
    model.train()
    modes = [m.training for m in model.modules()]
    config = model.config
    for name, collection in collections.items():
        index_custom_collection(collection, model, **{**where, "index_name": name}, nbits=32, use_gpu=False)
        searcher = create_searcher(**{**where, "index_name": name}, nbits=32, model=model)
        ranking = search_custom_collection(searcher, ASKED, asked(model.eval()), 5).todict()
        model.train()
        for row, entries in zip(scores, ranking.values()):
            assert [position for position, _, _ in entries] == row.argsort(descending=True).tolist()
            found = torch.tensor([score for _, _, score in entries]).double()
            torch.testing.assert_close(found, row.sort(descending=True).values, atol=1e-3, rtol=0)
    assert model.config is config and [m.training for m in model.modules()] == modes
    mixed = [*collections["files"][:2], TEXTS[2], (TEXTS[3], None, None), (TEXTS[4], None, paths[:3])]
    index_custom_collection(mixed, model.eval(), **where, nbits=32, use_gpu=False)
    counts = [len(vectors) for _, vectors in create_searcher(**where, nbits=32).index.vectors()]
    with_image = wanted.context_mask.sum((1, 2)).tolist()
    assert counts == [with_image[0], with_image[1], with_image[2] - 6, with_image[3] - 6, with_image[4] + 12]


def test_doc_maxlen_is_obeyed(model, where):
    index_custom_collection([TEXTS[0] * 20], model, **where, nbits=16, use_gpu=False, doc_maxlen=9)
    ((_, vectors),) = create_searcher(**where, nbits=16, model=model).index.vectors()
    ids = model.context_tokenizer([TEXTS[0] * 20], max_length=9)["input_ids"]
    assert len(vectors) == int(model.tokenizer.keep(ids, True).sum()) and ids.shape == (1, 9)
    index_custom_collection([TEXTS[0] * 20], model, **where, nbits=16, use_gpu=False, overwrite=True)
    ((_, vectors),) = create_searcher(**where, nbits=16).index.vectors()
    assert 9 < len(vectors) <= 40


def test_rankings_and_what_may_be_found(model, where, tmp_path):
    index_custom_collection(TEXTS, model, **where, use_gpu=False)
    searcher = create_searcher(**where, use_gpu=False)
    vectors = asked(model)
    everything = search_custom_collection(searcher, ASKED, vectors)  # 100 of 5
    assert len(searcher) == 5 and all(len(found) == 5 for found in everything.todict().values())
    assert everything.tolist()[:2] == [("a", *everything.todict()["a"][0]), ("a", *everything.todict()["a"][1])]
    everything.save(tmp_path / "ranking.tsv")
    lines = [line.split("\t") for line in (tmp_path / "ranking.tsv").read_text().splitlines()]
    assert len(lines) == 10 and [line[0] for line in lines] == ["a"] * 5 + ["b"] * 5 and lines[0][2] == "1"
    assert float(lines[0][3]) == everything.todict()["a"][0][2]
    even = search_custom_collection(searcher, ASKED, vectors, filter_fn=lambda pids: pids[pids % 2 == 0]).todict()
    assert {q: [e[0] for e in found] for q, found in even.items()} == {
        q: [p for p, _, _ in found if p % 2 == 0] for q, found in everything.items()
    }
    assert (vectors == 0).all(-1).any()  # the instruction's rows
    kept = search_custom_collection(searcher, ASKED, vectors, remove_zero_tensors=False)
    assert kept.todict() == everything.todict()
    assert search_custom_collection(searcher, ASKED, vectors.numpy()).todict() == everything.todict()
    exact = search_custom_collection(searcher, ASKED, vectors, 5, effort="exhaustive")
    assert exact.todict() == everything.todict()
    assert search_custom_collection(searcher, list(ASKED.values()), vectors, 1).todict().keys() == {0, 1}
    assert Ranking({1: [[4, 1, 0.5]]}).tolist() == [(1, 4, 1, 0.5)]


def test_rerank_scores_pairs_exactly(model, tmp_path):
    path = picture(tmp_path / "x.png", 3)
    with torch.no_grad():
        found = model.query(**model.query_tokenizer(ASKED["a"]))
        documents = model.doc(**tokens(model.context_tokenizer, TEXTS))
    wanted = brute_force(found.late_interaction_output, documents.late_interaction_output, documents.context_mask)[0]
    for query in (ASKED["a"], found):
        entries = model.rerank(query, TEXTS, batch_size=2)
        assert [(i, rank) for i, rank, _ in entries] == [
            (i, r) for r, i in enumerate(wanted.argsort(descending=True).tolist(), 1)
        ]
        torch.testing.assert_close(
            torch.tensor([s for *_, s in entries]).double(), wanted.sort(descending=True).values, atol=1e-4, rtol=0
        )
    with_image = model.rerank((ASKED["a"], None, path), TEXTS, k=2)
    assert len(with_image) == 2 and with_image[0][2] > entries[0][2]
    with torch.no_grad():
        cls, patches = model.vision(model.pixel_source().fetch([ImageRef("x", path=path)]).pixels)
    rows = torch.cat([cls[:, None], patches], 1)[0]
    for ours, wanted in zip(model.rerank((ASKED["a"], rows, None), TEXTS, k=2), with_image, strict=True):
        assert ours == pytest.approx(wanted, abs=1e-4)
    both = model.rerank(ASKED["a"], [(TEXTS[0], None, path), TEXTS[1]])
    assert {i for i, *_ in both} == {0, 1} and model.config.eval.document_rows == ["text"]


# ---- an index of something else


def test_an_index_of_another_checkpoint_is_refused(model, where):
    index_custom_collection(TEXTS, model, **where, use_gpu=False)
    before = [v.sum() for _, v in create_searcher(**where).index.vectors()]
    index_custom_collection(TEXTS, model, **where, use_gpu=False)  # the same: kept
    changed = FLMRModelForRetrieval.from_pretrained(HUB)
    with torch.no_grad():
        changed.query_text_encoder_linear.weight.mul_(1.5)  # of questions: the index stays right
        create_searcher(**where, model=changed)
        changed.context_text_encoder_linear.weight.mul_(-1.5)
    with pytest.raises(UserError, match=r"built by another checkpoint \(text: index.*search with the checkpoint that"):
        create_searcher(**where, model=changed)
    with pytest.raises(
        UserError, match=r"built by another checkpoint.*; give another index_name, or overwrite=True\.$"
    ):
        index_custom_collection(TEXTS, changed, **where, use_gpu=False)
    with pytest.raises(UserError, match=r"of other passages.*; give another index_name, or overwrite=True\.$"):
        index_custom_collection(TEXTS[:4], model, **where, use_gpu=False)
    assert [v.sum() for _, v in create_searcher(**where).index.vectors()] == before
    index_custom_collection(TEXTS[:4], changed, **where, use_gpu=False, overwrite=True)
    assert len(create_searcher(**where, model=changed)) == 4
    with pytest.raises(UserError, match="have 8 dimensions and the index has 16"):
        search_custom_collection(create_searcher(**where), ["x"], torch.ones(1, 3, 8))


def test_an_index_of_the_original_engine(model, where):
    place = Path(where["index_root_path"]) / "e" / "indexes" / "i.nbits=2"
    (source,) = (p.parent for p in (COLBERT / "index").rglob("centroids.pt"))
    shutil.copytree(source, place)
    searcher = create_searcher(**where, nbits=2)
    vectors = torch.nn.functional.normalize(torch.randn(1, 4, searcher.index.dim), dim=-1)
    entries = search_custom_collection(searcher, {5: "x"}, vectors, 3).todict()[5]
    batch = TokenBatch(vectors, torch.ones(vectors.shape[:2], dtype=torch.bool))
    wanted = searcher.index.search(batch, 3, n_probe=2, threshold=0.45, n_candidates=1024)[0]
    assert [(str(i), s) for i, _, s in entries] == list(zip(wanted.ids, wanted.scores))
    with pytest.raises(UserError, match=r"written by the original engine.*leave model out"):
        create_searcher(**where, nbits=2, model=model)
    with pytest.raises(UserError, match=r"written by the original engine.*overwrite=True"):
        index_custom_collection(TEXTS, model, **where, nbits=2, use_gpu=False)
    index_custom_collection(TEXTS, model, **where, nbits=2, use_gpu=False, overwrite=True)
    assert len(create_searcher(**where, nbits=2, model=model)) == 5
    assert [p.name for p in place.parent.iterdir()] == [place.name]


def test_bad_collections_are_one_sentence(model, where, tmp_path):
    path, row = picture(tmp_path / "x.png", 0), np.zeros(WIDTH)
    for collection, match in [
        ([], "holds no documents"),
        ("a text", "the collection is a str; give a list"),
        (["a", 5], "document 1 of the collection is int '5'; give a text, "),
        (["a", ("b", path)], r"document 1 of the collection is tuple .*\(text, None, image path\)"),
        ([("a", row, path)], "document 0 of the collection has both"),
        ([("a", row[:7], None)], r"features of document 0 of the collection are \[7\]; .* makes \[32\]"),
        ([("a", row * np.nan, None)], "finite"),
        ([("a", row, None), ("b", None, path)], "as features and as files"),
        ([("a", None, str(tmp_path / "absent.png"))], "is missing: no file"),
    ]:
        with pytest.raises(UserError, match=match):
            index_custom_collection(collection, model, **where, use_gpu=False)
    for options, match in [
        ({"nbits": 3}, "nbits=3"),
        ({"device": "cuda:9"}, "not available"),
        ({"doc_maxlen": 2}, "doc_maxlen=2"),
        ({"indexing_batch_size": 0}, "batch_size: got 0"),
    ]:
        with pytest.raises(UserError, match=match):
            index_custom_collection(TEXTS, model, **where, **options)
    colbert = FLMRModelForRetrieval.from_pretrained(GOLDEN / "flmr" / "colbert_text_only" / "checkpoint")
    with pytest.raises(UserError, match="reads text only"):
        index_custom_collection([("a", None, path)], colbert, **where, use_gpu=False)
    assert not (tmp_path / "indexes" / "e" / "indexes" / "i.nbits=8" / "manifest.json").exists()


def test_bad_searches_are_one_sentence(model, where):
    with pytest.raises(UserError, match=r"there is no index at .*i.nbits=8'; build it first"):
        create_searcher(**where)
    index_custom_collection(TEXTS, model, **where, use_gpu=False)
    searcher, vectors = create_searcher(**where), asked(model)
    for arguments, match in [
        ((["x"], vectors), "1 questions and 2 rows of query_embeddings"),
        ((ASKED, vectors[0]), r"query_embeddings is \(\d+, 16\); give late_interaction_output"),
        ((ASKED, vectors * torch.nan), "NaN"),
        ((ASKED, vectors * 0), "no unmasked row"),
    ]:
        with pytest.raises(UserError, match=match):
            search_custom_collection(searcher, *arguments)
    with pytest.raises(UserError, match="no argument 'k'; it has effort"):
        search_custom_collection(searcher, ASKED, vectors, k=3)
