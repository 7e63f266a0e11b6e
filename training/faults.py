"""Faults of torch's own machinery as one sentence with a remedy."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from core.errors import UserError
from training.config import Config


@contextlib.contextmanager
def named(config: Config) -> Iterator[None]:
    """A worker process that was killed and a compiler that failed end a run with a UserError.

    torch tells of a dead worker from a signal handler, so this error may come up at any place of the loop.
    """
    try:
        yield
    except RuntimeError as error:
        said = " ".join(str(error).split())
        if config.num_workers and "DataLoader worker" in said and ("exited" in said or "killed by signal" in said):
            raise UserError(
                f"a process that makes batches ahead was ended ({said[:200]}), most often because memory ran out; "
                f"lower train.num_workers (now {config.num_workers}; 0 needs none) or give the job more memory, in a "
                "container also /dev/shm, and give the same command again."
            ) from error
        if config.compile and _is_compilers(error):
            raise UserError(
                f"torch.compile failed ({said[:300]}); set train.compile: false, or try a newer torch or another "
                "C++ compiler (CXX)."
            ) from error
        raise


def _is_compilers(error: RuntimeError) -> bool:
    import torch._dynamo.exc

    return isinstance(error, torch._dynamo.exc.TorchDynamoException)
