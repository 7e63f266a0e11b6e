"""What a query is told to tell apart: a teacher's scores, remembered documents, other questions on one picture."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
import yaml

import train_retrieval
from core.config import check
from core.errors import UserError
from core.maxsim import maxsim_pairs
from core.records import Document, Example, ImageRef, Query
from core.tokens import TokenBatch
from runs import score_examples
from tests import tiny
from tests.toy import ToyConfig, ToyDataset, ToyRetriever, ToyVisual
from tests.training_cases import quick, settings  # noqa: F401 (a fixture)
from training import distill
from training.batches import Collator, Order, document_keys
from training.config import Config
from training.distill import TeacherScores, distillation
from training.loop import fit
from training.losses import false_negatives
from training.memory_queue import MemoryQueue
from training.objective import Contrastive
from training.tracker import read

# ---- distillation


def test_kl_by_hand():
    """Student (1/2, 1/2), teacher (3/4, 1/4): 3/4 log 3/2 + 1/4 log 1/2; the mean with a row that agrees."""
    scores = torch.tensor([[2.0, 2.0], [math.log(3), 0.0]], requires_grad=True)
    teacher = torch.tensor([[math.log(3), 0.0], [math.log(3), 0.0]])
    loss = distillation(scores, teacher)
    assert float(loss.detach()) == pytest.approx((0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 2, rel=1e-5)
    loss.backward()
    torch.testing.assert_close(scores.grad, torch.tensor([[-0.125, 0.125], [0.0, 0.0]]))  # (student - teacher) / 2


def test_margin_mse_by_hand():
    """Margins 1 and 3 against 2 and -1: ((1 - 2)^2 + (3 + 1)^2) / 2. What both scores of a query share is no matter."""
    scores = torch.tensor([[5.0, 4.0, 2.0]], requires_grad=True)
    teacher = torch.tensor([[10.0, 8.0, 11.0]])
    loss = distillation(scores, teacher, "margin_mse")
    assert float(loss.detach()) == pytest.approx(8.5)
    loss.backward()
    assert scores.grad.tolist() == [[3.0, 1.0, -4.0]]
    assert float(distillation(scores.detach() + 7, teacher - 3, "margin_mse")) == pytest.approx(8.5)


def test_scores_of_a_file_follow_query_and_document(tmp_path):
    path = tmp_path / "scores.tsv"
    path.write_text("# a note\nq\td1\t1.5\nq\td0\t-2\nr\td0\t7e-1\n")
    scores = TeacherScores(path)
    d = [Document(f"d{i}", "x") for i in range(3)]
    examples = [Example(Query("q", "x"), d[0], (d[1], d[2])), Example(Query("r", "x"), d[0], (d[0],))]
    assert len(scores) == 3
    torch.testing.assert_close(scores.of(examples, 2), torch.tensor([[-2.0, 1.5], [0.7, 0.7]]))
    with pytest.raises(UserError, match=r"none for query 'q' and document 'd2'.*runs\.score_examples"):
        scores.of(examples, 3)


@pytest.mark.parametrize("line", ["q\td1", "q\td1\thigh", "q\td1\tnan", "q d1 2"])
def test_a_wrong_line_is_named(tmp_path, line):
    (tmp_path / "s.tsv").write_text(f"q\td\t1\n{line}\n")
    with pytest.raises(UserError, match=r"line 2 of teacher scores.*separated by tabs"):
        TeacherScores(tmp_path / "s.tsv")
    with pytest.raises(UserError, match=r"cannot be read.*score_examples"):
        TeacherScores(tmp_path / "gone.tsv")


@pytest.mark.parametrize("better", [1, 2])
@pytest.mark.parametrize("kind", distill.DISTILLATIONS)
def test_a_student_learns_which_negative_its_teacher_prefers(kind, better):
    retriever = ToyRetriever(ToyConfig(dropout=0.0))
    batch = Collator(Order(ToyDataset(size=40, negatives=2), "train", 8, 3, seed=1), retriever)[0]
    batch.teacher = torch.zeros(8, 3)
    batch.teacher[:, 0], batch.teacher[:, better] = 1.0, 0.5
    objective = Contrastive(in_batch=False, distillation=kind, teacher_scale=2.0)
    optimizer = torch.optim.Adam(retriever.parameters(), lr=0.03)
    for _ in range(60):
        optimizer.zero_grad()
        objective.step(batch, retriever)["loss"].backward()
        optimizer.step()
    scores = maxsim_pairs(retriever.encode_queries(batch.queries), retriever.encode_documents(batch.documents))
    assert (scores[:, better] > scores[:, 3 - better]).float().mean() > 0.9


def own_data(root):
    """Six questions, each with a passage and two that are wrong, in three files."""
    folder = root / "data"
    folder.mkdir()
    passages = [{"docid": f"d{i}", "text": " ".join(tiny.WORDS[3 * i : 3 * i + 3])} for i in range(12)]
    rows = [
        {"query_id": f"q{i}", "query_text": f"what {tiny.WORDS[3 * i]} is", "positive_document_ids": [f"d{i}"],
         "negative_document_ids": [f"d{i + 6}", f"d{(i + 1) % 6}"]}
        for i in range(6)
    ]  # fmt: skip
    for name, lines in (("passages", passages), ("train", rows), ("valid", rows[:2]), ("test", rows[:2])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    files = {"path": "train", "valid_path": "valid", "test_path": "test", "passages": "passages"}
    return {"name": "jsonl", **{k: str(folder / f"{v}.jsonl") for k, v in files.items()}, "hard_negatives": 2}


@pytest.mark.parametrize("kind", distill.DISTILLATIONS)
def test_from_the_command_that_scores_to_the_run_that_learns(tmp_path, capsys, kind):
    """The teacher has other weights; a student that starts as the teacher itself has nothing to learn."""
    from models import from_pretrained

    teacher = tiny.retriever("colbert", tmp_path / "towers", frozen=["text"])
    with torch.no_grad():
        for weight in teacher.parameters():
            weight.add_(0.2 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel())))
    teacher.save_pretrained(tmp_path / "teacher")
    model = tiny.model_section("colbert", tmp_path / "towers", frozen=["text"])  # no dropout
    model["train"] = model["eval"] = {**model["eval"], "temperature": 1.0}
    train = {"steps": 4, "batch_size": 3, "nways": 3, "lr": 1e-3, "in_batch": False, "eval_first": False}
    config = {"run": {"out": str(tmp_path / "run"), "device": "cpu"}, "data": own_data(tmp_path), "model": model,
              "train": train, "eval": {"k": 3, "metrics": ["Success@1"]}}  # fmt: skip
    path, scores = tmp_path / "config.yaml", tmp_path / "scores.tsv"
    path.write_text(yaml.safe_dump(config))
    command = ["--config_path", str(path), "--teacher", str(tmp_path / "teacher"), "--save_path", str(scores)]
    score_examples.run(command)
    assert "18 pairs scored" in capsys.readouterr().out
    rows = [line.split("\t") for line in scores.read_text().splitlines()[1:]]
    loaded = from_pretrained(tmp_path / "teacher")
    lines = (tmp_path / "data" / "passages.jsonl").read_text().splitlines()
    passages = {d["docid"]: d["text"] for d in map(json.loads, lines)}
    for query, document, score in rows[:4]:
        asked = loaded.query_from_text([f"what {tiny.WORDS[3 * int(query[1:])]} is"])[1]
        answer = loaded.doc_from_text([passages[document]])[0]
        similarity = (asked.embeddings[0][asked.mask[0]] @ answer.T).amax(1).sum()
        assert float(score) == pytest.approx(float(similarity), abs=2e-3)

    learn = ["--config_path", str(path), f"train.teacher_scores={scores}", f"train.distillation={kind}"]
    losses = {}
    for name, init in (("other", None), ("itself", tmp_path / "teacher")):
        out = tmp_path / name
        train_retrieval.run([*learn, f"run.out={out}", *([f"run.init={init}"] if init else [])])
        losses[name] = [row["loss"] for row in read(out / "metrics.jsonl") if "loss" in row]
    assert len(losses["other"]) == 4 and losses["itself"][0] < 1e-3 * losses["other"][0]
    with pytest.raises(UserError, match=r"have none for query 'q\d' and document"):
        scores.write_text("\n".join("\t".join(row) for row in rows[:3]))
        train_retrieval.run([*learn, f"run.out={tmp_path / 'third'}"])


# ---- remembered documents


def block(start, count=2, rows=3):
    values = torch.arange(start, start + count * rows * 2, dtype=torch.float32).view(count, rows, 2)
    return TokenBatch(values, torch.ones(count, rows, dtype=torch.bool)), torch.arange(start, start + count)[:, None]


def test_the_queue_holds_the_newest_and_travels_in_a_checkpoint():
    queue = MemoryQueue(2)
    first, keys = block(0)
    assert queue.extend(first, keys) == (first, keys)
    for start in (0, 20, 40):
        queue.add(*block(start, rows=3 if start else 2))
    assert len(queue) == 2
    documents, keys = queue.extend(*block(60, rows=4))
    assert keys.flatten().tolist() == [60, 61, 20, 21, 40, 41]
    assert documents.embeddings.shape == (6, 4, 2) and documents.mask.sum(1).tolist() == [4, 4, 3, 3, 3, 3]
    assert documents.embeddings[2, 0].tolist() == [20.0, 21.0] and not documents.embeddings.requires_grad
    copy = MemoryQueue(2)
    copy.load_state_dict(queue.state_dict())
    assert torch.equal(copy.extend(*block(60, rows=4))[0].embeddings, documents.embeddings)
    broken, more = block(80)
    broken.embeddings[0, 0, 0] = float("nan")
    queue.add(broken, more)
    assert queue.extend(*block(60))[1].flatten().tolist() == [60, 61, 20, 21, 40, 41]


def test_remembered_documents_are_negatives_without_gradient():
    """The second step's loss is the one over this batch and the first's documents, as they were then."""
    retriever, order = ToyRetriever(ToyConfig(dropout=0.0)), Order(ToyDataset(), "train", 4, seed=1)
    a, b = (Collator(order, retriever)[i] for i in (0, 1))
    objective = Contrastive(memory=1).train()
    with torch.no_grad():
        assert float(objective.step(a, retriever)["loss"]) == pytest.approx(
            float(Contrastive().step(a, retriever)["loss"]), rel=1e-6
        )
        old = retriever.encode_documents(a.documents)
        retriever.linear.weight.mul_(-1.0)
        queries, fresh = retriever.encode_queries(b.queries), retriever.encode_documents(b.documents)
        sims = torch.einsum("qtd,nsd->qnts", queries.embeddings, TokenBatch.cat([fresh, old]).embeddings)
        mask = TokenBatch.cat([fresh, old]).mask[None, :, None]
        best = sims.masked_fill(~mask, -9.0).amax(-1)
        scores = (best * queries.mask[:, None]).sum(-1) / retriever.temperature()
        wanted = float(torch.nn.functional.cross_entropy(scores, torch.arange(4)))
    found = objective.step(b, retriever)["loss"]
    assert float(found.detach()) == pytest.approx(wanted, rel=1e-3)  # float16 in memory
    found.backward()
    assert float(retriever.linear.weight.grad.abs().max()) > 0
    objective.eval()
    objective.step(a, retriever)
    assert torch.equal(objective.memory.extend(old, a.keys)[1][4:], b.keys), "a measurement is not remembered"


def test_a_passage_is_not_its_own_remembered_negative(tmp_path):
    retriever, dataset = ToyRetriever(ToyConfig(dropout=0.0)), ToyDataset(size=4)
    batch = Collator(Order(dataset, "train", 4, seed=1), retriever)[0]
    objective = Contrastive(memory=3).train()
    losses = [float(objective.step(batch, retriever)["loss"].detach()) for _ in range(2)]
    # Each query's own passage is left out of what is remembered; the three others count twice.
    with torch.no_grad():
        out = Contrastive().step(batch, retriever)
    assert losses[0] == pytest.approx(float(out["loss"]), rel=1e-6) and losses[1] > losses[0]
    again = objective.memory.extend(TokenBatch(torch.zeros(4, 1, 8), torch.ones(4, 1, dtype=torch.bool)), batch.keys)[1]
    assert false_negatives(again, 1, 0, 4).sum(1).tolist() == [3] * 4


# ---- questions on one picture


def test_other_questions_on_the_same_picture():
    one, other = ImageRef("a", data=b"1"), ImageRef("b", data=b"2")
    region = dataclasses.replace(one, box=(0, 0, 5, 5)) if hasattr(one, "box") else one
    pictures = [(one,), (region, one), (other,), (), ()]
    examples = [Example(Query(f"q{i}", "?", shown), Document(f"d{i}", f"text {i}")) for i, shown in enumerate(pictures)]
    keys = document_keys(examples, 1)
    assert torch.equal(false_negatives(keys), torch.eye(5, dtype=torch.bool))
    same = torch.eye(5, dtype=torch.bool)
    same[0, 1] = same[1, 0] = True  # no picture is not a picture in common
    assert torch.equal(false_negatives(keys, same_image=True), same)


def test_the_mask_for_one_picture_changes_the_run(tmp_path):
    data = ToyDataset(size=8, image_every=1)
    data._queries = [
        dataclasses.replace(q, images=(ImageRef(f"p{i // 4}", data=b"x"),)) for i, q in enumerate(data._queries)
    ]
    losses = {}
    for kind in ("mask", "mask_same_image"):
        fit(
            ToyRetriever(ToyConfig(dropout=0.0)),
            data,
            settings(tmp_path / kind, steps=1, batch_size=8, false_negatives=kind),
            ToyVisual(),
        )
        losses[kind] = read(tmp_path / kind / "metrics.jsonl")[0]["loss"]
    assert losses["mask_same_image"] < losses["mask"] - 0.1  # 5 documents compared instead of 8


# ---- patience


def test_patience_ends_the_run_and_a_resumed_one_remembers(tmp_path):
    """Metrics 1 3 2 2 | 2: the best is the second, and three without a better one are enough."""
    values = iter([1.0, 3.0, 2.0])
    config = {"steps": 40, "eval_every": 2, "eval_first": False, "patience": 3}

    def validate(retriever):
        return {"m": next(values)}

    with pytest.raises(StopIteration):
        fit(ToyRetriever(), ToyDataset(), settings(tmp_path, **config), validate=validate)
    values = iter([2.5, 2.0, 9.0])
    done = fit(ToyRetriever(), ToyDataset(), settings(tmp_path, **config), validate=validate)
    assert (done.step, done.early, done.stopped, done.best["step"]) == (10, True, False, 4)
    assert json.loads((tmp_path / "checkpoints" / "best.json").read_text())["step"] == 4
    again = fit(ToyRetriever(), ToyDataset(), settings(tmp_path, **config), validate=validate)
    assert again.step == 10 and again.early and next(values) == 9.0, "a run that has ended does not go on by itself"
    more = fit(ToyRetriever(), ToyDataset(), settings(tmp_path, **{**config, "patience": None, "steps": 11}))
    assert more.step == 11 and not more.early


def test_one_document_in_all_is_no_comparison(tmp_path):
    with pytest.raises(UserError, match="leaves no negatives"):
        fit(ToyRetriever(), ToyDataset(), settings(tmp_path, batch_size=1))
    assert fit(ToyRetriever(), ToyDataset(), settings(tmp_path, batch_size=1, memory=2, steps=2)).step == 2


def test_another_metric_begins_anew(tmp_path):
    """A resumed run may pick its best by another metric; a number of the old one says nothing about it."""

    def validate(retriever):
        return {"large": 50.0, "small": 0.5}

    config = {"eval_every": 2, "eval_first": False}
    fit(ToyRetriever(), ToyDataset(), settings(tmp_path, steps=2, **config), validate=validate)
    again = settings(tmp_path, steps=4, metric="small", **config)
    assert fit(ToyRetriever(), ToyDataset(), again, validate=validate).best["metric"] == "small"
    assert json.loads((tmp_path / "checkpoints" / "best.json").read_text())["step"] == 4


def test_numbers_of_a_config_that_contradict():
    base = {"out": "x", "steps": 5}
    for more, said in (({"teacher_scores": "x"}, "set nways above 1"), ({"memory": 2, "gather": False}, "memory: 0"),
                       ({"memory": 2, "false_negatives": "keep"}, "set false_negatives: mask"),
                       ({"distillation": "margin_mse"}, "need teacher_scores"), ({"teacher_scale": 2.0}, "the file"),
                       ({"patience": 2}, "set eval_every"),
                       ({"false_negatives": "mask_same_image", "in_batch": False, "nways": 2}, "other queries' doc"),
                       ):  # fmt: skip
        with pytest.raises(UserError, match=said):
            check(Config, {**base, **more}, "train")
    assert np.isfinite(check(Config, base, "train").teacher_scale)
