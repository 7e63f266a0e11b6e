"""Encoding of documents: as an index gets them here, against padding every passage to 512 tokens in fp32.

  python benchmarks/document_encoding.py
  python benchmarks/document_encoding.py --device cuda --passages 6328 --models tiny base --texts passages.txt

The second way is the published FLMR code's. Same random model, same batch size, same passages: both in turn in one
process, medians and their ratio. Real tokens count, not padding. The vectors are compared first.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

SHAPES = {"tiny": (128, 2, 2, 512), "base": (768, 12, 12, 3072)}
"""Width, layers, heads and feed-forward of a BERT; base is the published text tower."""

LENGTH = 512


def arguments() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--models", nargs="+", default=["tiny", "base"], help=f"of {', '.join(SHAPES)}, or checkpoints")
    made.add_argument("--texts", help="a passage per line; default: data/flagfacts")
    made.add_argument("--passages", type=int, default=256, help="so many of them, evenly spread")
    made.add_argument("--batch_size", type=int, default=64)
    made.add_argument("--rounds", type=int, default=3)
    made.add_argument("--device", default="cpu")
    made.add_argument("--dtype", default="auto", choices=["auto", "fp32", "fp16", "bf16"], help="of our way")
    made.add_argument("--tokenizer", default="ckpts/minilm-l6", help="folder of BERT's, for the random models")
    return made


def passages(path: str | None, count: int) -> list:
    """Every n-th of the texts, so that their lengths are those of all."""
    import json

    from core.records import Document

    if path is None:
        lines = Path("data/flagfacts/passages.jsonl").read_text(encoding="utf-8").splitlines()
        texts = [json.loads(line)["text"] for line in lines]
    else:
        texts = [line for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    chosen = texts[:: max(1, len(texts) // count)][:count]
    return [Document(str(i), text) for i, text in enumerate(chosen)]


def model(name: str, tokenizer: str):
    """A retriever that takes passages of 512 tokens; random weights for the names in ``SHAPES``."""
    from runs.common import open_retriever, with_lengths

    if name not in SHAPES:
        return with_lengths(open_retriever(name), doc_maxlen=LENGTH)
    from transformers import BertConfig

    from models.flmr import FLMR, Config, Stage
    from models.towers.text import TextTower
    from models.towers.tokenizer import ColbertTokenizer

    width, layers, heads, inner = SHAPES[name]
    words = ColbertTokenizer.from_folder(Path(tokenizer), "[unused0]", "[unused1]")
    trunk = BertConfig(
        vocab_size=len(words.tokenizer), hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=inner,
    )  # fmt: skip
    stage = Stage(doc_maxlen=LENGTH)
    config = Config(vision=None, fresh=[], train=stage, eval=stage)
    return FLMR(config, TextTower(trunk, config.dim), words, None, None).eval()


def padded(retriever, documents: list, batch_size: int) -> list:
    """One [n, dim] array per document; every passage padded to 512, fp32, in the order they come.

    Sorting by length would change nothing here: all batches have the same shape.
    """
    import torch
    from torch.nn.functional import pad

    device, out = next(retriever.parameters()).device, []
    for start in range(0, len(documents), batch_size):
        with torch.inference_mode():
            batch = retriever.collate_documents(documents[start : start + batch_size])
            room = LENGTH - batch["ids"].shape[1]
            for name, fill in (("ids", retriever.tokenizer.pad_id), ("mask", 0), ("keep", False)):
                batch.tensors[name] = pad(batch[name], (0, room), value=fill)
            tokens = retriever.encode_documents(batch.to(device))
        out += [vectors.float().cpu().numpy() for vectors in tokens.unpad()]
    return out


def main() -> None:
    args = arguments().parse_args()
    import numpy as np
    import torch

    from core.device import pick_device
    from runs.common import encode_corpus

    torch.manual_seed(0)
    device = pick_device(args.device)
    documents = passages(args.texts, args.passages)
    for name in args.models:
        retriever = model(name, args.tokenizer).to(device)
        shapes: list[tuple] = []
        forward = retriever.encode_documents
        retriever.encode_documents = lambda batch: shapes.append(batch["ids"].shape) or forward(batch)  # noqa: B023

        def ours() -> list:
            return [v for _, v in encode_corpus(retriever, documents, args.batch_size, precision=args.dtype)]  # noqa: B023

        def theirs() -> list:
            return padded(retriever, documents, args.batch_size)  # noqa: B023

        def timed(way) -> tuple[float, list]:
            if device.type == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            vectors = way()  # on the CPU when it returns
            return time.perf_counter() - start, vectors

        pairs = list(zip(timed(ours)[1], timed(theirs)[1]))  # the first calls also warm up
        worst = min(float((a * b).sum(-1).min()) for a, b in pairs)
        computed = sum(b * length for b, length in shapes[: len(shapes) // 2])
        real = int(retriever.tokenize("document", [d.text for d in documents])[1].sum())
        times = [(timed(ours)[0], timed(theirs)[0]) for _ in range(args.rounds)]
        mine, its = (statistics.median(t) for t in zip(*times))
        print(
            f"{name}: {len(documents)} passages, {real} tokens; computed: ours {computed}, padded "
            f"{LENGTH * len(documents)}, least cosine {worst:.5f}\n"
            f"  ours {real / mine:.0f} tokens/s, padded to {LENGTH} in fp32 {real / its:.0f} tokens/s, "
            f"ratio {its / mine:.1f} (rounds: {', '.join(f'{b / a:.1f}' for a, b in times)})",
            flush=True,
        )
        assert np.isfinite(worst) and worst > 0.98, "the vectors differ"


if __name__ == "__main__":
    main()
