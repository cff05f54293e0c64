"""Where a training loop writes its numbers.

metrics.jsonl holds one line a step and nothing that depends on the clock, so that a resumed run writes exactly the
bytes of an uninterrupted one; seconds and tokens a second go to timing.jsonl.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_moe_grpo.config.schema import LoggingConfig
from megatron_moe_grpo.data.whole_file import write_atomically
from megatron_moe_grpo.errors import DataError
from megatron_moe_grpo.training.run_folder import RunFolder


class RunLog:
    """The log that writes nothing: what every rank but one holds, and the base of those that write."""

    def truncate_after(self, step: int) -> None:
        """Drops what was written after `step`, because training goes on from there; -1 drops everything."""

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """The numbers of one step: float, int, nested lists of them, or a mapping of names to them."""

    def write_timing(self, step: int, timing: Mapping[str, float]) -> None:
        """Seconds, tokens a second, bytes: what differs from run to run."""

    def write_samples(self, step: int, samples: Sequence[Mapping[str, Any]]) -> None:
        """Example rollouts for the report."""

    def finish(self) -> None:
        """Closes everything."""


class MetricsLog(RunLog):
    """metrics.jsonl, timing.jsonl and samples.jsonl of a run folder.

    `step` comes first in a line, then the keys in alphabetical order; floats are written in full (they read back
    equal).  JSON knows no NaN and no infinity: they become the strings "NaN", "Infinity" and "-Infinity", which
    float() reads.  A value that is neither a number, text, a list nor a mapping raises TypeError.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder

    def truncate_after(self, step: int) -> None:
        """Drops every line of a later step and a torn last line; each file changes at once or not at all.

        Raises DataError for a line, other than the last, that is not JSON with a step.
        """
        for path in (self._folder.metrics, self._folder.timing, self._folder.samples):
            if path.is_file():
                write_atomically(path, "".join(line for line, line_step in _lines(path) if line_step <= step))

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        _append(self._folder.metrics, [_line(step, metrics)])

    def write_timing(self, step: int, timing: Mapping[str, float]) -> None:
        _append(self._folder.timing, [_line(step, timing)])

    def write_samples(self, step: int, samples: Sequence[Mapping[str, Any]]) -> None:
        _append(self._folder.samples, [_line(step, sample) for sample in samples])


class JoinedLog(RunLog):
    """Several logs behind one."""

    def __init__(self, logs: Sequence[RunLog]) -> None:
        self._logs = tuple(logs)

    def truncate_after(self, step: int) -> None:
        for log in self._logs:
            log.truncate_after(step)

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        for log in self._logs:
            log.write(step, metrics)

    def write_timing(self, step: int, timing: Mapping[str, float]) -> None:
        for log in self._logs:
            log.write_timing(step, timing)

    def write_samples(self, step: int, samples: Sequence[Mapping[str, Any]]) -> None:
        for log in self._logs:
            log.write_samples(step, samples)

    def finish(self) -> None:
        for log in self._logs:
            log.finish()


def open_run_log(
    folder: RunFolder, run_name: str, config: Mapping[str, Any], logging: LoggingConfig, *, is_writer: bool
) -> RunLog:
    """The log of this rank: files, TensorBoard and W&B for the writer, nothing for the others.

    `config` is the resolved tree as plain values.  Raises ConfigError where W&B cannot start.
    """
    if not is_writer:
        return RunLog()
    logs: list[RunLog] = [MetricsLog(folder)]
    # Imported here because each takes a second and starts nothing useful on the other ranks.
    if logging.tensorboard:
        from megatron_moe_grpo.training.tensorboard_log import TensorBoardLog

        logs.append(TensorBoardLog(folder))
    if logging.wandb != "disabled":
        from megatron_moe_grpo.training.wandb_log import WandbLog

        logs.append(WandbLog(folder, run_name, config, logging))
    return logs[0] if len(logs) == 1 else JoinedLog(logs)


def scalars(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Numbers and, as name/key, numbers in mappings: what loggers draw curves of."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from scalars(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            yield f"{prefix}{name}", value


def _line(step: int, values: Mapping[str, Any]) -> str:
    if "step" in values:
        raise ValueError("'step' is an argument of its own, not one of the values")
    plain = {"step": step, **_plain(values)}
    return json.dumps(plain, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(value[key]) for key in sorted(value)}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _append(path: Path, lines: Sequence[str]) -> None:
    # One write of whole lines: a killed process leaves at most one torn line, the last.
    with path.open("a", encoding="ascii", newline="\n") as file:
        file.write("".join(lines))


def _lines(path: Path) -> Iterator[tuple[str, int]]:
    """Each whole line with its step; a last line that a killed process left unfinished is skipped."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        is_torn = number == len(lines) and not line.endswith("\n")
        if is_torn:
            return
        try:
            yield line, int(json.loads(line)["step"])
        except (json.JSONDecodeError, TypeError, KeyError) as error:
            raise DataError(
                f"{path.name}, line {number}, is damaged",
                got=line.strip()[:80],
                expected="one JSON object with a step",
                remedy=f"delete that line of {path} to go on without it",
            ) from error
