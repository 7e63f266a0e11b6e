"""The HTTP interface of an engine: searching, reasons, examples, and the page."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import time
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.staticfiles import StaticFiles

from core.errors import UserError
from core.records import ImageRef, Query
from evaluation.explain import as_json
from evaluation.page import WHY
from models.towers.images import read_bytes
from searcher import schema
from searcher.batching import Batcher, Closed
from searcher.engine import Asked, Engine
from searcher.errors import Refused
from searcher.guard import RETRY, Guard, Limits, problem_headers
from searcher.images import TYPES, opened, sniff

STATIC = Path(__file__).with_name("static")
SHARED = {"why.js", "why.css"}
"""Of the page's files, those that ``runs.visualize`` puts into its own pages."""

PROBLEMS = {
    400: "The body cannot be read.",
    401: "The token is missing or wrong.",
    413: "Too many bytes or pixels.",
    415: "A content type or an image format that is not read.",
    422: "A field or the image is wrong.",
    503: "Full, or too slow; Retry-After says when to ask again.",
}


class Reply(JSONResponse):
    """JSON as ASCII: a passage may hold anything."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, separators=(",", ":"), allow_nan=False).encode()


class Service:
    """An engine behind a batching thread and a pool of threads that decode images."""

    def __init__(self, engine: Engine, limits: Limits) -> None:
        self.engine, self.limits = engine, limits
        self.facts = engine.describe()
        self.batcher: Batcher | None = None
        self._decoders: ThreadPoolExecutor | None = None

    def start(self) -> None:
        self.engine.warm_up()
        self.batcher = Batcher(self._work, self.limits.batch)
        self._decoders = ThreadPoolExecutor(min(4, os.cpu_count() or 1), thread_name_prefix="decode")

    def stop(self) -> None:
        self._decoders.shutdown(cancel_futures=True)
        self.batcher.close()

    async def asked(self, question: str, image: bytes | None) -> Asked:
        """The query, its image checked and decoded."""
        if image is None:
            return self.engine.prepare(question)

        def decode(ref: ImageRef):
            return opened(ref.data, self.limits.max_pixels)

        ref = ImageRef("upload", data=image)
        return await asyncio.wrap_future(self._decoders.submit(self.engine.prepare, question, ref, decode))

    async def answer(self, question: str, image: bytes | None, k: int) -> dict[str, Any]:
        """Results and timings."""
        asked = await self.asked(question, image)
        begin = time.perf_counter()
        answer, began = await self._submit(("search", k), asked)
        answer = replace(answer, queue_ms=1000 * (began - begin))
        return answer.plain(time.perf_counter() - begin + asked.seconds)

    async def reasons(self, question: str, image: bytes | None, ids: Sequence[str]) -> dict[str, Any]:
        return (await self._submit(("why", *ids), await self.asked(question, image)))[0]

    async def _submit(self, key, asked: Asked):
        try:
            future = self.batcher.submit(key, asked)
        except Closed:
            raise Refused(503, "the server is stopping; try again.", RETRY) from None
        return await asyncio.wrap_future(future)  # cancelled with the request: what waits is then not computed

    def _work(self, key, asked: list[Asked]) -> list:
        """In the batching thread, which alone uses the model."""
        began = time.perf_counter()
        if key[0] == "search":
            return [(answer, began) for answer in self.engine.search(asked, key[1])]
        return [(as_json(self.engine.explain(one, key[1:])), began) for one in asked]


async def while_there(request: Request, work: Coroutine[Any, Any, Any]) -> Any:
    """What ``work`` gives; when the client leaves before, the work is cancelled. The request's body is read already."""
    doing, leaving = asyncio.ensure_future(work), asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait((doing, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise ClientDisconnect
        return doing.result()
    finally:
        doing.cancel()
        leaving.cancel()


def make_app(
    engine: Engine,
    limits: Limits | None = None,
    token: str | None = None,
    origins: Sequence[str] = (),
    examples: Sequence[Query] = (),
) -> FastAPI:
    """token: when given, every request but the page's needs it. origins: other sites whose pages may call this one.
    examples: queries that the page offers; of all images only theirs are served, by number."""
    limits = limits or Limits()
    service = Service(engine, limits)

    @contextlib.asynccontextmanager
    async def lifespan(app):
        await asyncio.to_thread(service.start)
        yield
        await asyncio.to_thread(service.stop)

    app = FastAPI(
        title="Searcher",
        version="1",
        description="Passages for a question, an image, or both.",
        lifespan=lifespan,
        docs_url=None,  # FastAPI's page loads its scripts from elsewhere
        redoc_url=None,
        default_response_class=Reply,
    )
    app.state.service = service
    if token is not None:
        _declare_token(app)
    app.add_middleware(Guard, limits=limits, token=token)
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
        )
    _problems(app)
    _routes(app, service, list(examples))
    _pages(app)
    return app


def _routes(app: FastAPI, service: Service, examples: list[Query]) -> None:
    problems = {status: {"model": schema.Problem, "description": text} for status, text in PROBLEMS.items()}
    missing = {404: {"model": schema.Problem, "description": "Nothing has this name."}}

    @app.post("/search", response_model=schema.Found, responses=problems, openapi_extra=schema.body_of(schema.Search))
    async def search(request: Request) -> Response:
        """The k best passages for a question, an image, or both."""
        sent = await schema.read(request, schema.Search)
        return Reply(await while_there(request, service.answer(sent.question, sent.image, sent.k)))

    @app.post(
        "/explain",
        response_model=schema.Reasons,
        responses={**problems, **missing},
        openapi_extra=schema.body_of(schema.Explain),
    )
    async def explain(request: Request) -> Response:
        """Why passages get their scores: what each word looks at, and which passage token each query row matched."""
        sent = await schema.read(request, schema.Explain)
        for id_ in sent.documents:
            if service.engine.find(id_) is None:
                raise Refused(404, f"no passage has the id '{id_[:80]}'; a search shows ids.")
        return Reply(await while_there(request, service.reasons(sent.question, sent.image, sent.documents)))

    @app.post(
        "/upload", response_model=schema.OldFound, responses=problems, openapi_extra=schema.body_of(schema.Upload)
    )
    async def upload(request: Request) -> Response:
        """As the original demo: an image and a text, ten results. Its errors have a status here."""
        sent = await schema.read(request, schema.Upload)
        found = await while_there(request, service.answer(sent.searchText, sent.file, 10))
        return Reply({"results": [{k: hit[k] for k in ("rank", "score", "text")} for hit in found["results"]]})

    @app.get("/health", response_model=schema.Health)
    async def health() -> Response:
        """Whether it answers, and how much waits."""
        batcher = service.batcher
        counts = {"waiting": len(batcher), "answered": batcher.items, "batches": batcher.batches}
        return Reply({"status": "ok", **counts})

    @app.get("/info", response_model=dict[str, Any])
    async def info() -> Response:
        """The model, the index, their sizes, and the limits of this server."""
        limits = {**vars(service.limits), "k": schema.MAX_K, "documents": schema.MAX_WHY}
        return Reply({**service.facts, "limits": limits})

    @app.get("/examples", response_model=list[schema.Example])
    async def listed() -> Response:
        """Queries of the data set to try."""
        return Reply(
            [{"question": q.text, "image": f"examples/{n}/image" if q.images else None} for n, q in enumerate(examples)]
        )

    @app.get(
        "/examples/{number}/image",
        response_class=Response,
        responses={**missing, 422: problems[422], 200: {"content": {t: {} for t in TYPES.values()}}},
    )
    async def picture(number: int) -> Response:
        """The picture of one of these queries."""
        ref = examples[number].images[0] if 0 <= number < len(examples) and examples[number].images else None
        data = b"" if ref is None else await asyncio.to_thread(_bytes, ref)
        if (kind := sniff(data)) is None:
            raise Refused(404, f"example {number} has no picture; GET /examples lists them.")
        return Response(data, media_type=TYPES[kind], headers={"Cache-Control": "private, max-age=3600"})


def _bytes(ref: ImageRef) -> bytes:
    """The encoded image; nothing when the data set lost it."""
    try:
        return read_bytes(ref)
    except (UserError, OSError):
        return b""


def _pages(app: FastAPI) -> None:
    fresh = {"Cache-Control": "no-cache"}  # asked for again each time, sent when it changed

    def page(name: str):
        return functools.partial(FileResponse, STATIC / name, headers=fresh)

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return page("index.html")()

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return page("docs.html")()

    for name in sorted(SHARED):
        app.get(f"/static/{name}", include_in_schema=False)(_shared(name, fresh))
    app.mount("/static", StaticFiles(directory=STATIC))


def _shared(name: str, headers: dict[str, str]):
    async def send() -> Response:
        return FileResponse(WHY / name, headers=headers)

    return send


def _problems(app: FastAPI) -> None:
    """Every error is {"detail": one sentence}."""

    @app.exception_handler(Refused)
    async def refused(_, error: Refused) -> Response:
        return Reply({"detail": error.detail}, error.status, problem_headers(error))

    @app.exception_handler(UserError)
    async def wrong(_, error: UserError) -> Response:
        return Reply({"detail": str(error)}, 422)

    @app.exception_handler(RequestValidationError)
    async def invalid(_, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return Reply({"detail": f"{first['loc'][-1]}: {first['msg']}"[:300]}, 422)

    @app.exception_handler(HTTPException)
    async def absent(_, error: HTTPException) -> Response:
        return Reply({"detail": error.detail}, error.status_code, error.headers)


def _declare_token(app: FastAPI) -> None:
    """In the OpenAPI document; ``Guard`` does the checking."""
    plain = app.openapi

    def described() -> dict[str, Any]:
        made = plain()
        made.setdefault("components", {})["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        for path, methods in made["paths"].items():
            for operation in methods.values():
                if path != "/health":
                    operation["security"] = [{"token": []}]
        return made

    app.openapi = described
