"""The one exception of the HTTP interface."""

from __future__ import annotations


class Refused(Exception):
    """A request that gets a status and one sentence. retry: seconds after which asking again makes sense."""

    def __init__(self, status: int, detail: str, retry: int | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.retry = status, detail, retry
