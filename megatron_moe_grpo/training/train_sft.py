"""Supervised fine-tuning: the dense start and the paper's baselines (M Table 1)."""

import time

from megatron_moe_grpo.config import RunConfig
from megatron_moe_grpo.mcore.parallel import stop_parallel
from megatron_moe_grpo.training.evaluate import evaluate_run
from megatron_moe_grpo.training.run import start_run
from megatron_moe_grpo.training.supervised import supervised_step


def train_sft(config: RunConfig) -> None:
    """Runs `config` to its last step, from wherever its folder stands."""
    run = start_run(config)
    if run.first_step == 0:
        run.log.write(0, evaluate_run(run, with_blank=True))
    for step in range(run.first_step, config.training.steps):
        started_s = time.perf_counter()
        metrics = supervised_step(run, run.step_rows(step))
        done, seconds = step + 1, time.perf_counter() - started_s
        if run.is_due(config.training.evaluate_every, done):
            metrics |= evaluate_run(run, with_blank=done == config.training.steps)
        run.log.write(done, metrics)
        run.log.write_timing(done, {"step_s": seconds})
        run.progress.update(done, {name: metrics[name] for name in ("loss", "eval_accuracy") if name in metrics})
        if run.is_due(config.training.save_every, done):
            run.save(done)
    run.progress.close()
    run.log.finish()
    stop_parallel()
