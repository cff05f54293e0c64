"""A recipe and a machine in, a plan out."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megatron_moe_grpo.config.schema import RunConfig
from megatron_moe_grpo.errors import ConfigError
from megatron_moe_grpo.models.hf_folder import read_hf_config
from megatron_moe_grpo.models.registry import family_of
from megatron_moe_grpo.planning.assumptions import Assumptions
from megatron_moe_grpo.planning.hardware import Machine
from megatron_moe_grpo.planning.layout import Layout, why_illegal
from megatron_moe_grpo.planning.memory import PlannedRun
from megatron_moe_grpo.planning.report import (
    Table,
    layouts_table,
    memory_table,
    plan_as_values,
    refused_table,
    run_table,
    time_table,
    traffic_table,
)
from megatron_moe_grpo.planning.search import PlannedLayout, SearchResult, plan_layout, search_layouts
from megatron_moe_grpo.planning.verification import verify_parameters
from megatron_moe_grpo.planning.workload import Workload, make_workload, pictures_of_rows, pictures_of_size
from megatron_moe_grpo.rewards.judge import Judge
from megatron_moe_grpo.rollout.prompts import check_and_encode

NUM_SHOWN = 10


@dataclass(frozen=True)
class Plan:
    """The recipe's own layout, or why it is illegal, and all the others."""

    run: PlannedRun
    own: PlannedLayout | None
    refusal: ConfigError | None
    result: SearchResult

    @property
    def shown(self) -> PlannedLayout | None:
        """The layout whose details are shown: the recipe's own if it is legal, else the best that fits."""
        if self.own is not None:
            return self.own
        return (self.result.fitting or self.result.too_large or [None])[0]


def make_plan(run: PlannedRun, world_size: int, machine: Machine, assumptions: Assumptions) -> Plan:
    """Tries all layouts, and builds one rank of each kind of stage of the one that is shown, to check the counts."""
    own_layout = Layout(run.config.parallel, world_size)
    refusal = why_illegal(run.config, run.architecture.text, own_layout)
    own = plan_layout(run, own_layout, machine, assumptions) if refusal is None else None
    plan = Plan(run, own, refusal, search_layouts(run, world_size, machine, assumptions))
    if plan.shown is not None:
        verify_parameters(run, plan.shown.layout)
    return plan


def read_model_config(config: RunConfig, path: Path | None) -> dict[str, Any]:
    """A `config.json` dict: of the file or folder at `path`, else of `model.checkpoint`.

    Raises:
        ConversionError: it cannot be read.  ConfigError: there is none.
    """
    if path is not None:
        return read_hf_config(path if path.is_dir() else path.parent)
    assets = Path(config.model.checkpoint) / "assets"
    if not (assets / "config.json").is_file():
        raise ConfigError(
            "model.checkpoint is not here, so its sizes are not known",
            got=config.model.checkpoint,
            remedy="pass --model-config with a Hugging Face config.json, or the name of a known model",
        )
    return read_hf_config(assets)


def workload_of_rows(config: RunConfig, hf_config: Mapping[str, Any], assets: Path) -> Workload:
    """Lengths of the recipe's own rows, checked and encoded as training does.

    Raises:
        DataError, ConfigError: what training would raise.
    """
    processing = family_of(hf_config).processing.from_folder(assets)
    is_taught = config.method == "sft"
    _, rows = check_and_encode(config.data.train, config.data, processing, Judge(config.reward), is_taught)
    longest = max(len(row.prompt_ids) for row in rows)
    answer = max(len(row.answer_ids) for row in rows) if is_taught else None
    pictures = pictures_of_rows(hf_config, rows, processing.vision_token_ids)
    source = f"longest of the {len(rows):,} rows of {config.data.train}"
    return make_workload(config, longest, answer, pictures, source)


def workload_of_sizes(
    config: RunConfig, hf_config: Mapping[str, Any], prompt_tokens: int | None, num_images: int, size: tuple[int, int]
) -> Workload:
    """Lengths as told: prompts of `prompt_tokens` (default `data.max_prompt_tokens`), images included.

    Raises:
        ConfigError: the images alone are longer.
    """
    pictures = pictures_of_size(hf_config, num_images, *size)
    length = prompt_tokens or config.data.max_prompt_tokens
    if pictures.num_tokens >= length:
        raise ConfigError(
            "the images alone are longer than the prompt",
            got=f"{num_images} images of {size[0]} x {size[1]} pixels: {pictures.num_tokens} tokens",
            expected=f"fewer than {length} (--prompt-tokens, or data.max_prompt_tokens)",
        )
    origin = "--prompt-tokens" if prompt_tokens else "data.max_prompt_tokens"
    return make_workload(
        config, length, None, pictures, f"{origin}, {num_images} image(s) of {size[0]} x {size[1]} pixels a prompt"
    )


def plan_tables(plan: Plan, world_size: int, gpu: str, machine: Machine, assumptions: Assumptions) -> list[Table]:
    """Everything, in the order of reading."""
    tables = [run_table(plan.run, world_size, gpu, machine)]
    if plan.refusal is not None:
        tables.append(Table("The recipe's own layout is illegal", str(plan.refusal).splitlines()))
    if plan.shown is None:
        prompts = plan.run.workload.prompts_per_step
        hint = f"each data-parallel rank needs a prompt, and a step has {prompts:,}: raise training.prompts_per_step"
        tables.append(Table("No layout of so many GPUs is legal", (f"{hint}, or take fewer GPUs",)))
    if plan.shown is not None:
        whose = "the recipe's own" if plan.own is not None else "the best of those tried"
        tables += [
            Table(f"Details of {whose}: {plan.shown.layout}"),
            memory_table(plan.shown, machine, assumptions),
            traffic_table(plan.run, plan.shown.layout, machine, assumptions),
            time_table(plan.shown, machine, assumptions),
        ]
    return [*tables, layouts_table(plan.result, NUM_SHOWN), refused_table(plan.result, NUM_SHOWN)]


def plan_values(plan: Plan, world_size: int, gpu: str, assumptions: Assumptions) -> dict[str, Any]:
    """For `--json`."""
    return {
        "world_size": world_size,
        "gpu": gpu,
        "workload": asdict(plan.run.workload),
        "assumptions": asdict(assumptions),
        "refusal": None if plan.refusal is None else str(plan.refusal),
        "shown": None if plan.shown is None else plan_as_values(plan.shown, plan.run),
        "fitting": [plan_as_values(found, plan.run) for found in plan.result.fitting[:NUM_SHOWN]],
        "num_fitting": len(plan.result.fitting),
        "num_too_large": len(plan.result.too_large),
        "illegal": {reason: len(layouts) for reason, layouts in plan.result.illegal.items()},
    }
