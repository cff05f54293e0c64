"""What a person at the terminal sees: a progress bar, and a table at the end."""

import sys
import time
from collections.abc import Mapping, Sequence
from typing import TextIO

from tqdm import tqdm

# Lines of a whole run where the stream is a file: one every 5 %.
LOG_LINES = 20
_BAR_FORMAT = "step {n_fmt}/{total_fmt} |{bar}| {postfix}  {rate_inv_fmt}  {remaining} left"


# Name in metrics.jsonl or timing.jsonl -> how it is called on the line.
_SHOWN = {
    "loss": "loss",
    "reward_mean": "reward_mean",
    "groups_without_signal": "groups_without_signal",
    "eval_accuracy": "eval_accuracy",
    "tokens_per_second": "tokens/s",
    "model_flops_utilisation": "MFU",
}


def shown_numbers(values: Mapping[str, float]) -> dict[str, float]:
    """Those of a step's metrics and timing that a person wants to see go by; a policy's loss says nothing."""
    hidden = {"loss"} if "reward_mean" in values else set()
    return {shown: values[name] for name, shown in _SHOWN.items() if name in values and name not in hidden}


class StepProgress:
    """Steps done, latest numbers, seconds a step and time left: a bar on a terminal, about 20 lines in a log file.

    Args:
        total_steps: steps of the whole run.
        first_step: steps already done (resume).
        is_shown: False on every rank but one; nothing is printed then.
        stream: where to print; stderr by default, so that a command's result on stdout stays clean.
    """

    def __init__(
        self, total_steps: int, first_step: int = 0, *, is_shown: bool = True, stream: TextIO | None = None
    ) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._is_shown = is_shown
        self._total_steps, self._first_step = total_steps, first_step
        self._start_s = time.monotonic()
        self._latest: dict[str, float] = {}
        is_terminal = self._stream.isatty()
        self._is_log = is_shown and not is_terminal
        self._bar = tqdm(
            total=total_steps,
            initial=first_step,
            disable=not (is_shown and is_terminal),
            file=self._stream,
            unit="step",
            dynamic_ncols=True,
            smoothing=0.1,
            bar_format=_BAR_FORMAT,
        )

    def update(self, step: int, numbers: Mapping[str, float]) -> None:
        """Call after each step, counted from 1; a number not measured at this step keeps its last value."""
        self._latest.update(numbers)
        text = "  ".join(f"{name} {_short(value)}" for name, value in self._latest.items())
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update(step - self._bar.n)
        if self._is_log and self._is_log_step(step):
            print(self._log_line(step, text), file=self._stream, flush=True)

    def say(self, message: str | None) -> None:
        """Prints a message above the bar; None: nothing to say."""
        if message is not None and self._is_shown:
            tqdm.write(message, file=self._stream)

    def close(self) -> None:
        """Leaves the bar in its last state and ends its line."""
        self._bar.close()

    def _is_log_step(self, step: int) -> bool:
        """The first step, so that a broken run shows early; each 5 %; and the last step."""
        is_new_share = step * LOG_LINES // self._total_steps > (step - 1) * LOG_LINES // self._total_steps
        return is_new_share or step == self._first_step + 1

    def _log_line(self, step: int, text: str) -> str:
        s_per_step = (time.monotonic() - self._start_s) / (step - self._first_step)
        left = tqdm.format_interval(s_per_step * (self._total_steps - step))
        return f"step {step}/{self._total_steps}  {text}  {s_per_step:.2f} s/step  {left} left"


def summary_table(rows: Sequence[Sequence[object]], columns: Sequence[str]) -> str:
    """Plain text, aligned: numbers to the right with three decimals, everything else to the left.

    Args:
        rows: one value a column; float, int, str, or None (shown as `-`).
        columns: headings, units included.
    Raises:
        ValueError: a row with more or fewer values than there are columns.
    """
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max([len(name), *(len(row[i]) for row in cells)]) for i, name in enumerate(columns)]
    is_number = [
        any(isinstance(row[i], int | float) for row in rows) and not any(isinstance(row[i], str) for row in rows)
        for i in range(len(columns))
    ]
    lines = [list(columns), ["-" * width for width in widths], *cells]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, is_number, strict=True)
        ).rstrip()
        for line in lines
    )


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3f}"


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
