"""Megatron's data-parallel wrapper, distributed AdamW and learning-rate schedule, from our settings."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.optimizer import MegatronOptimizer, get_megatron_optimizer
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.transformer.module import Float16Module, MegatronModule

from megatron_moe_grpo.config.schema import OptimizerConfig
from megatron_moe_grpo.errors import ConfigError
from megatron_moe_grpo.mcore.transformer_config import building_device

PARTS = ("vision_tower", "projector", "language_model", "router")


def freeze_parts(model: torch.nn.Module, parts: tuple[str, ...]) -> None:
    """Takes the gradient from parts: `vision_tower`, `projector`, `language_model` (without routers), `router`.

    Raises:
        ConfigError: a part that does not exist, or nothing is left to train on some rank.
    """
    for part in parts:
        if part not in PARTS or (part == "router" and model.config.num_moe_experts is None):
            raise ConfigError("model.freeze names a part that does not exist", got=part, expected=", ".join(PARTS))
    for name, parameter in model.named_parameters():
        if part_of(name) in parts:
            parameter.requires_grad_(False)
    if parts:
        _refuse_idle_ranks(model, parts)


def part_of(name: str) -> str:
    """The part of PARTS that a parameter belongs to."""
    return "router" if ".router." in name else name.split(".")[0]


def _refuse_idle_ranks(model: torch.nn.Module, parts: tuple[str, ...]) -> None:
    """Megatron cannot build an optimizer without parameters."""
    is_idle = not any(parameter.requires_grad for parameter in model.parameters())
    # Asked on all ranks together, so that all of them stop.  Not on the parameters' device: a dry run has none.
    num_idle = torch.tensor(float(is_idle), device=building_device())
    dist.all_reduce(num_idle)
    if num_idle > 0:
        raise ConfigError(
            "model.freeze leaves nothing to train",
            got=f"model.freeze={list(parts)}: every parameter is frozen on {int(num_idle)} of "
            f"{dist.get_world_size()} processes",
            expected="something that is trained on each pipeline stage",
            remedy="freeze less, or pass --set parallel.pipeline=1",
        )


@dataclass
class TrainableModel:
    """A model in its data-parallel wrapper with the optimizer and schedule that train it."""

    wrapped: DistributedDataParallel
    module: MegatronModule
    optimizer: MegatronOptimizer
    scheduler: OptimizerParamScheduler

    def zero_gradients(self) -> None:
        """Clears Megatron's gradient buffers."""
        self.wrapped.zero_grad_buffer()
        self.optimizer.zero_grad()

    def step(self) -> tuple[float, float]:
        """One optimizer step at the schedule's next learning rate; returns (gradient norm before clipping, lr).

        The schedule moves first: Megatron's other order would spend the first warm-up step at learning rate 0.
        """
        self.scheduler.step(increment=1)
        _, gradient_norm, _ = self.optimizer.step()
        return float(gradient_norm), float(self.optimizer.param_groups[0]["lr"])


def make_trainable(model: MegatronModule, settings: OptimizerConfig, total_steps: int) -> TrainableModel:
    """Wraps `model` for data parallelism and builds its optimizer; `total_steps` ends the learning-rate schedule."""
    config = model.config
    module = Float16Module(config, model) if config.bf16 else model
    wrapped = DistributedDataParallel(
        config,
        DistributedDataParallelConfig(use_distributed_optimizer=True, grad_reduce_in_fp32=True),
        module,
    )
    config.finalize_model_grads_func = finalize_model_grads
    optimizer = get_megatron_optimizer(
        MegatronOptimizerConfig(
            optimizer="adam",
            lr=settings.learning_rate,
            min_lr=settings.min_learning_rate,
            weight_decay=settings.weight_decay,
            adam_beta1=settings.adam_beta1,
            adam_beta2=settings.adam_beta2,
            adam_eps=settings.adam_epsilon,
            clip_grad=settings.clip_grad_norm,
            bf16=config.bf16,
            params_dtype=config.params_dtype,
            use_distributed_optimizer=True,
        ),
        [wrapped],
    )
    scheduler = OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=settings.learning_rate,
        min_lr=settings.min_learning_rate,
        lr_warmup_steps=settings.warmup_steps,
        lr_decay_steps=max(total_steps, settings.warmup_steps + 1),
        lr_decay_style=settings.schedule,
        start_wd=settings.weight_decay,
        end_wd=settings.weight_decay,
        wd_incr_steps=0,
        wd_incr_style="constant",
    )
    return TrainableModel(wrapped, model, optimizer, scheduler)
