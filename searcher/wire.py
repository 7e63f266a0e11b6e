"""How requests are read from the wire: as uvicorn does, with an end to what is no body."""

from __future__ import annotations

MOST = 1 << 16
"""Bytes of a request's head, of its trailers, or of anything else that is not its body."""


def protocol() -> type | str:
    """For uvicorn's ``http``. Its reader by h11 has a limit itself, the one by httptools keeps heads of any size."""
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
    except ImportError:
        return "h11"

    class Bounded(HttpToolsProtocol):
        """Closes connections that send more than ``MOST`` bytes (and what comes in one piece) and no body in them."""

        unread = 0

        def data_received(self, data: bytes) -> None:
            self.unread += len(data)
            super().data_received(data)
            if self.unread > MOST and not self.transport.is_closing():
                self.send_400_response(f"The head of a request has {MOST} bytes at most.")

        def on_headers_complete(self) -> None:
            self.unread = 0
            super().on_headers_complete()

        def on_body(self, body: bytes) -> None:
            self.unread = 0
            super().on_body(body)

        def on_message_complete(self) -> None:
            self.unread = 0
            super().on_message_complete()

    return Bounded
