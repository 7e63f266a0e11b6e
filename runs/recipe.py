"""What the commands of the ViD2R recipe share: the folder of an unfinished output and how it becomes the output. Not a
command of its own."""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.files import atomic_file, fingerprint, only_writer, read_json, write_json
from runs.shares import Journal, Shard


class Work:
    """The folder of an unfinished output: ``<save_path>.work``, with the job it is of."""

    def __init__(self, save_path: str | Path, job: dict[str, Any], shard: Shard, overwrite: bool = False) -> None:
        self.out, self.job, self.shard = Path(save_path), job, shard
        self.folder = self.out.with_name(self.out.name + ".work")
        self.counts = self.out.with_name(self.out.stem + ".counts.json")
        if overwrite:
            self._clear()
        self._refuse()
        if self.finished:
            shutil.rmtree(self.folder, ignore_errors=True)  # a kill at the very end leaves parts of it
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / "job.json", self.job)

    def _clear(self) -> None:
        """Make this job the one of the folder; an output of another stays until the new one takes its place."""
        from core import distributed

        done = self.counts.is_file() and read_json(self.counts).get("job") == self.key
        if distributed.is_main() and not done:
            if not self._same():
                shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / "job.json", self.job)
            self.counts.unlink(missing_ok=True)
        patient()

    @property
    def key(self) -> str:
        return fingerprint(self.job)

    @property
    def finished(self) -> bool:
        return self.out.is_file() and self.counts.is_file()

    def _same(self) -> bool:
        file = self.folder / "job.json"
        return file.is_file() and fingerprint(read_json(file)) == self.key

    def _refuse(self) -> None:
        """What lies there already must be of this job."""
        remedy = "give another --save_path, or replace it with --overwrite"
        if self.out.exists():
            # Without counts it is the work of a run that was killed before it wrote them, or somebody else's.
            same = read_json(self.counts).get("job") == self.key if self.counts.is_file() else self._same()
            if not same:
                raise UserError(f"'{self.out}' exists and was made otherwise (other input or options); {remedy}.")
        elif (self.folder / "job.json").is_file() and not self._same():
            found = read_json(self.folder / "job.json")
            keys = [k for k in self.job if found.get(k) != self.job[k]]
            there = "; ".join(f"{k}: {found.get(k)!r} there, {self.job[k]!r} now" for k in keys)
            raise UserError(f"'{self.folder}' is unfinished and of another job ({there}); {remedy}.")

    def journal(self, stage: str, number: int | None = None) -> Journal:
        number = self.shard.number if number is None else number
        return Journal(self.folder / stage / f"{number}-of-{self.shard.of}")

    def journals(self, stage: str) -> list[Journal] | None:
        """All shards' journals; None, and a line that says so, while some are not complete."""
        from core import distributed

        patient()
        found = [self.journal(stage, i) for i in range(self.shard.of)]
        left = [f"{i}/{self.shard.of}" for i, j in enumerate(found) if not j.complete]
        if left and distributed.is_main():
            print(f"{stage}: shard {self.shard.number}/{self.shard.of} is done; still to come: {', '.join(left)}. ")
            print("When they are, run this command again for any shard.")
        return None if left else found

    def once(self, name: str, make: Callable[[], None]) -> None:
        """Something all shards need, made by one process: ``make`` leaves ``<folder>/<name>`` behind, whole."""
        from core import distributed

        if distributed.is_main() and not (self.folder / name).exists():
            with only_writer(self.folder, "common part of the recipe"):
                if not (self.folder / name).exists():
                    make()
        patient()

    def finish(self, rows: Iterator[dict], counts: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Write the output and, last, its counts; the folder goes. Returns the counts."""
        from core import distributed

        if distributed.is_main() and not self.finished:
            with only_writer(self.folder, "output"):
                if not self.finished:
                    write_list(self.out, rows)
                    write_json(self.counts, {"job": self.key, "options": self.job, **counts()})
            shutil.rmtree(self.folder, ignore_errors=True)
        patient()
        return read_json(self.counts)


def patient() -> None:
    from core import distributed

    distributed.patient_barrier()


def write_list(path: Path, rows: Iterable[dict]) -> None:
    """A JSON list as ``json.dump(rows, indent=2)`` writes it, one record at a time."""
    with atomic_file(path, "w") as handle:
        begin = "[\n  "
        for row in rows:
            # Line ends within texts are escaped, so every one here is the layout's.
            handle.write(begin + json.dumps(row, indent=2, ensure_ascii=False).replace("\n", "\n  "))
            begin = ",\n  "
        handle.write("\n]" if begin[0] == "," else "[]")


@contextlib.contextmanager
def disk_may_be_full(path: str | Path) -> Iterator[None]:
    """A full disk is a sentence; what was committed before stays."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"the disk is full while '{path}' is made ({error.strerror}); free some space and run the same command "
            "again: it goes on behind what was complete."
        ) from None


@contextlib.contextmanager
def working(save_path: str | Path, device: str | None) -> Iterator[None]:
    """One process of those that torchrun started, if it did, while it makes its share of ``save_path``."""
    from core import distributed

    distributed.init(device or "auto")
    try:
        with disk_may_be_full(save_path):
            yield
    finally:
        distributed.close()


def say(lines: Iterable[str]) -> None:
    from core import distributed

    if distributed.is_main():
        print("\n".join(lines))
        sys.stdout.flush()
