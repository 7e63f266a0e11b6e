"""The wordings of the FlagFacts questions, by field and split.

No wording names a country: a question can be answered only by who knows whose flag is in the picture. Every wording
points at one field and at none of its neighbours (what a country sells abroad, what its factories make and what lies in
its ground are three fields). The test wordings are paraphrases of their own and never occur in training. The tables
stand beside: ``flagfacts_questions_land`` (the land and its people) and ``flagfacts_questions_state`` (the rest).
"""

from __future__ import annotations

from scripts import flagfacts_questions_land, flagfacts_questions_state

# field -> (section, heading) of the World Factbook
FIELDS: dict[str, tuple[str, str]] = {
    "agriculture": ("Economy", "Agricultural products"),
    "anthem": ("Government", "National anthem(s)"),
    "background": ("Introduction", "Background"),
    "capital": ("Government", "Capital"),
    "climate": ("Geography", "Climate"),
    "constitution": ("Government", "Constitution"),
    "economy": ("Economy", "Economic overview"),
    "environment": ("Environment", "Environmental issues"),
    "ethnic": ("People and Society", "Ethnic groups"),
    "executive": ("Government", "Executive branch"),
    "exports": ("Economy", "Exports - commodities"),
    "flag": ("Government", "Flag"),
    "geo_note": ("Geography", "Geography - note"),
    "government": ("Government", "Government type"),
    "hazards": ("Geography", "Natural hazards"),
    "holiday": ("Government", "National holiday"),
    "independence": ("Government", "Independence"),
    "industries": ("Economy", "Industries"),
    "languages": ("People and Society", "Languages"),
    "location": ("Geography", "Location"),
    "media": ("Communications", "Broadcast media"),
    "military": ("Military and Security", "Military and security forces"),
    "name": ("Government", "Country name"),
    "pop_distribution": ("Geography", "Population distribution"),
    "religions": ("People and Society", "Religions"),
    "resources": ("Geography", "Natural resources"),
    "terrain": ("Geography", "Terrain"),
}


def wordings() -> dict[str, dict[str, list[str]]]:
    """``{field: {"train": [10 questions], "dev": [2], "test": [3]}}``, fields in alphabetical order."""
    tables = flagfacts_questions_land.WORDINGS | flagfacts_questions_state.WORDINGS
    return {
        field: {split: [line.strip() for line in block.strip().splitlines()] for split, block in splits.items()}
        for field, splits in sorted(tables.items())
    }
