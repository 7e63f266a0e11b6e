"""FLMR's released folder layout: config.json as differences from defaults, safetensors under the original's names, and
a tokenizer folder per side. Both ways, without a connection and without transformers' idea of the classes.

Published: LinWeizheDragon/FLMR and PreFLMR_ViT-B, -L, -G on the Hugging Face hub.
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.errors import UserError
from core.files import atomic_folder, read_object, write_json
from models import artifacts
from models.flmr_head import Mapping
from models.keys import flmr as keys
from models.towers.conventions import Conventions
from models.towers.folders import assign, read_weights, resolve, tower_config
from models.towers.images import PixelSource
from models.towers.text import TextTower
from models.towers.tokenizer import ColbertTokenizer
from models.towers.vision import VisionConfig, VisionTower
from models.visual import pixels_of

TOP: dict[str, Any] = {
    "mask_punctuation": True, "mapping_network_prefix_length": 32, "dim": 128, "use_vision_encoder": True,
    "initializer_range": 0.02, "separate_query_and_context_text_encoder": False,
    "separate_query_and_context_vision_encoder": False, "query_concat_output_from_vision_encoder": True,
    "query_concat_output_from_text_encoder": True, "context_concat_output_from_vision_encoder": False,
    "context_concat_output_from_text_encoder": True, "use_transformer_mapping_network": False,
    "transformer_mapping_config_base": None, "transformer_mapping_num_hidden_layers": None,
    "load_cpu_extension": False, "mask_instruction_token": None, "transformer_mapping_cross_attention_length": 32,
    "vision_model_version": "openai/clip-vit-base-patch32", "query_mask_input_ids_skip_list": [],
}  # fmt: skip
"""The class defaults of config.json; released files differ from them and may leave the rest out."""

TEXT: dict[str, Any] = {
    "vocab_size": 30522, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
    "intermediate_size": 3072, "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 512, "type_vocab_size": 2, "initializer_range": 0.02, "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}  # fmt: skip
"""Of ``text_config``: bert-base-uncased."""

VISION: dict[str, Any] = {
    "hidden_size": 768, "intermediate_size": 3072, "projection_dim": 512, "num_hidden_layers": 12,
    "num_attention_heads": 12, "num_channels": 3, "image_size": 224, "patch_size": 32, "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5, "attention_dropout": 0.0, "initializer_range": 0.02, "initializer_factor": 1.0,
}  # fmt: skip
"""Of ``vision_config``: CLIP ViT-B/32."""

BERT = "bert-base-uncased"
DOC_MAXLEN = 512
"""The original never reads more of a document, whatever its tokenizer's ``doc_maxlen``."""

SIDES = {"query": "FLMRQueryEncoderTokenizer", "context": "FLMRContextEncoderTokenizer"}

PROCESSOR = {
    "image_processor_type": "CLIPImageProcessor", "do_resize": True, "do_center_crop": True, "do_rescale": True,
    "do_normalize": True, "do_convert_rgb": True, "resample": 3, "rescale_factor": 1 / 255,
    "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
}  # fmt: skip
"""CLIP's, which all published models use; released folders hold none."""


def is_released(raw: dict) -> bool:
    """Whether a config.json is of this layout."""
    return raw.get("model_type") == "flmr" and "retriever" not in raw


# ---- reading


def load(cls: type, folder: Path, raw: dict | None = None):
    """A retriever of class ``cls`` (``models.flmr.FLMR``); every tensor of the folder is used, none stays random.

    raw: read in place of the folder's config.json.
    """
    raw = read_object(folder / "config.json", "checkpoint config") if raw is None else raw
    try:
        words, settings = read_tokenizers(folder)
        model = skeleton(cls, raw, folder, words, settings)
    except UserError:
        raise
    except Exception as error:  # of whatever a wrong number or type breaks, in transformers' classes too
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"'{folder / 'config.json'}' or a tokenizer_config.json has a value that makes no model "
            f"({type(error).__name__}: {reason}); compare them with the published ones."
        ) from error
    assign_released(model, read_weights(folder), folder)
    model.provenance = artifacts.read_provenance(folder)
    return model.eval()


def skeleton(cls: type, raw: dict, folder: Path, words, settings: dict):
    """The module with the shapes of a released config.json and no weights yet.

    words: a Hugging Face tokenizer. settings: query_maxlen, doc_maxlen, attend_to_mask_tokens.
    """
    top, text = {**TOP, **raw}, {**TEXT, **raw.get("text_config", {})}
    vision = {**VISION, **raw.get("vision_config", {})}
    _supported(text, vision, folder)
    if len(words) > text["vocab_size"]:
        raise UserError(
            f"the tokenizers of '{folder}' know {len(words)} words, but its config.json has a vocab_size of "
            f"{text['vocab_size']}; copy the tokenizer folders from the model that it was trained from."
        )
    images, separate = top["use_vision_encoder"], top["separate_query_and_context_text_encoder"]
    mapping = _mapping(top, text, folder) if images and top["use_transformer_mapping_network"] else None
    stage = {
        "query_maxlen": settings["query_maxlen"],
        "doc_maxlen": min(DOC_MAXLEN, settings["doc_maxlen"]),
        "mask_punctuation": top["mask_punctuation"],
        "rows": _kinds(top, "query", ("global", "mapped"), folder),
        "document_rows": _kinds(top, "context", ("global",), folder),
    }
    config = cls.Config(
        variant="flmr" if mapping is None else "preflmr",
        text_tower=str(folder),
        dim=top["dim"],
        separate_text=separate,
        mapping=mapping,
        instruction_separator=top["mask_instruction_token"],
        vision=VisionConfig(tower=top["vision_model_version"] or "") if images else None,
        separate_vision=images and top["separate_query_and_context_vision_encoder"],
        num_tokens=top["mapping_network_prefix_length"],
        skip_query_ids=top["query_mask_input_ids_skip_list"],
        attend_to_mask_tokens=settings["attend_to_mask_tokens"],
        fresh=[],
        train=stage,
        eval=stage,
    )

    def text_tower() -> TextTower:
        from transformers import BertConfig

        return TextTower(BertConfig(**{k: text[k] for k in TEXT}), config.dim)

    def vision_tower() -> VisionTower:
        from transformers import CLIPVisionConfig

        return VisionTower(CLIPVisionConfig(**{k: vision[k] for k in VISION}), config.vision)

    return cls(
        config,
        text_tower(),
        ColbertTokenizer(words, Conventions()),
        vision_tower() if images else None,
        _pixels(folder, vision["image_size"]) if images else None,
        text_tower() if separate else None,
        vision_tower() if config.separate_vision else None,
    )


def _supported(text: dict, vision: dict, folder: Path) -> None:
    base = text.get("text_encoder_base_model", BERT)
    if base != BERT:
        raise UserError(
            f"the text encoders of '{folder}' are '{base}'; only {BERT} can be read (FLMR and PreFLMR_ViT-B, -L, -G)."
        )
    if text.get("position_embedding_type", "absolute") != "absolute" or text.get("projection_dim", 0):
        raise UserError(
            f"the text_config of '{folder}' has position_embedding_type '{text.get('position_embedding_type')}' and "
            f"projection_dim {text.get('projection_dim', 0)}; only 'absolute' and 0, as published, can be read."
        )


def _kinds(top: dict, side: str, visual: tuple[str, ...], folder: Path) -> list[str]:
    """Kinds of rows, in their order on that side, from the two concat flags."""
    image = [*visual] if top["use_vision_encoder"] and top[f"{side}_concat_output_from_vision_encoder"] else []
    text = ["text"] if top[f"{side}_concat_output_from_text_encoder"] else []
    if not image + text:
        raise UserError(
            f"'{folder / 'config.json'}' switches off both text and image of the {side} side; switch one on."
        )
    return text + image if side == "query" else image + text


def _mapping(top: dict, text: dict, folder: Path) -> Mapping:
    """The mapping network follows a BERT config that config.json names: a folder relative to the checkpoint, or the
    hub's bert-base-uncased, whose numbers are known."""
    name = top["transformer_mapping_config_base"] or BERT
    if (folder / name / "config.json").is_file():
        base = read_object(folder / name / "config.json", "mapping config")
    elif name == BERT or name.endswith(f"/{BERT}"):
        base = {}
    else:
        base = tower_config(resolve(name, folder)).to_dict()
    base = {**TEXT, **base}
    if base["hidden_size"] != text["hidden_size"]:
        raise UserError(
            f"the mapping config '{name}' of '{folder}' is {base['hidden_size']} wide, the text encoder "
            f"{text['hidden_size']}; they must be equal."
        )
    return Mapping(
        layers=top["transformer_mapping_num_hidden_layers"] or 1,
        # null where they are the text tower's, so that a YAML that says nothing means the same
        heads=_unless(base["num_attention_heads"], text["num_attention_heads"]),
        width=_unless(base["intermediate_size"], text["intermediate_size"]),
        dropout=base["hidden_dropout_prob"],
        activation=base["hidden_act"],
        eps=base["layer_norm_eps"],
        text_rows=top["transformer_mapping_cross_attention_length"],
    )


def _unless(value: int, usual: int) -> int | None:
    return None if value == usual else value


def _pixels(folder: Path, size: int) -> PixelSource:
    """The folder's image processor, else CLIP's for images of ``size``."""
    found = pixels_of(folder)
    if found is not None:
        return found
    with tempfile.TemporaryDirectory() as place:
        made = {**PROCESSOR, "size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}
        write_json(Path(place) / "preprocessor_config.json", made)
        return PixelSource(place)


def read_tokenizers(folder: Path) -> tuple:
    """(Hugging Face tokenizer, settings of both sides) of the two tokenizer folders, whose vocabulary must be one."""
    (words, asked), (others, answered) = (read_tokenizer(folder / f"{side}_tokenizer") for side in SIDES)
    if words.get_vocab() != others.get_vocab():
        raise UserError(
            f"the vocabularies of the two tokenizer folders of '{folder}' differ; both sides need the same."
        )
    text = {**TEXT, **read_object(folder / "config.json").get("text_config", {})}
    settings = {"query_maxlen": text.get("query_maxlen", 32), "attend_to_mask_tokens": False, **asked}
    return words, {**settings, "doc_maxlen": answered.get("doc_maxlen", DOC_MAXLEN)}


SETTINGS = {"query_maxlen", "doc_maxlen", "attend_to_mask_tokens"}
"""Of a tokenizer_config.json, beside what transformers knows."""


def read_tokenizer(place: Path) -> tuple:
    """(Hugging Face tokenizer, those of ``SETTINGS`` that are said) of one tokenizer folder."""
    for name in ("vocab.txt", "tokenizer_config.json"):
        if not (place / name).is_file():
            raise UserError(
                f"'{place.parent}' has no {place.name}/{name}; a released FLMR folder has query_tokenizer "
                "and context_tokenizer in it, copy them from the model it was trained from."
            )
    raw = read_object(place / "tokenizer_config.json", "tokenizer config")
    return _words(place, raw), {key: raw[key] for key in SETTINGS & raw.keys()}


def _words(folder: Path, raw: dict):
    """The BERT tokenizer of one folder, added tokens at the ids that it gives them."""
    from transformers import AddedToken, BertTokenizerFast

    known = {k: raw[k] for k in ("do_lower_case", "strip_accents", "tokenize_chinese_chars") if k in raw}
    made = BertTokenizerFast(vocab=str(folder / "vocab.txt"), **known)
    added = {int(k): v["content"] for k, v in raw.get("added_tokens_decoder", {}).items()}
    if (folder / "added_tokens.json").is_file():
        added |= {v: k for k, v in read_object(folder / "added_tokens.json", "added tokens").items()}
    made.add_tokens([AddedToken(added[i], normalized=False, special=True) for i in sorted(added)], special_tokens=True)
    moved = {word: i for i, word in added.items() if made.convert_tokens_to_ids(word) != i}
    if moved:
        raise UserError(
            f"the added tokens of '{folder}' do not continue vocab.txt ({moved}); the vocabulary is another model's."
        )
    return made


def assign_released(model, tensors: dict[str, Tensor], folder: Path) -> None:
    """Copy tensors under any of the layout's spellings into the model. Several copies of one weight must be equal."""
    table = defaultdict(list)
    for name in tensors:
        if (spelt := keys.hub(name)) is not None:
            table[spelt].append(name)
    names, used, config = {}, set(), model.config
    for own in model.state_dict():
        spelt, shared = keys.to_hub(artifacts.portable_name(model, own), config.separate_text, config.separate_vision)
        found = [*table[spelt], *(table[keys.twin(spelt)] if shared else [])]
        used.update(found)
        for other in found[1:]:
            if not torch.equal(tensors[found[0]], tensors[other]):
                raise UserError(
                    f"'{folder}' holds two versions of one weight, '{found[0]}' and '{other}', which differ; its "
                    "config.json says that both sides share it: correct separate_query_and_context_*_encoder."
                )
        if found:
            names[own] = found[0]
    missing = sorted(assign(model, tensors, names))
    extra = sorted({n for found in table.values() for n in found} - used)
    if missing or extra:
        raise UserError(
            f"the weights of '{folder}' do not fit its config.json: {len(missing)} missing {missing[:4]}, "
            f"{len(extra)} not understood {extra[:4]}; the folder is damaged, or of another kind of model."
        )


# ---- writing


def save(model, path: str | Path, facts: dict | None = None, shard_bytes: int = 5 << 30) -> None:
    """Write ``model`` in the released layout: whole, or not at all. Files of more than ``shard_bytes`` are split."""
    _expressible(model)
    with atomic_folder(path) as folder:
        write_json(folder / "config.json", released_config(model, folder))
        stage = model.config.eval
        lengths = {"query_maxlen": stage.query_maxlen, "doc_maxlen": stage.doc_maxlen}
        for side in SIDES:
            place = folder / f"{side}_tokenizer"
            place.mkdir()
            write_tokenizer(
                model.tokenizer.tokenizer, place, side, {**lengths, "attend_to_mask_tokens": model.attends()}
            )
        if model._pixels is not None:
            model._pixels.save(folder)
        state = {}
        for name, tensor in artifacts.portable_state(model).items():
            state[keys.to_hub(name, model.config.separate_text, model.config.separate_vision)[0]] = tensor
        _write_weights(folder, state, shard_bytes)
        write_json(folder / "provenance.json", artifacts.provenance(artifacts.with_source(model, facts)))


def _expressible(model) -> None:
    """The layout can say nothing but BERT with ColBERT's conventions and CLIP with the published layers."""
    usual, config = Conventions(), model.config
    lengths = {"query_maxlen": None, "doc_maxlen": None, "attend": usual.attend}
    problems = []
    if model.text.trunk.config.model_type != "bert" or getattr(model.text.trunk, "pooler", None) is None:
        problems.append(f"the text tower is no BERT with its pooler but '{model.text.trunk.config.model_type}'")
    if replace(model.tokenizer.conventions, **lengths) != usual:
        problems.append("texts have other markers, prompts or skipped words than ColBERTv2's")
    if model.vision is not None and model.vision.family != "clip_vision_model":
        problems.append(f"the vision tower is '{model.vision.family}'")
    if config.vision is not None and config.vision != VisionConfig(tower=config.vision.tower):
        problems.append("model.vision takes other layers or a grid")
    if problems:
        raise UserError(
            f"the released layout of FLMR cannot hold this model ({'; '.join(problems)}); keep it in our own."
        )


def released_config(model, folder: Path) -> dict:
    """config.json of the layout; a mapping network of other shape than BERT-base gets a folder mapping_config."""
    config, stage = model.config, model.config.eval
    mapping = config.mapping
    text, vision = model.text.trunk.config, model.vision and model.vision.trunk.config
    if mapping is not None:
        first = model.fusion.mapping["layer"][0]
        shape = {
            "hidden_size": model.text.hidden_size,
            "num_attention_heads": first.attention.heads,
            "intermediate_size": first.intermediate["dense"].out_features,
            "hidden_act": mapping.activation,
            "layer_norm_eps": mapping.eps,
            "hidden_dropout_prob": mapping.dropout,
            "attention_probs_dropout_prob": mapping.dropout,
        }
        usual = all(TEXT[k] == v for k, v in shape.items())
        if not usual:
            (folder / "mapping_config").mkdir()
            write_json(folder / "mapping_config" / "config.json", {**TEXT, **shape, "model_type": "bert"})
    return {
        "architectures": ["FLMRModelForRetrieval"],
        "model_type": "flmr",
        **TOP,
        "mask_punctuation": stage.mask_punctuation,
        "mapping_network_prefix_length": config.num_tokens,
        "dim": config.dim,
        "use_vision_encoder": config.vision is not None,
        "separate_query_and_context_text_encoder": config.separate_text,
        "separate_query_and_context_vision_encoder": config.separate_vision,
        "query_concat_output_from_vision_encoder": bool({"global", "mapped"} & {*stage.rows}),
        "query_concat_output_from_text_encoder": "text" in stage.rows,
        "context_concat_output_from_vision_encoder": "global" in stage.document_rows,
        "context_concat_output_from_text_encoder": "text" in stage.document_rows,
        "use_transformer_mapping_network": mapping is not None,
        "transformer_mapping_config_base": None if mapping is None else BERT if usual else "mapping_config",
        "transformer_mapping_num_hidden_layers": None if mapping is None else mapping.layers,
        "mask_instruction_token": config.instruction_separator,
        "transformer_mapping_cross_attention_length": 32 if mapping is None else mapping.text_rows,
        "vision_model_version": config.vision.tower if config.vision is not None else None,
        "query_mask_input_ids_skip_list": config.skip_query_ids,
        "text_config": {
            "model_type": "flmr_text_model",
            "query_maxlen": stage.query_maxlen,
            **{k: getattr(text, k) for k, v in TEXT.items() if getattr(text, k) != v},
        },
        "vision_config": {
            "model_type": "flmr_vision_model",
            **({k: getattr(vision, k) for k, v in VISION.items() if getattr(vision, k) != v} if vision else {}),
        },
        "torch_dtype": str(model.text.linear.weight.dtype).removeprefix("torch."),
    }


def write_tokenizer(words, folder: Path, side: str, settings: dict) -> None:
    """The files of one side's tokenizer folder. words: a Hugging Face tokenizer; settings: all of ``SETTINGS``."""
    vocabulary = words.backend_tokenizer.get_vocab(with_added_tokens=False)
    added = {w: i for w, i in sorted(words.get_added_vocab().items(), key=lambda item: item[1])}
    special = {k: str(v) for k, v in words.special_tokens_map.items() if isinstance(v, str)}
    own = ("query_maxlen", "attend_to_mask_tokens") if side == "query" else ("doc_maxlen",)
    normalizer = json.loads(words.backend_tokenizer.to_str())["normalizer"] or {}
    ordered = sorted(vocabulary, key=vocabulary.get)
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in ordered), encoding="utf-8")
    beyond = {w: i for w, i in added.items() if w not in vocabulary}
    more = {"additional_special_tokens": [*beyond]} if beyond else {}
    plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    if beyond:
        write_json(folder / "added_tokens.json", beyond)
    write_json(folder / "special_tokens_map.json", {**special, **more})
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": SIDES[side],
            "added_tokens_decoder": {str(i): {"content": w, **plain} for w, i in added.items()},
            **more,
            "do_lower_case": normalizer.get("lowercase", True),
            "strip_accents": normalizer.get("strip_accents"),
            "tokenize_chinese_chars": normalizer.get("handle_chinese_chars", True),
            "model_max_length": 512,
            **special,
            **{key: settings[key] for key in own},
        },
    )


def _write_weights(folder: Path, state: dict[str, Tensor], shard_bytes: int) -> None:
    shards, size = [{}], 0
    for name in sorted(state):
        bytes_ = state[name].numel() * state[name].element_size()
        if shards[-1] and size + bytes_ > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = state[name]
        size += bytes_
    if len(shards) == 1:
        return artifacts.save_tensors(folder / "model.safetensors", state)
    files = {f"model-{i:05d}-of-{len(shards):05d}.safetensors": shard for i, shard in enumerate(shards, 1)}
    for file, shard in files.items():
        artifacts.save_tensors(folder / file, shard)
    total = sum(t.numel() * t.element_size() for t in state.values())
    where = {name: file for file, shard in files.items() for name in shard}
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": where})
