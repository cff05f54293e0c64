"""MoE-GRPO training.  The loop reads as the method does: roll out, judge, compare, update, learn to guide.

Deviations from the paper, and choices where it is silent, are listed in docs/method.md.
"""

from functools import partial
from pathlib import Path

from megatron_moe_grpo.config import RunConfig
from megatron_moe_grpo.losses.advantages import group_advantages
from megatron_moe_grpo.rollout.collect import collect_rollouts, rollout_settings
from megatron_moe_grpo.rollout.dynamic_sampling import FreshPrompts, fill_groups
from megatron_moe_grpo.training.console import shown_numbers
from megatron_moe_grpo.training.evaluate import evaluate_run
from megatron_moe_grpo.training.guidance import count_routing, current_mask
from megatron_moe_grpo.training.kl_term import held_to_reference, observe_kl
from megatron_moe_grpo.training.lifecycle import running
from megatron_moe_grpo.training.metrics import rollout_metrics
from megatron_moe_grpo.training.profiling import profiled_steps
from megatron_moe_grpo.training.run import start_run
from megatron_moe_grpo.training.samples import log_samples
from megatron_moe_grpo.training.saved_batch import rollouts_to_save, stop_if_exhausted
from megatron_moe_grpo.training.signal_watch import SignalWatch
from megatron_moe_grpo.training.throughput import Throughput
from megatron_moe_grpo.training.update import update_policy
from megatron_moe_grpo.training.update_batch import UpdateSettings


def train_grpo(config: RunConfig, status_file: Path | None = None) -> None:
    """Runs `config` to its last step, from wherever its folder stands."""
    run = start_run(config)
    settings, fresh = UpdateSettings.of(config), FreshPrompts.of(config, run.train_rows)
    watch, throughput = SignalWatch(), Throughput(run)
    with running(run, status_file):
        if run.first_step == 0:
            run.log.write(0, evaluate_run(run, with_blank=True))
        for step in profiled_steps(run):
            done = step + 1
            with run.phases("rollout"):
                step_rows = run.step_rows(step)
                roll_out = partial(
                    collect_rollouts,
                    run.model,
                    run.layout,
                    processing=run.processing,
                    settings=rollout_settings(config, run.processing, current_mask(run), run.between_tokens),
                    judge=run.judge,
                    group_size=config.rollout.group_size,
                    prompts_per_forward=config.rollout.prompts_per_forward,
                    overlong_tokens=config.rollout.overlong_tokens,
                )
                rollouts, drawn = fill_groups(roll_out(step_rows), fresh, step, roll_out, run.layout)
            with run.phases("reference"):
                rollouts, kl = held_to_reference(run, rollouts, settings, step)
            with run.phases("update"):
                advantages = group_advantages(rollouts.reward_B, rollouts.group_size, settings.objective.divides_by_std)
                metrics = rollout_metrics(rollouts, advantages, run.layout) | drawn
                metrics |= count_routing(run, rollouts.responses.counts)
                for _ in range(config.training.updates_per_rollout):
                    metrics |= update_policy(
                        run.trainable,
                        run.layout,
                        rollouts,
                        advantages.advantage_B,
                        settings,
                        run.guard,
                        kl,
                        has_signal=metrics["groups_without_signal"] < 1.0,
                    )
                metrics |= observe_kl(run, kl, metrics)
            if run.is_due(config.training.evaluate_every, done):
                with run.phases("evaluate"):
                    metrics |= evaluate_run(run, with_blank=done == config.training.steps)
            log_samples(run, done, rollouts)
            run.log.write(done, metrics)
            timing = throughput.of_rollouts(run.phases.take_seconds(), step_rows.rows, metrics)
            run.log.write_timing(done, timing)
            run.progress.update(done, shown_numbers(metrics | timing))
            run.progress.say(watch.message(metrics["groups_without_signal"]))
            run.progress.say(run.guard.take_message(done))
            stop_if_exhausted(run, done, metrics, partial(rollouts_to_save, rollouts, advantages.advantage_B))
            if run.is_due(config.training.save_every, done):
                run.save(done)
