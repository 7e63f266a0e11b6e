"""The conversations of tests/data_vid2r, a small knowledge base, and ways to stop a command in the middle."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path

from core.protocols import Ranking

DATA = Path(__file__).parent / "data_vid2r"
FILES = [str(DATA / "llava_v1_5_mix665k.json"), str(DATA / "lvis_instruct4v_220k.json")]
CONVERSATIONS = [c for file in FILES for c in json.loads(Path(file).read_text(encoding="utf-8"))]


def knowledge_base(path: Path) -> Path:
    """Articles about what the conversations are about."""
    things = ["umbrella", "kitchen", "helmet", "pier", "lighthouse", "casino", "cello", "boat", "bakery", "heron",
              "bee", "ferry", "owl", "violin", "tram", "hay", "sextant", "kite", "curling", "whale"]  # fmt: skip
    rows = [
        {"wikidata_id": f"Q{i}", "wikipedia_title": thing, "wikipedia_content":
         f"A {thing} is the subject of this article. It was first described by J. R. Hall in 19{i:02d}. Others came."}
        for i, thing in enumerate(things)
    ]  # fmt: skip
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


class WordSearch:
    """Stands for ``recipe_search.Searcher``: the texts with the most words in common; counts what it is asked."""

    asked: list[str] = []

    def __init__(self, checkpoint, device, corpus, path, *_, **__) -> None:
        self.corpus, self.path = corpus, Path(path)

    def build(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / "manifest.json").write_text("{}")

    def open(self) -> WordSearch:
        self.documents = [(d.id, set(d.text.lower().split())) for d in self.corpus]
        return self

    def __call__(self, texts, k: int) -> list[Ranking | None]:
        self.asked.extend(texts)
        out: list[Ranking | None] = []
        for text in texts:
            words = set(text.lower().split())
            best = sorted((-len(words & its), int(id_), id_) for id_, its in self.documents)[:k]
            ranking = Ranking(tuple(id_ for *_, id_ in best), tuple(float(-score) for score, *_ in best))
            out.append(ranking if words else None)
        return out


def killed(work: Callable[[], None], at: int, seed: int) -> int:
    """Run ``work`` in a forked process that dies at the ``at``-th event on disk (-1: never); returns its events.

    Half a line may be left behind the journal's last commit, as a real kill leaves it.
    """
    read, write = os.pipe()
    child = os.fork()
    if child:
        os.close(write)
        os.waitpid(child, 0)
        with os.fdopen(read) as pipe:
            return len(pipe.read())
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    os.dup2(2, 1)
    seen, rng = 0, random.Random(seed)

    def watched(real):
        def event(*args, **kwargs):
            nonlocal seen
            if seen == at:
                if real is fsync and rng.random() < 0.5:
                    file = os.readlink(f"/proc/self/fd/{args[0]}")
                    if file.endswith("lines.jsonl"):
                        state = Path(file).with_name("state.json")
                        counts = json.loads(state.read_text())["bytes"] if state.is_file() else 0
                        os.truncate(file, max(counts, os.path.getsize(file) - rng.randint(1, 30)))
                os._exit(9)
            seen += 1
            os.write(write, b".")
            return real(*args, **kwargs)

        return event

    fsync = os.fsync
    try:
        os.fsync, os.replace, os.unlink = watched(os.fsync), watched(os.replace), watched(os.unlink)
        work()
    finally:
        os._exit(0)
