"""Clocks that are wrapped around functions from outside, so that nothing measured carries a timer, and their medians.

CPU time is what ratios are made of: on a machine with other work, wall time mostly measures the others.
"""

import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Span:
    """How long something took."""

    cpu_s: float
    """Of this process, all threads."""
    wall_s: float

    def __add__(self, other: "Span") -> "Span":
        return Span(self.cpu_s + other.cpu_s, self.wall_s + other.wall_s)

    def __sub__(self, other: "Span") -> "Span":
        return Span(self.cpu_s - other.cpu_s, self.wall_s - other.wall_s)

    @staticmethod
    def now() -> "Span":
        """Both clocks' readings."""
        return Span(time.process_time(), time.perf_counter())


NOTHING = Span(0.0, 0.0)


@dataclass(frozen=True)
class Spread:
    """A median and the quartiles around it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Quartiles of at least one value."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.low:.3f}, {self.high:.3f}]"


class PhaseClock:
    """Time by phase; a phase inside another is not counted in the outer one, so phases add up to the whole."""

    def __init__(self) -> None:
        self.spans: dict[str, Span] = {}
        self._inner: list[Span] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the time inside the block to `name`."""
        self._inner.append(NOTHING)
        started = Span.now()
        try:
            yield
        finally:
            whole = Span.now() - started
            inner = self._inner.pop()
            self.spans[name] = self.spans.get(name, NOTHING) + whole - inner
            if self._inner:
                self._inner[-1] = self._inner[-1] + whole

    def timed(self, function: Callable, name: str | Callable[..., str]) -> Callable:
        """`function` under the clock; `name` may depend on its arguments."""

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with self.phase(name if isinstance(name, str) else name(*args, **kwargs)):
                return function(*args, **kwargs)

        return wrapper


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """`owner.name` is `value` inside the block, and what it was before afterwards."""
    was_own, before = name in vars(owner), owner.__dict__.get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before) if was_own else delattr(owner, name)


def time_steps(steps: Sequence[Callable[[], object]], num_rounds: int) -> list[list[Span]]:
    """Runs the steps in turn, in the opposite order every other round; returns each one's spans, paired by round."""
    spans: list[list[Span]] = [[] for _ in steps]
    for number in range(num_rounds):
        order = range(len(steps)) if number % 2 == 0 else reversed(range(len(steps)))
        for index in order:
            started = Span.now()
            steps[index]()
            spans[index].append(Span.now() - started)
    return spans


def paired_ratio(numerators: Sequence[Span], denominators: Sequence[Span]) -> Spread:
    """CPU-time ratios of spans measured next to each other."""
    return Spread.of([above.cpu_s / below.cpu_s for above, below in zip(numerators, denominators, strict=True)])


def peak_memory_bytes() -> int:
    """Largest resident size of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
