"""ColBERT: tokeniser, embeddings, MaxSim, losses and gradients of colbert-ai, and vectors of its index."""

from __future__ import annotations

import re
import string

import torch
from torch import Tensor

from core.batch import Batch
from core.maxsim import maxsim, maxsim_packed, maxsim_pairs
from core.tokens import TokenBatch
from models import artifacts, originals
from models.colbert import ColBERT
from models.keys.mire import COLBERT_PREFIXES, to_theirs
from tests.golden_case import Case
from tests.golden_runners.common import kind
from training.losses import contrastive


def run(case: Case) -> None:
    model = originals.load_original(case.path / "checkpoint")
    assert isinstance(model, ColBERT)
    with torch.no_grad():
        values = {**_queries(case, model), **_documents(case, model)}
    for name in [n for n in case.expected if n in values]:
        case.tensor(name, values[name], kind(name, case.expected[name]))
    _index(case)
    for stem in sorted({n.split("_loss")[0] for n in case.expected if n.startswith("train_") and n.endswith("_loss")}):
        _loss(case, model, stem)


def _queries(case: Case, model: ColBERT) -> dict[str, Tensor]:
    texts = case.texts
    out: dict[str, Tensor] = {}

    def put(stem: str, result: tuple[Batch, TokenBatch]) -> None:
        batch, tokens = result
        out.update({f"{stem}_ids": batch["ids"], f"{stem}_mask": batch["mask"], f"{stem}_emb": tokens.embeddings})

    put("query", model.query_from_text(texts["queries"]))
    one_by_one = [model.query_from_text([t])[1].embeddings for t in texts["queries"]]
    assert torch.allclose(torch.cat(one_by_one), out["query_emb"], atol=2e-5), "a query depends on its companions"
    words = model.tokenizer.tokenizer.convert_ids_to_tokens
    shown = {model.tokenizer.query_marker_id: "[Q]", model.tokenizer.doc_marker_id: "[D]"}
    n = len(case.lists.get("query_tokens", []))
    rows = [[shown.get(i, w) for i, w in zip(row, words(row))] for row in out["query_ids"][:n].tolist()]
    if n:
        case.json("query_tokens", rows)
    put("ctxq", model.query_from_text(texts["queries"][: len(texts["contexts"])], context=texts["contexts"]))
    put("longq", model.query_from_text([texts["long_query"]], full_length=True))
    put("longq_trunc", model.query_from_text([texts["long_query"]]))
    config = model.config
    model.config = config.model_copy(update={"attend_to_mask_tokens": True})
    attended = len(case.expected["attend_query_mask"]) if "attend_query_mask" in case.expected else 1
    put("attend_query", model.query_from_text(texts["queries"][:attended]))
    model.config = config
    model.stage = "train"
    put("train_query", model.query_from_text(texts["train_queries"]))
    model.stage = "eval"
    return out


def _documents(case: Case, model: ColBERT) -> dict[str, Tensor]:
    texts = case.texts["docs"]
    batch = model._text_batch("document", texts)
    padded = model.encode_documents(batch)
    rows = model.doc_from_text(texts)
    lengths = torch.tensor([len(r) for r in rows])
    for name, value in {
        "doclens_flatten": lengths.tolist(),
        "doc_emb_list_lens": lengths.tolist(),
        "skiplist_ids": model.tokenizer.skip_ids,
    }.items():
        if name in case.lists:
            case.json(name, value)
    assert len(model.tokenizer.skip_ids) <= len(string.punctuation)
    pooled = {}
    for name in [n for n in case.expected if re.fullmatch(r"doc_emb_flatten_pool\d+", n)]:
        told = re.search(r"protected_tokens=(\d+)", case.facts["expected_tensors"][name]["made_by"])
        shortest = re.search(r"longer than (\d+) characters", case.facts["expected_tensors"][name]["made_by"])
        some = [t for t in texts if len(t) > (int(shortest[1]) if shortest else 0)]
        factor = int(name.rsplit("pool", 1)[1])
        rows_pooled = model.doc_from_text(some, pool_factor=factor, protected_tokens=int(told[1]) if told else 0)
        pooled[name] = torch.cat(rows_pooled)
        case.json(f"doclens_pool{factor}", [len(r) for r in rows_pooled])
    queries = model.query_from_text(case.texts["queries"])[1]
    packed = torch.cat(rows)
    train_ids, train_mask = model.tokenizer.documents(case.texts["train_docs"], model.config.train.doc_maxlen)
    negated = TokenBatch(-queries.embeddings[:1], queries.mask[:1])
    return {
        "doc_ids": batch["ids"], "doc_mask": batch["mask"], "doc_keepmask": batch["keep"],
        "doc_emb_keepdims": padded.embeddings, "doc_emb_flatten": packed, **pooled,
        "maxsim_all": maxsim(queries, padded),
        "maxsim_aligned": maxsim_pairs(queries.select(slice(len(texts))), padded)[:, 0],
        "maxsim_packed_q0": maxsim_packed(queries.embeddings[0], packed, lengths, floor=0.0),
        "maxsim_packed_minus_q0": maxsim_packed(-queries.embeddings[0], packed, lengths, floor=0.0),
        "maxsim_padded_minus_q0": maxsim(negated, padded)[0],
        "train_doc_ids": train_ids, "train_doc_mask": train_mask,
    }  # fmt: skip


def _index(case: Case) -> None:
    """Vectors and exact scores of the index on disk. Ranked search over it is the index room's own golden test."""
    from index.colbert_ai import ColbertAIIndex

    index = ColbertAIIndex(case.path / "index")
    case.tensor("doclens", index.doclens, "exact")
    scores = torch.stack([index.exact_scores(q) for q in case.expected["query_emb"]])
    case.tensor("index_exact_scores", scores, "score")
    for name in [n for n in case.lists if re.fullmatch(r"decompressed_\d+docs_pids", n)]:
        pids, stem = case.lists[name], name.removesuffix("_pids")
        case.json(f"{stem}_lens", [len(index.decompress([pid])) for pid in pids])
        case.tensor(stem, index.decompress(pids), "embedding")
        case.tensor(
            stem.replace("decompressed_", "decompressed_raw_"), index.decompress(pids, normalise=False), "embedding"
        )
        case.aside(f"json:{name}", "says which passages the decompressed rows are")
    case.aside("json:search/*", "ranked search, compared entry by entry in tests/test_index_colbert_ai.py")


def _loss(case: Case, model: ColBERT, stem: str) -> None:
    """``train_<ce|kl>[_ib]``: dropout off, as the reference ran it."""
    words = stem.split("_")[1:]
    if not set(words) <= {"ce", "kl", "ib"}:
        raise AssertionError(f"the golden name '{stem}' is not understood")
    model.stage = "train"
    model.zero_grad()
    q = model.encode_queries(model._text_batch("query", case.texts["train_queries"]))
    d = model.encode_documents(model._text_batch("document", case.texts["train_docs"]))
    nways = len(d) // len(q)
    teacher = torch.tensor(case.texts["teacher_scores"]).view(-1, nways) if "kl" in words else None
    alpha = originals.metadata(case.path / "checkpoint").get("distillation_alpha", 1.0)
    out = contrastive(q, d, nways=nways, temperature=1.0, in_batch="ib" in words, teacher=teacher, alpha=alpha)
    case.tensor(f"{stem}_loss", out["loss"], "loss")
    case.tensor(f"{stem}_scores", out["scores"], "score")
    if "ib" in words:
        case.tensor(f"{stem}_ibloss", out["in_batch"], "loss")
    out["loss"].backward()
    grads = {
        to_theirs(artifacts.portable_name(model, n), COLBERT_PREFIXES): p.grad for n, p in model.named_parameters()
    }
    case.gradients("_".join(words), {f"model.{n}": g for n, g in grads.items()})
    model.stage = "eval"
