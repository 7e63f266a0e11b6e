"""LLaVA-style conversations about the flags of FlagFacts, written from its training facts alone.

A conversation shows one flag and has four turns, each of one kind (``SHARES``): a question that needs the flag, one
that names its country, one that names another country, and the small talk that text rules drop. Only (country, field)
pairs, wordings and artwork of the training split are used, so that nothing of dev or of any test split is in a
question, a response or a picture.
"""

from __future__ import annotations

import random
from pathlib import Path

from core.files import read_json, write_json
from dataset import sentences
from dataset.records_json import read_passages, read_records

SHARES = {"needs the flag": 0.5, "names its country": 0.2, "names another country": 0.2, "small talk": 0.1}
TURNS, LONGEST = 4, 300
"""Turns of a conversation; characters that are taken of a fact."""

OPENERS = (
    "The flag shown is that of {country}. {label}: {facts}",
    "In the image, we see the flag of {country}. {label}: {facts}",
    "Certainly! This flag belongs to {country}. {label}: {facts}",
    "{label}: {facts}",
)
NAMING = ("What can you tell me about {country} ({label})?", "Describe {country}: {label}.")
SMALL_TALK = (
    ("How many stars can you count on this flag?", "There are no more stars than you can count on it."),
    ("What color is the upper edge of this flag?", "The upper edge has the color that the picture shows."),
    ("Is this a flag?", "Yes."),
    ("Provide a short description for this region: [0.1, 0.2, 0.5, 0.6]", "A part of a flag with a plain background."),
)


def written(root: Path, seed: int = 0) -> list[dict]:
    """Conversations in the format of llava_v1_5_mix665k.json; image paths are relative to ``root``."""
    rng = random.Random(seed)
    passages = {d.id: d for d in read_passages(root / "passages.jsonl")}
    wordings = read_json(root / "questions.json")
    records = read_records(root / "train.json", ("id", "image", "positive", "country", "field"))
    artwork: dict[str, set[str]] = {}
    for record in records:
        artwork.setdefault(record["country"], set()).add(record["image"])
    by_country: dict[str, list[dict]] = {}
    for record in rng.sample(records, len(records)):
        by_country.setdefault(record["country"], []).append(record)
    out = []
    for country, facts in sorted(by_country.items()):
        while facts:
            image = rng.choice(sorted(artwork[country]))
            turns: list[dict] = []
            for _ in range(TURNS):
                kind = rng.choices(list(SHARES), SHARES.values())[0]
                if kind == "small talk":
                    question, response = rng.choice(SMALL_TALK)
                else:
                    # What another country's question takes away from this one's is still asked in its turn.
                    record = rng.choice(records) if kind == "names another country" else facts.pop() if facts else None
                    if record is None:
                        break
                    question, response = asked(kind, record, passages[record["positive"]], wordings, rng)
                turns.append({"from": "human", "value": question if turns else f"<image>\n{question}"})
                turns.append({"from": "gpt", "value": response})
            if turns:
                out.append({"id": f"{country}-{len(out)}", "image": image, "conversations": turns})
    return out


def asked(kind: str, record: dict, passage, wordings: dict, rng: random.Random) -> tuple[str, str]:
    """(question, response) about the fact of a record."""
    country = passage.title
    label, _, body = passage.text.removeprefix(f"{country} - ").partition(". ")
    facts = sentences.first(body, 2)
    if len(facts) > LONGEST:
        facts = facts[:LONGEST].rpartition(" ")[0] + " ..."
    response = rng.choice(OPENERS).format(country=country, label=label, facts=facts)
    if kind == "needs the flag":
        return rng.choice(wordings[record["field"]]["train"]), response
    if country not in response:  # who names the country in the question hears it in the answer
        response = f"{country}. {response}"
    return rng.choice(NAMING).format(country=country, label=label), response


def write(root: Path, path: Path, seed: int = 0) -> Path:
    """The conversations as one JSON list, written once."""
    if not path.is_file():
        write_json(path, written(root, seed))
    return path
