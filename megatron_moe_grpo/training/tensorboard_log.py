"""TensorBoard: the same numbers as metrics.jsonl and timing.jsonl, as event files in the run folder."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from megatron_moe_grpo.training.run_folder import RunFolder
from megatron_moe_grpo.training.run_log import RunLog, scalars
from megatron_moe_grpo.training.sample_table import markdown_table

# How old the file may be when a process is killed; torch's own 120 s would lose all of a quick run.
FLUSH_S = 10


class TensorBoardLog(RunLog):
    """Event files in `tensorboard/`, one for each time that the run was started.

    A resume tells TensorBoard from which step on older files no longer count; the files themselves stay as they are.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder.tensorboard
        self._purge_step: int | None = None
        self._writer: SummaryWriter | None = None

    def truncate_after(self, step: int) -> None:
        self.finish()
        self._purge_step = step + 1

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Numbers and, as name/key, numbers in mappings; lists stay in metrics.jsonl."""
        writer = self._opened()
        for name, value in scalars(metrics):
            writer.add_scalar(name, value, step)

    def write_timing(self, step: int, timing: Mapping[str, float]) -> None:
        self.write(step, {"timing": timing})

    def write_samples(self, step: int, samples: Sequence[Mapping[str, Any]]) -> None:
        """One text with all samples, a table."""
        if samples:
            self._opened().add_text("samples", markdown_table(samples), step)

    def finish(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _opened(self) -> SummaryWriter:
        if self._writer is None:
            self._writer = SummaryWriter(str(self._folder), purge_step=self._purge_step, flush_secs=FLUSH_S)
        return self._writer
