"""Stored states of a frozen trunk: same training, resumable building, nobody else's values."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from core.config import check
from core.errors import UserError
from core.store import Store, StoreWriter
from runs import training
from tests.toy import ToyConfig, ToyDataset, ToyRetriever
from training import states as module
from training.config import Config
from training.loop import fit
from training.states import TextStates, build_states, for_training, text_key


def frozen(seed=0):
    return ToyRetriever(ToyConfig(frozen=["trunk"]), seed=seed).eval()


def test_states_are_the_trunks_and_come_from_store_or_memory(tmp_path):
    retriever, data = frozen(), ToyDataset(20)
    store = build_states(retriever, data.corpus(), tmp_path, batch_size=3, shard_rows=25)
    states = TextStates(retriever, store)
    texts = [d.text for d in data.corpus()]
    calls = []
    compute = retriever.text_states
    retriever.text_states = lambda side, texts: (calls.append((side, *texts)), compute(side, texts))[1]
    for got, wanted in zip(states.get("document", texts), compute("document", texts), strict=True):
        torch.testing.assert_close(got, wanted.half().float())
    assert calls == []
    for _ in range(2):
        states.get("query", ["w1 w2", "w3"])
    assert calls == [("query", "w1 w2"), ("query", "w3")]
    states.get("document", ["not in the store"])
    assert calls[2:] == [("document", "not in the store")]


def test_a_gpu_computes_what_is_missing_together(monkeypatch):
    retriever = frozen()
    texts = [f"w{i} w{i + 1}" for i in range(70)]
    wanted = TextStates(retriever).get("query", texts)
    calls, compute = [], retriever.text_states
    retriever.text_states = lambda side, texts: (calls.append(len(texts)), compute(side, texts))[1]
    gpu = [SimpleNamespace(device=torch.device("cuda"))]
    states = TextStates(retriever)
    monkeypatch.setattr(retriever, "parameters", lambda: iter(gpu))
    states._specs[("query", "train")] = {"kind": "given"}
    found = states.get("query", [*texts, texts[0]])
    assert calls == [64, 6] and torch.equal(found[0], found[-1])
    assert all(map(torch.equal, found, wanted))


def test_memory_is_bounded(tmp_path):
    states = TextStates(frozen(), max_items=2)
    states.get("query", ["a", "b", "c"])
    assert len(states._memory) == 2


def test_building_goes_on_where_it_stopped(tmp_path, monkeypatch):
    retriever, data = frozen(), ToyDataset(20)
    compute, done = retriever.text_states, []

    def interrupted(side, texts):
        if len(done) >= 12:
            raise KeyboardInterrupt
        done.extend(texts)
        return compute(side, texts)

    retriever.text_states = interrupted
    with pytest.raises(KeyboardInterrupt):
        build_states(retriever, data.corpus(), tmp_path, batch_size=4)
    assert not Store(tmp_path).complete and len(Store(tmp_path)) == 12
    assert [len(t) for t in done] == sorted(len(t) for t in done)  # by length
    later = []
    retriever.text_states = lambda side, texts: (later.extend(texts), compute(side, texts))[1]
    store = build_states(retriever, data.corpus(), tmp_path, batch_size=4)
    assert store.complete and len(store) == 20 and not set(done) & set(later)
    later.clear()
    build_states(retriever, [*data.corpus(), dataclasses.replace(data.corpus()[0], id="new", text="w5 new")], tmp_path)
    assert later == ["w5 new"]
    assert text_key("document", "w5 new") in Store(tmp_path)


def test_another_trunks_states_are_refused(tmp_path):
    store = build_states(frozen(), ToyDataset(5).corpus(), tmp_path)
    with pytest.raises(UserError, match="weights"):
        TextStates(frozen(seed=1), store)
    with pytest.raises(UserError, match="weights"):
        build_states(frozen(seed=1), ToyDataset(5).corpus(), tmp_path)
    with pytest.raises(UserError, match="text trunk trains"):
        TextStates(ToyRetriever()).get("query", ["a"])


def test_another_stage_does_not_get_this_stages_states(tmp_path):
    """Lengths differ between stages, so does the key; then the store does not apply."""
    retriever = frozen()
    key = retriever.frozen_text_key
    retriever.frozen_text_key = lambda side: {**key(side), "maxlen": 5 if retriever.stage == "train" else 9}
    states = TextStates(retriever, build_states(retriever, ToyDataset(5).corpus(), tmp_path))
    text = ToyDataset(5).corpus()[0].text
    states.get("document", [text])
    assert len(states._memory) == 0
    retriever.stage = "valid"
    states.get("document", [text])
    assert len(states._memory) == 1


def test_training_with_states_equals_training_without(tmp_path):
    """Up to the fp16 of the store; and two runs with states, one of them resumed, bit for bit."""
    data = ToyDataset(40)
    sides = []
    raw = {"steps": 8, "batch_size": 5, "lr": 0.01, "device": "cpu"}

    def run(name, cached, steps=8):
        config = check(Config, {**raw, "out": str(tmp_path / name), "cache_text_states": cached, "steps": steps}, "t")
        retriever = frozen()
        states = for_training(retriever, data.corpus(), config)
        assert (states is None) != cached
        compute = retriever.text_states
        retriever.text_states = lambda side, texts: (sides.append(side), compute(side, texts))[1]
        fit(retriever, data, config, states=states)
        return retriever.linear.weight

    plain, cached = run("plain", False), run("cached", True)
    torch.testing.assert_close(plain, cached, atol=2e-3, rtol=0)
    assert not torch.equal(plain, frozen().linear.weight)
    run("resumed", True, steps=3)
    assert torch.equal(run("resumed", True), cached)
    assert set(sides) == {"query"}  # documents came from the store


def test_states_of_a_trunk_that_trains_are_refused_by_the_run_too(tmp_path):
    """Not left out in silence, which would cost the time they were meant to save."""
    cfg = SimpleNamespace(train=SimpleNamespace(cache_text_states=True))
    with pytest.raises(UserError, match="cache_text_states: false or freeze it"):
        training.text_states(cfg, ToyRetriever(), ToyDataset(), tmp_path)
    cfg.train.cache_text_states = False
    assert training.text_states(cfg, ToyRetriever(), ToyDataset(), tmp_path) is None


# ---- room on the disk and in memory


def test_a_disk_without_room_is_named_before_anything_is_computed(tmp_path, monkeypatch, capsys):
    """300 passages of 6 words x 12 numbers x 2 bytes are 43,200 bytes."""
    retriever, data, free = frozen(), ToyDataset(300), [43_000]
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: SimpleNamespace(free=free[0]))
    monkeypatch.setattr(StoreWriter, "add", lambda *a: pytest.fail("computed although there is no room"))
    with pytest.raises(UserError, match=r"for 300 passages needs about 0.00 GB, 0.00 GB are free.*make room"):
        build_states(retriever, data.corpus(), tmp_path)
    monkeypatch.undo()
    free[0] = 43_300
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: SimpleNamespace(free=free[0]))
    assert len(build_states(retriever, data.corpus(), tmp_path)) == 300
    assert "about 0.00 GB for 300 passages" in capsys.readouterr().out


def test_queries_that_do_not_fit_into_memory_are_computed_in_the_step(tmp_path, monkeypatch):
    """One by one, and forgotten before they come again, they would cost more than in the batch."""
    data, sides = ToyDataset(40), []
    config = check(Config, {"out": str(tmp_path), "steps": 3, "device": "cpu", "batch_size": 5}, "t")
    texts = [e.query.text for e in data.examples("train", 0, 0)]
    longest = max(frozen().text_states("query", [text])[0].numel() for text in texts)
    for missing, room in ((0, True), (1, False)):
        monkeypatch.setattr(module, "QUERY_BYTES", 2 * 40 * longest - missing)
        retriever = frozen()
        kept = TextStates(retriever, build_states(retriever, data.corpus(), tmp_path / "states"))
        assert kept.remembers(40, texts) == room and not TextStates(retriever, max_items=39).remembers(40, texts)
        compute = retriever.text_states
        retriever.text_states = lambda side, texts, compute=compute: (sides.append(side), compute(side, texts))[1]
        fit(retriever, data, config.model_copy(update={"out": str(tmp_path / str(room))}), states=kept)
        assert sides.count("query") == (1 + 15 if room else 1), "to see their size, and 15 queries or none"
        sides.clear()
