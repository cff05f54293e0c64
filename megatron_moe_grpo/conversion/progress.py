"""A progress bar in bytes with the seconds that are left; silent where nobody looks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

Progress = Callable[[int], object]
"""Called with the number of bytes written since the last call."""


def no_progress(num_bytes: int) -> None:
    """Shows nothing."""


@contextmanager
def progress_bar(what: str, num_bytes: int, is_forced: bool = False) -> Iterator[Progress]:
    """A bar on stderr that counts up to `num_bytes`; only on a terminal, unless forced."""
    # tqdm's own word for "only on a terminal" is None.
    is_disabled = False if is_forced else None
    with tqdm(total=num_bytes, desc=what, unit="B", unit_scale=True, disable=is_disabled) as bar:
        yield bar.update
