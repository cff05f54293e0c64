"""Example rollouts for the report: whole groups with their pictures and videos, answers and rewards."""

from itertools import combinations

from megatron_moe_grpo.data.visuals import seen_paths
from megatron_moe_grpo.rollout.records import RolloutBatch
from megatron_moe_grpo.training.run import Run


def log_samples(run: Run, done: int, rollouts: RolloutBatch) -> None:
    """Writes the first groups of this rank's rollouts, where due (the main rank's; others write nothing).

    They are due after an evaluation, and every `logging.samples_every` steps.
    """
    if not (run.is_due(run.config.training.evaluate_every, done) or run.is_due(run.config.logging.samples_every, done)):
        return
    size = rollouts.group_size
    samples = []
    for index, encoded in enumerate(rollouts.prompts.rows[: run.config.logging.examples]):
        group = slice(index * size, (index + 1) * size)
        row = encoded.row
        samples.append(
            {
                "id": row.id,
                "problem_type": row.problem_type,
                "problem": row.problem,
                "options": list(row.options),
                "solution": row.solution,
                "visual_paths": [
                    str(path) for files in row.visuals for path in seen_paths(files, encoded.video_frames)
                ],
                "responses": rollouts.texts[group],
                "rewards": rollouts.reward_B[group].tolist(),
                "experts_differ": _share_that_differs(rollouts, group),
            }
        )
    run.log.write_samples(done, samples)


def _share_that_differs(rollouts: RolloutBatch, group: slice) -> float | None:
    """Mean share of (position, layer) at which two rollouts of a group used different sets of experts; None: dense."""
    if rollouts.responses.trace is None:
        return None
    sets_GSLK = rollouts.responses.trace.experts_BSLK[group].sort(dim=-1).values
    pairs = list(combinations(range(len(sets_GSLK)), 2))
    if not pairs:
        return 0.0
    return sum(float((sets_GSLK[a] != sets_GSLK[b]).any(dim=-1).float().mean()) for a, b in pairs) / len(pairs)
