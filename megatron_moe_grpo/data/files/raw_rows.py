"""What every reader of files gives."""

from collections.abc import Callable, Iterator
from typing import Any

RawRows = Iterator[tuple[int, Callable[[], dict[str, Any]]]]
"""(line or row number, function that returns the raw row or raises DataError), so that one bad row ends nothing."""
