"""State-dict names of FLMR and PreFLMR files (LinWeizheDragon/FLMR), both ways.

Files name the two sides "query_" and "context_". Where both sides use one module it is stored once, released files say
"query_"; files of newer code also say "context_", "text_model" for "bert_model", have one level of "vision_model"
instead of two, or hold several copies. ``hub`` takes every spelling to the released one.
"""

from __future__ import annotations

import re

from models.keys.towers import canonical

QUERY, CONTEXT = "query_", "context_"
IGNORED = re.compile(r"(^|\.)position_ids$|\.cls\.|^cls\.")
"""Buffers of old releases, and heads of the language model that a text encoder once was."""

SIDES = re.compile(r"^(query_|context_)(text_encoder|vision_encoder)\.(.*)$", re.S)
TEXT = re.compile(r"^(?:bert_model|text_model)\.(?:bert\.)?")
VISION = re.compile(r"^(?:vision_model\.)+")


def hub(name: str) -> str | None:
    """The released spelling of a file's name, sides kept as they are; None for what is to be ignored."""
    name = name.removeprefix("module.")
    if IGNORED.search(name):
        return None
    found = SIDES.match(name)
    if not found:
        return name
    side, kind, rest = found.groups()
    if kind == "vision_encoder":
        return f"{side}vision_encoder.vision_model.vision_model.{VISION.sub('', rest)}"
    return f"{side}text_encoder.bert_model.{canonical('bert', TEXT.sub('', rest))}"


def twin(name: str) -> str:
    """The same weight's name on the other side; names without a side stay."""
    if name.startswith(QUERY):
        return CONTEXT + name.removeprefix(QUERY)
    return QUERY + name.removeprefix(CONTEXT) if name.startswith(CONTEXT) else name


def prefixes(separate_text: bool, separate_vision: bool) -> list[tuple[str, str, bool]]:
    """(our prefix, the released one, whether both sides share it). Longer prefixes of ours come first."""
    table = [
        ("query_text.trunk.", "query_text_encoder.bert_model.", False),
        ("query_text.linear.", "query_text_encoder_linear.", False),
        ("text.trunk.", f"{CONTEXT if separate_text else QUERY}text_encoder.bert_model.", not separate_text),
        ("text.linear.", f"{CONTEXT if separate_text else QUERY}text_encoder_linear.", not separate_text),
        ("document_vision.trunk.", "context_vision_encoder.vision_model.", False),
        ("vision.trunk.", "query_vision_encoder.vision_model.", not separate_vision),
        ("fusion.document_projection.", "context_vision_projection.model.", False),
        ("fusion.projection.", "query_vision_projection.model.", not separate_vision),
        ("fusion.mapping_input.", "transformer_mapping_input_linear.", False),
        ("fusion.mapping_output.", "transformer_mapping_output_linear.", False),
        ("fusion.mapping.", "transformer_mapping_network.", False),
    ]
    return table


def to_hub(name: str, separate_text: bool, separate_vision: bool) -> tuple[str, bool]:
    """The released name of a portable name of ours, and whether both sides share the weight."""
    for ours, theirs, shared in prefixes(separate_text, separate_vision):
        if name.startswith(ours):
            return theirs + name[len(ours) :], shared
    raise KeyError(name)
