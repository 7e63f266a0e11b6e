"""The HTTP interface: what it answers, what it refuses, and that nothing a client sends makes it fail."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import random
import tempfile
import threading
from pathlib import Path

import pytest

from core.errors import UserError
from searcher import schema
from searcher.app import Service
from searcher.guard import HEADERS, Guard, Limits
from tests.searcher_case import DOCUMENTS, client, encoded, engine, examples, served

FULL = bool(os.environ.get("FULL_TESTS"))
PICTURE = encoded()


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("api")


@pytest.fixture(scope="module")
def made(root):
    return engine(root)


@pytest.fixture(scope="module")
def http(made, root):
    with client(made, limits=Limits(max_bytes=300_000, max_pixels=250_000), examples=examples(root)) as opened:
        yield opened


def ids(reply) -> list[str]:
    assert reply.status_code == 200, reply.text
    return [hit["id"] for hit in reply.json()["results"]]


def file(data: bytes, name: str = "x.png", kind: str = "image/png") -> tuple:
    return (name, data, kind)


# ---- searching


@pytest.mark.parametrize("query", [("which bird", None), ("", PICTURE), ("which bird", PICTURE)])
def test_json_multipart_and_the_engine_agree(http, made, query):
    from core.records import ImageRef

    text, image = query
    plain = {"question": text, "k": 4} | ({} if image is None else {"image": base64.b64encode(image).decode()})
    posted = http.post("/search", json=plain)
    form = http.post(
        "/search", data={"question": text, "k": "4"}, files=None if image is None else {"image": file(image)}
    ) if image is not None else http.post("/search", files={"question": (None, text), "k": (None, "4")})  # fmt: skip
    wanted = made.search([made.prepare(text, None if image is None else ImageRef("i", data=image))], 4)[0]
    assert ids(posted) == ids(form) == [h.id for h in wanted.results] and len(ids(posted)) == 4
    first, timings = posted.json()["results"][0], posted.json()["timings"]
    assert first["rank"] == 1 and first["score"] == pytest.approx(wanted.results[0].score, abs=1e-5)
    assert first["title"] == made.document(first["id"]).title and first["text"] == made.document(first["id"]).text
    parts = sum(timings[f"{name}_ms"] for name in ("decode", "queue", "encode", "search"))
    assert 0 < parts <= timings["total_ms"] + 0.1 and timings["batch"] == 1


def test_ten_unless_said_otherwise(http):
    assert len(ids(http.post("/search", json={"question": "which"}))) == 10
    assert len(ids(http.post("/search", json={"question": "which", "k": 100}))) == len(DOCUMENTS)


def test_the_original_route(http):
    """Fields and reply of the original demo, so that its clients go on working."""
    reply = http.post("/upload", data={"searchText": "which bird"}, files={"file": file(PICTURE)})
    found = reply.json()["results"]
    assert [hit["rank"] for hit in found] == list(range(1, 11)) and set(found[0]) == {"rank", "score", "text"}
    same = http.post("/search", data={"question": "which bird"}, files={"image": file(PICTURE)}).json()["results"]
    assert [(h["score"], h["text"]) for h in found] == [(h["score"], h["text"]) for h in same]
    assert http.post("/upload", data={"searchText": ""}, files={"file": file(PICTURE)}).status_code == 200
    assert http.post("/upload", files={"searchText": (None, "x")}).json() == {"detail": "file: Field required"}


def test_reasons_on_demand(http):
    best = ids(http.post("/search", data={"question": "which bird"}, files={"image": file(PICTURE)}))[:2]
    asked = {"question": "which bird", "image": base64.b64encode(PICTURE).decode(), "documents": best}
    found = http.post("/explain", json=asked).json()
    assert [p["id"] for p in found["passages"]] == best and found["picture"]["uri"].startswith("data:image/png")
    assert len(found["maps"]["words"][0]) == len(found["words"])
    form = http.post("/explain", data={"question": "which bird", "documents": best}, files={"image": file(PICTURE)})
    assert form.json() == found
    lost = http.post("/explain", json={**asked, "documents": ["nobody"]})
    assert lost.status_code == 404 and "'nobody'" in lost.json()["detail"]


def test_what_the_server_says_of_itself(http):
    assert http.get("/health").json().keys() == {"status", "waiting", "answered", "batches"}
    info = http.get("/info").json()
    assert info["model"]["name"] == "mire" and info["index"]["documents"] == 30 and info["limits"]["k"] == 100
    assert str(Path.cwd()) not in json.dumps(info)
    listed = http.get("/openapi.json").json()["paths"]
    assert set(listed) == {
        "/search",
        "/explain",
        "/upload",
        "/health",
        "/info",
        "/examples",
        "/examples/{number}/image",
    }
    for page in ("/", "/docs"):
        assert http.get(page).headers["content-type"].startswith("text/html")
    for name in ("page.js", "page.css", "why.js", "why.css", "docs.js"):
        assert http.get(f"/static/{name}").status_code == 200


def test_pictures_are_served_by_number_alone(http):
    listed = http.get("/examples").json()
    assert [e["image"] for e in listed] == ["examples/0/image", None, "examples/2/image", "examples/3/image"]
    assert http.get("/examples/0/image").headers["content-type"] == "image/png"
    for name in ("1", "2", "3", "4", "-1", "99999999999999999999", "a.png", "..%2Fsecret.txt", "%00", "0%2Fimage"):
        reply = http.get(f"/examples/{name}/image")
        assert reply.status_code in (404, 422) and "secret" not in reply.text, name
    for path in ("/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2fapp.py", "/static//etc/passwd"):
        assert http.get(path).status_code == 404, path


# ---- refusing

JSON = {"content-type": "application/json"}
MULTI = {"content-type": "multipart/form-data; boundary=b"}
SENT = [
    (JSON, b"", 400), (JSON, b"{", 400), (JSON, b"[" * 100_000, 400), (JSON, b"\xff\xfe", 400), (JSON, b"[]", 422),
    (JSON, b"null", 422), (JSON, b"{}", 422), (JSON, b'{"question": " "}', 422), (JSON, b'{"question": 3}', 422),
    (JSON, b'{"question": "x", "k": "3"}', 422), (JSON, b'{"question": "x", "k": 0}', 422),
    (JSON, b'{"question": "x", "k": 101}', 422), (JSON, b'{"question": "x", "k": 1e999}', 422),
    (JSON, b'{"question": "x", "other": 1}', 422), (JSON, b'{"question": "\\ud800"}', 400),
    (JSON, b'{"question": "x", "k": ' + b"9" * 5000 + b"}", 400), (JSON, b'{"image": "###"}', 422),
    (JSON, b'{"image": ""}', 422), (JSON, b'{"image": "aGVsbG8="}', 415), (JSON, b'{"image": [1]}', 422),
    (JSON, json.dumps({"question": "x" * 4001}).encode(), 422), (JSON, b"1" * 300_001, 413),
    (MULTI, b"", 422), (MULTI, b"--b", 422), (MULTI, b"garbage", 400), (MULTI, b"--b\r\n\r\n\r\n--b--", 400),
    ({"content-type": "multipart/form-data"}, b"--b--", 400), ({"content-type": "text/plain"}, b"x", 415),
    ({}, b"x", 415),
    ({"content-type": "multipart/form-data; boundary=" + "b" * 5000}, b"x", 400),
    ({"content-type": "multipart/form-data; boundary=b; charset=hex"},
     b'--b\r\nContent-Disposition: form-data; name="question"\r\n\r\nzz\r\n--b--\r\n', 415),
    ({"content-type": "multipart/form-data; boundary=b; charset=punycode"},  # minutes for a MB
     b'--b\r\nContent-Disposition: form-data; name="question"\r\n\r\nzz\r\n--b--\r\n', 415),
    ({"content-type": "multipart/form-data; boundary=b; charset=UTF-8"},
     b'--b\r\nContent-Disposition: form-data; name="question"\r\n\r\nzz\r\n--b--\r\n', 200),
    (JSON, b'{"question": "x", "documents": [' + b"1," * 6000 + b"1]}", 422),
    (JSON, json.dumps({"question": "," * 4000}).encode(), 200),
    ({**JSON, "content-length": "9" * 5000}, b"{}", 413),
    (MULTI, b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\ntext\r\n--b--\r\n', 422),
    (MULTI, b'--b\r\nContent-Disposition: form-data; name="k"\r\n\r\nmany\r\n--b--\r\n', 422),
    (MULTI, b'--b\r\nContent-Disposition: form-data; name="k"\r\n\r\n1\r\n' * 2 + b"--b--\r\n", 422),
    (MULTI, b'--b\r\nContent-Disposition: form-data; name="f"; filename="x"\r\n\r\n1\r\n' * 3 + b"--b--\r\n", 400),
    (MULTI, b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\n1\r\n' * 40 + b"--b--\r\n", 400),
    ({"content-type": "application/x-www-form-urlencoded"}, b"question=x", 415),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(SENT)))
def test_bodies_that_are_none(http, number):
    headers, body, status = SENT[number]
    reply = http.post("/search", content=body, headers=headers)
    assert reply.status_code in (status if isinstance(status, tuple) else (status,)), reply.text
    if reply.status_code != 200:
        assert set(reply.json()) == {"detail"} and 5 < len(reply.json()["detail"]) < 400


def test_complaints_about_many_values_are_not_collected(http, monkeypatch):
    """Each of 50,000 unknown fields would be a complaint; the parser does not see them."""
    monkeypatch.setattr(schema, "_checked", lambda *_: pytest.fail("it was parsed"))
    body = b"{" + b",".join(b'"%d":1' % i for i in range(30_000)) + b"}"
    assert "more than 5000 commas" in http.post("/search", content=body, headers=JSON).json()["detail"]


def damaged(count: int) -> list[bytes]:
    """Files of the four kinds, cut, with bytes changed, doubled, or with wild headers: deterministic."""
    rng, out = random.Random(0), []
    kinds = [encoded((rng.randrange(20, 90), rng.randrange(20, 90)), kind) for kind in ("JPEG", "PNG", "WEBP", "GIF")]
    while len(out) < count:
        data = bytearray(rng.choice(kinds))
        way = rng.randrange(4)
        if way == 0:
            data = data[: rng.randrange(1, len(data))]
        elif way == 1:
            for _ in range(rng.randrange(1, 40)):
                data[rng.randrange(4, len(data))] = rng.randrange(256)
        elif way == 2:
            place = rng.randrange(12, 40)
            data[place : place + 8] = rng.randbytes(8)
        else:
            place = rng.randrange(len(data))
            data = data[:place] + rng.randbytes(rng.randrange(200)) + data[place:]
        out.append(bytes(data))
    return out


def test_malformed_uploads_never_fail_inside(http):
    """Most are refused; a picture with some wrong bytes may still be one."""
    seen: dict[int, int] = {}
    for data in damaged(2000 if FULL else 140):
        for path, field in (("/upload", "file"), ("/search", "image")):
            status = http.post(path, files={field: file(data)}).status_code
            seen[status] = seen.get(status, 0) + 1
    assert set(seen) <= {200, 413, 415, 422} and seen[422] > 100, seen


def test_names_and_types_of_clients_mean_nothing(http, root):
    kept = set(root.rglob("*"))
    for name in ("../../etc/passwd", "x.exe", "a" * 500, "/dev/null", "\u202e.png", ""):
        reply = http.post("/search", files={"image": file(PICTURE, name or "x", "text/html")})
        assert reply.status_code == 200
    assert http.post("/search", files={"image": file(b"<html>", "x.png", "image/png")}).status_code == 415
    assert set(root.rglob("*")) == kept


def test_nothing_is_written_to_disk(http, monkeypatch):
    """Uploads over 1 MB are what form parsers put into temporary files."""
    import builtins

    for name in ("TemporaryFile", "NamedTemporaryFile", "mkstemp", "_TemporaryFileWrapper"):
        monkeypatch.setattr(tempfile, name, lambda *a, **k: pytest.fail("a temporary file"))
    real = builtins.open

    def watched(path, mode="r", *args, **more):
        assert not set(mode) & set("wax+") or path == os.devnull, f"{path} opened to write"
        return real(path, mode, *args, **more)

    monkeypatch.setattr(builtins, "open", watched)
    large = PICTURE + bytes(2_000_000)
    with client(http.app.state.service.engine) as roomy:
        assert roomy.post("/search", files={"image": file(large)}).status_code == 200
        encoded_ = base64.b64encode(large).decode()
        assert roomy.post("/search", json={"image": encoded_}).status_code == 200


def test_sizes(http):
    large = encoded((501, 500))
    assert http.post("/search", files={"image": file(large)}).json() == {
        "detail": "the image has 501 x 500 pixels; send 0.25 megapixels at most."
    }
    reply = http.post("/search", files={"image": file(bytes(300_001))})
    assert reply.status_code == 413 and "larger than 0.3 MB" in reply.json()["detail"]

    def pieces():  # no Content-Length
        yield from (bytes(10_000) for _ in range(40))

    assert http.post("/search", content=pieces(), headers=JSON).status_code == 413


def test_headers_of_every_reply(http):
    replies = [http.get("/"), http.get("/static/page.js"), http.get("/nothing"), http.post("/search", json={}),
               http.get("/search"), http.post("/search", content=bytes(300_001)), http.get("/info")]  # fmt: skip
    assert [r.status_code for r in replies] == [200, 200, 404, 422, 405, 413, 200]
    for reply in replies:
        assert {k: reply.headers[k] for k in HEADERS} == HEADERS and "server" not in reply.headers
        assert "access-control-allow-origin" not in reply.headers
    policy = HEADERS["Content-Security-Policy"]
    assert "unsafe" not in policy and "default-src 'none'" in policy and "http" not in policy
    page = http.get("/").text
    assert "<script>" not in page and " onclick" not in page and " style=" not in page and "://" not in page
    assert replies[-1].headers["cache-control"] == "no-store"


def test_other_sites_only_when_named(made):
    with client(made, origins=["https://lab.example"]) as http:
        for site, allowed in (("https://lab.example", True), ("https://evil.example", False)):
            reply = http.post("/search", json={"question": "x"}, headers={"origin": site})
            assert (reply.headers.get("access-control-allow-origin") == site) == allowed
    with client(made) as http:
        asked = {"origin": "https://lab.example", "access-control-request-method": "POST"}
        assert http.options("/search", headers=asked).status_code == 405


def test_the_token(made, root):
    with client(made, token="schlüssel-1", examples=examples(root)) as http:
        for header in (None, "Bearer", "Bearer wrong", "Basic schlüssel-1", "Bearer schlüssel-1x"):
            headers = {} if header is None else {"authorization": header.encode()}
            for path in ("/info", "/examples", "/examples/0/image", "/openapi.json"):
                assert http.get(path, headers=headers).status_code == 401, (path, header)
            reply = http.post("/search", json={"question": "x"}, headers=headers)
            assert reply.status_code == 401 and reply.headers["www-authenticate"] == "Bearer"
        for path in ("/", "/static/page.js", "/health", "/docs"):
            assert http.get(path).status_code == 200
        good = {"authorization": "Bearer schlüssel-1".encode()}
        assert http.get("/info", headers=good).status_code == 200
        assert http.post("/search", json={"question": "x"}, headers=good).status_code == 200
        described = http.get("/openapi.json", headers=good).json()
        assert described["paths"]["/search"]["post"]["security"] == [{"token": []}]


# ---- under pressure


@pytest.fixture
def stuck(monkeypatch):
    """(free, entered): the model's thread waits for ``free`` in every call once ``entered`` was armed."""
    free, entered, real = threading.Event(), threading.Semaphore(0), Service._work

    def work(self, key, asked):
        entered.release()
        assert free.wait(30)
        return real(self, key, asked)

    monkeypatch.setattr(Service, "_work", work)
    yield free, entered
    free.set()


def many(http, count: int) -> list:
    """So many requests at once, each in a thread; their replies in the order of their coming."""
    replies: list = []
    threads = [
        threading.Thread(target=lambda: replies.append(http.post("/search", json={"question": "x"})))
        for _ in range(count)
    ]
    for thread in threads:
        thread.start()
    return [replies, threads]


def test_a_full_server_says_when_to_come_back(made, stuck):
    free, entered = stuck
    with client(made, limits=Limits(queue=4)) as http:
        replies, threads = many(http, 4)
        assert entered.acquire(timeout=30)
        while http.app.state.service.batcher.items + len(http.app.state.service.batcher) < 4:
            pass
        refused = http.post("/search", json={"question": "x"})
        assert refused.status_code == 503 and int(refused.headers["retry-after"]) > 0
        assert "4 requests are waiting" in refused.json()["detail"]
        assert http.get("/health").json()["status"] == "ok"  # it lives, and says so
        free.set()
        for thread in threads:
            thread.join(30)
        assert [r.status_code for r in replies] == [200] * 4
        assert http.post("/search", json={"question": "x"}).status_code == 200


def test_a_request_has_an_end(made, stuck):
    free, entered = stuck
    with client(made, limits=Limits(seconds=0.3)) as http:
        first = http.post("/search", json={"question": "a"})
        assert first.status_code == 503 and "no answer within 0.3 s" in first.json()["detail"]
        second = http.post("/search", json={"question": "b"})  # waits behind the first, and is then dropped
        assert second.status_code == 503 and first.headers["retry-after"]
        free.set()
        while http.post("/search", json={"question": "c"}).status_code == 503:
            pass
        assert http.app.state.service.batcher.items == http.app.state.service.batcher.batches
    assert entered.acquire(blocking=False) and not http.app.state.service.batcher._thread.is_alive()


@pytest.mark.parametrize("body", [b"{", b'{"question": "x"}'])
def test_who_leaves_is_not_waited_for(made, stuck, caplog, body):
    """In the middle of its body, or while it waits for its turn: nothing is computed, said or logged."""
    free, entered = stuck
    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
             "path": "/search", "raw_path": b"/search", "query_string": b"", "root_path": "", "server": ("x", 80),
             "client": ("x", 1), "headers": [(b"content-type", b"application/json")]}  # fmt: skip
    coming = [{"type": "http.request", "body": body, "more_body": body == b"{"}, {"type": "http.disconnect"}]
    said: list = []

    async def receive():
        return coming.pop(0)

    async def send(message):
        said.append(message)

    with client(made, limits=Limits(queue=2)) as http:
        replies, threads = many(http, 1)
        assert entered.acquire(timeout=30)
        asyncio.run(http.app(scope, receive, send))
        after, more = many(http, 1)  # there is a place for it
        while not len(http.app.state.service.batcher):
            pass
        free.set()
        for thread in threads + more:
            thread.join(30)
        assert [r.status_code for r in replies + after] == [200, 200]
        assert http.app.state.service.batcher.items == 2 and not said and not coming
    assert not [r for r in caplog.records if r.name.startswith("uvicorn")]


def test_who_does_not_read_the_reply_is_no_fault_inside(caplog):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await asyncio.sleep(60)

    async def send(message):
        said.append(message["type"])

    said: list[str] = []
    asyncio.run(
        Guard(app, Limits(seconds=0.05))({"type": "http", "method": "POST", "path": "/", "headers": []}, None, send)
    )
    assert said == ["http.response.start"] and not caplog.records


def test_a_fault_inside_tells_nothing(made, monkeypatch, caplog):
    def broken(self, asked, k):
        raise RuntimeError("secret place /etc/passwd")

    with client(made) as http:
        monkeypatch.setattr(type(made), "search", broken)
        reply = http.post("/search", json={"question": "x"})
        assert reply.status_code == 500 and "secret" not in reply.text and "secret place" in caplog.text
        assert reply.headers["x-frame-options"] == "DENY"


def test_clients_at_once_are_answered_together(made):
    """Through a real server; every reply is that of a client alone."""
    import urllib.request

    def ask(base: str, text: str) -> dict:
        request = urllib.request.Request(
            base + "search", json.dumps({"question": text, "k": 5}).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as reply:
            return json.loads(reply.read())

    texts = [f"which {d.text[4:12]}" for d in DOCUMENTS[:16]]
    with served(made) as base:
        alone = {text: [h["id"] for h in ask(base, text)["results"]] for text in texts}
        found: dict[str, dict] = {}
        threads = [threading.Thread(target=lambda t=t: found.update({t: ask(base, t)})) for t in texts * 2]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert {t: [h["id"] for h in r["results"]] for t, r in found.items()} == alone
    assert max(r["timings"]["batch"] for r in found.values()) > 1


@pytest.mark.parametrize("field", ["max_bytes", "max_pixels", "queue", "batch", "seconds"])
def test_limits_that_make_no_sense(field):
    with pytest.raises(UserError, match=f"the limit {field} is 0"):
        Limits(**{field: 0})
