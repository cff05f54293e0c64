"""The batch that a run stopped on, for inspection: texts and numbers, a pair of files for each data-parallel rank.

bad_batch/step_00000012/
    data_rank_0000.json          step, what was wrong, the step's metrics; each row with its token ids and responses
    data_rank_0000.safetensors   of each rollout, prompt-major: rewards, advantages, token ids, log-probs
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from megatron_moe_grpo.data.whole_file import write_atomically
from megatron_moe_grpo.errors import UpdateError
from megatron_moe_grpo.mcore.parallel import ParallelLayout
from megatron_moe_grpo.rollout.collect import StepRows
from megatron_moe_grpo.rollout.prompts import EncodedRow
from megatron_moe_grpo.rollout.records import RolloutBatch
from megatron_moe_grpo.training.run import Run


@dataclass(frozen=True, eq=False)
class SavedBatch:
    """One data-parallel rank's share of a step."""

    facts: dict[str, Any]
    """What the JSON file holds; numbers that are not finite are the texts "nan", "inf" and "-inf"."""
    tensors: dict[str, Tensor]
    """By name, with shapes as in RolloutBatch; none for supervised training."""


def load_batches(folder: Path) -> list[SavedBatch]:
    """Every rank's share, in rank order, from a `bad_batch/step_...` folder."""
    return [
        SavedBatch(json.loads(path.read_text(encoding="utf-8")), load_file(path.with_suffix(".safetensors")))
        for path in sorted(folder.glob("data_rank_*.json"))
    ]


def stop_if_exhausted(
    run: Run, done: int, metrics: Mapping[str, Any], batch: Callable[[ParallelLayout], SavedBatch]
) -> None:
    """Ends the run, its last batch saved, once too many updates in a row were skipped; all ranks call it together.

    Args:
        batch: makes this rank's share.
    Raises:
        UpdateError: too many were.
    """
    if not run.guard.is_exhausted:
        return
    folder = run.folder.bad_batch / f"step_{done:08d}"
    problem = ""
    if run.layout.tensor_rank == 0 and run.layout.is_last_stage:
        made = batch(run.layout)
        numbers = {name: _readable(value) for name, value in metrics.items() if isinstance(value, int | float)}
        facts = {"step": done, "reason": run.guard.last_reason, "metrics": numbers, **made.facts}
        try:
            _write(SavedBatch(facts, made.tensors), folder, run.layout.data_rank)
        except OSError as error:
            # Why the run ends matters more than that the disk is full.
            problem = f"; the batch could not be saved: {error}"
    # Who raises first ends the others, who may be writing.
    dist.barrier()
    raise UpdateError(
        f"{run.config.stability.max_skipped_updates} updates in a row were skipped",
        got=f"at step {done}: {run.guard.last_reason}{problem}",
        expected="finite rewards, losses and gradients, without spikes",
        remedy=f"look at the batch in {folder} (docs/reliability.md says how).  The same command goes on from the last "
        "checkpoint; where the spikes are the new normal, with --set stability.spike_sigmas=0 or more of them",
    )


def rollouts_to_save(rollouts: RolloutBatch, advantage_B: Tensor, layout: ParallelLayout) -> SavedBatch:
    """This rank's rollouts."""
    size, responses = rollouts.group_size, rollouts.responses
    rows = []
    for index, row in enumerate(rollouts.prompts.rows):
        group = slice(index * size, (index + 1) * size)
        judged = zip(rollouts.texts[group], rollouts.judgements[group], strict=True)
        answers = [
            {"text": text, **{name: _readable(value) for name, value in vars(judgement).items()}}
            for text, judgement in judged
        ]
        rows.append(_row_facts(row) | {"responses": answers})
    tensors = {
        "reward_B": rollouts.reward_B,
        "advantage_B": advantage_B,
        "stream_B": rollouts.stream_B,
        "token_ids_BT": responses.token_ids_BT,
        "is_response_BT": responses.is_response_BT,
        "token_logprob_BT": responses.token_logprob_BT,
    }
    if rollouts.reference_logprob_BT is not None:
        tensors["reference_logprob_BT"] = rollouts.reference_logprob_BT
    return SavedBatch({"rows": rows}, tensors)


def answers_to_save(step_rows: StepRows, layout: ParallelLayout) -> SavedBatch:
    """This rank's rows of supervised training, with the answers that are taught."""
    rows, _ = step_rows.share(layout)
    return SavedBatch({"rows": [_row_facts(row) | {"answer_token_ids": list(row.answer_ids)} for row in rows]}, {})


def _row_facts(encoded: EncodedRow) -> dict[str, Any]:
    row = encoded.row
    return {
        "id": row.id,
        "problem_type": row.problem_type,
        "problem": row.problem,
        "options": list(row.options),
        "solution": row.solution,
        "visual_paths": [str(path) for files in row.visuals for path in files.paths],
        "prompt_token_ids": list(encoded.prompt_ids),
    }


def _write(batch: SavedBatch, folder: Path, data_rank: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"data_rank_{data_rank:04d}.json"
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in batch.tensors.items()}
    save_file(tensors, path.with_suffix(".safetensors"))
    write_atomically(path, json.dumps(batch.facts, indent=1, allow_nan=False) + "\n")


def _readable(value: float) -> float | str:
    """JSON has no NaN."""
    return value if math.isfinite(value) else str(value)
