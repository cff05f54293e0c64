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
    if training.keep_best and (config.data.evaluation is None or training.evaluate_every == 0):
        raise ConfigError(
            "the best checkpoints are those with the highest held-out accuracy, and nothing measures it",
            got=f"training.keep_best={training.keep_best}, data.evaluation={config.data.evaluation}, "
            f"training.evaluate_every={training.evaluate_every}",
            remedy="pass --set data.evaluation=... and --set training.evaluate_every equal to training.save_every",
        )
    profiled = config.logging.profile_steps
    if profiled is not None and not 1 <= profiled[0] <= profiled[1] <= training.steps:
        raise ConfigError(
            "these steps cannot be profiled",
            got=f"logging.profile_steps={list(profiled)}, training.steps={training.steps}",
            expected="[first, last], counted from 1, both steps of the run",
        )
    if config.method != "sft":
        _check_rollouts(config)
        _check_objective(config)
    if sizes.num_experts is None:
        _check_dense(config)
    else:
        _check_experts(config, sizes.num_experts, sizes.num_active)
        _check_expert_copies(config)
        _check_selection(config)
        _check_assignment(config)


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


def _check_rollouts(config: RunConfig) -> None:
    rollout = config.rollout
    is_greedy = rollout.token_temperature == 0
    if is_greedy and (config.method == "grpo" or config.routing.guidance == "none"):
        raise ConfigError(
            "all rollouts of a prompt would be the same: neither tokens nor experts are sampled",
            got=f"method={config.method}, routing.guidance={config.routing.guidance}, rollout.token_temperature=0",
            remedy="sample tokens with --set rollout.token_temperature=1, or experts with method=moe_grpo and a "
            "routing.guidance",
        )
    if is_greedy and rollout.token_top_p < 1:
        raise ConfigError(
            "greedy tokens are the likeliest ones, whatever the nucleus",
            got=f"rollout.token_top_p={rollout.token_top_p}, rollout.token_temperature=0",
            remedy="pass --set rollout.token_top_p=1, or sample with --set rollout.token_temperature=1",
        )
    if rollout.extra_rounds > 0 and rollout.group_size == 1:
        raise ConfigError(
            "a group of one never has a signal, so dynamic sampling would replace all of them",
            got=f"rollout.extra_rounds={rollout.extra_rounds}, rollout.group_size=1",
            remedy="pass --set rollout.extra_rounds=0, or a larger rollout.group_size",
        )
    if rollout.overlong_tokens >= rollout.max_new_tokens:
        raise ConfigError(
            "the punishment of long responses would reach responses of any length",
            got=f"rollout.overlong_tokens={rollout.overlong_tokens}, rollout.max_new_tokens={rollout.max_new_tokens}",
            expected="rollout.overlong_tokens < rollout.max_new_tokens",
        )


def _check_objective(config: RunConfig) -> None:
    losses, kl = config.losses, config.kl
    low, high = losses.clip_epsilon, losses.clip_epsilon_high
    if high is not None and losses.rl_method == "sapo":
        raise ConfigError(
            "SAPO has a soft gate and no clip",
            got=f"losses.rl_method=sapo, losses.clip_epsilon_high={high}",
            remedy="leave losses.clip_epsilon_high out; losses.sapo_temperature_positive and _negative shape the gate",
        )
    if high is not None and high < low and losses.rl_method != "cispo":
        raise ConfigError(
            "the trust region reaches less far up than down",
            got=f"losses.clip_epsilon={low}, losses.clip_epsilon_high={high}",
            expected="losses.clip_epsilon <= losses.clip_epsilon_high",
            remedy="give both widths: with clip_epsilon_high set, clip_epsilon is the lower one",
        )
    if kl.schedule == "dynamic" and kl.beta_min > kl.beta_max:
        raise ConfigError(
            "GRPO-D's KL weight falls to beta_min and rises to beta_max",
            got=f"kl.beta_min={kl.beta_min}, kl.beta_max={kl.beta_max}",
            expected="kl.beta_min <= kl.beta_max",
        )
    if kl.schedule == "adaptive" and kl.beta == 0:
        raise ConfigError(
            "an adaptive KL weight changes by factors, and never leaves 0",
            got="kl.schedule=adaptive, kl.beta=0",
            expected="kl.beta > 0",
        )


def _check_dense(config: RunConfig) -> None:
    if config.method == "moe_grpo":
        raise ConfigError(
            "MoE-GRPO trains a router, and this model has none",
            got="a model without experts",
            remedy="upcycle it first: python tools/upcycle_checkpoint.py",
        )
    if config.routing.assignment != "policy" or config.losses.router_z_coefficient > 0:
        raise ConfigError(
            "assigning experts, and the router's z-loss, need a router, and this model has none",
            got=f"routing.assignment={config.routing.assignment}, "
            f"losses.router_z_coefficient={config.losses.router_z_coefficient}",
            remedy="pass --set routing.assignment=policy --set losses.router_z_coefficient=0, or upcycle the model",
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


def _check_expert_copies(config: RunConfig) -> None:
    """Without expert parallelism Megatron (0.16.1, `allreduce` of expert weights) sums their gradients with the dense
    ones', over data-parallel ranks; experts cut otherwise than the rest have copies on tensor-parallel ranks too."""
    parallel = config.parallel
    if parallel.expert == 1 and parallel.expert_tensor not in (None, parallel.tensor):
        raise ConfigError(
            "without expert parallelism, experts must be as tensor-parallel as the rest: gradients of the copies on "
            "tensor-parallel ranks would not be summed",
            got=f"parallel.expert=1, parallel.expert_tensor={parallel.expert_tensor}, "
            f"parallel.tensor={parallel.tensor}",
            remedy="leave parallel.expert_tensor out, or pass a parallel.expert above 1",
        )


def _check_selection(config: RunConfig) -> None:
    """What may be random about the experts, by method."""
    routing, gate_coefficient = config.routing, config.losses.gate_coefficient
    got = f"method={config.method}, routing.guidance={routing.guidance}, losses.gate_coefficient={gate_coefficient}"
    if config.method == "grpo" and (routing.guidance != "none" or gate_coefficient > 0):
        raise ConfigError(
            "method grpo trains tokens under top-K experts: none are sampled, and selections have no loss",
            got=got,
            remedy="pass --set routing.guidance=none --set losses.gate_coefficient=0, or --set method=moe_grpo",
        )
    if config.method == "moe_grpo" and routing.guidance == "none" and gate_coefficient > 0:
        raise ConfigError(
            "Gate-GRPO weighs selections by how likely they were, and top-K experts are certain",
            got=got,
            remedy="pass --set losses.gate_coefficient=0, or sample experts with another routing.guidance",
        )


def _check_assignment(config: RunConfig) -> None:
    """Expert Choice and Sinkhorn, which look at all tokens of a micro-batch."""
    assignment = config.routing.assignment
    if assignment == "policy":
        return
    if config.method != "sft":
        raise ConfigError(
            f"{assignment} cannot be trained by reinforcement: a token's experts depend on the other tokens of the "
            "batch, so they have no likelihood, and replaying them is not the policy that made them",
            got=f"method={config.method}, routing.assignment={assignment}",
            remedy="pass --set method=sft, or --set routing.assignment=policy",
        )
    if config.routing.guidance != "none":
        raise ConfigError(
            f"under {assignment} tokens do not choose, so nothing is sampled or masked",
            got=f"routing.assignment={assignment}, routing.guidance={config.routing.guidance}",
            remedy="pass --set routing.guidance=none",
        )
    if config.parallel.tensor > 1:
        raise ConfigError(
            f"{assignment} needs all positions of a sequence, and tensor parallelism splits them over ranks",
            got=f"routing.assignment={assignment}, parallel.tensor={config.parallel.tensor}",
            remedy="pass --set parallel.tensor=1",
        )
