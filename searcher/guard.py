"""What stands before every request: the token, the limits, and the headers of every reply."""

from __future__ import annotations

import hmac
import json
import logging
from dataclasses import dataclass

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect

from core.errors import UserError
from searcher.errors import Refused

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; media-src blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
OPEN = ("/", "/health", "/docs")
"""What needs no token: the page itself, which asks for it, and whether the server lives. So do files of the page."""

RETRY = 2
"""Seconds to wait that a full server proposes."""


@dataclass(frozen=True)
class Limits:
    """max_bytes: of a body. max_pixels: of an image (40 million are more than most phones take, and some 500 MB while
    one is decoded). queue: requests inside at once, the next gets 503. batch: queries in one call of the model.
    seconds: for one request, sending its body included."""

    max_bytes: int = 16_000_000
    max_pixels: int = 40_000_000
    queue: int = 64
    batch: int = 32
    seconds: float = 30.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value <= 0:
                raise UserError(f"the limit {name} is {value}; give more than 0.")


class Guard:
    """ASGI middleware. Requests with a body count against the queue; everything else is small and quick."""

    def __init__(self, app, limits: Limits, token: str | None = None) -> None:
        self.app, self.limits = app, limits
        self._token = None if token is None else token.encode()
        self.inside = 0

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        begun = False

        async def reply(message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                if "cache-control" not in headers:
                    headers["Cache-Control"] = "no-store"
            await send(message)

        try:
            self._admit(scope)
            if scope["method"] != "POST":
                return await self.app(scope, receive, reply)
            await self._limited(scope, receive, reply)
        except ClientDisconnect:
            pass  # nobody is there to be told
        except Exception as error:
            if begun and isinstance(error, TimeoutError):
                return  # a client that does not read its reply: the connection is closed
            if begun:
                raise
            await _send(reply, self._told(error))

    def _admit(self, scope) -> None:
        headers, path = Headers(scope=scope), scope["path"]
        if self._token is not None and path not in OPEN and not path.startswith("/static/"):
            scheme, _, given = headers.get("authorization", "").partition(" ")
            # As the bytes that came: compare_digest refuses letters beyond ASCII in strings.
            if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode("latin-1"), self._token):
                raise Refused(401, "this server wants its token: send 'Authorization: Bearer <token>'.")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or len(length) > 18 or int(length) > self.limits.max_bytes:
            raise self._too_large()

    async def _limited(self, scope, receive, send) -> None:
        if self.inside >= self.limits.queue:
            raise Refused(503, f"{self.inside} requests are waiting; try again.", RETRY)
        got = 0

        async def counted():
            nonlocal got
            message = await receive()
            got += len(message.get("body", b""))
            if got > self.limits.max_bytes:  # sent in chunks, without a length
                raise self._too_large()
            return message

        self.inside += 1
        try:
            with anyio.fail_after(self.limits.seconds):
                await self.app(scope, counted, send)
        finally:
            self.inside -= 1

    def _told(self, error: Exception) -> Refused:
        if isinstance(error, Refused):
            return error
        if isinstance(error, TimeoutError):
            return Refused(503, f"no answer within {self.limits.seconds:g} s; try again.", RETRY)
        logging.getLogger("uvicorn.error").error("a request failed", exc_info=error)
        return Refused(500, "something failed inside; the server's log says what.")

    def _too_large(self) -> Refused:
        return Refused(413, f"the body is larger than {self.limits.max_bytes / 1e6:g} MB; send a smaller image.")


def problem_headers(error: Refused) -> dict[str, str]:
    out = {} if error.retry is None else {"Retry-After": str(error.retry)}
    return {**out, "WWW-Authenticate": "Bearer"} if error.status == 401 else out


async def _send(send, error: Refused) -> None:
    body = json.dumps({"detail": error.detail}).encode()
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **problem_headers(error)}
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
