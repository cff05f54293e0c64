"""Signals are remembered, and heard only where nothing is lost."""

import os
import signal
from types import SimpleNamespace

import pytest

from megatron_moe_grpo.rollout.interruption import StopRequested
from megatron_moe_grpo.training.stop_signal import StopSignal

ALONE = SimpleNamespace(world_size=1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_stops_the_run_before_an_update_and_not_after(number: signal.Signals) -> None:
    stop = StopSignal(ALONE)
    before = signal.getsignal(number)
    with stop.handled():
        stop.before_phase("rollout")
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.name == number.name
        stop.before_phase("evaluate")
        for phase in ("rollout", "reference", "update"):
            with pytest.raises(StopRequested):
                stop.before_phase(phase)
    assert signal.getsignal(number) is before
