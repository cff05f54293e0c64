"""Rules that span several settings, or settings and the model's sizes; needs no torch and no process group."""

from megatron_moe_grpo.config.decoder_sizes import DecoderSizes
from megatron_moe_grpo.config.schema import RunConfig
from megatron_moe_grpo.errors import ConfigError


def check_config(config: RunConfig, sizes: DecoderSizes) -> None:
    """Raises ConfigError, before anything is built, for settings that contradict each other or the model."""
    training = config.training
    if (
        training.prompts_per_step % training.micro_batch_prompts
        and training.micro_batch_prompts < training.prompts_per_step
    ):
        raise ConfigError(
            "a step's prompts cannot be cut into equal micro-batches",
            got=f"training.prompts_per_step={training.prompts_per_step}, "
            f"training.micro_batch_prompts={training.micro_batch_prompts}",
            expected="micro_batch_prompts divides prompts_per_step / data-parallel ranks",
        )
    if config.precision == "bf16" and training.updates_per_rollout > 1:
        raise ConfigError(
            "several updates a rollout need exact old log-probs",
            got=f"precision=bf16, training.updates_per_rollout={training.updates_per_rollout}",
            expected="precision=fp32, or one update a rollout",
        )
    if sizes.num_experts is None:
        _check_dense(config)
    else:
        _check_experts(config, sizes.num_experts, sizes.num_active)


def check_data_parallel(config: RunConfig, data_size: int) -> None:
    """Raises ConfigError when a step's prompts do not divide over the data-parallel ranks."""
    share, remainder = divmod(config.training.prompts_per_step, data_size)
    if remainder or share % min(share, config.training.micro_batch_prompts):
        raise ConfigError(
            "a step's prompts do not divide over the ranks",
            got=f"training.prompts_per_step={config.training.prompts_per_step}, {data_size} data-parallel ranks, "
            f"training.micro_batch_prompts={config.training.micro_batch_prompts}",
            expected="prompts_per_step = ranks x micro_batch_prompts x a whole number",
        )


def _check_dense(config: RunConfig) -> None:
    if config.method == "moe_grpo":
        raise ConfigError(
            "MoE-GRPO trains a router, and this model has none",
            got="a model without experts",
            remedy="upcycle it first: python tools/upcycle_checkpoint.py",
        )
    if config.parallel.expert > 1:
        raise ConfigError(
            "expert parallelism needs experts",
            got=f"a model without experts and parallel.expert={config.parallel.expert}",
            remedy="pass --set parallel.expert=1",
        )


def _check_experts(config: RunConfig, num_experts: int, num_active: int) -> None:
    if num_experts % config.parallel.expert:
        divisors = [size for size in range(1, num_experts + 1) if num_experts % size == 0]
        raise ConfigError(
            "the experts cannot be divided over the expert-parallel ranks",
            got=f"{num_experts} experts, parallel.expert={config.parallel.expert}",
            expected=f"parallel.expert one of {', '.join(map(str, divisors))}",
        )
    routing = config.routing
    num_open = num_experts - int(routing.guidance_fraction * num_experts + 1e-9)
    if routing.guidance == "modality" and num_open < num_active:
        raise ConfigError(
            "the guidance leaves fewer experts open than each token uses",
            got=f"{num_open} of {num_experts} experts open at routing.guidance_fraction={routing.guidance_fraction}, "
            f"K={num_active}",
            expected=f"routing.guidance_fraction <= {1 - num_active / num_experts:.3g}",
        )
    if routing.likelihood == "set" and num_active > 4:
        raise ConfigError(
            "the likelihood of an unordered set sums over K! orders",
            got=f"K={num_active}",
            expected="K <= 4",
            remedy="use routing.likelihood=plackett_luce",
        )
