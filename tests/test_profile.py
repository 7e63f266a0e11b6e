"""runs.profile: every second of a step is in one phase, and the run itself is not touched."""

from __future__ import annotations

import json

import pytest

from core.errors import UserError
from runs import profile
from tests.test_pipeline import make_config
from training import stopwatch
from training.phases import phase, watched


def test_seconds_belong_to_the_innermost_phase(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: next(clock))
    watch = stopwatch.Stopwatch(warm_up=1)
    with watched(watch):
        for _ in range(3):
            with phase("step"), phase("loss"), phase("encode queries"):  # 5 s, 3 s of them, 1 s of those
                pass
        with phase("checkpoint"):
            pass
    assert watch.steps == 2
    assert watch.per_step() == {"encode queries": 1, "loss": 2, "checkpoint": 1, "other": 2}
    lines = stopwatch.table(watch.per_step())
    assert lines[0].split() == ["encode", "queries", "1000.0", "ms", "20%", "#" * 8]
    assert lines[2].split() == ["checkpoint", "1000.0", "ms", "each"] and lines[-1].split()[1] == "5000.0"


def test_without_a_warm_up_what_precedes_the_first_step_is_no_part_of_it(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: next(clock))
    watch = stopwatch.Stopwatch()
    with watched(watch):
        with phase("collate"):
            pass
        for _ in range(2):
            with phase("step"), phase("collate"):  # 3 s, 1 s of them
                pass
    assert watch.steps == 2 and watch.per_step() == {"collate": 1, "other": 2}


@pytest.mark.parametrize(("train", "visual", "warm_up"), [({}, True, 1), ({"grad_cache": 2}, False, 0)])
def test_one_command_says_where_the_time_goes(tmp_path, capsys, train, visual, warm_up):
    """With stored features, and with the vision tower in the step."""
    section = {"steps": 4, "batch_size": 4, "lr": 1e-3, "warmup_steps": 2, "eval_every": 1, **train}
    changes = {} if visual else {"visual": {}}
    config = make_config(tmp_path, train=section, **changes)
    profile.run(["--config_path", str(config), "--steps", "3", "--warm_up", str(warm_up)])
    said = capsys.readouterr().out
    written = json.loads((tmp_path / "run" / "profile.json").read_text())
    found = written["seconds_per_step"]
    assert written["steps"] == 3 and written["batch_size"] == 4
    assert list(found) == list(stopwatch.ORDER)
    assert all(value > 0 for value in found.values())
    svg = (tmp_path / "run" / "profile.svg").read_text()
    assert svg.count("<svg") == 1 and all(name in said for name in found)
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["profile.json", "profile.svg"]


def test_wrong_options(tmp_path):
    with pytest.raises(UserError, match="--config_path"):
        profile.run([])
    with pytest.raises(UserError, match="--steps 0: give 1 or more"):
        profile.run(["--config_path", "x.yaml", "--steps", "0"])
    with pytest.raises(UserError, match="--warm_up -1: give 0 or more"):
        profile.run(["--config_path", "x.yaml", "--warm_up", "-1"])
