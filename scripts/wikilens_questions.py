"""The wordings of the WikiLens questions: templates by what is asked and split, and what each kind of thing is called.

A picture of one thing is asked about its ``thing``; a scene of three things of different kinds is asked about its
``animal``, its ``vehicle`` and so on, so that the question says which of the three is meant. No wording names what is
in the picture. The dev and test templates never occur in training.
"""

from __future__ import annotations

ASPECTS = ("name", "group")
"""What is asked: the article of the thing itself, or of the larger group that it belongs to."""

NOUNS: dict[str, tuple[str, ...]] = {
    "thing": ("thing", "object", "subject"),
    "animal": ("animal", "creature from the animal kingdom"),
    "food": ("food", "thing to eat or drink"),
    "plant": ("plant", "growing plant"),
    "instrument": ("musical instrument", "instrument to make music with"),
    "vehicle": ("vehicle", "means of transport"),
    "tool": ("tool", "tool, part or weapon"),
    "device": ("device", "technical apparatus"),
    "household": ("household item", "everyday item"),
    "clothing": ("piece of clothing", "thing to wear"),
    "building": ("building", "structure that people built"),
    "sport": ("sport", "game or sport"),
    "body part": ("part of the body", "body part"),
    "being": ("imaginary being", "figure from stories"),
    "worker": ("profession", "occupation"),
    "part of nature": ("landscape, weather or heavenly body", "part of the sky or the land"),
}

EXCLUSIVE: tuple[frozenset[str], ...] = (
    frozenset({"food", "plant"}),
    frozenset({"tool", "device", "household", "clothing"}),
    frozenset({"being", "worker", "body part"}),
)
"""Kinds that never share a scene, since one could pass for the other."""

_TEMPLATES: dict[str, dict[str, tuple[str, ...]]] = {
    "name": {
        "train": (
            "Which {n} is shown in the picture?",
            "What is this {n}?",
            "What {n} can be seen here?",
            "Name the {n} in the image.",
            "Tell me about the {n} in this picture.",
            "I want to read about the {n} that you see here.",
            "Explain what the {n} in the picture is.",
            "Find an article about this {n}.",
        ),
        "dev": ("What do you know about the {n} shown here?", "Identify the {n} in this image."),
        "test": (
            "Give me some background on the pictured {n}.",
            "What would an encyclopedia say about the {n} in front of us?",
            "What is the {n} that appears in this image called?",
        ),
    },
    "group": {
        "train": (
            "To which larger group does the {n} in the picture belong?",
            "Which family or class is this {n} a member of?",
            "What is the {n} in the image a kind of?",
            "What broader category includes the {n} shown here?",
            "Tell me about the group that the {n} in this picture is part of.",
            "Explain the wider class of things to which this {n} belongs.",
            "How is the {n} that you see here classified?",
            "Find an article about the family of this {n}.",
        ),
        "dev": ("Which group contains the {n} shown here?", "What type is the {n} in this image counted among?"),
        "test": (
            "Give me some background on the category that covers the pictured {n}.",
            "Among which relatives would an encyclopedia list the {n} in front of us?",
            "What is the general term for the kind of {n} that appears in this image?",
        ),
    },
}


def wordings() -> dict[str, dict[str, list[str]]]:
    """``{"kind:aspect": {"train": [...], "dev": [...], "test": [...]}}``"""
    return {
        f"{kind}:{aspect}": {
            split: [template.format(n=noun) for template in templates for noun in nouns]
            for split, templates in _TEMPLATES[aspect].items()
        }
        for kind, nouns in NOUNS.items()
        for aspect in ASPECTS
    }
