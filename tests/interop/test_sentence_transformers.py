"""sentence-transformers 6 reads the folders we write, and we read its own: the same vectors."""

from __future__ import annotations

import json

import pytest
import torch
from sentence_transformers import MultiVectorEncoder

from core.records import Document, Query
from models.multivector import load_multivector, save_sentence_transformers
from models.originals import load_original
from tests import tiny, tiny_towers

QUERIES = ["what is the climate", "fish", "which bird eats fish in this country and lives in cold snow mountain sea?"]
DOCUMENTS = ["the climate is mild, and the river is cold.", "fish!", "", "Zebra (of 3 islands)", " ".join(tiny.WORDS)]

SETTINGS = [
    {},
    {"attend_to_expansion_tokens": True},
    {"do_query_expansion": False},
    {"query_prefix": "", "document_prefix": ""},
    {"skiplist_words": ["the", "."], "query_length": 9, "document_length": 11},
]


def compare(folder, ours):
    """Every vector of every query and document, and how many there are."""
    theirs = MultiVectorEncoder(str(folder), device="cpu")
    with torch.no_grad():
        queries = ours.encode_queries(ours.collate_queries([Query(str(i), t) for i, t in enumerate(QUERIES)]))
        documents = ours.encode_documents(
            ours.collate_documents([Document(str(i), t) for i, t in enumerate(DOCUMENTS)])
        )
    worst = 0.0
    for found, wanted in ((queries, theirs.encode_query(QUERIES)), (documents, theirs.encode_document(DOCUMENTS))):
        for a, b in zip(found.unpad(), wanted, strict=True):
            assert a.shape == b.shape
            worst = max(worst, float((a - b).abs().max()))
    assert worst < 2e-6
    return theirs


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("trunk", ["bert", "modernbert"])
def test_it_reads_what_we_write(trunk, settings, tmp_path):
    ours = load_multivector(tiny_towers.pylate(tmp_path / "a", trunk, **settings))
    save_sentence_transformers(ours, tmp_path / "b")
    theirs = compare(tmp_path / "b", ours)
    theirs.save_pretrained(str(tmp_path / "c"))  # and its own copy is read back
    compare(tmp_path / "c", load_original(tmp_path / "c"))


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("trunk", ["bert", "modernbert"])
def test_it_reads_pylates_folders_as_we_do(trunk, settings, tmp_path):
    folder = tiny_towers.pylate(tmp_path, trunk, **settings)
    compare(folder, load_original(folder))


def test_a_colbert_folder_becomes_its_folder(tmp_path):
    """Stanford's layout: ours read directly, through their conversion, and through our writer."""
    folder = tiny.text_tower(tmp_path / "a")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["HF_ColBERT"]}))
    ours = load_original(folder)
    compare(folder, ours).save_pretrained(str(tmp_path / "b"))
    compare(tmp_path / "b", ours)
    save_sentence_transformers(ours, tmp_path / "c")
    compare(tmp_path / "c", ours)
    compare(tmp_path / "c", load_original(tmp_path / "b"))


def test_a_text_prompt_is_part_of_the_text(tmp_path):
    """Not every folder of theirs has marker tokens; a prompt such as "query: " is cut with the text."""
    ours = load_multivector(tiny_towers.pylate(tmp_path / "a", "bert", query_prefix="", document_prefix=""))
    save_sentence_transformers(ours, tmp_path / "b")
    whole = json.loads((tmp_path / "b" / "config_sentence_transformers.json").read_text())
    whole["prompts"] = {"query": "what country: ", "document": "the "}
    (tmp_path / "b" / "config_sentence_transformers.json").write_text(json.dumps(whole))
    again = load_original(tmp_path / "b")
    compare(tmp_path / "b", again)
    assert again.identity() != ours.identity()
