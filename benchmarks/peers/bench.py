"""One run of the benchmark: builds, our grid of settings, the points of every peer, all in turn."""

from __future__ import annotations

import argparse
import shutil
import statistics
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import numpy as np

from peers import floor, race
from peers.runner import Runner

K, WARM_DOCS = 100, 300


class Bench:
    """The engines of one run and what was measured so far (``report`` becomes the JSON file)."""

    def __init__(self, args: argparse.Namespace, names: Sequence[str], home: Path, work: Path) -> None:
        self.args, self.work = args, work
        self.report: dict = {"ratios": {}}
        self.peers = [name for name in names if name != "exact"]  # exact always runs: it is the truth
        self.k, self.rounds = min(K, args.docs), race.slices(args.queries, args.rounds)
        self.engines = {name: Runner(name, home, args, work) for name in ["ours", "exact", *self.peers]}
        self.builds: dict[str, dict] = {}
        self.report["versions"] = {name: engine.versions for name, engine in self.engines.items()}
        for name, engine in self.engines.items():  # compiles what there is to compile
            engine.ask("build", docs=min(WARM_DOCS, args.docs), name="warm")
            setting = race.OURS[0] if name == "ours" else race.POINTS[name][0]
            engine.ask("search", setting=setting, batch=1, first=0, last=min(8, args.queries), k=min(10, self.k))

    # ---- one measurement

    def build(self, name: str, docs: int, index: str = "index") -> dict:
        shutil.rmtree(self.engines[name].work / index, ignore_errors=True)
        made = self.engines[name].ask("build", docs=docs, name=index)
        say(f"built {name}: {made['seconds']:.1f} s, {made['bytes'] / made['vectors']:.1f} bytes/vector")
        return made

    def search(self, name: str, setting: dict, batch: int, part: tuple[int, int] | None = None) -> float:
        """ms per query"""
        first, last = part or (0, self.args.queries)
        order = {"setting": setting, "batch": batch, "first": first, "last": last, "k": self.k}
        return self.engines[name].ask("search", **order)["ms"]

    def judged(self, name: str, setting: dict, batch: int) -> dict:
        """A search over all queries: {"setting", "ms", "overlap@10", "overlap@100"}."""
        out = self.work / "ids.npy"
        order = {"setting": setting, "batch": batch, "first": 0, "last": self.args.queries, "k": self.k}
        ms = self.engines[name].ask("search", out=str(out), **order)["ms"]
        found = np.load(out)
        if name == "exact":
            self.truth = found
        return {"setting": setting, "ms": ms, **{f"overlap@{k}": race.overlap(found, self.truth, k) for k in (10, 100)}}

    # ---- the race

    def race_builds(self) -> None:
        """Peers and ours in turn; the last index of each stays open for the searches."""
        docs, pairs, made = self.args.docs, {name: [] for name in self.peers}, {}
        for name in self.peers * self.args.build_rounds or ["ours"]:
            turn = [(engine, self.build(engine, docs)) for engine in dict.fromkeys([name, "ours"])]
            for engine, one in turn:
                made.setdefault(engine, []).append(one)
            if name != "ours":
                pairs[name].append([one["seconds"] for _, one in turn])
        self.engines["exact"].ask("build", docs=docs, name="index")
        for engine, builds in made.items():
            seconds = [one["seconds"] for one in builds]
            size = builds[-1]["bytes"] / builds[-1]["vectors"]
            self.builds[engine] = builds[-1] | {"seconds": statistics.median(seconds), "rounds": seconds}
            self.builds[engine]["bytes_per_vector"] = size
        for name, turns in pairs.items():
            self.report["ratios"][f"build_vs_{name}"] = race.ratio(*zip(*turns))
        self.report["builds"] = self.builds

    def race_search(self) -> None:
        self.report["exact"] = self.judged("exact", {}, 64)  # first: it is what the others are compared with
        self.report["exact"]["times"] = self.alone("exact", {}, "peer")
        ours = race.OURS[:: 9 if self.args.coarse else 1]
        settings = [s for s in ours if s["n_candidates"] <= max(race.CANDIDATES[0], self.args.docs)]
        self.report["grid"] = grid = [self.judged("ours", s, 1) for s in settings]
        say(f"measured {len(grid)} settings of ours")
        self.report["points"] = []
        for name in self.peers:
            points = [self.race_point(name, setting) for setting in race.POINTS[name]]
            self.report["points"] += points
            self.report["ratios"][f"search_vs_{name}"] = race.headline(points)
        presets = [{"effort": name} for name in ("fast", "balanced")]
        self.report["presets"] = [
            self.judged("ours", s, 64) | {"times": self.alone("ours", s, "ours")} for s in presets
        ]

    def alone(self, name: str, setting: dict, who: str) -> dict[str, list[float]]:
        """Times without a partner, for the table only."""
        return {f"{who}@{b}": [self.search(name, setting, b, part) for part in self.rounds] for b in (1, 64)}

    def floors(self, measured: dict[str, float]) -> None:
        """Adds to every point what our setting could not be faster than."""
        tokens = self.builds["ours"]["vectors"] / self.args.docs
        for point in self.report["points"]:
            if point["ours"]:
                candidates = point["ours"]["setting"]["n_candidates"]
                least = floor.floor(measured, self.builds["ours"]["centroids"], candidates, tokens, self.args.nbits)
                times = statistics.median(point["times"]["ours@1"]) / least["ms"]
                point["floor"] = least | {"times_floor": times}

    def race_point(self, name: str, setting: dict) -> dict:
        """One point of a peer: its best batch, our setting of equal overlap, and both in turn."""
        batches = [b for b in race.BATCHES[name] if b <= self.args.queries]
        point = self.judged(name, setting, batches[-1])
        tried = {b: self.search(name, setting, b, (0, max(b, 64))) for b in batches[1:-1]}
        best = min(tried := {**tried, batches[-1]: point["ms"]}, key=tried.get)
        mine = race.equal_overlap(self.report["grid"], point)
        small = race.within_bytes(*(self.builds[n]["bytes_per_vector"] for n in ("ours", name)))
        text = None if mine and small else race.NOT_REACHED if small else race.TOO_LARGE
        times: dict[str, list[float]] = {}
        for part in self.rounds:
            for batch in dict.fromkeys([1, best]):
                times.setdefault(f"peer@{batch}", []).append(self.search(name, setting, batch, part))
            for batch in (1, 64) if mine else ():
                times.setdefault(f"ours@{batch}", []).append(self.search("ours", mine["setting"], batch, part))
        times.setdefault("peer@64", [tried.get(64, statistics.median(times[f"peer@{best}"]))])  # for the table only
        point |= {"peer": name, "ours": mine, "text": text, "tried_batches": tried, "best_batch": best}
        say(f"raced {name} {race.name_of(setting)}")
        return point | race.point_ratios(times, best, counts=text is None) | {"times": times}

    def race_exact(self, sizes: Sequence[int]) -> None:
        """Median ratios of brute-force time over ours, ours at its default effort."""
        self.report["vs_exact"] = []
        for docs in sizes:
            self.k = min(K, docs)
            self.engines["exact"].ask("build", docs=docs, name=f"index-{docs}")
            self.build("ours", docs)
            for batch in (1, 64):
                if batch > self.args.queries:
                    continue
                pairs = [[self.search(name, {}, batch, part) for name in ("exact", "ours")] for part in self.rounds]
                exact, ours = zip(*pairs)
                row = {
                    "docs": docs,
                    "batch": batch,
                    "ratio": race.ratio(exact, ours),
                    "exact_ms": exact,
                    "ours_ms": ours,
                }
                self.report["vs_exact"].append(row)

    def close(self) -> None:
        for engine in self.engines.values():
            engine.close()


def say(text: str) -> None:
    print(f"[{datetime.now():%H:%M:%S}] {text}", flush=True)
