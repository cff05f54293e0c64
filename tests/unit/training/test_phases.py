"""Phases tell when they begin, and add up."""

import pytest

from megatron_moe_grpo.training.phases import Phases


def test_phases_tell_and_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 1.0, 10.0, 12.0, 20.0, 24.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(times))
    told: list[str] = []
    phases = Phases(told.append)
    with phases("rollout"):
        pass
    with phases("update"):
        pass
    with phases("rollout"):
        pass
    assert told == ["rollout", "update", "rollout"]
    assert phases.take_seconds() == {"rollout_s": 5.0, "update_s": 2.0}
    assert phases.take_seconds() == {}


def test_a_phase_that_may_not_begin_does_not() -> None:
    def refuse(name: str) -> None:
        raise KeyError(name)

    with pytest.raises(KeyError), Phases(refuse)("rollout"):
        raise AssertionError("it began")
