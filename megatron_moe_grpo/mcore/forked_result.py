"""Work in a forked process, which has a copy of memory as it was: training goes on and changes its own."""

import ctypes
import gc
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Generic, TypeVar

import torch

from megatron_moe_grpo.errors import CheckpointError, MoeGrpoError

Result = TypeVar("Result")
IGNORED_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
PR_SET_PDEATHSIG = 1


class ForkedResult(Generic[Result]):
    """The outcome of `work()`, once it is there; memory is copied page by page, where one of the two writes to it."""

    def __init__(self, work: Callable[[], Result]):
        """
        Args:
            work: touches no GPU and talks to no other rank.
        """
        context = multiprocessing.get_context("fork")
        self._receiver, sender = context.Pipe(duplex=False)
        self._process = context.Process(target=_send_outcome, args=(work, sender, os.getpid()), daemon=True)
        with _undisturbed():
            self._process.start()
        # Only the child holds that end now, so that its death can be seen.
        sender.close()

    def is_there(self) -> bool:
        """True when `take` does not wait."""
        return self._receiver.poll()

    def take(self) -> Result | MoeGrpoError:
        """Waits for the outcome: a result, or the error that the work or its process ended with."""
        try:
            outcome = self._receiver.recv()
        except EOFError:
            self._process.join()
            return CheckpointError(
                "the process that writes the checkpoint died",
                got=f"exit code {self._process.exitcode}",
                remedy="exit code -9 is a lack of memory, most often: pass --set training.async_save=false",
            )
        self._process.join()
        return outcome


def _send_outcome(work: Callable[[], Result], sender: Connection, parent: int) -> None:
    _die_with(parent)
    # A signal to the whole job asks training to stop, and training waits for this.
    for number in IGNORED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, IGNORED_SIGNALS)
    # OpenMP's other threads do not live on here.
    torch.set_num_threads(1)
    try:
        outcome = work()
    except MoeGrpoError as error:
        outcome = error
    # Whatever it is, it must not be lost with this process.
    except Exception as error:
        outcome = CheckpointError("a checkpoint could not be written", got=f"{type(error).__name__}: {error}")
    sender.send(outcome)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """No signal comes between the fork and the child's ignoring it, and the child never collects garbage: a dead
    process group would wait for threads that it does not have, a dead tensor free memory of a GPU."""
    was_on = gc.isenabled()
    gc.disable()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if was_on:
            gc.enable()


def _die_with(parent: int) -> None:
    """A killed run is started again at once, and nobody else may write into its folder then."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
