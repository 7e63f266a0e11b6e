"""Serve a run's index: a page for people, JSON for programs.

  python -m runs.serve                                            # the quickstart's
  python -m runs.serve --index experiments/flagfacts_mire/index --port 9000
  python -m runs.serve --checkpoint mire.pth --index DIR --passages collection.tsv

Then open http://127.0.0.1:8024. docs/serving.md has the interface, the limits and what to put before it.
"""

from __future__ import annotations

import ctypes
import math
import os
import re
import socket
import sys
from collections.abc import Sequence

from core.cli import main
from core.errors import UserError
from runs.common import check_option, parse, parser, plan
from runs.searching import open_engine, options, run_of

MISSING = (
    "the searcher needs FastAPI, uvicorn and python-multipart; install them with: pip install -r requirements-demo.txt"
)

TOKEN = "SEARCHER_TOKEN"
"""Environment variable: a command line can be read by every user of the machine."""


def arguments():
    made = parser(__doc__, "python -m runs.serve", config=False)
    options(made)
    made.add_argument("--host", default="127.0.0.1", help="address to listen at (default 127.0.0.1: this machine only)")
    made.add_argument("--port", type=int, default=8024, help="default 8024; 0: any that is free")
    made.add_argument("--split", help="whose queries the page offers as examples (default: the first test split)")
    made.add_argument(
        "--allow_origin", action="append", default=[], metavar="URL", help="a site whose pages may call this server"
    )
    limits = made.add_argument_group("limits")
    limits.add_argument("--max_mb", type=float, default=16, help="of a request (default 16)")
    limits.add_argument("--max_megapixels", type=float, default=40, help="of an image (default 40)")
    limits.add_argument("--queue", type=int, default=64, help="requests at once, more get 503 (default 64)")
    limits.add_argument("--batch", type=int, default=32, help="queries in one call of the model (default 32)")
    limits.add_argument("--timeout", type=float, default=30, help="seconds for one request (default 30)")
    check_option(made)
    return made


def run(argv: Sequence[str]) -> None:
    args = parse(arguments(), argv)
    if args.check:
        found = run_of(args)
        index = args.index or (None if found is None else found / "index")
        return plan(f"serve at {args.host}:{args.port}", found, index, args.checkpoint, args.passages)
    try:
        import uvicorn
        from fastapi import FastAPI  # noqa: F401
        from python_multipart import multipart  # noqa: F401
    except ImportError:
        raise UserError(MISSING) from None
    from searcher.app import make_app
    from searcher.guard import Limits
    from searcher.wire import protocol

    token = os.environ.get(TOKEN)
    if token is not None and len(token) < 8:
        raise UserError(f"{TOKEN} has {len(token)} letters; make it 8 or more, or unset it.")
    if token is not None and token != token.strip():
        raise UserError(f"{TOKEN} begins or ends with a blank, which no request can send; take it away.")
    for origin in args.allow_origin:
        if not re.fullmatch(r"\*|https?://[^/\s]+", origin):
            raise UserError(f"--allow_origin {origin}: browsers send http(s)://host[:port] and no path; give that.")
    for name in ("max_mb", "max_megapixels", "timeout"):
        if not math.isfinite(value := getattr(args, name)):
            raise UserError(f"--{name} {value} is no limit; give a number.")
    pixels = int(args.max_megapixels * 1e6)
    limits = Limits(int(args.max_mb * 1e6), pixels, args.queue, args.batch, args.timeout)
    listening = listen(args.host, args.port)  # before the model is loaded
    give_back_memory()
    engine, data = open_engine(args)
    app = make_app(engine, limits, token, args.allow_origin, examples(data, args.split))
    host = f"[{args.host}]" if ":" in args.host else args.host
    print(f"serving at http://{host}:{listening.getsockname()[1]} (Ctrl-C ends it)", flush=True)
    if token is None and args.host not in ("127.0.0.1", "localhost", "::1"):
        print(f"note: everyone who reaches {args.host} may ask; set {TOKEN} to want a token.", flush=True)
    config = uvicorn.Config(
        app, http=protocol(), log_level="warning", server_header=False, timeout_graceful_shutdown=15,
        timeout_keep_alive=15, limit_concurrency=4 * args.queue + 64,
    )  # fmt: skip
    uvicorn.Server(config).run(sockets=[listening])


def listen(host: str, port: int) -> socket.socket:
    """A bound socket; a port that is taken is one sentence.

    The protocol is named because asyncio turns Nagle's algorithm off only where it reads "TCP" there; with it on, a
    reply's body waits 40 ms for the client to acknowledge the reply's headers.
    """
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
    except (OSError, OverflowError) as error:
        made.close()
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot listen at {host}:{port} ({reason}); give another --host or --port.") from None
    return made


def give_back_memory() -> None:
    """Memory that does not grow with the number of requests.

    Blocks of 1 MB and more return to the system as soon as they are free: by itself glibc raises that limit to the
    largest block freed so far, and the tensors of batches of ever other sizes leave holes in its heap. And oneDNN keeps
    8 compiled kernels instead of 1,024: it makes one for each shape, a quarter of a MB, and batches have hundreds.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "8")  # read at its first use
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "mallopt"):
        libc.mallopt(-3, 1 << 20)  # M_MMAP_THRESHOLD of malloc.h


def examples(data, split: str | None, count: int = 12) -> list:
    """Queries of a split, far apart in it, so that they differ."""
    if data is None:
        return []
    splits = list(data.test_splits)
    if split is not None and split not in (known := [data.train_split, data.valid_split, *splits]):
        raise UserError(f"--split {split}: this data set has {', '.join(known)}.")
    if split is None and not splits:
        return []
    queries = data.queries(split or splits[0])
    chosen = range(0, len(queries), max(1, len(queries) // count))
    return [queries[i] for i in chosen][:count]


if __name__ == "__main__":
    main(run)
