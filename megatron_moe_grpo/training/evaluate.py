"""Evaluation at a point of training."""

from typing import Any

from megatron_moe_grpo.evaluation.policy_evaluation import evaluate_policy
from megatron_moe_grpo.rollout.collect import inference_settings, rollout_settings
from megatron_moe_grpo.training.guidance import current_mask
from megatron_moe_grpo.training.run import Run


def evaluate_run(run: Run, with_blank: bool) -> dict[str, Any]:
    """The eval_… metrics on the held-out rows; `with_blank` adds the blank-image control.  {} without such rows."""
    if not run.evaluation_rows:
        return {}
    config = run.config
    # Evaluation follows an update: it is not given up, but it moves on.
    training = rollout_settings(config, run.processing, current_mask(run), run.watch.beat)
    settings = inference_settings(training, config.routing.guidance_at_inference)
    batch = config.rollout.prompts_per_forward * config.rollout.group_size
    found, blank = (
        evaluate_policy(
            run.model, run.layout, run.evaluation_rows, run.processing, settings, run.judge, batch, is_blank
        )
        if with_blank or not is_blank
        else None
        for is_blank in (False, True)
    )
    metrics = found.metrics(blank)
    run.state.accuracy = metrics["eval_accuracy"]
    return metrics
