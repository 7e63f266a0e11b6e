"""ColBERT as a multi-vector folder: reads PyLate's and sentence-transformers 6's, writes the latter's."""

from __future__ import annotations

import copy
from pathlib import Path

from core.errors import UserError
from core.files import atomic_folder, write_json
from models import artifacts, colbert
from models.towers.conventions import read_conventions
from models.towers.folders import resolve
from models.towers.multivector import modules_of
from models.towers.text import text_weights


def load_multivector(name: str | Path, root: str | Path | None = None) -> colbert.ColBERT:
    """A retriever with the lengths and conventions of its folder (or hub name)."""
    folder = resolve(str(name), root)
    _, tensors = text_weights(folder)
    if "linear.weight" not in tensors:
        raise UserError(
            f"'{name}' has no Dense layer; use it as model.text_tower with model.fresh: [linear] and train it."
        )
    conventions = read_conventions(folder)
    usual = colbert.Stage()
    stage = colbert.Stage(
        query_maxlen=conventions.query_maxlen or usual.query_maxlen,
        doc_maxlen=conventions.doc_maxlen or usual.doc_maxlen,
    )
    config = colbert.Config(text_tower=str(name), dim=tensors["linear.weight"].shape[0], train=stage, eval=stage)
    return colbert.build(config, root).eval()


def is_multivector(folder: Path) -> bool:
    """Whether ``load_multivector`` reads it: ``modules.json`` without a pooling."""
    return modules_of(folder) is not None


LIBRARY = "sentence_transformers"


def save_sentence_transformers(model: colbert.ColBERT, out: str | Path, facts: dict | None = None) -> Path:
    """Write ``sentence_transformers.MultiVectorEncoder``'s folder: [Transformer, Dense, MultiVectorMask, Normalize].

    The marker becomes a prompt, one special token in front of the text, which gives the same ids. Lengths and the
    punctuation mask are those of inference. facts: go into provenance.json.
    """
    if type(model) is not colbert.ColBERT:
        raise UserError(
            f"sentence-transformers folders hold text alone, '{model.config.name}' also has images; "
            "convert a 'colbert' checkpoint."
        )
    options, own = model.config.eval, model.tokenizer.conventions
    if own.lower:
        raise UserError(
            "this text tower lowercases texts itself, which sentence-transformers 6 does not; nothing written."
        )
    tokenizer, prompts = _with_special_markers(model.tokenizer)
    expansion = {"strategy": "fixed", "attend": model.attends(), "token": None, "length": options.query_maxlen}
    trunk = {
        "transformer_task": "feature-extraction",
        "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
        "module_output_name": "token_embeddings",
        "document_length": options.doc_maxlen,
        **({"query_expansion": expansion} if own.expansion else {"query_length": options.query_maxlen}),
    }
    dense = {
        "in_features": model.text.hidden_size, "out_features": model.config.dim, "bias": False,
        "activation_function": "torch.nn.modules.linear.Identity", "module_input_name": "token_embeddings",
        "module_output_name": "token_embeddings",
    }  # fmt: skip
    skipped = list(own.skip_words) if options.mask_punctuation else []
    mask = {"skiplist_words": skipped, "skiplist_tasks": ["document"], "keep_only_token_ids": None}
    norm = {"module_input_name": "token_embeddings", "module_output_name": "token_embeddings"}
    modules = [
        ("", "base.modules.transformer.Transformer", None),
        ("1_Dense", "base.modules.dense.Dense", dense),
        ("2_MultiVectorMask", "multi_vector_encoder.modules.multi_vector_mask.MultiVectorMask", mask),
        ("3_Normalize", "base.modules.normalize.Normalize", norm),
    ]
    with atomic_folder(out) as folder:
        model.text.trunk.config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        state = artifacts.portable_state(model)
        bare = {k.removeprefix("text.trunk."): v for k, v in state.items() if k.startswith("text.trunk.")}
        artifacts.save_tensors(folder / "model.safetensors", bare)
        listed = []
        for number, (place, kind, config) in enumerate(modules):
            listed.append({"idx": number, "name": str(number), "path": place, "type": f"{LIBRARY}.{kind}"})
            if config is not None:
                (folder / place).mkdir()
                write_json(folder / place / "config.json", config)
        artifacts.save_tensors(folder / "1_Dense" / "model.safetensors", {"linear.weight": model.text.linear.weight})
        write_json(folder / "modules.json", listed)
        write_json(folder / "sentence_bert_config.json", trunk)
        whole = {"model_type": "MultiVectorEncoder", "prompts": prompts, "default_prompt_name": None}
        write_json(folder / "config_sentence_transformers.json", {**whole, "similarity_fn_name": "maxsim"})
        write_json(folder / "provenance.json", artifacts.provenance(artifacts.with_source(model, facts)))
    return Path(out)


def _with_special_markers(tokenizer) -> tuple:
    """(A copy of the Hugging Face tokenizer in which the markers are special tokens, the prompts)."""
    from transformers import AddedToken

    own, made = tokenizer.conventions, copy.deepcopy(tokenizer.tokenizer)
    markers = [m for m in (own.query_marker, own.doc_marker) if m]
    if markers:
        special = [AddedToken(m, normalized=False, special=True) for m in dict.fromkeys(markers)]
        made.add_special_tokens({"additional_special_tokens": special})
    # A blank behind the marker is no part of a WordPiece text; byte pairs see it, so the marker alone is the prompt.
    prompts = {"query": own.query_marker + own.query_prompt, "document": own.doc_marker + own.doc_prompt}
    probe = "one two, three"
    for marker, prompt in ((own.query_marker, prompts["query"]), (own.doc_marker, prompts["document"])):
        if marker:
            plain = tokenizer.tokenizer.encode(probe)
            wanted = [plain[0], tokenizer.tokenizer.convert_tokens_to_ids(marker), *plain[1:]]
            if made.encode(prompt + probe) != wanted:
                raise UserError(
                    f"this tokenizer cuts a text behind the marker '{marker}' otherwise than alone, so a prompt cannot "
                    "stand for it; nothing written."
                )
    return made, prompts
