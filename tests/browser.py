"""A real browser for tests of pages: headless Chromium through Playwright, with a record of what went wrong in it.

The browser is the system's chromium or chrome, the one that ``CHROMIUM`` names, or Playwright's own
(``python -m playwright install chromium``); scripts/test.sh installs Debian's where it may. Without one these tests
skip and say so; with ``NEEDS_BROWSER`` set, as .ci/run does, they fail.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PHONE, DESKTOP = (390, 844), (1280, 900)


@dataclass
class Seen:
    """Of every page: console errors, uncaught exceptions, and addresses asked for that are not the page's own."""

    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@contextlib.contextmanager
def browser(more: Sequence[str] = ()) -> Iterator[Any]:
    """A running Playwright browser. Start it once per test file (a module-wide fixture): it takes some seconds.

    more: further switches of Chromium's command line.
    """
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _absent("playwright is not installed; pip install -r requirements-dev.txt")
    with sync_playwright() as playwright:
        path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
        path = path or playwright.chromium.executable_path
        if not Path(path).exists():
            _absent("no chromium here; apt-get install chromium, or python -m playwright install chromium")
        # Containers have no user namespaces for its sandbox and little shared memory.
        started = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", *more]
        )
        try:
            yield started
        finally:
            started.close()


@contextlib.contextmanager
def opened(started: Any, address: str | Path, size: tuple[int, int] = DESKTOP, dark: bool = False, **more: Any):
    """(page, Seen) with the address open. A path is opened from disk. more: Playwright's new_context options."""
    context = started.new_context(
        viewport={"width": size[0], "height": size[1]}, color_scheme="dark" if dark else "light", **more
    )
    seen = Seen()
    own = Path(address).resolve().as_uri() if isinstance(address, Path) else address
    page = context.new_page()
    page.set_default_timeout(20_000)
    page.on("console", lambda m: seen.errors.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: seen.errors.append(str(error)))
    page.on("request", lambda r: seen.requests.append(r.url) if not r.url.startswith((own, "data:")) else None)
    try:
        page.goto(own)
        yield page, seen
    finally:
        context.close()


def picture(page: Any, full: bool = False, path: Path | None = None):
    """A screenshot as a PIL image."""
    import io

    from PIL import Image

    return Image.open(io.BytesIO(page.screenshot(full_page=full, path=path))).convert("RGB")


def colours(image: Any) -> int:
    """Different colours: an empty or broken page has a handful."""
    return len(image.getcolors(maxcolors=1 << 24))


def _absent(why: str) -> None:
    if os.environ.get("NEEDS_BROWSER"):
        pytest.fail(f"the browser tests cannot run: {why}")
    warnings.warn(f"the browser tests do not run: {why}", stacklevel=2)  # a line even where skips are counted only
    pytest.skip(f"the browser tests do not run: {why}")
