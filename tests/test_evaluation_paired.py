"""The paired randomisation test against full enumeration, grouping, and Holm's correction."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from core.errors import UserError
from evaluation.paired import differences, group_interval, holm, mean_over_runs, randomisation_test


def pair(gaps: list[float]) -> tuple[dict, dict]:
    return {f"q{i}": g for i, g in enumerate(gaps)}, {f"q{i}": 0.0 for i in range(len(gaps))}


@pytest.mark.parametrize("gaps", [[1, 1, 1, -1, 1, 0, 0, 1], [0.5, -0.25, 0.1, 0.7, 0.3, 0.2]])
def test_p_value_is_the_share_of_sign_assignments(gaps):
    exact = np.mean([abs(np.dot(s, gaps)) >= abs(sum(gaps)) - 1e-9 for s in product((1, -1), repeat=len(gaps))])
    found = randomisation_test(*pair(gaps), rounds=40_000)
    assert found == pytest.approx(exact, abs=0.01)
    assert exact < 0.3  # the case distinguishes


def test_two_sided_and_the_order_of_queries_does_not_matter():
    ours, theirs = pair([1, 1, 0.5, -1, 1, 1, 0.25])
    assert randomisation_test(ours, theirs) == randomisation_test(theirs, ours)
    shuffled = dict(reversed(list(ours.items())))
    assert randomisation_test(shuffled, theirs) == randomisation_test(ours, theirs)


def test_equal_systems_differ_never_and_a_clear_difference_always():
    ours, theirs = pair([0.0] * 30)
    assert randomisation_test(ours, theirs) == 1.0
    ours, theirs = pair([1.0] * 30)
    assert randomisation_test(ours, theirs, rounds=999) == pytest.approx(1 / 1000)  # never 0


def test_queries_of_one_group_are_one_observation():
    ours, theirs = pair([1.0] * 12)
    alone = randomisation_test(ours, theirs)
    grouped = randomisation_test(ours, theirs, groups={q: str(i // 6) for i, q in enumerate(ours)}, rounds=20_000)
    assert alone < 0.01
    assert grouped == pytest.approx(0.5, abs=0.02)  # two observations: both signs equal in half of the cases


def test_p_values_are_uniform_when_nothing_differs():
    rng = np.random.default_rng(3)
    values = [randomisation_test(*pair(list(rng.standard_normal(20))), rounds=200) for _ in range(300)]
    assert np.mean(np.array(values) < 0.1) == pytest.approx(0.1, abs=0.05)
    assert np.mean(values) == pytest.approx(0.5, abs=0.06)


def test_holm_worked_example():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_means_over_seeds():
    assert mean_over_runs([{"a": 1.0, "b": 0.0}, {"b": 1.0, "a": 1.0}]) == {"a": 1.0, "b": 0.5}
    with pytest.raises(UserError, match="different queries"):
        mean_over_runs([{"a": 1.0}, {"b": 1.0}])
    with pytest.raises(UserError, match="no runs"):
        mean_over_runs([])


def test_unequal_queries_are_errors():
    with pytest.raises(UserError, match="'q9'"):
        differences({"a": 1.0, "q9": 1.0}, {"a": 1.0})
    with pytest.raises(UserError, match="no queries"):
        differences({}, {})
    with pytest.raises(UserError, match="'a' has no group"):
        randomisation_test({"a": 1.0}, {"a": 0.0}, groups={})
    with pytest.raises(UserError, match="rounds=5"):
        randomisation_test({"a": 1.0}, {"a": 0.0}, rounds=5)


def test_an_interval_over_groups_is_as_wide_as_the_groups_make_it():
    values = {f"{g}{i}": float(g == "a" or g == "b") for g in "abcd" for i in range(100)}  # alike within a group
    low, high = group_interval(values, {qid: qid[0] for qid in values})
    assert (low, high) == (0.0, 1.0)  # four observations, not four hundred
    alone = group_interval(values, {qid: qid for qid in values})
    assert 0.44 < alone[0] < 0.5 < alone[1] < 0.56
    uneven = {"a1": 1.0, "b1": 0.0, "b2": 0.0, "b3": 0.0}
    assert group_interval(uneven, {qid: qid[0] for qid in uneven}, level=0.01) == (0.25, 0.25)  # queries weigh alike
    with pytest.raises(UserError, match="at least one query"):
        group_interval({}, {})
