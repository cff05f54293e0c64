"""DAPO's dynamic sampling: fresh prompts in the place of groups whose rewards are all equal.  DAPO 3.2.

Every place of a step has a prompt of its own in every extra round.  A place whose group has no signal rolls out the
next round's prompt; the first group with signal stays.  So nothing that was rolled out with signal is thrown away, each
data-parallel rank keeps its share, and which rollouts a step ends with does not depend on the layout.  When the rounds
are used up, the remaining places keep the groups they began with: advantage 0.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from megatron_moe_grpo.config.schema import RunConfig
from megatron_moe_grpo.data.order import BatchOrder
from megatron_moe_grpo.mcore.parallel import ParallelLayout
from megatron_moe_grpo.rollout.collect import StepRows
from megatron_moe_grpo.rollout.prompts import EncodedRow
from megatron_moe_grpo.rollout.records import RolloutBatch

# Moves the seed to numbers that no run's own seed has: the order of the steps' first rounds stays as it is without.
FRESH_ORDER = 1 << 64


@dataclass(frozen=True)
class FreshPrompts:
    """Which prompts the extra rounds draw: a function of (seed, step, round), so a resumed run draws the same."""

    rows: Sequence[EncodedRow]
    """All training rows."""
    prompts_per_step: int
    group_size: int
    num_rounds: int
    """`rollout.extra_rounds`; 0: no dynamic sampling."""
    num_steps: int
    """Steps of the whole run: rollout ids go on after those of their first rounds."""
    seed: int

    @classmethod
    def of(cls, config: RunConfig, rows: Sequence[EncodedRow]) -> "FreshPrompts":
        """Those of a run."""
        return cls(
            rows,
            config.training.prompts_per_step,
            config.rollout.group_size,
            config.rollout.extra_rounds,
            config.training.steps,
            config.seed,
        )

    def of_round(self, step: int, number: int, places: Sequence[int]) -> StepRows:
        """Rows of extra round `number` (from 0) of `step` (from 0), rolled out at `places` only."""
        order = BatchOrder(len(self.rows), self.prompts_per_step * self.num_rounds, self.seed + FRESH_ORDER)
        start = number * self.prompts_per_step
        indices = order.indices(step)[start : start + self.prompts_per_step]
        round_of_run = self.num_steps + step * self.num_rounds + number
        first_stream = round_of_run * self.prompts_per_step * self.group_size
        return StepRows([self.rows[index] for index in indices], first_stream, places)


def fill_groups(
    rollouts: RolloutBatch,
    fresh: FreshPrompts,
    step: int,
    roll_out: Callable[[StepRows], RolloutBatch],
    layout: ParallelLayout,
) -> tuple[RolloutBatch, dict[str, float]]:
    """Replaces groups without signal, as far as the extra rounds go; all ranks call it together.  DAPO 3.2.

    Args:
        rollouts: this rank's share of the step's first round.
        roll_out: decodes and judges, on all ranks together.
    Returns:
        The filled share, and metrics over all ranks: groups_replaced (share of the step's groups) and prompts_drawn
        (those of the first round included); none without extra rounds.
    """
    if fresh.num_rounds == 0:
        return rollouts, {}
    num_prompts = len(rollouts.prompts.rows)
    num_drawn, num_replaced = num_prompts, 0
    for number in range(fresh.num_rounds):
        lacking = _places(rollouts, has_signal=False)
        num_places = int(layout.maximum(torch.tensor(len(lacking), device=layout.device)))
        if num_places == 0:
            break
        # Ranks decode in step, equally many prompts each: what a rank does not need itself is not looked at.
        places = (lacking + _places(rollouts, has_signal=True))[:num_places]
        drawn = roll_out(fresh.of_round(step, number, places))
        found = [index for index in _places(drawn, has_signal=True) if index < len(lacking)]
        rollouts = _with_groups(rollouts, [lacking[index] for index in found], drawn, found)
        num_drawn, num_replaced = num_drawn + len(lacking), num_replaced + len(found)
    sums = torch.tensor([num_drawn, num_replaced, num_prompts], dtype=torch.float64, device=layout.device)
    total_drawn, total_replaced, total_prompts = layout.sum_over_data(sums).tolist()
    return rollouts, {"groups_replaced": total_replaced / total_prompts, "prompts_drawn": total_drawn}


def _places(rollouts: RolloutBatch, has_signal: bool) -> list[int]:
    """Places of the groups with signal, or of those without."""
    reward_PG = rollouts.reward_B.view(-1, rollouts.group_size)
    has_signal_P = reward_PG.amax(dim=1) != reward_PG.amin(dim=1)
    return (has_signal_P == has_signal).nonzero().flatten().tolist()


def _with_groups(rollouts: RolloutBatch, places: list[int], drawn: RolloutBatch, found: list[int]) -> RolloutBatch:
    """Group `found[i]` of `drawn` at place `places[i]`; padded alike on every rank, also where nothing is replaced."""
    sources = list(range(len(rollouts.prompts.rows)))
    for place, index in zip(places, found, strict=True):
        sources[place] = len(rollouts.prompts.rows) + index
    filled = RolloutBatch.cat([rollouts, drawn]).select(sources)
    # Counts stay those of the first round: all prompts alike, not the ones that happened to disagree.
    return replace(filled, responses=replace(filled.responses, counts=rollouts.responses.counts))
