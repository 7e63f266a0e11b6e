"""The searcher under load, beside its own engine without a server: on loopback, one machine, the same queries.

  python -m benchmarks.serving                                  # the quickstart's run
  python -m benchmarks.serving --run experiments/flagfacts_mire --no_images

Measurements take turns, so that a neighbour's load meets both sides: in every round the engine and the server with
one client answer four queries by turns, then come the engine on batches and the server with many clients. Queries are
those of the data set, images included, as files' bytes: both sides decode them. The clients are keep-alive connections
of this process.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

SIZES = (1, 4, 16, 32)
TURN = 4
TARGETS = {"throughput": 0.8, "latency": 1.3, "memory": 0.01}


@dataclass
class Load:
    """What clients saw: seconds per request, statuses, the batch each was answered in, requests per second."""

    seconds: list[float] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    rate: float = 0.0

    def ms(self, share: float) -> float:
        ordered = sorted(self.seconds)
        return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def multipart(question: str, image: bytes | None, k: int) -> bytes:
    """A POST /search as it goes over the wire."""
    parts = [("question", b"", question.encode()), ("k", b"", str(k).encode())]
    if image is not None:
        parts.append(("image", b'; filename="x"\r\nContent-Type: application/octet-stream', image))
    body = b"".join(
        b'--cut\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n' % (name.encode(), more, value)
        for name, more, value in parts
    )
    body += b"--cut--\r\n"
    head = f"Content-Type: multipart/form-data; boundary=cut\r\nContent-Length: {len(body)}"
    return f"POST /search HTTP/1.1\r\nHost: 127.0.0.1\r\n{head}\r\n\r\n".encode() + body


async def _client(port: int, requests: Sequence[bytes], take: Callable[[], int | None], load: Load) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while (number := take()) is not None:
        begin = time.perf_counter()
        writer.write(requests[number % len(requests)])
        await writer.drain()
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        body = await reader.readexactly(int(head.split("content-length: ")[1].split("\r")[0]))
        load.seconds.append(time.perf_counter() - begin)
        load.statuses.append(int(head[9:12]))
        if load.statuses[-1] == 200:
            load.batches.append(json.loads(body)["timings"]["batch"])
    writer.close()


def drive(
    port: int, requests: Sequence[bytes], clients: int, count: int, half: Callable[[], None] | None = None
) -> Load:
    """So many clients share ``count`` requests; each sends its next when it has its answer. half: called in between."""
    load, sent = Load(), 0

    def take() -> int | None:
        nonlocal sent
        if sent >= count:
            return None
        if half is not None and sent == count // 2:
            half()
        sent += 1
        return sent - 1

    async def all_of_them() -> None:
        await asyncio.gather(*(_client(port, requests, take, load) for _ in range(clients)))

    begin = time.perf_counter()
    asyncio.run(all_of_them())
    load.rate = count / (time.perf_counter() - begin)
    return load


def resident(pid: int) -> int:
    """Bytes in memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"process {pid} has no memory")


def start(words: Sequence[str]) -> tuple[subprocess.Popen, int]:
    """(server, its port), ready."""
    command = [sys.executable, "-m", "runs.serve", "--port", "0", *words]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    for line in server.stdout:
        if line.startswith("serving at"):
            port = int(line.split()[2].rsplit(":", 1)[1])
            _wait(port)
            return server, port
    raise SystemExit(f"the server ended with status {server.wait()}")


def _wait(port: int) -> None:
    """Until it has warmed up and answers."""
    import urllib.error
    import urllib.request

    for _ in range(6000):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=60).read()
            return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    raise SystemExit("the server does not answer")


def alone(engine, queries: Sequence[tuple[str, bytes | None]], size: int, count: int, k: int) -> list[float]:
    """Seconds of each call of the engine on ``size`` queries, decoding included; ``count`` queries in all."""
    from core.records import ImageRef

    out = []
    for first in range(0, count, size):
        part = [queries[(first + i) % len(queries)] for i in range(size)]
        begin = time.perf_counter()
        asked = [engine.prepare(q, None if data is None else ImageRef("q", data=data)) for q, data in part]
        engine.search(asked, k)
        out.append(time.perf_counter() - begin)
    return out


def arguments() -> argparse.ArgumentParser:
    from runs.searching import options

    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options(made)
    made.add_argument("--clients", type=int, default=32)
    made.add_argument("--requests", type=int, default=2000, help="of the many clients, over all rounds")
    made.add_argument("--single", type=int, default=256, help="of the one client, and of the engine on its own")
    made.add_argument("--rounds", type=int, default=8)
    made.add_argument("-k", type=int, default=10)
    made.add_argument("--no_images", action="store_true", help="questions alone, which cost the model little")
    made.add_argument("--limit", type=int, help="only the index's first N passages may answer")
    return made


def main() -> int:
    args = arguments().parse_args()
    from models.towers.images import read_bytes
    from runs.searching import open_engine

    engine, data = open_engine(args)
    chosen = data.queries(data.test_splits[0])[:256]
    queries = [(q.text, read_bytes(q.images[0]) if q.images and not args.no_images else None) for q in chosen]
    requests = [multipart(text, image, args.k) for text, image in queries]
    given = ("run", "index", "checkpoint", "passages", "limit")
    words = [w for n in given if getattr(args, n) is not None for w in (f"--{n}", str(getattr(args, n)))]
    server, port = start([*words, "--device", args.device])
    try:
        found = rounds(args, engine, queries, requests, server, port)
    finally:
        server.terminate()
        ended = server.wait(60)
    print(table(args, engine, *found))
    print(f"the server ended with status {ended}")
    return 0


def rounds(args, engine, queries, requests, server, port) -> tuple:
    engine.warm_up()
    alone(engine, queries, max(SIZES), max(SIZES), args.k)
    drive(port, requests, args.clients, 4 * args.clients)  # both are warm
    single, one, rates = [], [], {size: [] for size in SIZES}
    many, rate, memory = Load(), [], []
    per, each = args.requests // args.rounds, max(SIZES) * max(1, args.single // args.rounds // max(SIZES))
    for turn in range(args.rounds):
        own, served = [], []
        for _ in range(each // TURN):
            own += alone(engine, queries, 1, TURN, args.k)
            served += drive(port, requests, 1, TURN).seconds
        single.append(1000 * statistics.median(own))
        one.append(1000 * statistics.median(served))
        rates[1].append(each / sum(own))
        for size in SIZES[1:]:
            rates[size].append(each / sum(alone(engine, queries, size, each, args.k)))
        load = drive(port, requests, args.clients, per, lambda: memory.append(resident(server.pid)))
        memory.append(resident(server.pid))
        many.seconds += load.seconds
        many.statuses += load.statuses
        many.batches += load.batches
        rate.append(load.rate)
        print(f"round {turn + 1}: {load.rate:.1f} requests/s, {memory[-1] / 1e6:.0f} MB", flush=True)
    return single, one, rates, many, rate, memory


def table(args, engine, single, one, rates, many, rate, memory) -> str:
    """Markdown: measurements, then the ratios beside what they shall be."""
    middle = statistics.median
    best = max(rates, key=lambda size: middle(rates[size]))
    throughput = middle(a / b for a, b in zip(rate, rates[best]))
    latency = middle(a / b for a, b in zip(one, single))
    growth = memory[-1] / memory[len(memory) // 2 - 1] - 1  # since half of the requests
    bad = sum(status != 200 for status in many.statuses)
    threads = f"{os.cpu_count()} cores, {engine.device}"
    lines = [
        f"{len(many.statuses)} requests of {args.clients} clients ({bad} failed), {threads}; batches of "
        f"{statistics.mean(many.batches):.1f} on average",
        "",
        "| | engine alone | server |",
        "|---|---|---|",
        f"| one at a time, p50 | {middle(single):.1f} ms | {middle(one):.1f} ms |",
        f"| queries/s, median of rounds | {middle(rates[best]):.1f} (batches of {best}) "
        f"| {middle(rate):.1f} ({args.clients} clients) |",
        f"| p50, p95 at {args.clients} clients | | {many.ms(0.5):.0f} ms, {many.ms(0.95):.0f} ms |",
        "",
        "| median of rounds | ratio | wanted |",
        "|---|---|---|",
        f"| throughput, server / engine at its best batch | {throughput:.2f} | >= {TARGETS['throughput']} |",
        f"| p50 of one client / engine | {latency:.2f} | <= {TARGETS['latency']} |",
        f"| memory, growth over the last half of the requests | {100 * growth:.2f} % | < {TARGETS['memory']:.0%} |",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
