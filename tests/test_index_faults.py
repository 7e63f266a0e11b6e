"""Kills, full disks and damaged files: nothing is lost, and nothing is silently wrong.

The kills and the damage run in one process of its own (``drive``), which forks for every case: a fork of a warm
process costs milliseconds where a new one costs seconds.
"""

from __future__ import annotations

import builtins
import contextlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import stat
import subprocess
import sys
import traceback
from pathlib import Path

import pytest

from core.errors import UserError
from index import manifest, open_index, plaid
from tests.conftest import FULL
from tests.index_cases import ROOT, snapshot
from tests.index_operations import INDEX, OPERATIONS, QUERIES, answers, begin, many_blocks, perform

# -- kills -------------------------------------------------------------------------------------------------------------


def count_events(at: int, seed: int) -> list[int]:
    """Count what changes the disk, and at event number ``at`` die before it, or in the middle of it."""
    seen, rng, starts = [0], random.Random(seed), {}
    real_open = builtins.open

    def event(fd: int | None = None) -> None:
        seen[0] += 1
        if seen[0] == at:
            if fd is not None and stat.S_ISREG(os.fstat(fd).st_mode) and rng.random() < 0.7:  # it is there in part
                file = os.fstat(fd)
                os.ftruncate(fd, rng.randint(min(file.st_size, starts.get(file.st_ino, 0)), file.st_size))
            os.kill(os.getpid(), signal.SIGKILL)

    def opened(file, mode="r", *args, **kwargs):
        if not set(mode) & set("wa+x"):
            return real_open(file, mode, *args, **kwargs)
        event()
        handle = real_open(file, mode, *args, **kwargs)
        starts[os.fstat(handle.fileno()).st_ino] = os.fstat(handle.fileno()).st_size
        return handle

    def counted(function):
        def called(*args, **kwargs):
            event()
            return function(*args, **kwargs)

        return called

    os.fsync, builtins.open = event, opened
    for name in ("replace", "unlink", "rmdir", "mkdir"):
        setattr(os, name, counted(getattr(os, name)))
    return seen


def forked(function) -> tuple[int, str]:
    """function() in a fork -> (the signal that ended it or 0, what it returned or raised)."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            os.close(read)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            try:
                text = str(function())
            except BaseException:
                text = traceback.format_exc()
            os.write(write, text.encode()[-4000:])
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        text = pipe.read().decode(errors="replace")
    return os.waitpid(child, 0)[1] & 0x7F, text


def killed(operation: str, path: Path, at: int, seed: int) -> bool:
    """Whether the operation came to its event ``at``, where it was killed."""

    def run() -> int:
        seen = count_events(at, seed)
        perform(operation, path)
        return seen[0]

    ended, text = forked(run)
    assert ended in (0, signal.SIGKILL), f"signal {ended}"
    assert ended or text.isdigit(), text
    return bool(ended)


def drive_kills(root: Path) -> dict[str, list]:
    """operation -> [[number of the event, whether the change was in force, what was wrong], ...]."""
    many_blocks()
    report: dict[str, list] = {}
    for operation in OPERATIONS:
        before, whole = root / f"{operation}-before", root / f"{operation}-whole"
        begin(operation, before)
        for _ in range(2):  # the second time nothing is compiled or loaded any more
            shutil.rmtree(whole, ignore_errors=True)
            if before.exists():
                shutil.copytree(before, whole)
            perform(operation, whole)
        wanted = snapshot(whole)
        old, new = answers(before) if before.exists() else None, answers(whole)
        trial = root / "trial"

        def again(trial=trial, before=before) -> Path:
            shutil.rmtree(trial, ignore_errors=True)
            if before.exists():
                shutil.copytree(before, trial)
            return trial

        _, text = forked(lambda op=operation, again=again: (count_events(-1, 0), perform(op, again()))[0][0])
        points = list(range(1, int(text) + 1))
        rng = random.Random(operation)
        report[operation] = []
        # (a list of one point is one kill; the last case is killed again and again on its way)
        cases = [[p] for p in (points if FULL else sorted(rng.sample(points, min(len(points), 9))))]
        cases.append([rng.randint(1, len(points)) for _ in range(6)])
        for case in cases:
            again()
            done, problem = False, ""
            try:
                for at in case:
                    if not done:
                        killed(operation, trial, at, rng.randrange(10**9))
                        done = manifest_of(trial) == manifest_of(whole)
                check_killed(operation, trial, done, old, new, wanted)
            except BaseException:  # pytest's own are no Exception
                problem = traceback.format_exc()[-2000:]
            report[operation].append([case, done, problem])
    return report


def manifest_of(path: Path) -> bytes | None:
    return (path / "manifest.json").read_bytes() if (path / "manifest.json").is_file() else None


def check_killed(operation: str, path: Path, done: bool, old: list | None, new: list, wanted: dict) -> None:
    if done or old is not None:
        index = open_index(path)
        assert index.verify() == []
        assert answers(path) == (new if done else old)
    else:
        with pytest.raises(UserError, match=r"there is no index|incomplete|holds no index"):
            open_index(path)
    if not done:
        perform(operation, path)
    elif operation.startswith("build"):
        with pytest.raises(UserError, match="already holds a complete index"):
            perform(operation, path)
    else:
        open_index(path).discard_add()  # any change tidies first
    found = snapshot(path)
    assert sorted(found) == sorted(wanted)
    assert [name for name in wanted if found[name] != wanted[name]] == []


# -- damage ------------------------------------------------------------------------------------------------------------


def damages(path: Path, rng: random.Random) -> list[tuple[str, bytes | None]]:
    """Contents that a file may have instead of its own; None: removed."""
    content = path.read_bytes()
    out: list[tuple[str, bytes | None]] = [("removed", None)]
    if not content:
        return out
    out += [("cut", content[: rng.randrange(len(content))]), ("cut at its end", content.rstrip()[:-1])]
    spots = [rng.randrange(min(len(content), 128)), *(rng.randrange(len(content)) for _ in range(20 if FULL else 3))]
    for spot in spots:
        flipped = bytearray(content)
        flipped[spot] ^= 1 << rng.randrange(8)
        if path.name == "manifest.json" and b'"checksum"' not in flipped:
            continue  # without the name of the checksum there is none; the rest is whole then
        out.append((f"bit flipped in byte {spot}", bytes(flipped)))
    return out


def look_at(path: Path, name: str) -> str:
    """Open, verify and search a damaged index: what was wrong with how it answered, or nothing."""
    try:
        index = open_index(path)
    except UserError as error:
        named = name in str(error) or (name == "manifest.json" and str(path) in str(error))
        return "" if named else f"open said: {error}"
    problems = index.verify()
    if not any(name in problem for problem in problems):
        return f"verify said: {problems}"
    for effort in ("fast", "balanced", "exhaustive") if isinstance(index, plaid.Index) else (None,):
        for allowed in (None, {"doc-50", "doc-61"}):
            with contextlib.suppress(UserError):
                index.search(QUERIES, 2, allowed, effort=effort)
    with contextlib.suppress(UserError):
        index.ids()
    with contextlib.suppress(UserError):
        list(index.vectors())
    try:
        index.compact()
        return "a compaction made damage look whole"
    except UserError as error:
        return "" if name in str(error) else f"compact said: {error}"


def drive_damage(root: Path) -> dict[str, list]:
    """kind -> [[file, damage, what was wrong], ...]."""
    report: dict[str, list] = {}
    for kind in INDEX:
        path = root / kind
        begin(f"compact-{kind}", path)
        answers(path)
        assert len(open_index(path).segments) == 2
        rng, report[kind] = random.Random(kind), []
        for file in sorted(p.relative_to(path) for p in path.rglob("*") if p.is_file()):
            for how, content in damages(path / file, rng):
                trial = root / "trial"
                shutil.copytree(path, trial)
                (trial / file).unlink() if content is None else (trial / file).write_bytes(content)
                ended, text = forked(lambda trial=trial, file=file: look_at(trial, file.name))
                report[kind].append([str(file), how, f"killed by signal {ended}" if ended else text])
                shutil.rmtree(trial)
    return report


def drive(what: str, root: str) -> None:
    os.fsync = lambda fd: None  # nothing here asks for more than the death of a process
    report = {"kills": drive_kills, "damage": drive_damage}[what](Path(root))
    print(json.dumps(report))


def driven(what: str, root: Path) -> dict[str, list]:
    """``drive`` in a process that has one thread, so that it may fork."""
    code = (
        "import sys, torch; torch.set_num_threads(1)\nfrom tests.test_index_faults import drive; drive(*sys.argv[1:])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, what, str(root)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def kills(tmp_path_factory):
    return driven("kills", tmp_path_factory.mktemp("kills"))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_kill_loses_nothing_and_the_same_command_ends_with_the_same_bytes(kills, operation):
    cases = kills[operation]
    assert [case for case in cases if case[2]] == []
    assert any(not done for _, done, _ in cases) and len(cases) >= 8


def test_enough_kills(kills):
    assert sum(len(cases) for cases in kills.values()) >= 50


@pytest.fixture(scope="module")
def damage(tmp_path_factory):
    return driven("damage", tmp_path_factory.mktemp("damage"))


@pytest.mark.parametrize("kind", INDEX)
def test_every_damaged_file_is_named_and_nothing_crashes(damage, kind):
    cases = damage[kind]
    assert [case for case in cases if case[2]] == []
    files = {case[0] for case in cases}
    assert {"manifest.json", "spec.json", "deleted-00002.npy", "seg-00001/segment.json"} <= files
    assert len(files) == (25 if kind == "plaid" else 17) and len(cases) > 5 * len(files)


# -- a full disk -------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """resize(kilobytes) of a file system of its own at ``path``."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(*options: str) -> bool:
        return subprocess.run(["mount", *options, str(place)], capture_output=True).returncode == 0

    if shutil.which("mount") is None or not mount("-t", "tmpfs", "-o", "size=1m", "tmpfs"):
        pytest.skip("no file system may be mounted here")

    def resize(kilobytes: int) -> None:
        assert mount("-o", f"remount,size={kilobytes}k")

    yield place, resize
    subprocess.run(["umount", str(place)], check=True)


FULL_DISK = r"the disk of '.*' is full \(.*\); free space and run the same command, it goes on"


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_full_disk(small_disk, tmp_path, operation):
    place, resize = small_disk
    whole = tmp_path / "whole"
    begin(operation, whole)
    old = answers(whole) if whole.exists() else None
    path = place / "i"
    if whole.exists():
        shutil.copytree(whole, path)
    perform(operation, whole)
    used = sum(-(-p.stat().st_size // 4096) * 4 for p in place.rglob("*") if p.is_file())
    need = sum(-(-p.stat().st_size // 4096) * 4 for p in whole.rglob("*") if p.is_file())
    full = 0
    steps = [0, 4, 8] if operation.startswith("delete") else range(0, need + 8, 4 if FULL else 12)
    for more in steps:
        resize(max(4, used + more))
        try:
            perform(operation, path)
            break
        except UserError as error:
            assert re.match(FULL_DISK, str(error))
            full += 1
        if old is not None:
            assert open_index(path).verify() == [] and answers(path) == old
    assert full >= (1 if operation.startswith("delete") else 3)
    resize(8192)
    if manifest_of(path) != manifest_of(whole):
        perform(operation, path)
    assert snapshot(path) == snapshot(whole)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_disk_that_is_full_at_any_moment(tmp_path, monkeypatch, operation):
    """As above where nothing may be mounted: every write to disk fails in turn."""
    before, whole, path = tmp_path / "before", tmp_path / "whole", tmp_path / "i"
    begin(operation, before)
    for copy in (whole, path):
        if before.exists():
            shutil.copytree(before, copy)
    perform(operation, whole)
    old = answers(before) if before.exists() else None
    committed: list[int] = []
    for at in itertools.count(1, 1 if FULL or operation.startswith("delete") else 3):
        seen = [0]

        def fsync(fd: int, seen=seen, at=at) -> None:
            seen[0] += 1
            if seen[0] == at:
                raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr("os.fsync", fsync)
            try:
                perform(operation, path)
                break
            except UserError as error:
                assert re.match(FULL_DISK, str(error))
        if manifest_of(path) == manifest_of(whole):
            committed.append(at)  # the folder's own entry could not be flushed: the change is in force
            break
        if old is not None:
            assert answers(path) == old
    assert at > 1
    if manifest_of(path) != manifest_of(whole):
        perform(operation, path)
    elif committed and not operation.startswith("build"):
        open_index(path).discard_add()
    elif committed:
        with pytest.raises(UserError, match="already holds a complete index"):
            perform(operation, path)
    assert snapshot(path) == snapshot(whole)


def test_other_errors_of_the_disk_are_not_called_full(tmp_path):
    with pytest.raises(PermissionError), manifest.exclusive(tmp_path / "i"):
        raise PermissionError(13, "Permission denied")
