"""Sample rollouts as a table: what W&B and TensorBoard show of samples.jsonl."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

COLUMNS = ("id", "problem", "solution", "response", "reward")
# What HTML or Markdown would take for its own.
MARKS = frozenset("&<>|`*_[]\\#~")


def table_rows(samples: Sequence[Mapping[str, Any]]) -> Iterator[list[Any]]:
    """One row for each response, in the order of COLUMNS; a problem with its options."""
    for sample in samples:
        problem = "\n".join((sample["problem"], *sample["options"]))
        for response, reward in zip(sample["responses"], sample["rewards"], strict=True):
            yield [sample["id"], problem, sample["solution"], response, reward]


def markdown_table(samples: Sequence[Mapping[str, Any]]) -> str:
    """The same as a Markdown table; what a response holds is shown, never taken for the table's own marks."""
    rows = [COLUMNS, ("---",) * len(COLUMNS), *([_cell(value) for value in row] for row in table_rows(samples))]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(value: Any) -> str:
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    shown = "".join(f"&#{ord(mark)};" if mark in MARKS else mark for mark in text)
    return "<br>".join(shown.splitlines())
