"""MIRe, Ret-XKnow and their PreFLMR: embeddings, scores, losses and gradients of the released layout."""

from __future__ import annotations

import json

import torch
from torch import Tensor

from core import foreign
from core.batch import Batch
from core.maxsim import maxsim
from core.records import Document, ImageRef, Query
from core.tokens import TokenBatch
from core.visual import VisualBatch
from models import artifacts, originals
from models.keys.mire import to_theirs
from models.visual import Question, VisualColBERT
from tests.golden_case import Case
from tests.golden_runners.common import kind, parse_loss
from training.losses import contrastive, document_accuracy


def run(case: Case) -> None:
    pth = next(iter((case.path / "checkpoint").glob("*.pth")))
    runner = Runner(case, originals.load_original(pth, root=case.path / "base"))
    payload = foreign.load(pth)
    _file_facts(case, runner.model, payload, runner.system.prefixes)
    with torch.no_grad():
        runner.documents()
        for name, value in case.expected.items():
            if not name.startswith(("loss.", "docs.", "image_docs.", "image_text_docs.")):
                case.tensor(name, runner.embedding(name), kind(name, value))
    for stem in sorted({n.rsplit(".", 1)[0] for n in case.expected if n.startswith("loss.")}):
        runner.loss(stem)
    if getattr(runner.released, "kernel_size", None) == 4:
        reason = "kernel 4: the reference counts in its pooled map of relevance (0-48), which has not the cells (0-8)"
        case.aside("json:*.selected_cell", reason)
    else:
        for name in [n for n in case.lists if n.endswith(".selected_cell")]:
            case.json(name, runner.selected_cell(name.split(".")[0]))
    case.aside("json:searcher_*", "a remark of the reference about its own consistency")
    for name, value in case.lists.items():
        if isinstance(value, str) and value.startswith("raises "):
            case.aside(f"json:{name}", "where the reference itself fails, such as kernel 4 at evaluation")


class Runner:
    """One loaded model, put into the phase and mode that each name asks for."""

    def __init__(self, case: Case, model: VisualColBERT) -> None:
        self.case, self.model = case, model
        self.released = model.config
        self.facts = originals.metadata(case.path / "checkpoint")
        short = json.loads((case.path / "checkpoint" / "config.json").read_text(encoding="utf-8"))["short_name"]
        self.system = originals.RELEASED[short]

    def phase(self, pretraining: bool, train: bool) -> None:
        """Training-batch conventions: all-ones masks, the phase's rows and temperature."""
        stage = originals.training_stage(self.system, self.facts, pretraining, train)
        self.model.config = self.released.model_copy(update={"train": stage, "valid": stage})
        self.model.stage = "train" if train else "valid"
        self.model.train(train)

    def inference(self, rows: list[str] | None = None, policy: str = "legacy", punctuation: bool = True) -> None:
        stage = self.released.eval.model_copy(update={"mask_punctuation": not punctuation})
        if rows is not None:
            stage = stage.model_copy(update={"rows": rows})
        self.model.config = self.released.model_copy(update={"eval": stage, "mask_policy": policy})
        self.model.stage = "eval"
        self.model.eval()

    # ---- batches

    def queries(self, batch: str, features: bool = False, images: bool = True) -> Batch:
        case = self.case
        if batch == "eval":
            ids, mask, pixels = (case.inputs[f"eval.{n}"] for n in ("query_ids", "query_mask", "pixel_values"))
            records = [
                Query(str(i), text, (ImageRef(str(i), path=str(case.path / image)),))
                for i, (text, image) in enumerate(zip(case.texts["eval_queries"], case.texts["eval_images"]))
            ]
            own = self.model.collate_queries(records)
            assert torch.equal(own["ids"], ids), "eval.query_ids: our collator tokenises otherwise"
            assert torch.equal(own.images.pixels, pixels), "eval.pixel_values: our preprocessing differs"
            if self.model.config.mask_policy == "legacy":
                assert torch.equal(own["mask"], mask), "eval.query_mask: our collator masks otherwise"
            else:
                mask = own["mask"]
        else:
            ids, mask, pixels = (case.inputs[f"{batch}.{n}"] for n in ("T_q_ids", "T_q_masks", "I_q"))
        found = self._images(pixels, features) if images else {"offsets": torch.zeros(len(ids) + 1, dtype=torch.int64)}
        return Batch({"ids": ids, "mask": mask, "has_text": torch.ones(len(ids), dtype=torch.bool)}, **found)

    def _images(self, pixels: Tensor, features: bool = False) -> dict:
        images = VisualBatch(pixels=pixels)
        offsets = torch.arange(len(pixels) + 1)
        return {"images": self.model.visual_features(images) if features else images, "offsets": offsets}

    def doc_batch(self, ids: Tensor, mask: Tensor, pixels: Tensor | None = None) -> Batch:
        keep = self.model.tokenizer.keep(ids, True)
        tensors = {"ids": ids, "mask": mask, "keep": keep, "has_text": torch.ones(len(ids), dtype=torch.bool)}
        extra = {"offsets": torch.zeros(len(ids) + 1, dtype=torch.int64)} if pixels is None else self._images(pixels)
        return Batch(tensors, **extra)

    # ---- embeddings

    def embedding(self, name: str) -> Tensor:
        batch, what, *words = name.split(".")
        first = next((int(w[5:] or 1) for w in words if w.startswith("first")), None)
        train = "train" in words
        visual = self.system.kinds
        if what == "maxsim":
            return maxsim(self.eval_query(), self.docs)
        if what == "vision_features":
            out = self.model.visual_features(VisualBatch(pixels=self.case.inputs[f"{batch}.I_q"]))
            return torch.cat([out.global_[:, None], out.patches], 1)
        if what == "bert_hidden":
            self.phase(False, train)
            ids = self.case.inputs[f"{batch}.T_q_ids"]
            return self.model.text.states(ids, torch.ones_like(ids))
        known = {
            "query_full",
            "query_visual_only",
            "query_text_only",
            "fusion_unnormalised",
            "relevance",
            "query_full_all_ones_mask",
        }
        if what not in known or not set(words) <= {"train", "eval", f"first{first}", "first"}:
            raise AssertionError(f"the golden name '{name}' is not understood")
        if batch == "eval":
            policy = "train" if what == "query_full_all_ones_mask" else "legacy"
            self.inference(rows=visual if what == "query_visual_only" else None, policy=policy)
        else:
            self.phase(what == "query_visual_only", train)
        queries = self.queries(batch, images=what != "query_text_only")
        if what == "fusion_unnormalised":
            mask = queries["mask"].bool()
            states = self.model.states(queries)
            text = Question(states, self.model.text.project(states) * mask.unsqueeze(-1), mask)
            rows, _ = self.model.visual_rows(queries.images, text)
            out = torch.cat([rows[k] for k in self.model.kinds], 1)
        elif what == "relevance":
            out = self.model.encode_queries(queries, return_relevance=True).extras["relevance"]
        else:
            out = self.model.encode_queries(queries).embeddings
        return out if first is None else out[:first]

    def selected_cell(self, batch: str) -> list[int]:
        if batch == "eval":
            self.inference()
        else:
            self.phase(False, False)
        with torch.no_grad():
            return self.model.encode_queries(self.queries(batch), return_relevance=True).extras["cell"].tolist()

    def eval_query(self) -> TokenBatch:
        self.inference()
        return self.model.encode_queries(self.queries("eval"))

    # ---- documents

    def documents(self) -> None:
        case, model = self.case, self.model
        texts = [Document(str(i), text) for i, text in enumerate(case.texts["docs"])]
        self.inference(punctuation=False)
        batch = model.collate_documents(texts)
        assert torch.equal(batch["ids"], case.inputs["docs.ids"]), "docs.ids: our tokeniser differs"
        assert torch.equal(batch["mask"], case.inputs["docs.mask"]), "docs.mask: our tokeniser differs"
        self.docs = model.encode_documents(batch)
        case.tensor("docs.emb", self.docs.embeddings, "embedding")
        case.tensor("docs.keepmask", self.docs.mask, "exact")
        case.json("docs.keep_dims_False_lens", self.docs.mask.sum(1).tolist())
        if "image_text_docs.emb" in case.expected:
            pixels = case.inputs["eval.pixel_values"]
            n = len(pixels)
            both = model.encode_documents(self.doc_batch(batch["ids"][:n], batch["mask"][:n], pixels))
            case.tensor("image_text_docs.emb", both.embeddings, "embedding")
            case.tensor("image_text_docs.mask", both.mask, "exact")
        self.inference()
        if "docs.index_flatten" in case.expected:
            rows = model.encode_documents(model.collate_documents(texts)).unpad()
            case.tensor("docs.index_flatten", torch.cat(rows), "embedding")
            case.json("docs.index_doclens", [len(r) for r in rows])
        if "image_docs.flatten" in case.expected:
            images = [
                Document(str(i), images=(ImageRef(str(i), path=str(case.path / p)),))
                for i, p in enumerate(case.texts["eval_images"])
            ]
            rows = model.encode_documents(model.collate_documents(images)).unpad()
            case.tensor("image_docs.flatten", torch.cat(rows), "embedding")
            case.json("image_docs.doclens", [len(r) for r in rows])
            case.json("image_docs.prompt_ids", model.prompt()[0][0].tolist())

    # ---- losses

    def loss(self, stem: str) -> None:
        """All fields of one loss: stem.loss, stem.score, stem.accuracy, or a single value under the stem's parent."""
        case, model = self.case, self.model
        fields = [n for n in case.expected if n.rsplit(".", 1)[0] == stem]
        for name in fields:
            batch, phase, options, mode, field = parse_loss(name)
            train = mode == "train"
            self.phase(phase == "pretraining", train)
            model.freeze(["vision", "text", "linear"] if "frozen" in options else ["vision"])
            model.zero_grad()
            queries = self.queries(batch, features=field == "eval_from_features")
            pixels = queries.images.pixels.flip(0) if "doc_images" in options else None
            ids, mask = case.inputs[f"{batch}.T_d_ids"], case.inputs[f"{batch}.T_d_masks"]
            q, d = model.encode_queries(queries), model.encode_documents(self.doc_batch(ids, mask, pixels))
            if field == "maxsim_matrix":
                case.tensor(name, maxsim(q, d), "score")
                continue
            out = contrastive(
                q, d, nways=len(ids) // len(q), temperature=model.temperature(), in_batch="no_ib" not in options
            )
            if field == "score":
                case.tensor(name, out["scores"], "score")
            elif field == "accuracy":
                case.tensor(name, document_accuracy(maxsim(q, d)), "exact")
            else:
                case.tensor(name, out["loss"], "loss")
            if field == "loss" and stem in case.grads:
                self._gradients(stem, out["loss"])

    def _gradients(self, stem: str, loss: Tensor) -> None:
        loss.backward()
        parameters = dict(self.model.named_parameters())
        theirs = {
            to_theirs(artifacts.portable_name(self.model, n), self.system.prefixes): p for n, p in parameters.items()
        }
        trains = {n for n, p in theirs.items() if p.requires_grad}
        pooler = {n for n in theirs if ".pooler." in n and stem in self._finetuned()}
        # The pooler feeds nothing: the reference leaves it trainable without a gradient, we freeze it.
        self.case.json(f"trainable/{stem}", sorted(trains | pooler, key=self._order(f"trainable/{stem}")))
        without = [n for n in self.case.lists[f"trainable/{stem}"] if theirs[n].grad is None]
        self.case.json(f"trainable_without_grad/{stem}", without)
        self.case.gradients(stem, {n: p.grad for n, p in theirs.items()})

    def _finetuned(self) -> set[str]:
        return {
            n.removeprefix("trainable/") for n in self.case.lists if n.startswith("trainable/") and "frozen" not in n
        }

    def _order(self, name: str):
        order = {n: i for i, n in enumerate(self.case.lists[name])}
        return lambda n: order.get(n, len(order))


def names_and_shapes(model: VisualColBERT, prefixes: list[tuple[str, str]]) -> dict[str, list[int]]:
    """What the model's released file holds."""
    return {to_theirs(n, prefixes): list(t.shape) for n, t in artifacts.portable_state(model).items()}


def _file_facts(case: Case, model: VisualColBERT, payload: dict, prefixes: list[tuple[str, str]]) -> None:
    case.json("pth_top_level_keys", list(payload))
    ours = names_and_shapes(model, prefixes)
    names = [n for n, _ in case.lists["pth_model_keys"]]
    case.json("pth_model_keys", [[n, ours.pop(n)] for n in names if n in ours] + [[n, s] for n, s in ours.items()])
    groups = [{**g, "params": len(g["params"])} for g in payload["optimizer"]["param_groups"]]
    expected = case.lists["pth_optimizer/param_groups"]
    plain = [{k: list(v) if isinstance(v, tuple) else v for k, v in g.items()} for g in groups]
    case.json("pth_optimizer/param_groups", [{k: g.get(k) for k in e} for g, e in zip(plain, expected)])
    case.json("pth_optimizer/n_state", len(payload["optimizer"]["state"]))
    case.json("pth_scheduler_keys", sorted(payload["scheduler"]))
    case.json("pth_scaler_keys", sorted(payload["scaler"]))
    case.json("pth_epoch", payload["epoch"])
    case.json("pth_config_type", payload["config"].name)
    resolved = json.loads((case.path / "expected_train_config.json").read_text(encoding="utf-8"))
    assert foreign.resolve_config(payload["config"]) == resolved
