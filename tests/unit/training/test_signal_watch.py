"""It speaks when almost no group has had signal for a whole window, once, and again only after a recovery."""

from megatron_moe_grpo.training.signal_watch import WINDOW_STEPS, SignalWatch


def messages(shares: list[float]) -> list[int]:
    """Steps (from 0) at which it spoke."""
    watch = SignalWatch()
    return [step for step, share in enumerate(shares) if watch.message(share) is not None]


def test_message_comes_once_after_a_whole_window() -> None:
    assert messages([1.0] * 3 * WINDOW_STEPS) == [WINDOW_STEPS - 1]


def test_message_comes_again_after_a_recovery() -> None:
    shares = [1.0] * WINDOW_STEPS + [0.0] * WINDOW_STEPS + [1.0] * WINDOW_STEPS
    # 19 of 20 steps at 1.0 already average 0.95: the second message comes a step early.
    assert messages(shares) == [WINDOW_STEPS - 1, 3 * WINDOW_STEPS - 2]


def test_no_message_at_the_demo_s_usual_share() -> None:
    assert messages([0.8] * 100) == []
