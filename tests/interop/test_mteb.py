"""mteb evaluates our retrievers and indexes through its search protocol, and gets the scores our own evaluator gets."""

from __future__ import annotations

import mteb
import pytest
import torch
from datasets import Dataset
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.models.models_protocols import SearchProtocol
from PIL import Image

from compat.mteb import MtebSearch
from core.errors import UserError
from core.maxsim import maxsim
from core.protocols import Ranking
from core.records import Document, Query
from evaluation.metrics import evaluate, means
from tests import tiny

WORDS = ["climate", "river", "food", "city", "fish", "snow", "mountain", "island", "sea", "rice"]
QUERIES = {f"q{i}": f"what is the {word} of this country" for i, word in enumerate(WORDS[:4])}
CORPUS = {f"d{i}": {"title": word, "text": f"the {word} is mild and {'cold' if i % 2 else 'hot'}."}
          for i, word in enumerate(WORDS)}  # fmt: skip
QRELS = {f"q{i}": {f"d{i}": 1, "d9": 1} for i in range(4)}


class Toy(AbsTaskRetrieval):
    """Four questions over ten passages, nothing downloaded."""

    metadata = mteb.TaskMetadata(
        name="ToyRetrieval", description="A toy.", dataset={"path": "local/toy", "revision": "1"}, type="Retrieval",
        category="t2t", modalities=["text"], eval_splits=["test"], eval_langs=["eng-Latn"], main_score="ndcg_at_10",
        reference=None, date=None, domains=None, task_subtypes=None, license=None, annotations_creators=None,
        dialect=None, sample_creation=None, bibtex_citation="",
    )  # fmt: skip
    top_ranked = None

    def load_data(self, *ignored, **more) -> None:
        self.dataset = {"default": {"test": {
            "queries": Dataset.from_list([{"id": i, "text": t} for i, t in QUERIES.items()]),
            "corpus": Dataset.from_list([{"id": i, **row} for i, row in CORPUS.items()]),
            "relevant_docs": {q: dict(d) for q, d in QRELS.items()}, "top_ranked": self.top_ranked,
        }}}  # fmt: skip
        self.data_loaded = True


def scores(model, task) -> dict:
    result = mteb.evaluate(model, [task], cache=None, co2_tracker=False, show_progress_bar=False)
    return result.task_results[0].scores["test"][0]


def expected(retriever, allowed=None) -> dict[str, Ranking]:
    """MaxSim of every pair, written out."""
    documents = [Document(i, f"{row['title']} {row['text']}") for i, row in CORPUS.items()]
    queries = [Query(i, text) for i, text in QUERIES.items()]
    table = maxsim(
        retriever.encode_queries(retriever.collate_queries(queries)),
        retriever.encode_documents(retriever.collate_documents(documents)),
    ).tolist()
    out = {}
    for query, row in zip(queries, table, strict=True):
        kept = {d.id: s for d, s in zip(documents, row, strict=True) if allowed is None or d.id in allowed[query.id]}
        best = sorted(kept, key=lambda i: -kept[i])
        out[query.id] = Ranking(tuple(best), tuple(kept[i] for i in best))
    return out


@pytest.mark.parametrize(("name", "index", "options"), [
    ("colbert", "exact", {"dtype": "float32"}),
    ("colbert", "plaid", {"effort": "exhaustive", "nbits": 8}),
    ("mire", "exact", {"dtype": "float32"}),
    ("flmr", "exact", {"dtype": "float32"}),
])  # fmt: skip
def test_mteb_and_our_evaluator_agree(tmp_path, name, index, options):
    retriever = tiny.retriever(name, tmp_path)
    model = MtebSearch(retriever, index, batch_size=3, **options)
    assert isinstance(model, SearchProtocol)
    found = scores(model, Toy())
    wanted = means(evaluate(expected(retriever), QRELS, ["nDCG@10", "Recall@3", "MAP@10"]))
    assert 0 < wanted["nDCG@10"] < 1, "a ranking that could not be worse or better shows nothing"
    tolerance = 1e-4 if index == "exact" else 0.1
    for theirs, ours in {"ndcg_at_10": "nDCG@10", "recall_at_3": "Recall@3", "map_at_10": "MAP@10"}.items():
        assert found[theirs] == pytest.approx(wanted[ours], abs=tolerance), theirs


def test_reranking_ranks_only_what_it_is_given(tmp_path):
    retriever = tiny.retriever("colbert", tmp_path)
    allowed = {q: [f"d{i}", "d5", "d9"] for i, q in enumerate(QUERIES)}
    model, task = MtebSearch(retriever, batch_size=3), Toy()
    task.load_data()
    split = task.dataset["default"]["test"]
    model.index(split["corpus"], task_metadata=task.metadata, hf_split="test", hf_subset="default", encode_kwargs={},
                num_proc=None)  # fmt: skip
    found = model.search(split["queries"], task_metadata=task.metadata, hf_split="test", hf_subset="default", top_k=10,
                         encode_kwargs={}, top_ranked=allowed, num_proc=None)  # fmt: skip
    for qid, ranking in expected(retriever, allowed).items():
        assert list(found[qid]) == list(ranking.ids)
        assert list(found[qid].values()) == pytest.approx(ranking.scores, abs=5e-3)  # float16 on disk
    task = Toy()
    task.top_ranked = allowed
    wanted = means(evaluate(expected(retriever, allowed), QRELS, ["nDCG@10"]))["nDCG@10"]
    assert scores(model, task)["ndcg_at_10"] == pytest.approx(wanted, abs=1e-4)


def test_images_reach_the_retriever(tmp_path):
    model = MtebSearch(tiny.retriever("mire", tmp_path))
    corpus = Dataset.from_list([{"id": i, **row} for i, row in CORPUS.items()])
    model.index(corpus, encode_kwargs={}, num_proc=None)
    red, blue = (Image.new("RGB", (24, 24), color) for color in ("red", "blue"))
    rows = [{"id": "plain", "text": "fish"}, {"id": "red", "text": "fish", "image": red},
            {"id": "blue", "text": "fish", "image": blue}]  # fmt: skip
    found = model.search(rows, top_k=3)
    assert found["red"] != found["blue"] and found["red"] != found["plain"] and len(found["red"]) == 3


def test_what_mteb_files_results_under(tmp_path):
    retriever = tiny.retriever("colbert", tmp_path)
    model, again = MtebSearch(retriever, name="local/colbert"), MtebSearch(retriever, batch_size=1)
    meta = model.mteb_model_meta
    assert (meta.name, meta.revision, meta.embed_dim) == ("local/colbert", again.revision, 16)
    assert MtebSearch(retriever, "plaid").revision != meta.revision
    assert "image" in MtebSearch(tiny.retriever("mire", tmp_path)).mteb_model_meta.modalities
    with torch.no_grad():
        retriever.text.linear.weight += 1
    assert again.revision != meta.revision


def test_what_goes_wrong_is_said(tmp_path):
    retriever = tiny.retriever("colbert", tmp_path)
    with pytest.raises(UserError, match="'organisation/model'"):
        MtebSearch(retriever, name="colbert")
    model = MtebSearch(retriever)
    with pytest.raises(UserError, match="before index"):
        model.search([{"id": "q", "text": "fish"}], top_k=3)
    with pytest.raises(UserError, match="is empty"):
        model.index([])
    with pytest.raises(UserError, match="'c' has a list as text"):
        model.index([{"id": "c", "text": ["a", "b"]}])
