"""Options that the commands of the ViD2R recipe share. Importing this imports no torch. Not a command of its own."""

from __future__ import annotations

import argparse

from core.cli import dead_flag
from runs.common import check_option


def search_options(made: argparse.ArgumentParser, texts: str) -> None:
    """How ``texts`` are encoded, indexed and searched; ``recipe_search.Searcher`` takes them."""
    made.add_argument("--n_bits", type=int, default=2, help="bits per dimension of the index (%(default)s)")
    made.add_argument("--n_ranks", type=int, help="of the originals; here torchrun or --shard divide the work")
    made.add_argument("--batch_size", type=int, default=256, help=f"{texts} that are encoded and searched at once")
    made.add_argument(
        "--precision", default="auto", choices=["auto", "fp32", "fp16", "bf16"],
        help="of the encoder; auto: fp16 on CUDA, fp32 elsewhere",
    )  # fmt: skip


def job_options(made: argparse.ArgumentParser, divided: bool = True) -> None:
    """Where the work is done and what becomes of an earlier output. divided: among shares."""
    if divided:
        made.add_argument("--shard", metavar="i/n", help="do the i-th of n shares, i from 0; the last one merges them")
    made.add_argument("--device", help="auto, cpu, cuda, mps")
    made.add_argument("--overwrite", action="store_true", help="replace an output of other input or options")
    check_option(made)


def note_ranks(n_ranks: int | None) -> None:
    dead_flag("--n_ranks", n_ranks, "start it with torchrun, or on several machines with --shard.")
