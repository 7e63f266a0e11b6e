"""Two writers at once, and an add that was stopped: the lock holds, and nothing is lost or mixed up."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from core.errors import UserError
from index import exact
from tests.index_cases import ENCODER, ROOT, snapshot
from tests.index_operations import DOCS, INDEX, answers, begin, perform

# -- two writers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", INDEX)
def test_one_writer_at_a_time(tmp_path, kind):
    index = INDEX[kind]

    def meanwhile(attempts):
        for i, item in enumerate(DOCS):
            if i == 30:
                for attempt in attempts:
                    with pytest.raises(UserError, match=r"another process is writing the index .*; wait until"):
                        attempt()
            yield item

    index.build(
        tmp_path / "i",
        meanwhile([lambda: index.build(tmp_path / "i", DOCS, dim=32, encoder=ENCODER)]),
        dim=32,
        encoder=ENCODER,
    )
    other = index.open(tmp_path / "i")
    others = [
        lambda: other.add([("x", DOCS[0][1])]),
        lambda: other.delete(["doc-1"]),
        other.compact,
        lambda: other.rebuild(keep_codec=False),
        other.discard_add,
    ]
    report = index.open(tmp_path / "i").add((f"new-{i}", v) for i, v in meanwhile(others))
    assert report["documents"] == 90 and len(other) == 90
    other.delete(["new-doc-1"])  # the lock is free, and what it did not see is seen
    assert len(other) == 179 and other.verify() == []


WAITING = """
import sys, time
from index import exact, stream
from tests.index_operations import DOCS, ENCODER
def slow():
    yield from DOCS[:40]
    print("ready", flush=True)
    time.sleep(60)
stream.BLOCK_DOCS = 12
exact.Index.build(sys.argv[1], slow(), dim=32, encoder=ENCODER)
"""


def test_the_lock_of_a_killed_builder_is_free(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen(
        [sys.executable, "-c", WAITING, str(tmp_path / "i")], env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout.readline() == "ready\n"
        with pytest.raises(UserError, match="another process is writing"):
            exact.Index.build(tmp_path / "i", DOCS, dim=32, encoder=ENCODER)
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
    assert exact.Index.committed(tmp_path / "i") == 36
    assert len(exact.Index.build(tmp_path / "i", DOCS, dim=32, encoder=ENCODER)) == 90


# -- a killed add ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", INDEX)
def test_a_stopped_add_goes_on_or_is_forgotten(tmp_path, monkeypatch, kind):
    monkeypatch.setattr("index.stream.BLOCK_DOCS", 12)
    path, whole = tmp_path / "i", tmp_path / "whole"
    for one in (path, whole):
        begin(f"add-{kind}", one)
    perform(f"add-{kind}", whole)
    index = INDEX[kind].open(path)
    old = answers(path)

    def stopped():
        yield from DOCS[60:89]
        raise KeyboardInterrupt

    assert index.adding() == 0
    with pytest.raises(KeyboardInterrupt):
        index.add(stopped())
    assert index.adding() == 24 and answers(path) == old and index.verify() == []
    with pytest.raises(UserError, match=r"another add .* killed after 24 documents; .* discard_add\(\)"):
        index.add(DOCS[61:])
    with pytest.raises(UserError, match="another add"):
        index.add(DOCS[60:70])
    index.add((i, v if n >= 24 else None) for n, (i, v) in enumerate(DOCS[60:]))
    assert index.adding() == 0 and snapshot(path) == snapshot(whole)
    # Forgotten, by name and by a compaction; a compaction that was stopped is no add.
    for forget in (index.discard_add, index.compact):
        with pytest.raises(KeyboardInterrupt):
            index.add((f"{i}-again", v) for i, v in stopped())
        assert index.adding() == 24
        forget()
        assert index.adding() == 0 and index.verify() == []
    index.delete(["doc-1"])
    monkeypatch.setattr("index.stored.COPY_ROWS", 50)
    with monkeypatch.context() as patch:
        patch.setattr(type(index), "_complete", lambda *_: time.sleep("no"))
        with pytest.raises(TypeError):
            index.compact()
    assert index.adding() == 0
    index.add([("last", DOCS[0][1])])
    assert index.ids()[-1] == "last" and index.verify() == []
