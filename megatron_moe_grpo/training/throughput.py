"""How fast a step was, and what it held: one line of timing.jsonl."""

import json
from collections.abc import Mapping, Sequence

from megatron_moe_grpo.rollout.prompts import EncodedRow
from megatron_moe_grpo.training.memory import largest_memory
from megatron_moe_grpo.training.model_flops import ModelFlops, Passes, peak_flops
from megatron_moe_grpo.training.run import Run

# Held-out rows are not what a step works on: a step that evaluates would look slow.
NOT_TRAINING = ("evaluate_s",)


class Throughput:
    """Rates over all ranks.  Both `of_…` have to be called by all ranks together; the main one gets all numbers.

    Counts come from the rows and from metrics that every rank has: no number is reduced for them.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._vision_ids = set(run.processing.vision_token_ids)
        self._peak_flops = peak_flops(run.layout.device, run.config)
        self._flops: ModelFlops | None = None
        if run.layout.is_main:
            hf_config = json.loads((run.assets / "config.json").read_text(encoding="utf-8"))
            self._flops = ModelFlops(run.config, hf_config, run.train_rows, self._vision_ids)

    def of_rollouts(
        self, seconds: Mapping[str, float], rows: Sequence[EncodedRow], metrics: Mapping[str, float]
    ) -> dict[str, float]:
        """A step of rollouts and updates.

        Args:
            seconds: of each phase, as `rollout_s`.
            rows: the step's, of all ranks; prompts that dynamic sampling drew besides count as so many mean ones.
            metrics: of the step, `response_tokens_mean` and, with dynamic sampling, `prompts_drawn`.
        """
        config = self._run.config
        group_size, response = config.rollout.group_size, metrics["response_tokens_mean"]
        num_sequences = len(rows) * group_size
        prompt_tokens = sum(len(row.prompt_ids) for row in rows) * group_size
        passes = Passes(num_sequences, prompt_tokens + num_sequences * (response - 1), self._num_vision(rows))
        drawn = metrics.get("prompts_drawn", len(rows)) / len(rows)
        flops = 0.0
        if self._flops is not None:
            # A rollout works out logits for each response token only.
            flops += drawn * self._flops.forward(passes, num_sequences * response)
            flops += config.training.updates_per_rollout * self._flops.update(passes)
            if self._run.reference is not None:
                flops += self._flops.forward(passes, passes.num_tokens)
        rollouts = {"rollouts_per_second": drawn * num_sequences}
        return self._timing(seconds, len(rows), drawn * (prompt_tokens + num_sequences * response), flops, rollouts)

    def of_answers(self, seconds: Mapping[str, float], rows: Sequence[EncodedRow]) -> dict[str, float]:
        """A supervised step on `rows`, those of all ranks."""
        num_tokens = sum(len(row.prompt_ids) + len(row.answer_ids) for row in rows)
        # The last answer token is predicted and never fed.
        passes = Passes(len(rows), num_tokens - len(rows), self._num_vision(rows))
        flops = 0.0 if self._flops is None else self._flops.update(passes)
        return self._timing(seconds, len(rows), num_tokens, flops, {})

    def _timing(
        self,
        seconds: Mapping[str, float],
        num_samples: int,
        num_tokens: float,
        flops: float,
        more: Mapping[str, float],
    ) -> dict[str, float]:
        """`seconds` with counts turned into rates, and memory.  Names do not end in _s: those are added up."""
        step_s = sum(value for name, value in seconds.items() if name not in NOT_TRAINING)
        counts = {"samples_per_second": num_samples, "tokens_per_second": num_tokens, **more}
        flops_per_second = flops / step_s / self._run.layout.world_size
        rates = {name: count / step_s for name, count in counts.items()}
        rates["model_flops_per_second"] = flops_per_second
        if self._peak_flops is not None:
            rates["model_flops_utilisation"] = flops_per_second / self._peak_flops
        return {**seconds, **rates, **largest_memory(self._run.layout)}

    def _num_vision(self, rows: Sequence[EncodedRow]) -> int:
        return sum(token in self._vision_ids for row in rows for token in row.prompt_ids)
