"""``runs.serve`` as a process: starts, answers many at once, keeps its memory, ends cleanly, says what is missing."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import serving
from core.errors import UserError
from core.records import Query
from runs import serve
from runs.searching import QUICKSTART
from searcher import app
from tests.searcher_case import encoded
from tests.test_pipeline import finished, make_config  # noqa: F401 (a fixture)

COUNT = 2000 if os.environ.get("FULL_TESTS") else 400


SIGNALS = [signal.SIGTERM, signal.SIGINT] if os.environ.get("FULL_TESTS") else [signal.SIGTERM]


def get(port: int, path: str):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as reply:
        return json.loads(reply.read())


@pytest.mark.parametrize("name", SIGNALS)
def test_the_life_of_a_server(finished, name):  # noqa: F811
    """One process for all of it: it takes seconds to import PyTorch."""
    root, _ = finished
    server, port = serving.start(["--run", str(root / "run"), "--device", "cpu"])
    try:
        assert get(port, "/info")["data"] == "vid2r" and len(get(port, "/examples")) == 6
        many_clients_and_the_memory(server, port)
        slow_senders_do_not_stop_the_others(port)
        it_ends_when_told_and_answers_what_it_took(server, port, name)
    finally:
        server.kill()
        server.wait()


def many_clients_and_the_memory(server, port: int) -> None:
    """Every request is answered, batches form, and the second half of them costs no memory."""
    texts = ["which bird lives in this country", "", "fish", "the climate of red mountains"]
    requests = [serving.multipart(t, encoded(color=(9 * i, 90, 80)), 5) for i, t in enumerate(texts * 5)]
    warm = serving.drive(port, requests, 32, COUNT // 4)
    half: list[int] = []
    load = serving.drive(port, requests, 32, COUNT, lambda: half.append(serving.resident(server.pid)))
    assert set(warm.statuses + load.statuses) == {200} and len(load.seconds) == COUNT
    assert max(load.batches) > 8
    growth = serving.resident(server.pid) / half[0] - 1
    assert growth < 0.01, f"{growth:.2%} over the last {COUNT // 2} of {COUNT} requests"
    health = get(port, "/health")
    assert (health["status"], health["waiting"], health["answered"]) == ("ok", 0, COUNT + COUNT // 4)


def slow_senders_do_not_stop_the_others(port: int) -> None:
    """Connections that begin a request and never end it take a place each; the page's other visitors are answered."""
    begun = b"POST /search HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    slow = [socket.create_connection(("127.0.0.1", port)) for _ in range(10)]
    for connection in slow:
        connection.sendall(begun)
    load = serving.drive(port, [serving.multipart("which bird", None, 3)], 4, 8)
    assert load.statuses == [200] * 8
    for connection in slow:  # who leaves in the middle leaves nothing behind
        connection.close()
    assert serving.drive(port, [serving.multipart("which bird", None, 3)], 4, 8).statuses == [200] * 8


def it_ends_when_told_and_answers_what_it_took(server, port: int, name: signal.Signals) -> None:
    before = get(port, "/health")["answered"]
    request = serving.multipart("which bird", encoded(), 3)
    loads: list = []
    ask = threading.Thread(target=lambda: loads.append(serving.drive(port, [request], 8, 8)))
    ask.start()
    while get(port, "/health")["answered"] == before:
        time.sleep(0.01)
    server.send_signal(name)
    ask.join(30)
    assert server.wait(30) in (0, -name, 130) and "Traceback" not in server.stdout.read()
    assert set(loads[0].statuses) <= {200, 503} and 200 in loads[0].statuses
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port), 1)


# ---- what it says before it serves


def test_a_port_that_is_taken():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"cannot listen at 127\.0\.0\.1:{port} \(Address already in use\)"):
            serve.run(["--port", str(port), "--run", "nowhere"])
    for host, port in (("127.0.0.1", 70_000), ("256.1.1.1", 0)):
        with pytest.raises(UserError, match=f"cannot listen at {host}:{port}"):
            serve.listen(host, port)


def test_replies_leave_in_one_piece():
    """Nagle's algorithm is off on accepted connections; with it a body waits 40 ms for its headers' acknowledgement."""
    off: list = []

    async def connected(reader, writer):
        off.append(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    async def one_client():
        with serve.listen("127.0.0.1", 0) as listening:
            async with await asyncio.start_server(connected, sock=listening):
                reader, writer = await asyncio.open_connection(*listening.getsockname())
                await reader.read()
                writer.close()

    asyncio.run(one_client())
    assert off and off[0]


@pytest.mark.parametrize(("words", "environment", "message"), [
    (["--run", "nowhere"], {}, "'nowhere' is not a run's folder"),
    (["--max_mb", "0"], {}, "the limit max_bytes is 0"),
    (["--batch", "-1"], {}, "the limit batch is -1"),
    ([], {"SEARCHER_TOKEN": "short"}, "SEARCHER_TOKEN has 5 letters; make it 8 or more"),
    ([], {"SEARCHER_TOKEN": ""}, "SEARCHER_TOKEN has 0 letters"),
])  # fmt: skip
def test_what_is_wrong_is_said(words, environment, message, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        serve.run(["--port", "0", *words])


@pytest.mark.parametrize("missing", ["fastapi", "uvicorn", "python_multipart"])
def test_packages_that_are_missing(monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UserError, match=r"pip install -r requirements-demo\.txt"):
        serve.run(["--run", "nowhere"])


def test_check(finished, capsys):  # noqa: F811
    root, _ = finished
    serve.run(["--check", "--run", str(root / "run")])
    assert "would serve at 127.0.0.1:8024; nothing is missing" in capsys.readouterr().out
    serve.run(["--check", "--index", "nowhere"])
    assert "missing: experiments/quickstart/image+question, nowhere" in capsys.readouterr().out


def test_examples_come_from_all_over_a_split():
    rows = [Query(str(i)) for i in range(100)]
    data = SimpleNamespace(train_split="train", valid_split="dev", test_splits=["test"], queries=lambda split: rows)
    chosen = [q.id for q in serve.examples(data, None)]
    assert len(chosen) == 12 and chosen[:2] == ["0", "8"] and serve.examples(None, None) == []
    rows = rows[:3]
    assert len(serve.examples(data, "dev")) == 3
    with pytest.raises(UserError, match="--split nothing: this data set has train, dev, test"):
        serve.examples(data, "nothing")


def test_its_page_names_every_option_and_route():
    text = (Path(__file__).parent.parent / "docs" / "serving.md").read_text(encoding="utf-8")
    options = {option for action in serve.arguments()._actions for option in action.option_strings} - {"-h", "--help"}
    assert not [option for option in options if f"`{option}" not in text]
    found = set(re.findall(r"app\.(?:get|post)\(\s*\"(/[a-z]*)", inspect.getsource(app))) - {"/", "/static/"}
    assert found >= {"/search", "/explain", "/upload", "/health"}
    assert not [route for route in found if route not in text]


def test_the_demo_script():
    """scripts/demo.sh serves the folder that scripts/quickstart.sh leaves, as the command does by itself."""
    script = Path(__file__).parent.parent / "scripts" / "demo.sh"
    text = script.read_text(encoding="utf-8")
    assert "requirements-demo.txt" in text and "exec python -m runs.serve" in text
    assert QUICKSTART.removeprefix("experiments/quickstart/") in text and "experiments/quickstart" in text
    done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
