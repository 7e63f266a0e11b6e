"""Text towers that PyLate itself wrote and read: the same tokens and the same vectors, on tiny random models."""

from __future__ import annotations

import json

import pytest
import torch
from pylate.models import ColBERT as Theirs

from core.records import Document, Query
from models.multivector import load_multivector, save_sentence_transformers
from models.originals import load_original
from tests import tiny, tiny_towers

QUERIES = ["what is the climate", "fish", " which bird eats fish in this country and lives in cold snow mountain sea? "]
DOCUMENTS = ["the climate is mild, and the river is cold.", "fish!", "", "Zebra (of 3 islands)", " ".join(tiny.WORDS)]

SETTINGS = [
    {},
    {"attend_to_expansion_tokens": True},
    {"do_query_expansion": False},
    {"query_prefix": "", "document_prefix": ""},
    {"skiplist_words": ["the", "."], "query_length": 9, "document_length": 11},
]


def compare(theirs, ours, exact=2e-6):
    """Ids and attention masks to the bit (padding aside), vectors and their number."""
    worst = 0.0
    for is_query, texts in ((True, QUERIES), (False, DOCUMENTS)):
        want = theirs.tokenize(texts, is_query=is_query)
        ids, mask = ours.tokenize("query" if is_query else "document", texts)
        shown = torch.ones_like(mask).bool() if is_query and theirs.do_query_expansion else mask.bool()
        assert torch.equal(want["attention_mask"], mask) and torch.equal(want["input_ids"][shown], ids[shown])
        records = [(Query if is_query else Document)(str(i), t) for i, t in enumerate(texts)]
        with torch.no_grad():
            found = (
                ours.encode_queries(ours.collate_queries(records))
                if is_query
                else ours.encode_documents(ours.collate_documents(records))
            ).unpad()
        wanted = theirs.encode(texts, is_query=is_query, show_progress_bar=False, convert_to_tensor=True)
        for a, b in zip(found, wanted, strict=True):
            assert a.shape == b.shape
            worst = max(worst, float((a - b.cpu()).abs().max()))
    assert worst < exact


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("trunk", ["bert", "modernbert"])
def test_folders_that_pylate_wrote(trunk, settings, tmp_path):
    """PyLate adds its markers to a plain trunk's vocabulary, makes the projection, saves; we read the folder."""
    plain = tmp_path / "plain"
    if trunk == "bert":
        tiny.text_tower(plain, colbert=False)
    else:
        tiny_towers.modernbert(plain)
    torch.manual_seed(0)
    theirs = Theirs(
        str(plain), embedding_size=16, device="cpu", **{"query_length": 14, "document_length": 20, **settings}
    )
    theirs.eval()
    theirs.save_pretrained(str(tmp_path / "saved"))
    ours = load_original(tmp_path / "saved")
    compare(theirs, ours)
    compare(Theirs(str(tmp_path / "saved"), device="cpu").eval(), ours)


def test_the_folders_of_our_tests_are_pylates(tmp_path):
    for trunk in ("bert", "modernbert"):
        folder = tiny_towers.pylate(tmp_path / trunk, trunk)
        compare(Theirs(str(folder), device="cpu").eval(), load_multivector(folder))


def test_pylate_reads_a_colbert_folder_as_we_do(tmp_path):
    folder = tiny.text_tower(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["HF_ColBERT"]}))
    compare(Theirs(str(folder), device="cpu").eval(), load_original(folder))


def test_ours_through_sentence_transformers_and_back(tmp_path):
    folder = tiny_towers.pylate(tmp_path / "a", "bert")
    save_sentence_transformers(load_multivector(folder), tmp_path / "b")
    compare(Theirs(str(folder), device="cpu").eval(), load_original(tmp_path / "b"))
