"""Supervised fine-tuning: the dense start and the paper's baselines (M Table 1)."""

from functools import partial
from pathlib import Path

from megatron_moe_grpo.config import RunConfig
from megatron_moe_grpo.training.console import shown_numbers
from megatron_moe_grpo.training.evaluate import evaluate_run
from megatron_moe_grpo.training.lifecycle import running
from megatron_moe_grpo.training.profiling import profiled_steps
from megatron_moe_grpo.training.run import start_run
from megatron_moe_grpo.training.saved_batch import answers_to_save, stop_if_exhausted
from megatron_moe_grpo.training.supervised import supervised_step
from megatron_moe_grpo.training.throughput import Throughput


def train_sft(config: RunConfig, status_file: Path | None = None) -> None:
    """Runs `config` to its last step, from wherever its folder stands."""
    run = start_run(config)
    throughput = Throughput(run)
    with running(run, status_file):
        if run.first_step == 0:
            run.log.write(0, evaluate_run(run, with_blank=True))
        for step in profiled_steps(run):
            done = step + 1
            with run.phases("update"):
                step_rows = run.step_rows(step)
                metrics = supervised_step(run, step_rows)
            if run.is_due(config.training.evaluate_every, done):
                with run.phases("evaluate"):
                    metrics |= evaluate_run(run, with_blank=done == config.training.steps)
            run.log.write(done, metrics)
            timing = throughput.of_answers(run.phases.take_seconds(), step_rows.rows)
            run.log.write_timing(done, timing)
            run.progress.update(done, shown_numbers(metrics | timing))
            run.progress.say(run.guard.take_message(done))
            stop_if_exhausted(run, done, metrics, partial(answers_to_save, step_rows))
            if run.is_due(config.training.save_every, done):
                run.save(done)
