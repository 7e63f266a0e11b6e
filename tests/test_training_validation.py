"""Validation: a signal ends it at its next batch and the resumed run makes up for it; processes share its work."""

from __future__ import annotations

import os
import signal
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from core import distributed
from core.errors import UserError
from core.files import read_json
from runs.training import best, validation
from tests.toy import ToyConfig, ToyDataset, ToyRetriever
from tests.training_cases import quick, same_weights, settings  # noqa: F401 (a fixture)
from tests.two_processes import two_processes
from training import checkpoint
from training.loop import fit
from training.tracker import read


class Watched:
    """A validation of five batches; at the given batch, counted over all validations, this process gets a SIGTERM."""

    def __init__(self, at: int | None = None) -> None:
        self.at, self.batches = at, 0

    def __call__(self, retriever) -> dict[str, float]:
        total = 0.0
        for start in range(0, 20, 4):
            torch.rand(3)  # a careless validation: random states are put back also where it is left
            documents = retriever.collate_documents(ToyDataset().corpus()[start : start + 4])
            total += float(retriever.encode_documents(documents).embeddings.sum())
            self.batches += 1
            if self.batches == self.at:
                os.kill(os.getpid(), signal.SIGTERM)
        return {"m": total}


def run(out, validate, **more):
    model = ToyRetriever(ToyConfig(dropout=0.3))
    more = {"steps": 6, "eval_every": 2, "eval_first": False, **more}
    return fit(model, ToyDataset(), settings(out, **more), validate=validate), model


def facts(out):
    """What a run leaves: validations, the best, and what each checkpoint says of its step."""
    rows = [(row["step"], row["valid/m"]) for row in read(out / "metrics.jsonl") if "valid/m" in row]
    saved = [read_json(checkpoint.folder(out, s) / "provenance.json")["metrics"] for s in checkpoint.steps(out)]
    return rows, read_json(out / "checkpoints" / "best.json"), saved


@pytest.mark.parametrize(("at", "step"), [(7, 4), (13, 6), (15, 6)], ids=["middle", "last step", "last batch"])
def test_a_signal_in_a_validation_ends_it_and_loses_nothing(tmp_path, at, step):
    """Validations of five batches after steps 2, 4 and 6. A signal in the last batch of all comes too late to leave."""
    outcome, _ = run(tmp_path / "parts", seen := Watched(at))
    left = at % 5 != 0
    assert (outcome.step, outcome.stopped, seen.batches) == (step, left, at)
    assert checkpoint.steps(tmp_path / "parts")[-1] == step
    again, model = run(tmp_path / "parts", more := Watched())
    assert (again.step, again.stopped) == (6, False)
    assert more.batches == {7: 10, 13: 5, 15: 0}[at]
    _, whole = run(tmp_path / "whole", Watched())
    assert same_weights(model, whole) and facts(tmp_path / "parts") == facts(tmp_path / "whole")


def test_a_signal_in_the_first_validation_starts_nothing(tmp_path):
    outcome, model = run(tmp_path, Watched(2), eval_first=True)
    assert (outcome.step, outcome.stopped, outcome.checkpoint) == (0, True, None)
    assert same_weights(model, ToyRetriever()) and "encode_documents" not in vars(model)
    outcome, _ = run(tmp_path, seen := Watched(), eval_first=True)
    assert (outcome.step, outcome.stopped, seen.batches) == (6, False, 20)


def test_a_run_without_a_checkpoint_begins_anew_with_one_first_validation(tmp_path):
    def broken(retriever):
        raise UserError("of this validation")

    turns = iter([lambda r: {"m": 1.0}, broken])
    with pytest.raises(UserError, match="of this validation"):
        run(tmp_path, lambda r: next(turns)(r), eval_first=True)
    run(tmp_path, Watched(), eval_first=True)
    assert [step for step, _ in facts(tmp_path)[0]] == [0, 2, 4, 6]


def test_a_second_signal_in_the_validation_that_is_made_up_for(tmp_path):
    run(tmp_path / "parts", Watched(7))
    outcome, _ = run(tmp_path / "parts", Watched(3))
    assert (outcome.step, outcome.stopped) == (4, True)
    run(tmp_path / "parts", Watched())
    run(tmp_path / "whole", Watched())
    assert facts(tmp_path / "parts") == facts(tmp_path / "whole")


def test_killed_while_the_checkpoint_of_a_validation_made_up_for_is_written_anew(tmp_path, monkeypatch, capsys):
    """Between the two renames that exchange the folders: the only checkpoint there is comes back."""
    run(tmp_path / "parts", Watched(2))
    rename = os.replace

    def replace(a, b):
        rename(a, b)
        if str(b).endswith("step-0000002.old"):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", replace)
        run(tmp_path / "parts", Watched())
    assert checkpoint.steps(tmp_path / "parts") == []
    capsys.readouterr()
    _, model = run(tmp_path / "parts", Watched())
    assert "resuming after step 2 of 6" in capsys.readouterr().err
    _, whole = run(tmp_path / "whole", Watched())
    assert same_weights(model, whole) and facts(tmp_path / "parts") == facts(tmp_path / "whole")


# ---- two processes


class Asked(ToyDataset):
    valid_split = "valid"


ROOM = SimpleNamespace(eval=SimpleNamespace(valid_queries=30, valid_documents=300))


def ranked(retriever):
    """300 passages of which some say the same, in batches of 7: 43, so that the last round has one batch."""
    corpus = Asked(280).corpus()
    corpus = [*corpus, *corpus[:20]]
    asked = [retriever.encode_queries(retriever.collate_queries(Asked(280).queries("valid")[:40]))]
    with torch.no_grad():
        return best(retriever, asked, corpus, size=7), best(retriever, asked, corpus[:5], size=7)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return two_processes(jobs, tmp_path_factory.mktemp("pair"))


def jobs(rank, folder):
    outcome, _ = run(folder / "parts", Watched(7 if rank == 1 else None), batch_size=2)
    run(folder / "parts", Watched(), batch_size=2)
    run(folder / "whole", Watched(), batch_size=2)
    sliced, _ = run(folder / "sliced", Watched(7 if rank == 1 else None), batch_size=2, parallel="fsdp")
    assert (sliced.step, sliced.stopped) == (4, True)
    share = validation(ROOM, Asked(280), None, None)
    run(folder / "sliced", share, batch_size=2, parallel="fsdp")
    retriever = ToyRetriever()
    counted = []
    encode = retriever.encode_documents
    retriever.encode_documents = lambda batch: (counted.append(len(batch)), encode(batch))[1]
    metrics = share(retriever.eval())
    assert sum(counted) < 200, "a process encodes its share"
    left = (outcome.step, outcome.stopped)
    torch.save((left, metrics, ranked(retriever)), folder / f"{distributed.rank()}.pt")


def test_a_signal_to_one_process_ends_the_validation_of_all(pair):
    assert [torch.load(pair / f"{rank}.pt")[0] for rank in (0, 1)] == [(4, True)] * 2
    assert facts(pair / "parts") == facts(pair / "whole")


def test_processes_share_the_passages_and_find_the_same(pair):
    retriever = ToyRetriever().eval()
    metrics = validation(ROOM, Asked(280), None, None)(retriever)
    assert 0 < metrics["MRR@10"] < 1
    found = ranked(retriever)
    (places, scores), (few, _) = found
    assert len(places[0]) == 10 and len(few[0]) == 5 and len({tuple(row) for row in places}) > 30
    assert any(a == b for row in scores for a, b in pairwise(row)), "no equal scores: nothing is said of their order"
    for rank in (0, 1):
        assert torch.load(pair / f"{rank}.pt")[1:] == (metrics, found)


def test_slices_of_a_model_validate_together(pair):
    """The validation that was left after step 4 and the last one are those of the weights that the run has saved."""
    for number, step in enumerate((4, 6)):
        saved = ToyRetriever.from_pretrained(checkpoint.folder(pair / "sliced", step))
        saved.stage = "valid"
        wanted = validation(ROOM, Asked(280), None, None)(saved)
        row = [r for r in read(pair / "sliced" / "metrics.jsonl") if "valid/MRR@10" in r][number]
        assert row["step"] == step and {k: row[f"valid/{k}"] for k in wanted} == pytest.approx(wanted)
