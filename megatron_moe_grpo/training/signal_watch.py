"""Says so when rollouts stop telling answers apart: the symmetry trap of upcycling, a solved task or a hopeless one."""

from collections import deque

WINDOW_STEPS = 20
NEAR_ONE = 0.95


class SignalWatch:
    """Watches the share of groups without signal; speaks once each time it settles near 1."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=WINDOW_STEPS)
        self._has_spoken = False

    def message(self, groups_without_signal: float) -> str | None:
        """What to print after a step, or None.  Not saved: after a resume it needs a window's steps to speak again."""
        self._recent.append(groups_without_signal)
        is_stuck = len(self._recent) == WINDOW_STEPS and sum(self._recent) / WINDOW_STEPS >= NEAR_ONE
        is_new = is_stuck and not self._has_spoken
        self._has_spoken = is_stuck
        if not is_new:
            return None
        return (
            f"{sum(self._recent) / WINDOW_STEPS:.0%} of the groups of the last {WINDOW_STEPS} steps have equal rewards,"
            " so almost nothing is learned.\n"
            "  to do: more noise between experts (upcycle_checkpoint.py --noise-scale), a larger rollout.group_size,"
            " or questions that are neither solved nor out of reach"
        )
