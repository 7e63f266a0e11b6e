"""FLMR's own API on top of ours: programs written for it, what they are told when something is wrong."""

# ruff: noqa: F811 (fixtures that come by import)

from __future__ import annotations

import inspect
import json
import re
import shutil
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import models
from compat import flmr
from compat.flmr import (
    FLMRConfig,
    FLMRContextEncoderTokenizer,
    FLMRModelForRetrieval,
    FLMRQueryEncoderTokenizer,
    create_searcher,
    index_custom_collection,
    search_custom_collection,
)
from core.config import check
from core.errors import UserError
from core.maxsim import maxsim
from models.flmr import FLMR, Config
from models.towers.images import load_processor
from runs.common import open_retriever
from tests import tiny
from tests.compat_flmr_case import (  # noqa: F401
    ASKED,
    HERE,
    HUB,
    M2KR,
    SIZE,
    TEXTS,
    asked,
    brute_force,
    model,
    picture,
    processor,
    tokens,
    where,
)

# ---- programs


def test_the_code_of_the_page_runs(tmp_path, monkeypatch, capsys):
    """With another checkpoint path, and the picture size of that checkpoint."""
    blocks = re.findall(r"```python\n(.*?)```", (HERE.parent / "docs" / "FLMR.md").read_text(encoding="utf-8"), re.S)
    assert len(blocks) == 4 and "index_custom_collection(" in blocks[1] and "model.forward(" in blocks[2]
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in blocks:
        for old, new in [
            ("LinWeizheDragon/PreFLMR_ViT-L", str(HUB)),
            ("openai/clip-vit-large-patch14", str(processor(tmp_path / f"p{len(list(tmp_path.iterdir()))}"))),
            ("224, 224", f"{SIZE}, {SIZE}"),
        ]:
            block = block.replace(old, new)
        exec(compile(block, "docs/FLMR.md", "exec"), names)
    assert (tmp_path / "out" / "query_tokenizer" / "vocab.txt").is_file()
    entries = names["ranking"].todict()
    assert list(entries) == [7, 9] and all([rank for _, rank, _ in e] == [1, 2, 3, 4, 5] for e in entries.values())
    queries, documents = (
        names["found"],
        names["model"].doc(**dict(tokens(names["context_tokenizer"], names["passages"]))),
    )
    wanted = maxsim(queries.tokens, documents.tokens)[0].topk(5)
    assert [position for position, _, _ in entries[7]] == wanted.indices.tolist()
    shown = [line for line in capsys.readouterr().out.splitlines() if "River number" in line]
    assert len(shown) == 5 and shown[0].endswith(f"River number {wanted.indices[0]} flows into the sea.")
    assert names["model"].query_text_encoder_linear.weight.grad.abs().sum() > 0


def test_a_program_in_the_newer_spelling(where, tmp_path):
    """``text_config``, a checkpoint path for a model, saving weights and tokenizers apart."""
    config = FLMRConfig.from_pretrained(HUB)
    made = [
        kind.from_pretrained(HUB, text_config=config.text_config, subfolder=f"{side}_tokenizer")
        for kind, side in ((FLMRQueryEncoderTokenizer, "query"), (FLMRContextEncoderTokenizer, "context"))
    ]
    model = FLMRModelForRetrieval.from_pretrained(str(HUB), query_tokenizer=made[0], context_tokenizer=made[1])
    model.save_pretrained(tmp_path / "saved")
    for tokenizer, side in zip(made, ("query", "context")):
        shutil.rmtree(tmp_path / "saved" / f"{side}_tokenizer")
        tokenizer.save_pretrained(tmp_path / "saved" / f"{side}_tokenizer")
    path = index_custom_collection(TEXTS, str(tmp_path / "saved"), **where, use_gpu=False)
    assert path == str(Path(where["index_root_path"]) / "e" / "indexes" / "i.nbits=8")
    ranking = search_custom_collection(create_searcher(**where, model=model), ASKED, asked(model), 3)
    assert {q: len(found) for q, found in ranking.todict().items()} == {"a": 3, "b": 3}
    assert made[0].query_maxlen == 32 and made[1].doc_maxlen == 40 and made[0].pad_token_id == 0
    assert made[0].batch_decode(made[0]("a bird")["input_ids"])[0].startswith("[CLS] [unused0] a bird [SEP] [MASK]")


def test_a_config_changes_what_the_checkpoint_says(model, capsys):
    config = FLMRConfig.from_pretrained(HUB)
    same = FLMRModelForRetrieval.from_pretrained(HUB, config=config)
    assert same.config == model.config and same.device.type == "cpu" and same.dtype is torch.float32
    config.mask_instruction_token = None
    words = model.query_tokenizer(ASKED["a"])
    for given in ({"config": config}, {"mask_instruction_token": None}):
        changed = FLMRModelForRetrieval.from_pretrained(HUB, **given)
        with torch.no_grad():
            found = changed.query(**words).late_interaction_output
        assert not (found == 0).all(-1).any() and (model.query(**words).late_interaction_output == 0).all(-1).any()
    assert capsys.readouterr().err == ""
    with pytest.raises(UserError, match="belongs to another configuration"):
        FLMRModelForRetrieval.from_pretrained(HUB, dim=8)


SIGNATURES = {  # the original's names, in its order, with its defaults
    "index_custom_collection": {
        "custom_collection": ..., "model": ..., "index_root_path": ".", "index_experiment_name": "default_experiment",
        "index_name": "index", "nbits": 8, "doc_maxlen": 512, "overwrite": False, "use_gpu": True,
        "indexing_batch_size": 64, "model_temp_folder": "tmp", "nranks": 1,
    },
    "create_searcher": {
        "index_root_path": ".", "index_experiment_name": "default_experiment", "index_name": "index", "use_gpu": True,
        "nbits": 8,
    },
    "search_custom_collection": {
        "searcher": ..., "queries": ..., "query_embeddings": ..., "num_document_to_retrieve": 100,
        "remove_zero_tensors": True, "centroid_search_batch_size": None,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", SIGNATURES)
def test_arguments_and_defaults_are_the_originals(name):
    ours = inspect.signature(getattr(flmr, name)).parameters.values()
    plain = {p.name: ... if p.default is p.empty else p.default for p in ours if p.kind is p.POSITIONAL_OR_KEYWORD}
    wanted = SIGNATURES[name]
    assert dict(list(plain.items())[: len(wanted)]) == wanted and list(plain)[: len(wanted)] == list(wanted)


def test_configs_fill_in_the_defaults():
    config = FLMRConfig.from_pretrained(HUB)
    assert (config.dim, config.text_config.hidden_size, config.text_config.num_attention_heads) == (16, 24, 4)
    assert (config.text_config.text_encoder_base_model, config.text_config.layer_norm_eps) == (
        "bert-base-uncased",
        1e-12,
    )
    assert (config.vision_config.hidden_size, config.vision_config.hidden_act) == (32, "quick_gelu")
    plain = FLMRConfig()
    assert plain.mapping_network_prefix_length == 32 and plain.vision_config.patch_size == 32
    plain.query_mask_input_ids_skip_list.append(5)
    assert FLMRConfig().query_mask_input_ids_skip_list == [] and plain != FLMRConfig()
    joined = FLMRConfig.from_text_vision_configs(config.text_config, config.vision_config, dim=7)
    assert joined.dim == 7 and FLMRConfig(**joined.to_dict()) == joined


# ---- the original's numbers


def test_the_m2kr_script_gives_its_vectors(where):
    """Tokenise, preprocess and encode as the script does; index its passages and rank them."""
    expected, numbers = json.loads((M2KR / "expected.json").read_text()), load_file(M2KR / "expected.safetensors")
    tokenizer = FLMRQueryEncoderTokenizer.from_pretrained(M2KR / "checkpoint", subfolder="query_tokenizer")
    model = FLMRModelForRetrieval.from_pretrained(M2KR / "checkpoint", query_tokenizer=tokenizer)
    prepare = load_processor(M2KR / "preprocessor")
    assert len(expected["datasets"]) >= 4
    for subset, facts in expected["datasets"].items():
        rows = facts["rows"]
        encoding = tokenizer([row["text_sequence"] for row in rows])
        assert encoding["input_ids"].tolist() == [row["input_ids"] for row in rows]
        assert encoding["attention_mask"].tolist() == [row["attention_mask"] for row in rows]
        pixels = []
        for row in rows:
            blank = row["image"] is None
            image = Image.new("RGB", (336, 336)) if blank else Image.open(M2KR / "images" / row["image"]).convert("RGB")
            pixels.append(prepare(image, return_tensors="pt").pixel_values)
        pixels = torch.stack(pixels)
        torch.testing.assert_close(pixels, numbers[f"{subset}/pixel_values"], atol=1e-5, rtol=0)
        with torch.no_grad():
            vectors = model.query(**encoding, pixel_values=pixels).late_interaction_output
        torch.testing.assert_close(vectors, numbers[f"{subset}/query_embeddings"], atol=2e-5, rtol=0)
        passages = facts["passages_as_indexed"]
        index_custom_collection(passages, model, **{**where, "index_name": subset}, nbits=32, use_gpu=False)
        ranking = search_custom_collection(
            create_searcher(**{**where, "index_name": subset}, nbits=32),
            [row["text_sequence"] for row in rows],
            vectors,
        ).todict()
        with torch.no_grad():
            documents = model.doc(**tokens(model.context_tokenizer, passages))
        scores = brute_force(vectors, documents.late_interaction_output, documents.context_mask)
        for row, entries in ranking.items():
            assert sorted(position for position, _, _ in entries) == list(range(len(passages)))
            found = torch.tensor([score for _, _, score in entries])
            torch.testing.assert_close(found.double(), scores[row].sort(descending=True).values, atol=1e-4, rtol=0)


# ---- bad input


def test_a_checkpoint_without_tokenizers(tmp_path):
    folder = shutil.copytree(HUB, tmp_path / "released")
    shutil.rmtree(folder / "query_tokenizer")
    for call in (
        lambda: FLMRQueryEncoderTokenizer.from_pretrained(folder, subfolder="query_tokenizer"),
        lambda: FLMRModelForRetrieval.from_pretrained(folder),
        lambda: index_custom_collection(TEXTS, str(folder), str(tmp_path)),
    ):
        with pytest.raises(UserError, match=r"has no query_tokenizer/vocab\.txt; .* copy them"):
            call()
    assert FLMRContextEncoderTokenizer.from_pretrained(folder).doc_maxlen == 40  # its own subfolder by itself


def test_a_text_without_separator_is_told_once(model, capsys):
    model.query(**model.query_tokenizer(list(ASKED.values())))
    assert capsys.readouterr().err == ""
    for _ in range(2):
        model.query(**model.query_tokenizer(["describe: a bird", "which bird"]))
    told = capsys.readouterr().err
    assert told.count("warning") == 1 and "row 1 of input_ids has no ':' within 32 tokens" in told


def test_images_that_do_not_fit(model):
    words = model.query_tokenizer(list(ASKED.values()))
    for pixels, match in [
        (torch.zeros(1, 3, SIZE, SIZE), "images for 1 and texts for 2 query rows; give one entry of images per text"),
        ([torch.zeros(3, SIZE, SIZE)], "pixel_values is a list, not a tensor; stack one entry per text"),
        (torch.zeros(2, 3, 32, 32), "images are 32 x 32 pixels.*wants 24 x 24; use the image processor of 'openai"),
    ]:
        with pytest.raises(UserError, match=match):
            model.query(**words, pixel_values=pixels)
    with pytest.raises(UserError, match=r"32 x 32 pixels.*wants 24 x 24"):
        model.doc(**words, pixel_values=torch.zeros(2, 3, 32, 32), concat_output_from_vision_encoder=True)


def test_bad_tokenizer_calls_are_one_sentence(model, tmp_path, capsys):
    for call, match in [
        (lambda: model.query_tokenizer([1]), "not 1"),
        (lambda: model.query_tokenizer(None), "not None"),
        (lambda: model.context_tokenizer([]), r"not \[\]"),
        (lambda: model.query_tokenizer("x", padding=False), "padding=False"),
        (lambda: model.query_tokenizer("x", truncation=False), "truncation=False"),
        (lambda: model.query_tokenizer("x", return_tensors="tf"), "'tf'"),
    ]:
        with pytest.raises(UserError, match=match):
            call()
    other = tiny.retriever("flmr", tmp_path / "towers")
    other.save_pretrained(tmp_path / "own")
    foreign = FLMRQueryEncoderTokenizer.from_pretrained(tmp_path / "own", subfolder="query_tokenizer")
    assert foreign.query_maxlen == 12
    assert FLMRQueryEncoderTokenizer.from_pretrained(HUB, query_maxlen=9)("a")["input_ids"].shape == (1, 9)
    assert torch.equal(foreign("what is it")["input_ids"], other.tokenizer.queries(["what is it"], 12)[0])
    FLMRModelForRetrieval.from_pretrained(HUB, torch_dtype="auto", trust_remote_code=True)
    assert "no use for torch_dtype; the weights are float32" in capsys.readouterr().err
    with pytest.raises(UserError, match="query_tokenizer has another vocabulary"):
        FLMRModelForRetrieval.from_pretrained(HUB, query_tokenizer=foreign)


# ---- the hub


def test_hub_names_are_taken_everywhere(where, monkeypatch):
    """What is fetched is what loading needs."""
    fetched = []

    def snapshot(name, allow_patterns):
        fetched.append(name)
        needed = [str(p.relative_to(HUB)) for p in HUB.rglob("*") if p.is_file()]
        assert all(any(fnmatch(file, pattern) for pattern in allow_patterns) for file in needed), needed
        return str(HUB)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    name = "LinWeizheDragon/PreFLMR_ViT-B"
    wanted = FLMR.from_pretrained(HUB).identity()
    for load in (FLMR.from_pretrained, FLMRModelForRetrieval.from_pretrained, models.from_pretrained, open_retriever):
        assert load(name).identity() == wanted
    FLMRConfig.from_pretrained(name)
    FLMRQueryEncoderTokenizer.from_pretrained(name, subfolder="query_tokenizer")
    FLMRContextEncoderTokenizer.from_pretrained(name, subfolder="context_tokenizer")
    index_custom_collection(TEXTS, name, **where, use_gpu=False)
    assert fetched == [name] * 8


def test_a_machine_without_connection_and_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for kind in (FLMRModelForRetrieval, FLMRQueryEncoderTokenizer, FLMRConfig):
        with pytest.raises(UserError, match=r"neither a local folder nor reachable on the hub.*give its folder"):
            kind.from_pretrained("LinWeizheDragon/PreFLMR_ViT-B")
    with pytest.raises(UserError, match="'ckpts/PreFLMR' does not exist"):
        FLMRModelForRetrieval.from_pretrained("ckpts/PreFLMR")


# ---- frozen documents


def test_frozen_documents_keep_their_index(tmp_path):
    model = tiny.retriever("flmr", tmp_path, variant="preflmr", frozen=["vision", "documents"])
    model.train()
    assert not any(m.training for m in model.text.modules()) and model.query_text.training
    before = model.identity()
    batch = model.collate_documents(tiny.documents())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    queries = model.encode_queries(model.collate_queries(tiny.queries(tmp_path)))
    scores = maxsim(queries, model.encode_documents(batch))
    scores.sum().backward()
    assert all(p.grad is None for p in model.text.parameters()) and model.query_text.linear.weight.grad is not None
    old = model.query_text.linear.weight.clone()
    optimizer.step()
    assert model.identity() == before and not torch.equal(model.query_text.linear.weight, old)
    model.freeze([])
    assert model.text.linear.weight.requires_grad and model.train().text.training
    with pytest.raises(UserError, match="frozen names 'documents', but without separate_text"):
        check(Config, {"frozen": ["documents"]}, "model")
