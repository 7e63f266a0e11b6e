"""Text towers of every layout: what a folder says about its input, and that the retriever does it."""

import json
import string

import pytest
import torch
from safetensors.torch import load_file, save_file

import models
from core.config import check
from core.errors import UserError
from core.records import Document, Query
from models import colbert
from models.multivector import load_multivector, save_sentence_transformers
from models.originals import load_original, save_original
from models.towers.conventions import PUNCTUATION, Conventions, read_conventions
from models.towers.text import load_text_tower
from models.towers.tokenizer import ColbertTokenizer
from runs import convert_checkpoint
from tests import tiny, tiny_towers

QUERIES = ["what is the climate", "fish", " which bird eats fish in this country and lives in cold snow mountain sea? "]
DOCUMENTS = ["the climate is mild, and the river is cold.", "fish", "", " ".join(tiny.WORDS)]


def write(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def vectors(model, side, strip=False):
    texts = [t.strip() if strip else t for t in (QUERIES if side == "query" else DOCUMENTS)]
    with torch.no_grad():
        if side == "query":
            return model.encode_queries(model.collate_queries([Query(str(i), t) for i, t in enumerate(texts)])).unpad()
        return model.encode_documents(
            model.collate_documents([Document(str(i), t) for i, t in enumerate(texts)])
        ).unpad()


def assert_same(one, other, strip=False):
    """strip: no blanks around texts. sentence-transformers 6 leaves them, and byte pairs see them."""
    for side in ("query", "document"):
        for a, b in zip(vectors(one, side, strip), vectors(other, side, strip), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)


# ---- which kind of folder


def test_the_kind_is_read_from_the_files_and_not_from_the_name(tmp_path):
    folder = tiny_towers.pylate(tmp_path / "colbertv2.0" / "bert-linear")
    assert read_conventions(folder).query_marker == "[Q] "
    assert load_text_tower(str(folder), 16)[1] == []
    folder = tiny.text_tower(tmp_path / "pylate-modernbert")
    write(folder / "artifact.metadata", query_token_id="[unused1]", attend_to_mask_tokens=True)
    assert read_conventions(folder) == Conventions(
        query_marker="[unused1]", attend=True, query_maxlen=12, doc_maxlen=24
    )
    folder = tiny.text_tower(tmp_path / "ColBERT", colbert=False)
    assert read_conventions(folder) == Conventions()
    assert load_text_tower(str(folder), 16)[1] == ["text.linear.weight"]


def test_a_single_vector_sentence_transformer_is_a_plain_encoder(tmp_path):
    folder = tiny.text_tower(tmp_path / "minilm", colbert=False)
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense"), ("3_Normalize", "Normalize")]
    listed = [{"idx": 0, "name": "0", "path": p, "type": f"sentence_transformers.models.{k}"} for p, k in kinds]
    (folder / "modules.json").write_text(json.dumps(listed))
    assert load_text_tower(str(folder), 16)[1] == ["text.linear.weight"]
    assert read_conventions(folder) == Conventions()
    old = tmp_path / "old"  # an older layout: everything of the encoder in a subfolder
    old.mkdir()
    folder.rename(old / "0_Transformer")
    (old / "0_Transformer" / "modules.json").rename(old / "modules.json")
    write_list = json.loads((old / "modules.json").read_text())
    write_list[0]["path"] = "0_Transformer"
    (old / "modules.json").write_text(json.dumps(write_list))
    assert load_text_tower(str(old), 16)[1] == ["text.linear.weight"]
    assert ColbertTokenizer.from_folder(old).doc_marker_id == 2


def test_pylates_defaults(tmp_path):
    folder = tiny_towers.pylate(tmp_path)
    names = {"prompts": {}, "model_type": "ColBERT", "query_prefix": None}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(names))
    assert read_conventions(folder) == Conventions("[Q] ", "[D] ", query_maxlen=32, doc_maxlen=180)
    (folder / "config_sentence_transformers.json").unlink()
    assert read_conventions(folder).doc_marker == "[D] "
    write(folder / "sentence_bert_config.json", do_lower_case=True)
    assert read_conventions(folder).lower
    write(tiny_towers.pylate(tmp_path / "b") / "config_sentence_transformers.json", do_query_expansion=False,
          attend_to_expansion_tokens=True)  # fmt: skip
    assert not read_conventions(tmp_path / "b").attend  # nothing to attend to
    write(tmp_path / "b" / "config_sentence_transformers.json", default_prompt_name="query")
    with pytest.raises(UserError, match="has the default prompt 'query'"):
        read_conventions(tmp_path / "b")


@pytest.mark.parametrize("trunk", ["", "0_Transformer"])
def test_trunk_in_a_subfolder(trunk, tmp_path):
    folder = tiny_towers.pylate(tmp_path / "a")
    wanted = load_multivector(folder)
    if trunk:
        (folder / trunk).mkdir()
        for file in [
            f for f in folder.iterdir() if f.is_file() and "sentence" not in f.name and f.name != "modules.json"
        ]:
            file.rename(folder / trunk / file.name)
        listed = json.loads((folder / "modules.json").read_text())
        listed[0]["path"] = trunk
        (folder / "modules.json").write_text(json.dumps(listed))
    assert_same(load_multivector(folder), wanted)


# ---- tokens


@pytest.mark.parametrize("trunk", ["bert", "modernbert"])
def test_pylate_tokens(trunk, tmp_path):
    model = load_multivector(tiny_towers.pylate(tmp_path, trunk))
    assert (model.options().query_maxlen, model.options().doc_maxlen) == (14, 20)
    hf = model.tokenizer.tokenizer
    query, document = (hf.convert_tokens_to_ids(m) for m in (("[unused0]", "[unused1]") if trunk == "bert"
                                                             else ("[Q] ", "[D] ")))  # fmt: skip
    ids, mask = model.tokenize("query", QUERIES)
    assert ids.shape == (3, 14)
    for row, shown, text in zip(ids.tolist(), mask.tolist(), QUERIES):
        pieces = hf.encode(text.strip(), add_special_tokens=False)[:11]
        wanted = [hf.cls_token_id, query, *pieces, hf.sep_token_id]
        assert row == wanted + [hf.mask_token_id] * (14 - len(wanted))
        assert shown == [1] * len(wanted) + [0] * (14 - len(wanted))
    ids, mask = model.tokenize("document", DOCUMENTS)
    long = hf.encode(DOCUMENTS[3], add_special_tokens=False)
    assert ids[3].tolist() == [hf.cls_token_id, document, *long[:17], hf.sep_token_id]
    assert ids[1, mask[1] == 0].unique().tolist() == [hf.convert_tokens_to_ids("[PAD]")]
    keep = model.collate_documents([Document("d", DOCUMENTS[0])])["keep"][0]
    shown = hf.convert_ids_to_tokens(model.tokenize("document", DOCUMENTS[:1])[0][0])
    assert [t for t, k in zip(shown, keep.tolist()) if not k] == [",", "."]


def test_expansion_rows_count_and_without_expansion_there_are_none(tmp_path):
    with_mask = load_multivector(tiny_towers.pylate(tmp_path / "a"))
    assert [len(v) for v in vectors(with_mask, "query")] == [14, 14, 14]
    plain = load_multivector(tiny_towers.pylate(tmp_path / "b", do_query_expansion=False))
    ids, mask = plain.tokenize("query", QUERIES)
    assert ids.shape[1] == 14 and (ids[mask == 0] == plain.tokenizer.pad_id).all()
    assert [len(v) for v in vectors(plain, "query")] == mask.sum(1).tolist() and mask[1].sum() < 14
    attended = load_multivector(tiny_towers.pylate(tmp_path / "c", attend_to_expansion_tokens=True))
    assert attended.tokenize("query", QUERIES)[1].all()
    assert not torch.allclose(vectors(attended, "query")[1][:3], vectors(with_mask, "query")[1][:3])
    overruled = colbert.build(attended.config.model_copy(update={"attend_to_mask_tokens": False})).eval()
    assert_same(overruled, with_mask)


def test_no_prefix_other_words_and_lowercasing(tmp_path):
    folder = tiny_towers.pylate(tmp_path, query_prefix="", document_prefix="", skiplist_words=["Ġfish", "zebra", "."])
    write(folder / "sentence_bert_config.json", do_lower_case=True)
    model = load_multivector(folder)
    hf = model.tokenizer.tokenizer
    assert model.tokenize("query", ["THE FISH"])[0][0, :4].tolist() == [
        1,
        *hf.convert_tokens_to_ids(["the", "Ġfish"]),
        2,
    ]
    assert model.tokenizer.skip_ids == sorted(hf.convert_tokens_to_ids(["Ġfish", "."]))  # zebra is several pieces
    assert len(model.doc_from_text(["The fish."])[0]) == 3
    model.config.eval.mask_punctuation = False
    assert len(model.doc_from_text(["The fish."])[0]) == 5


def test_padding_that_pylate_saves_as_the_mask_token(tmp_path):
    """PyLate sets pad_token to [MASK] before it saves; padding must not be taken for expansion."""
    folder = tiny_towers.pylate(tmp_path / "a", do_query_expansion=False)
    wanted = load_multivector(folder)
    write(folder / "tokenizer_config.json", pad_token="[MASK]")
    model = load_multivector(folder)
    assert model.tokenizer.tokenizer.pad_token_id == model.tokenizer.mask_id != model.tokenizer.pad_id
    assert_same(model, wanted)


def test_a_marker_must_be_in_the_vocabulary(tmp_path):
    folder = tiny_towers.pylate(tmp_path, query_prefix="[QUERY] ")
    with pytest.raises(UserError, match=r"the marker '\[QUERY\] ' is not in the tokenizer's vocabulary"):
        load_multivector(folder)
    section = {"text_tower": str(folder), "dim": 16, "query_marker": "[D] "}
    model = colbert.build(check(colbert.Config, section, "model"))
    assert (
        model.tokenizer.query_marker_id == model.tokenizer.doc_marker_id
    )  # the config's word comes before the folder's


# ---- projections


def test_a_chain_of_dense_layers_is_one_matrix(tmp_path):
    folder = tiny_towers.pylate(tmp_path)
    one, two, three = (torch.randn(s) for s in ((24, 32), (24, 24), (16, 24)))
    side = torch.randn(16, 24)
    tiny_towers.dense(folder / "1_Dense", one)
    tiny_towers.dense(folder / "2_Dense", two, use_residual=True)
    tiny_towers.dense(folder / "3_Dense", three, use_residual=True)
    save_file({"linear.weight": three, "residual.weight": side}, folder / "3_Dense" / "model.safetensors")
    listed = json.loads((folder / "modules.json").read_text())
    listed += [{"idx": i, "name": str(i), "path": f"{i}_Dense", "type": "pylate.models.Dense.Dense"} for i in (2, 3)]
    (folder / "modules.json").write_text(json.dumps(listed))
    tower, missing, _ = load_text_tower(str(folder), 16)
    x = torch.randn(5, 32)
    hidden = x @ one.T
    hidden = hidden @ two.T + hidden
    assert not missing
    torch.testing.assert_close(tower.project(x), hidden @ three.T + hidden @ side.T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("config", "tensors", "message"), [
    ({"activation_function": "torch.nn.modules.activation.Tanh"}, {}, "has the activation Tanh"),
    ({"bias": True}, {"linear.bias": torch.zeros(16)}, "has a bias"),
])  # fmt: skip
def test_dense_layers_that_are_no_matrix(config, tensors, message, tmp_path):
    folder = tiny_towers.pylate(tmp_path)
    weight = load_file(folder / "1_Dense" / "model.safetensors")["linear.weight"]
    tiny_towers.dense(folder / "1_Dense", weight, **config)
    save_file({"linear.weight": weight, **tensors}, folder / "1_Dense" / "model.safetensors")
    with pytest.raises(UserError, match=message):
        load_text_tower(str(folder), 16)


def test_module_lists_that_are_refused(tmp_path):
    folder = tiny_towers.pylate(tmp_path)
    listed = json.loads((folder / "modules.json").read_text())
    with pytest.raises(UserError, match=r"model\.dim is 128 but .* projects to 16"):
        load_text_tower(str(folder), 128)
    for wrong, message in [
        ([*listed, {"path": "2", "type": "a.TokenPooling"}], "lists .*TokenPooling"),
        (listed[1:], "supported is a Transformer, then Dense layers"),
        ({"a": 1}, "is not a list of modules"),
    ]:
        (folder / "modules.json").write_text(json.dumps(wrong))
        with pytest.raises(UserError, match=message):
            load_text_tower(str(folder), 16)
    (folder / "modules.json").write_text(json.dumps(listed[:1]))
    assert load_text_tower(str(folder), 16)[1] == ["text.linear.weight"]
    with pytest.raises(UserError, match="has no Dense layer"):
        load_multivector(folder)


@pytest.mark.parametrize("trunk", ["BertForMaskedLM", "ModernBertForMaskedLM", "RobertaForMaskedLM", "DistilBertModel"])
def test_plain_trunks_from_files_of_task_models(trunk, tmp_path):
    """Their files put "bert.", "model.", "roberta." before the trunk's names, and hold a head that is not taken."""
    import transformers as t

    family = trunk.removesuffix("ForMaskedLM").removesuffix("Model")
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "vocab_size": 400,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if family == "DistilBert":
        sizes = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48, "vocab_size": 400, "pad_token_id": 0}
    torch.manual_seed(0)
    model = getattr(t, trunk)(getattr(t, f"{family}Config")(**sizes)).eval()
    model.save_pretrained(tmp_path)
    tower, missing, _ = load_text_tower(str(tmp_path), 16)
    assert missing == ["text.linear.weight"]
    ids = torch.tensor([[1, 20, 30, 2, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 0]])
    with torch.no_grad():
        base = model if trunk == "DistilBertModel" else model.base_model
        wanted = base(input_ids=ids, attention_mask=mask).last_hidden_state
        torch.testing.assert_close(tower.eval().states(ids, mask), wanted)
        # RoBERTa counts from behind its padding index, ModernBERT's positions are rotary.
        positions = {"Bert": 64, "Roberta": 63, "DistilBert": 512, "ModernBert": None}[family]
        assert tower.positions == positions
        full = torch.full((1, positions or 65), 20)
        assert tower.states(full, torch.ones_like(full)).shape[1] == full.shape[1]
        if positions:
            longer = torch.full((1, positions + 1), 20)
            with pytest.raises((IndexError, RuntimeError)):
                base(input_ids=longer, attention_mask=torch.ones_like(longer))
            with pytest.raises(UserError, match=f"has {positions + 1} tokens, but the text tower has {positions} pos"):
                tower.states(longer, torch.ones_like(longer))


# ---- in the retrievers


@pytest.mark.parametrize("name", ["colbert", "mire"])
@pytest.mark.parametrize("trunk", ["bert", "modernbert"])
def test_checkpoints_keep_the_conventions(name, trunk, tmp_path):
    folder = tiny_towers.pylate(tmp_path / "text", trunk, skiplist_words=["fish"], attend_to_expansion_tokens=True)
    model = tiny.retriever(name, tmp_path / "t", text_tower=str(folder))
    model.save_pretrained(tmp_path / "saved")
    again = models.from_pretrained(tmp_path / "saved")
    assert again.tokenizer.conventions == model.tokenizer.conventions == read_conventions(folder)
    assert_same(again, model)
    assert again.identity() == model.identity()
    assert not any("trunk.model." in k for k in load_file(tmp_path / "saved" / "model.safetensors"))
    other = tiny_towers.pylate(tmp_path / "text2", trunk, skiplist_words=["bird"])
    assert tiny.retriever(name, tmp_path / "t", text_tower=str(other)).identity() != model.identity()


@pytest.mark.parametrize("policy", ["legacy", "train", "clean"])
def test_sentmire_is_mire_on_such_a_tower(policy, tmp_path):
    """Questions fill up with [MASK] as the policy has it, documents with [PAD], and masks are obeyed."""
    folder = tiny_towers.pylate(tmp_path / "text")
    model = tiny.retriever("mire", tmp_path / "t", text_tower=str(folder), mask_policy=policy)
    queries = tiny.queries(tmp_path)
    batch = model.collate_queries(queries)
    hf = model.tokenizer.tokenizer
    assert batch["ids"][0, :2].tolist() == [1, hf.convert_tokens_to_ids("[Q] ")]
    assert not (batch["ids"] == model.tokenizer.pad_id).any()
    with torch.no_grad():
        whole = model.encode_queries(batch)
        for i, query in enumerate(queries):
            alone = model.encode_queries(model.collate_queries([query]))
            torch.testing.assert_close(whole.unpad()[i], alone.unpad()[0], rtol=1e-4, atol=1e-5)


def test_texts_of_about_one_length_go_through_the_trunk_together(tmp_path):
    """The same states and gradients with less padding; positions nobody attends to are nobody's concern."""
    model = tiny.retriever("colbert", tmp_path)
    lengths = [3, 90, 4, 88, 5, 30, 3, 28, 4, 5, 3, 6]
    mask = (torch.arange(90)[None] < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(7, 60, mask.shape, generator=torch.Generator().manual_seed(0)) * mask
    shapes = []
    model.text.trunk.register_forward_pre_hook(
        lambda *a: shapes.append(tuple(a[2]["input_ids"].shape)), with_kwargs=True
    )

    def run(only_attended):
        model.zero_grad()
        states = model.text.states(ids, mask, only_attended) * mask[:, :, None]
        states.pow(3).sum().backward()
        return states.detach(), {n: p.grad for n, p in model.text.trunk.named_parameters() if p.grad is not None}

    (whole, wanted), (parts, found) = run(False), run(True)
    assert shapes[0] == (12, 90) and len(shapes) > 2
    assert sum(rows for rows, _ in shapes[1:]) == 12 and sum(n * m for n, m in shapes[1:]) < 0.6 * 12 * 90
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5)
    assert wanted.keys() == found.keys()
    for name, grad in wanted.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-3, atol=1e-4 * float(grad.abs().max()) + 1e-6)


def test_cached_states_equal_computed_ones(tmp_path):
    folder = tiny_towers.pylate(tmp_path / "text")
    model = tiny.retriever("colbert", tmp_path / "t", text_tower=str(folder), frozen=["text"])

    class States:
        def get(self, side, texts):
            return model.text_states(side, texts)

    for side, collate, encode, record in [
        ("query", model.collate_queries, model.encode_queries, Query),
        ("document", model.collate_documents, model.encode_documents, Document),
    ]:
        records = [record(str(i), t) for i, t in enumerate(QUERIES if side == "query" else DOCUMENTS)]
        with torch.no_grad():
            plain, cached = encode(collate(records)), encode(collate(records, None, States()))
        for a, b in zip(plain.unpad(), cached.unpad(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    key = model.frozen_text_key("query")
    model.tokenizer = ColbertTokenizer(model.tokenizer.tokenizer, Conventions("[D] ", "[D] "))
    assert model.frozen_text_key("query") != key


# ---- the ways between layouts


@pytest.mark.parametrize("settings", [{}, {"do_query_expansion": False}, {"attend_to_expansion_tokens": True},
                                      {"query_prefix": "", "document_prefix": ""}])  # fmt: skip
@pytest.mark.parametrize("trunk", ["bert", "modernbert"])
def test_written_sentence_transformers_folders_come_back_the_same(trunk, settings, tmp_path):
    model = load_multivector(tiny_towers.pylate(tmp_path / "a", trunk, **settings))
    save_sentence_transformers(model, tmp_path / "b", {"data": "tiny"})
    again = load_original(tmp_path / "b")
    assert again.tokenizer.conventions.query_marker == "" and again.options() == model.options()
    assert_same(again, model, strip=True)
    save_sentence_transformers(again, tmp_path / "c")
    assert_same(load_original(tmp_path / "c"), model, strip=True)
    assert json.loads((tmp_path / "b" / "provenance.json").read_text())["data"] == "tiny"


def test_conversions_by_the_command(tmp_path):
    """PyLate's folder -> ours -> sentence-transformers', always the same vectors."""
    model = load_multivector(tiny_towers.pylate(tmp_path / "pylate"))
    convert_checkpoint.run([str(tmp_path / "pylate"), str(tmp_path / "ours")])
    convert_checkpoint.run([str(tmp_path / "ours"), str(tmp_path / "st"), "--to", "sentence-transformers"])
    for made in (models.from_pretrained(tmp_path / "ours"), load_original(tmp_path / "st")):
        assert_same(made, model, strip=True)
    with pytest.raises(UserError, match="already has that layout, so --to sentence-transformers has nothing to do"):
        convert_checkpoint.run([str(tmp_path / "st"), str(tmp_path / "x"), "--to", "sentence-transformers"])
    with pytest.raises(UserError, match="hold text alone, 'mire' also has images"):
        save_sentence_transformers(tiny.retriever("mire", tmp_path / "t"), tmp_path / "y")
    assert not (tmp_path / "x").exists() and not (tmp_path / "y").exists()


def test_colbert_folders_keep_their_markers(tmp_path):
    tiny.text_tower(tmp_path / "a")
    write(tmp_path / "a" / "artifact.metadata", query_token_id="[unused1]", doc_token_id="[unused0]")
    section = {"text_tower": str(tmp_path / "a"), "dim": 16}
    model = colbert.build(check(colbert.Config, section, "model")).eval()
    assert (model.tokenizer.query_marker_id, model.tokenizer.doc_marker_id) == (2, 1)
    save_original(model, tmp_path / "b")
    facts = json.loads((tmp_path / "b" / "artifact.metadata").read_text())
    assert (facts["query_token_id"], facts["doc_token_id"], facts["attend_to_mask_tokens"]) == (
        "[unused1]", "[unused0]", False
    )  # fmt: skip


@pytest.mark.parametrize(("module", "changes", "message"), [
    ("", {"query_expansion": {"strategy": "min", "attend": False, "token": None, "length": 9}}, "strategy 'fixed'"),
    ("2_MultiVectorMask", {"keep_only_token_ids": [3]}, "has keep_only_token_ids"),
    ("2_MultiVectorMask", {"skiplist_tasks": ["query", "document"]}, "skips words of queries"),
])  # fmt: skip
def test_sentence_transformers_settings_that_are_refused(module, changes, message, tmp_path):
    save_sentence_transformers(load_multivector(tiny_towers.pylate(tmp_path / "a")), tmp_path / "b")
    write(tmp_path / "b" / module / ("config.json" if module else "sentence_bert_config.json"), **changes)
    with pytest.raises(UserError, match=message):
        load_original(tmp_path / "b")


def test_unnormalised_vectors_are_refused(tmp_path):
    save_sentence_transformers(load_multivector(tiny_towers.pylate(tmp_path / "a")), tmp_path / "b")
    listed = json.loads((tmp_path / "b" / "modules.json").read_text())
    (tmp_path / "b" / "modules.json").write_text(json.dumps(listed[:-1]))
    with pytest.raises(UserError, match="has no Normalize module"):
        load_original(tmp_path / "b")


def test_skip_words_are_punctuation_unless_told(tmp_path):
    tokenizer = ColbertTokenizer.from_folder(tiny.text_tower(tmp_path))
    assert tuple(string.punctuation) == PUNCTUATION
    assert len(tokenizer.skip_ids) == 32 and all(
        t in string.punctuation for t in tokenizer.tokenizer.convert_ids_to_tokens(tokenizer.skip_ids)
    )
