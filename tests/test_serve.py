"""``runs.serve`` as a process: starts, answers many at once, keeps its memory, ends cleanly, says what is missing."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import re
import shutil
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
        endless_heads_are_cut(server, port)
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


def endless_heads_are_cut(server, port: int) -> None:
    """What is no body has no other limit, token or not: before all else the server would keep all of it."""
    chunked = (
        b"POST /search HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    before = serving.resident(server.pid)
    for begun, more in (
        (b"GET /", b"a"), (b"GET / HTTP/1.1\r\nx: ", b"a"), (b"GET / HTTP/1.1\r\n", b"a: b\r\n"),
        (chunked + b"2\r\n{}\r\n0\r\n", b"a: b\r\n"), (chunked + b"2;", b"x"),
    ):  # fmt: skip
        with socket.create_connection(("127.0.0.1", port)) as connection, pytest.raises(OSError):
            connection.sendall(begun)
            for _ in range(200):
                connection.sendall(more * (500_000 // len(more)))
    assert serving.resident(server.pid) - before < 30 << 20
    assert get(port, "/health")["status"] == "ok"


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
    (["--max_mb", "inf"], {}, "--max_mb inf is no limit"),
    (["--timeout", "nan"], {}, "--timeout nan is no limit"),
    (["--batch", "-1"], {}, "the limit batch is -1"),
    ([], {"SEARCHER_TOKEN": "short"}, "SEARCHER_TOKEN has 5 letters; make it 8 or more"),
    ([], {"SEARCHER_TOKEN": ""}, "SEARCHER_TOKEN has 0 letters"),
    ([], {"SEARCHER_TOKEN": "long enough "}, "SEARCHER_TOKEN begins or ends with a blank"),
    (["--allow_origin", "localhost:3000"], {}, "--allow_origin localhost:3000: browsers send http"),
    (["--allow_origin", "http://localhost:3000/"], {}, "and no path"),
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


def test_the_demo_script_from_elsewhere(tmp_path):
    """It asks nothing of where it is called, and help trains nothing. Python and the quickstart are stand-ins here."""
    scripts, programs = tmp_path / "copy" / "scripts", tmp_path / "copy" / "bin"
    for folder in (scripts, programs):
        folder.mkdir(parents=True)
    real = Path(__file__).parent.parent / "scripts" / "demo.sh"
    shutil.copy(real, scripts)
    (scripts / "env.sh").write_text('cd "$(dirname "${BASH_SOURCE[0]}")/.."; PATH="$PWD/bin:$PATH"; install() { :; }')
    (scripts / "quickstart.sh").write_text("echo trained")
    (programs / "python").write_text('#!/bin/sh\necho "$@"')
    (programs / "python").chmod(0o755)
    said = "-m runs.serve --run experiments/quickstart/image+question"
    environment = {name: value for name, value in os.environ.items() if name != "OUT"}
    for words, wanted in (
        ([], ["trained", said]), (["--port", "1"], ["trained", f"{said} --port 1"]), (["-h"], [f"{said} -h"]),
        (["--run", "mine"], ["-m runs.serve --run mine"]), (["--check"], [f"{said} --check"]),
    ):  # fmt: skip
        done = subprocess.run(
            ["bash", "copy/scripts/demo.sh", *words], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.stdout.splitlines() == wanted, done.stderr


def test_the_demo_script():
    """scripts/demo.sh serves the folder that scripts/quickstart.sh leaves, as the command does by itself."""
    script = Path(__file__).parent.parent / "scripts" / "demo.sh"
    text = script.read_text(encoding="utf-8")
    assert "requirements-demo.txt" in text and "exec python -m runs.serve" in text
    assert QUICKSTART.removeprefix("experiments/quickstart/") in text and "experiments/quickstart" in text
    done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
