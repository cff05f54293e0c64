"""Signals that ask a run to end: TERM, INT, and Slurm's USR1 before a time limit; all ranks agree on the moment."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch

from megatron_moe_grpo.mcore.parallel import ParallelLayout
from megatron_moe_grpo.rollout.interruption import StopRequested
from megatron_moe_grpo.training.run_status import STOP_SIGNALS

# Before these nothing of the step has changed the run.  Later it is quicker to finish the step than to undo it.
MAY_STOP_BEFORE = frozenset({"rollout", "reference", "update"})


class StopSignal:
    """Remembers signals, until all ranks come to a place where they may stop."""

    def __init__(self, layout: ParallelLayout):
        self._layout = layout
        self.name = ""
        """The first signal that came to this process; empty: none."""

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Within, the signals are remembered instead of ending the process."""
        before = {number: signal.signal(number, self._remember) for number in STOP_SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def before_phase(self, phase: str) -> None:
        """All ranks call it together.

        Raises:
            StopRequested: on all ranks, if a signal came to one of them and the run may stop here.
        """
        if phase not in MAY_STOP_BEFORE:
            return
        is_asked = bool(self.name)
        if self._layout.world_size > 1:
            is_asked = bool(self._layout.maximum(torch.tensor(float(is_asked), device=self._layout.device)) > 0)
        if is_asked:
            raise StopRequested

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.name = self.name or signal.Signals(number).name
