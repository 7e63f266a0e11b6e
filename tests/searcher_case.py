"""A searcher on tiny random towers, and what its tests send it."""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from core.records import Document, ImageRef, Query
from tests import tiny

WORDS = [w for w in tiny.WORDS if len(w) > 3]
DOCUMENTS = [
    Document(f"d{i}", f"the {WORDS[i % len(WORDS)]} of the {WORDS[3 * i % len(WORDS)]} is cold.", title=f"Title {i}")
    for i in range(30)
]


def engine(root: Path, family: str = "mire", limit: int | None = None, documents=DOCUMENTS, **changes):
    """An engine on an exact index of ``documents``."""
    from core.device import pick_device
    from index.exact import Index
    from runs.common import encode_corpus
    from runs.searching import engine_of
    from runs.settings import IndexSection

    made = tiny.retriever(family, root / "towers", **changes)
    stream = encode_corpus(made, documents, 8)
    Index.build(root / "index", stream, dim=made.config.dim, encoder=made.identity())
    return engine_of(made, IndexSection(name="exact"), root / "index", documents, pick_device("cpu"), limit)


def encoded(size: tuple[int, int] = (40, 30), kind: str = "PNG", color=(200, 30, 30), **more) -> bytes:
    """An image file with a mark in its upper left corner."""
    image = Image.new("RGB", size, color)
    image.paste((20, 40, 220), (0, 0, max(1, size[0] // 3), max(1, size[1] // 3)))
    out = io.BytesIO()
    image.save(out, kind, **more)
    return out.getvalue()


def examples(root: Path) -> list[Query]:
    """With an image, without, with one whose file is gone, and with a file that is no image."""
    (root / "secret.txt").write_text("secret")
    return [
        Query("a", "which bird", (tiny.image(root, "a.png"),)),
        Query("b", "which fish"),
        Query("c", "gone", (ImageRef("c", path=str(root / "gone.png")),)),
        Query("d", "no image", (ImageRef("d", path=str(root / "secret.txt")),)),
    ]


@contextlib.contextmanager
def client(made, **options) -> Iterator:
    """Requests to the app in this process; an exception inside is a reply of 500, as in a real server."""
    from starlette.testclient import TestClient

    from searcher.app import make_app

    with TestClient(make_app(made, **options), raise_server_exceptions=False) as opened:
        yield opened


@contextlib.contextmanager
def served(made, **options) -> Iterator[str]:
    """The address of a real server in a thread of this process."""
    import uvicorn

    from runs.serve import listen
    from searcher.app import make_app

    listening = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(make_app(made, **options), log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        thread.join(0.05)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join(20)
        listening.close()
