"""The benchmark's own logic: what it compares, at which point, on which vectors. The peers are not needed here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import index_bench
import index_vectors
from peers import floor, race, runner

from core.errors import UserError

ROOT = Path(__file__).parents[1]


def point(ms: float, at10: float, at100: float) -> dict:
    return {"ms": ms, "overlap@10": at10, "overlap@100": at100}


def test_overlap_counts_shared_ids_once_and_never_the_missing_ones():
    truth = np.array([[0, 1, 2, 3], [4, 5, 6, 7]])
    found = np.array([[1, 0, 9, -1], [4, 8, -1, -1]])
    assert race.overlap(found, truth, 2) == pytest.approx((2 + 1) / 4)
    assert race.overlap(found, truth, 4) == pytest.approx((2 + 1) / 8)
    assert race.overlap(found, truth, 100) == race.overlap(found, truth, 4)  # fewer documents than 100
    assert race.overlap(np.full_like(found, -1), truth, 4) == 0.0 and race.overlap(truth, truth, 4) == 1.0


def test_equal_overlap_is_the_cheapest_setting_not_below_in_both():
    grid = [point(1, 0.97, 0.90), point(4, 0.96, 0.97), point(3, 0.95, 0.96), point(2, 0.94, 0.99)]
    assert race.equal_overlap(grid, point(9, 0.95, 0.96)) is grid[2]
    assert race.equal_overlap(grid, point(9, 0.96, 0.90)) is grid[0]
    assert race.equal_overlap(grid, point(9, 0.97, 0.95)) is None
    assert race.equal_overlap([], point(9, 0.0, 0.0)) is None


def test_bytes_rule():
    assert race.within_bytes(105.0, 100.0) and not race.within_bytes(105.1, 100.0)


def test_ratios_are_medians_over_rounds_of_peer_over_ours():
    assert race.ratio([10, 100, 30], [5, 10, 10]) == 3  # 2, 10, 3: not the ratio of the medians
    times = {"peer@1": [8, 9, 8], "peer@16": [6, 10, 6], "ours@1": [2, 3, 2], "ours@64": [1, 1, 1]}
    made = race.point_ratios(times, 16, counts=True)
    assert made == {"ratio": 3, "ratio_batch_1": 4, "ratio_both_batched": 6, "our_gain_at_64": 2}
    assert race.point_ratios(times, 16, counts=False) == {"ratio": None}


def test_the_headline_is_the_worst_point_and_null_when_one_was_not_reached():
    assert race.headline([{"ratio": 4.0}, {"ratio": 3.0}]) == 3.0
    assert race.headline([{"ratio": 4.0}, {"ratio": None}]) is None
    assert race.headline([]) is None


@pytest.mark.parametrize(("queries", "rounds"), [(1000, 3), (20, 3), (2, 3), (1, 1)])
def test_rounds_share_the_queries_out(queries, rounds):
    parts = race.slices(queries, rounds)
    assert [i for first, last in parts for i in range(first, last)] == list(range(queries))
    assert all(first < last for first, last in parts)


def test_floor_is_the_larger_of_memory_and_products():
    least = floor.floor({"bytes_per_s": 1e9, "flops": 1e12}, 1000, 10, 50.0, nbits=4)
    assert least["bytes"] == 4 * 1000 * 128 + 500 * (64 + 4) and least["flop"] == 2 * 32 * 128 * 1500
    assert least["ms"] == max(least["bytes_ms"], least["flop_ms"]) == pytest.approx(0.546)


def test_synthetic_vectors_are_unit_and_the_same_every_time(tmp_path):
    (vectors, lengths, queries), again = (index_vectors.synthetic(50, 7, seed=3) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip((vectors, lengths, queries), again))
    assert not np.array_equal(queries, index_vectors.synthetic(50, 7, seed=4)[2])
    assert vectors.dtype == np.float16 and len(vectors) == lengths.sum() and queries.shape == (7, 32, 128)
    assert np.allclose(np.linalg.norm(vectors.astype(np.float32), axis=1), 1, atol=1e-2)
    assert np.allclose(np.linalg.norm(queries, axis=-1), 1, atol=1e-5)


def test_a_folder_gives_its_first_documents_and_never_more_than_it_holds(tmp_path):
    index_vectors.run(["--synthetic", "--docs=40", "--queries=6", f"--out={tmp_path}"])
    vectors, lengths, queries = index_vectors.load(30, 5, tmp_path)
    assert len(lengths) == 30 and len(vectors) == lengths.sum() and len(queries) == 5
    with pytest.raises(UserError, match="holds 40 documents, 41 are asked for"):
        index_vectors.load(41, 5, tmp_path)
    with pytest.raises(UserError, match="6 queries"):
        index_vectors.load(40, 7, tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        index_vectors.load(1, 1, tmp_path / "gone")


def test_questions_are_read_in_both_layouts():
    assert index_vectors._read_question('{"question": "who?", "answer": ["A", "B"]}') == ("who?", ["A", "B"])
    assert index_vectors._read_question("who?\t['A']") == ("who?", ["A"])
    assert index_vectors._read_question('who?\t"[""A\'s""]"') == ("who?", ["A's"])
    assert index_vectors._read_question("who?\t['A") == ("who?", [])
    assert index_vectors._plain("The Château, of A dog!") == "chateau of dog"


def test_wrong_options_stop_before_anything_is_built():
    for wrong, text in (
        (["--peers", "pylate"], "there is no such peer"),
        (["--rounds", "0"], "1 or more"),
        (["--vs-exact", "--sizes", "1k"], "numbers of documents"),
    ):
        with pytest.raises(UserError, match=text):
            index_bench.check(index_bench.arguments().parse_args(wrong))


def test_every_engine_has_a_script_and_every_peer_its_requirements():
    assert {*runner.PEERS, "exact"} == set(race.POINTS) == set(race.BATCHES)
    for script in (runner.OWN | runner.PEERS).values():
        assert (runner.HERE / script).is_file()
    for name in runner.PEERS:
        assert f"{name}==" in (runner.HERE / f"requirements-{name}.txt").read_text()


def test_smoke(tmp_path):
    """The whole program on made-up vectors: exact against itself is 1, ours comes close, every number is there."""
    command = [sys.executable, "benchmarks/index_bench.py", "--synthetic", "--docs", "300", "--queries", "20"]
    done = subprocess.run(
        [*command, "--peers", "exact", "--coarse", "--json", str(tmp_path / "out.json")],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["exact"]["overlap@10"] == report["exact"]["overlap@100"] == 1.0
    assert report["ratios"] == {} and report["points"] == []
    assert len(report["grid"]) >= 1 and max(g["overlap@10"] for g in report["grid"]) > 0.9
    assert all(g["ms"] > 0 for g in report["grid"])
    assert "overlap@100" in done.stdout and "effort=balanced" in done.stdout
