"""The phases of a step: what is told when one begins, and how long each took."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch.profiler import record_function


class Phases:
    """`with phases("rollout"): ...`: everything that follows a run from outside hangs on this one seam."""

    def __init__(self, on_entry: Callable[[str], None]):
        """
        Args:
            on_entry: called with the phase's name before it begins, on all ranks together; may raise to end the run.
        """
        self._on_entry = on_entry
        self._seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """The time of several phases of one name adds up."""
        self._on_entry(name)
        started_s = time.perf_counter()
        try:
            # A range in the trace of `logging.profile_steps`; nothing where no profiler runs.
            with record_function(name):
                yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - started_s

    def take_seconds(self) -> dict[str, float]:
        """Seconds of each phase since the last call, as `rollout_s`."""
        seconds = {f"{name}_s": value for name, value in self._seconds.items()}
        self._seconds.clear()
        return seconds
