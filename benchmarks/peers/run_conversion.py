"""colbert-ai converting responses as the published scripts do: one at a time, encoded and searched. Its own process.

Obeys JSON lines on stdin, as serve.py does: {"do": "build"}, then {"do": "search", "first", "last", "k"} -> {"seconds",
"used": of processor time, "ids"}.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
import traceback
from pathlib import Path

# Compiled once, beside the environment; ninja comes with it but is looked for on the PATH.
os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "extensions"))
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

import torch
from colbert import Searcher
from colbert.indexing import collection_indexer
from colbert.infra import ColBERTConfig


def build(work: Path, checkpoint: str, articles: list[str], lengths: dict, nbits: int) -> None:
    random.seed(0)
    torch.manual_seed(0)
    folder = work / "index"
    folder.mkdir(parents=True, exist_ok=True)
    config = ColBERTConfig(nbits=nbits, index_path=str(folder), nranks=1, **lengths)
    config.configure(rank=0, checkpoint=checkpoint)
    with torch.autocast("cpu", torch.bfloat16):  # only searches are timed, in fp32
        collection_indexer.CollectionIndexer(config, articles, verbose=0).run([])


def main() -> None:
    given = json.loads(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print to stdout
    torch.set_num_threads(given["threads"])
    searcher = None

    def answer(value: dict) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    try:
        work = Path(given["work"])
        articles = json.loads((work / "articles.json").read_text())
        responses = json.loads((work / "responses.json").read_text())
        for line in sys.stdin:
            order = json.loads(line)
            if order["do"] == "build":
                if not (work / "index" / "metadata.json").is_file():  # written last
                    build(work, given["checkpoint"], articles, given["lengths"], given["nbits"])
                config = ColBERTConfig(**given["lengths"])
                searcher = Searcher("index", given["checkpoint"], articles, config, str(work), verbose=0)
                answer({})
                continue
            start, used = time.perf_counter(), time.process_time()
            found = [searcher.search(text, k=order["k"])[0] for text in responses[order["first"] : order["last"]]]
            answer({"seconds": time.perf_counter() - start, "used": time.process_time() - used, "ids": found})
    except Exception as error:  # the parent prints the sentence; the traceback is in the log
        traceback.print_exc()
        answer({"error": f"{type(error).__name__}: {error}"})
        sys.exit(1)


if __name__ == "__main__":
    main()
