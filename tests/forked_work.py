"""Work in a forked process: it may be killed, and the memory it takes is its own."""

import multiprocessing
import resource
from collections.abc import Callable

from forked_commands import PRELOADED

TIMEOUT_S = 60


def exit_code_of(work: Callable[[], object]) -> int:
    """Exit code of a forked process that does `work`; -9 if it was killed, 1 if it raised."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(TIMEOUT_S)
    assert not process.is_alive(), "hangs"
    return process.exitcode


def exit_code_of_clean(work: Callable[..., object], *arguments: object) -> int:
    """The same of a process that was forked from one that has done nothing, for work with process groups of torch:
    those of earlier tests would wait for their threads, which a fork does not have.

    Args:
        work: a function of a module.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=work, args=arguments)
    process.start()
    process.join(TIMEOUT_S)
    is_hanging = process.is_alive()
    process.kill()
    process.join()
    assert not is_hanging, "hangs"
    return process.exitcode


def memory_growth_bytes(work: Callable[[], object], warm_up: Callable[[], object] = lambda: None) -> int:
    """By how much the largest resident size of a forked process grows while it does `work`.

    A fork starts without the pages of the libraries: `warm_up` does the same work on something small.
    """
    receiver, sender = multiprocessing.get_context("fork").Pipe(duplex=False)

    def measured() -> None:
        warm_up()
        before = _peak_bytes()
        work()
        sender.send(_peak_bytes() - before)

    assert exit_code_of(measured) == 0
    return receiver.recv()


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
