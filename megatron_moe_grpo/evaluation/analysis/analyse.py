"""From a run or a checkpoint to the values of analysis.json."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from megatron_moe_grpo.config.schema import ParallelConfig
from megatron_moe_grpo.data.schema import Row
from megatron_moe_grpo.evaluation.analysis.examples import choose_examples, example_values
from megatron_moe_grpo.evaluation.analysis.measure import measure
from megatron_moe_grpo.evaluation.analysis.preparation import AnalysisOptions, Prepared, prepare
from megatron_moe_grpo.evaluation.analysis.sections import analysis_sections
from megatron_moe_grpo.evaluation.analysis.source import AnalysisSource
from megatron_moe_grpo.evaluation.analysis.values import FORMAT
from megatron_moe_grpo.mcore.moe_layers import router_sizes
from megatron_moe_grpo.mcore.parallel import start_parallel, stop_parallel


@dataclass(frozen=True)
class Analysis:
    """The values of analysis.json, and the rows whose pictures go with its examples."""

    values: dict[str, Any]
    example_rows: list[Row]
    video_frames: int


def analyse(source: AnalysisSource, options: AnalysisOptions) -> Analysis:
    """Loads the checkpoint on this process, answers the rows under top-K and sampled routes, and works it all out.

    Raises as `prepare` does.
    """
    layout = start_parallel(ParallelConfig(), seed=0)
    prepared = prepare(source, options, layout)
    found = measure(prepared.subject, prepared.rows)
    examples = choose_examples(found.rows, options.num_examples)
    values = _head(source, options, prepared) | analysis_sections(source, found, prepared.subject)
    values["examples"] = [example_values(prepared.subject, example) for example in examples]
    stop_parallel()
    return Analysis(values, [example.row.row for example in examples], prepared.video_frames)


def rows_hash(rows: Iterable[Row]) -> str:
    """Two analyses of one hash are about the same questions in the same order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update("\0".join((row.id, row.problem, *row.options, row.solution, "\n")).encode())
    return digest.hexdigest()


def _head(source: AnalysisSource, options: AnalysisOptions, prepared: Prepared) -> dict[str, Any]:
    """Of what this is an analysis, and how it was made."""
    subject, config = prepared.subject, source.config
    sizes, policy = router_sizes(subject.model.config), subject.sampled.policy
    return {
        "format": FORMAT,
        "name": source.checkpoint.name if config is None else config.name,
        "method": None if config is None else config.method,
        "checkpoint": source.checkpoint.name,
        "step": source.step,
        "model": None if sizes is None else vars(sizes),
        "rows": {
            "file": source.rows_file(options.data).name,
            "num_rows": len(prepared.rows),
            "num_skipped": prepared.num_skipped,
            "sha256": rows_hash(row.row for row in prepared.rows),
        },
        "settings": {
            "from": "defaults" if config is None else "the run's config.yaml",
            "guidance": policy.guidance,
            "temperature": policy.temperature,
            "noise_std": policy.noise_std,
            "guidance_mask": subject.sampled.is_allowed_L2N is not None,
            "num_routes": subject.num_routes,
            "max_new_tokens": subject.top_k.max_new_tokens,
            "explores_prompt": subject.sampled.explores_prompt,
            "seed": policy.seed,
        },
    }
