"""Tiny random towers of every family and layout: vision folders as the hub has them, multi-vector text folders."""

from __future__ import annotations

import json
import string
from pathlib import Path

import torch

from tests import tiny

SIZES = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 24, "patch_size": 8}
CNN = {"stem": 4, "stages": [[1, 3, 1, 1, 4], [2, 3, 2, 2, 6], [2, 5, 2, 2, 8]], "hidden_size": 24}


def vision_model(family: str, seed: int = 0):
    """A transformers model in eval mode; the families are the keys below."""
    import transformers as t

    torch.manual_seed(seed)
    wide = {**SIZES, "intermediate_size": 48}
    text = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2,
            "vocab_size": 40, "max_position_embeddings": 8, "bos_token_id": 0, "eos_token_id": 1,
            "pad_token_id": 2}  # fmt: skip
    made = {
        "clip": lambda: t.CLIPVisionModel(t.CLIPVisionConfig(**wide)),
        "clip_both_halves": lambda: t.CLIPModel(t.CLIPConfig(text_config=text, vision_config=wide)),
        "siglip": lambda: t.SiglipVisionModel(t.SiglipVisionConfig(**wide)),
        "siglip_both_halves": lambda: t.SiglipModel(t.SiglipConfig(text_config=text, vision_config=wide)),
        "dinov2": lambda: t.Dinov2Model(t.Dinov2Config(**SIZES)),
        "dinov2_registers": lambda: t.Dinov2WithRegistersModel(
            t.Dinov2WithRegistersConfig(**SIZES, num_register_tokens=2)
        ),
    }[family]()
    with torch.no_grad():
        for parameter in made.parameters():  # biases, norms and layer scales start as constants: a swap would not show
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return made.eval()


def cnn(folder: Path, seed: int = 0):
    """A small EfficientNet-Lite and its folder; 32 px give 4x4 cells."""
    from safetensors.torch import save_file

    from models.towers.cnn import CNNConfig, EfficientNetLite

    torch.manual_seed(seed)
    config = CNNConfig(**CNN)
    model = EfficientNetLite(config).eval()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                value.add_(torch.rand_like(value) * 0.3 if "running_var" in name else torch.randn_like(value) * 0.1)
    config.save_pretrained(folder)
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    return model


def byte_pairs(folder: Path):
    """A byte-level BPE tokenizer as ModernBERT's, with PyLate's marker tokens, saved into ``folder``."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]"]
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = sorted({*pre_tokenizers.ByteLevel.alphabet()})
    raw.train_from_iterator(
        [" ".join(tiny.WORDS)] * 20,
        trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    made = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]",
        unk_token="[UNK]", model_max_length=128,
    )  # fmt: skip
    made.add_tokens(["[Q] ", "[D] "])
    made.save_pretrained(folder)
    return made


def modernbert(folder: Path, seed: int = 0) -> Path:
    """A plain ModernBERT folder: three layers, local and global attention, byte pairs."""
    from transformers import ModernBertConfig, ModernBertModel

    tokenizer = byte_pairs(folder)
    torch.manual_seed(seed)
    config = ModernBertConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2,
        max_position_embeddings=128, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2,
        global_attn_every_n_layers=2, local_attention=8,
    )  # fmt: skip
    ModernBertModel(config).save_pretrained(folder)
    return folder


PYLATE = {
    "model_type": "ColBERT", "prompts": {"query": "", "document": ""}, "default_prompt_name": None,
    "similarity_fn_name": "MaxSim", "query_prefix": "[Q] ", "document_prefix": "[D] ", "query_length": 14,
    "document_length": 20, "attend_to_expansion_tokens": False, "skiplist_words": list(string.punctuation),
    "do_query_expansion": True,
}  # fmt: skip


def dense(folder: Path, weight: torch.Tensor, **changes) -> None:
    """A Dense module's folder, as PyLate writes it."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = {"in_features": weight.shape[1], "out_features": weight.shape[0], "bias": False, "use_residual": False,
              "activation_function": "torch.nn.modules.linear.Identity", **changes}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    save_file({"linear.weight": weight}, folder / "model.safetensors")


def pylate(folder: Path, trunk: str = "modernbert", dim: int = 16, seed: int = 0, **settings) -> Path:
    """A PyLate folder on a tiny trunk (bert, modernbert). BERT's markers are its unused entries."""
    if trunk == "bert":
        tiny.text_tower(folder, colbert=False, seed=seed)
        settings = {"query_prefix": "[unused0]", "document_prefix": "[unused1]", **settings}
    else:
        modernbert(folder, seed)
    torch.manual_seed(seed + 1)
    dense(folder / "1_Dense", torch.randn(dim, 32) / 32**0.5)
    modules = ["sentence_transformers.models.Transformer", "pylate.models.Dense.Dense"]
    listed = [{"idx": i, "name": str(i), "path": ["", "1_Dense"][i], "type": kind} for i, kind in enumerate(modules)]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "config_sentence_transformers.json").write_text(json.dumps({**PYLATE, **settings}))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 64, "do_lower_case": false}')
    return folder
