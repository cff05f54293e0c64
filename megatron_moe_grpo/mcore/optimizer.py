"""Megatron's data-parallel wrapper, distributed AdamW and learning-rate schedule, from our settings."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.optimizer import MegatronOptimizer, get_megatron_optimizer
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.parallel_state import get_tensor_model_parallel_world_size
from megatron.core.transformer.module import Float16Module, MegatronModule
from torch.nn.utils import get_total_norm

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

    @property
    def learning_rate(self) -> float:
        """That of the last step, taken or skipped."""
        return float(self.optimizer.param_groups[0]["lr"])

    def measure(self, loss: float) -> tuple[float, float]:
        """`loss`, and the L2 norm of the whole gradient before clipping; not finite if any rank's part is not.

        The same two numbers on every rank.  The weights are as they were: `step` or `skip_step` follows.
        """
        # What it returns is about the loss scale of fp16, which there is not: never anything but False.
        self.optimizer.prepare_grads()
        gradient_norm = float(self.optimizer.get_grad_norm())
        if get_tensor_model_parallel_world_size() == 1:
            return loss, gradient_norm
        # Each tensor-parallel rank computes the loss for itself, and of a weight that all of them hold, the norm counts
        # the first one's gradient only: another's own NaN (a defect of its memory) would go unseen, or divide them.
        parameters = [parameter for part in self.optimizer.chained_optimizers for parameter in part.get_parameters()]
        norm = get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        sums = torch.stack((norm.double() * 0.0, norm.new_tensor(loss, dtype=torch.float64))).to(building_device())
        dist.all_reduce(sums)
        zero, loss_sum = sums.tolist()
        return loss_sum / dist.get_world_size(), gradient_norm + zero

    def step(self, gradient_norm: float) -> None:
        """One optimizer step at the schedule's next learning rate, with the gradient clipped by its norm.

        The schedule moves first: Megatron's other order would spend the first warm-up step at learning rate 0.
        It is Megatron's `ChainedOptimizer.step` from where the norm is known (0.16.1, optimizer.py).
        """
        self.scheduler.step(increment=1)
        for part in self.optimizer.chained_optimizers:
            if parameters := part.get_parameters():
                clip_grad_by_total_norm_fp32(parameters, self.optimizer.config.clip_grad, gradient_norm)
        self.optimizer.step_with_ready_grads()

    def skip_step(self) -> None:
        """Forgets the gradient; weights, Adam's moments and its count of steps stay as they are, bit for bit.

        The schedule moves on: the learning rate of an update is a function of its number alone, and the last one
        ends the decay, however many were skipped.
        """
        self.scheduler.step(increment=1)
        self.zero_gradients()


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
