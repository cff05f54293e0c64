"""The one typed tree of settings.  Frozen, strict, importable without torch.

Each field's docstring gives its meaning, unit and the paper's value.  `load.py` reads it from YAML,
`checks.py` holds the rules that span several fields.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Guidance = Literal["none", "noise", "multinomial", "modality"]
Likelihood = Literal["plackett_luce", "set", "product"]
RlMethod = Literal["grpo", "dr_grpo", "dapo", "gspo", "sapo", "cispo"]
KlEstimator = Literal["k1", "k2", "k3"]
DataFormat = Literal["auto", "jsonl", "parquet", "tsv", "saved_dataset"]


class Section(BaseModel):
    """A node of the tree: no unknown keys, no change after loading, docstrings become field descriptions."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ModelConfig(Section):
    """Where the weights, the architecture and the tokenizer come from."""

    checkpoint: str
    """Megatron checkpoint folder to start from (`import` makes one from a Hugging Face folder)."""
    freeze: tuple[str, ...] = ()
    """Parts that get no gradient: `vision_tower`, `projector`, `language_model` (all of it but the routers), `router`.
    To train nothing but the routing: `[vision_tower, projector, language_model]`."""


class DataConfig(Section):
    """Rows, images, and what happens to the bad ones."""

    train: str
    """JSONL file of training rows (id, image or images, video or videos, problem, options, solution, problem_type)."""
    evaluation: str | None = None
    """JSONL file of held-out rows; None: never evaluate during training."""
    image_root: str | None = None
    """Folder that relative image paths start from; None: the folder of the JSONL file."""
    on_bad_row: Literal["error", "skip"] = "error"
    """`error` stops at the first bad row and names it; `skip` counts and lists them all in the run folder."""
    max_prompt_tokens: int = Field(512, gt=0)
    """Longest prompt, image tokens included; a longer one is a bad row, never truncated."""
    video_frames: int = Field(8, gt=0, le=64)
    """Frames of a video that the model sees, at most, taken evenly over the clip (paper 8)."""
    format: DataFormat = "auto"
    """Layout of the data files; `auto` tells it from the file's name and columns."""
    prompt_template: str = "plain"
    """A name in data/prompt_templates.py, or a text that holds `{question}` once."""
    answer_template: str = "{solution}"
    """What supervised training teaches as the answer; may hold `{solution}`, `{rationale}` and `{option}`."""


class RoutingConfig(Section):
    """Expert selection as a policy.  MoE-GRPO 3.2-3.3."""

    guidance: Guidance = "modality"
    """Train-time selection (M Table 5): `none` deterministic top-K; `noise` Gaussian noise, then top-K;
    `multinomial` K experts sampled without replacement; `modality` the same under the modality mask."""
    guidance_fraction: float = Field(0.25, ge=0, lt=1)
    """P: share of experts closed to each modality (paper 25 %: 2 of 8); at least K always stay open."""
    guidance_decay: float = Field(0.95, ge=0, lt=1)
    """Kept share of the running modality counts per step (0: only the last step counts)."""
    guidance_at_inference: bool = False
    """Keep the mask for deterministic top-K too (the paper does not say; off)."""
    noise_std: float = Field(1.0, gt=0)
    """Standard deviation of the Gaussian noise on the logits, for `guidance: noise`."""
    temperature: float = Field(1.0, gt=0)
    """Divides the logits before sampling and in the selection's likelihood; combination weights stay untouched."""
    explore: Literal["all", "response"] = "all"
    """Positions whose experts are sampled; `response` routes the prompt by top-K, the last prompt token included
    in `response` because it produces the first answer token."""
    likelihood: Likelihood = "plackett_luce"
    """Law of a selection in Gate-GRPO (METHOD 2)."""
    assignment: Literal["policy", "expert_choice", "sinkhorn"] = "policy"
    """Who assigns experts in training (M Table 7): each token by `guidance`; or, in supervised training only, the
    experts themselves (Expert Choice), or optimal transport over the micro-batch (Sinkhorn)."""
    sinkhorn_iterations: int = Field(8, gt=0)
    """Rounds of row and column normalisation, for `assignment: sinkhorn`."""


class RolloutConfig(Section):
    """How groups of answers are made."""

    group_size: int = Field(8, gt=0)
    """G, rollouts a prompt (paper 8)."""
    max_new_tokens: int = Field(2, gt=0)
    """Longest response in tokens, end-of-turn token included."""
    token_temperature: float = Field(0.0, ge=0)
    """0: greedy tokens, all randomness in the experts (the paper's setting); 1: sampled tokens (GRPO-D)."""
    token_top_p: float = Field(1.0, gt=0, le=1)
    """Sample from the fewest tokens that together have this probability; 1: from all of them."""
    extra_rounds: int = Field(0, ge=0)
    """DAPO's dynamic sampling: rounds of fresh prompts that may replace groups whose rewards are all equal."""
    overlong_tokens: int = Field(0, ge=0)
    """DAPO's soft overlong punishment: over the last so many tokens before max_new_tokens the reward falls by up to 1;
    0: no punishment."""
    prompts_per_forward: int = Field(32, gt=0)
    """Prompts decoded together on one data-parallel rank (times group_size sequences)."""


class LossConfig(Section):
    """Terms of the objective.  MoE-GRPO Eq. 4-6."""

    rl_method: RlMethod = "grpo"
    """Surrogate, advantage and averaging (M Table 6): one file each in losses/."""
    token_coefficient: float = Field(1.0, ge=0)
    """Weight of Token-GRPO (M Table 4: 0 switches it off)."""
    gate_coefficient: float = Field(1.0, ge=0)
    """Weight of Gate-GRPO (M Table 4: 0 switches it off)."""
    clip_epsilon: float = Field(0.2, gt=0, lt=1)
    """Half-width of the trust region of both ratios (its lower one where `clip_epsilon_high` is given)."""
    clip_epsilon_high: float | None = Field(None, gt=0)
    """Upper half-width; None: the method's own (DAPO 0.28, GSPO 4e-4 above 3e-4 below, the others clip_epsilon)."""
    sapo_temperature_positive: float = Field(1.0, gt=0)
    """SAPO's gate where the advantage is positive."""
    sapo_temperature_negative: float = Field(1.05, gt=0)
    """SAPO's gate where it is negative: steeper, so that such tokens are let go sooner."""
    gate_tokens: Literal["response", "all"] = "response"
    """Positions whose selections Gate-GRPO trains: those that produced the response, or every position."""
    load_balancing_coefficient: float = Field(0.01, ge=0)
    """Weight of the Switch load-balancing loss."""
    load_balancing_counts: Literal["sampled", "top_k"] = "sampled"
    """Experts that the balancing loss counts: those used, or the deterministic top-K (what Megatron-Core counts)."""
    router_z_coefficient: float = Field(0.0, ge=0)
    """Weight of the router z-loss (ST-MoE): mean squared logsumexp of the router's logits."""


class KlConfig(Section):
    """Distance to the start of training, and its weight over the steps: GRPO-D.  OThink-MR1 Eq. 1-5."""

    schedule: Literal["none", "constant", "dynamic", "linear", "cosine", "adaptive"] = "none"
    """`none` builds no reference model; `constant` is GRPO; `dynamic` is GRPO-D: down, then up."""
    estimator: KlEstimator = "k3"
    """Per-token estimator (OThink-MR1 Eq. 5 is k3)."""
    beta: float = Field(0.04, ge=0)
    """Weight of `constant`; first weight of `adaptive`."""
    beta_min: float = Field(0.04, ge=0)
    """Lowest weight of `dynamic` (paper 0.04 counting, 0.0 geometry); last one of `linear` and `cosine`."""
    beta_max: float = Field(0.1, ge=0)
    """Last weight of `dynamic` (paper 0.1 counting, 0.02 geometry); first one of `linear` and `cosine`."""
    exploration_fraction: float = Field(0.3, gt=0, lt=1)
    """w/t: share of the steps in which `dynamic` falls (paper 0.3)."""
    target_nats: float = Field(0.02, gt=0)
    """KL a token that `adaptive` steers to."""
    adaptation: float = Field(0.1, gt=0, lt=1)
    """Largest relative change of `adaptive`'s weight in one step."""


class RewardConfig(Section):
    """What a response earns: accuracy + format_coefficient * format.  OThink-MR1 3.2."""

    by_problem_type: dict[str, str] = {}
    """problem_type -> name of an accuracy reward, or `python FILE:FUNCTION`; others get the default of their type."""
    extraction: Literal["strict", "official"] = "strict"
    """How an answer is read out of a response: forms on a list, or leniently as the benchmarks' own scripts do."""
    format_coefficient: float = Field(0.0, ge=0)
    """alpha: weight of answering as <think>..</think><answer>..</answer> (OThink-MR1 1; MoE-GRPO has none)."""
    number_tolerance: float = Field(1e-2, ge=0)
    """Relative error allowed for numbers with a decimal point; whole numbers must be exact."""
    math_timeout_s: float = Field(2.0, gt=0)
    """Longest comparison of two symbolic answers; beyond it the answer is wrong."""


class OptimizerConfig(Section):
    """AdamW and its learning-rate schedule, both Megatron's."""

    learning_rate: float = Field(1e-6, gt=0)
    """Peak learning rate (paper 1e-6 on the full model; the demo's small model takes 3e-4)."""
    min_learning_rate: float = Field(0.0, ge=0)
    """Learning rate at the last step."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape of the decay (paper: cosine)."""
    warmup_steps: int = Field(0, ge=0)
    """Steps of linear warm-up from 0."""
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    """Decay of the first moment."""
    adam_beta2: float = Field(0.98, ge=0, lt=1)
    """Decay of the second moment."""
    adam_epsilon: float = Field(1e-8, gt=0)
    """Added to the root of the second moment."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay, on matrices only."""
    clip_grad_norm: float = Field(1.0, gt=0)
    """Largest global gradient norm."""


class ParallelConfig(Section):
    """Megatron's axes; data parallelism is what is left of the world size."""

    tensor: int = Field(1, gt=0)
    """Tensor-parallel size; sequence parallelism is on whenever it is above 1."""
    pipeline: int = Field(1, gt=0)
    """Pipeline-parallel size."""
    expert: int = Field(1, gt=0)
    """Expert-parallel size; must divide the number of experts."""
    expert_tensor: int | None = Field(None, gt=0)
    """Tensor-parallel size inside an expert; None: the same as `tensor`."""
    recompute: Literal["none", "full", "moe"] = "none"
    """Activations recomputed in the backward pass: none, whole layers, or the MoE part of each layer."""


class TrainingConfig(Section):
    """How long, how much at once, how often."""

    steps: int = Field(gt=0)
    """Optimizer steps for `sft`; rollout steps for `moe_grpo` (paper 25,000)."""
    prompts_per_step: int = Field(32, gt=0)
    """Prompts a step over all ranks (paper 4; rows for `sft`)."""
    micro_batch_prompts: int = Field(16, gt=0)
    """Prompts a micro-batch on one rank, each with its whole group."""
    updates_per_rollout: int = Field(1, gt=0)
    """Optimizer steps on each batch of rollouts."""
    evaluate_every: int = Field(0, ge=0)
    """Steps between evaluations; 0: only before the first and after the last step."""
    save_every: int = Field(50, gt=0)
    """Steps between checkpoints; the last step is always saved."""
    keep_checkpoints: int = Field(2, gt=0)
    """Newest checkpoints kept."""
    keep_best: int = Field(0, ge=0)
    """Checkpoints kept besides those, the best by held-out accuracy."""
    async_save: bool = False
    """Write checkpoints in a process beside training: a save then costs the time of a copy in memory."""


class StabilityConfig(Section):
    """What a run does when a number, a process or a signal goes wrong."""

    max_skipped_updates: int = Field(10, gt=0)
    """Updates skipped in a row after which the run stops, with the batch saved for inspection."""
    spike_sigmas: float = Field(6.0, ge=0)
    """An update whose loss or gradient norm is so many standard deviations above the mean of the last
    `spike_window_steps` is skipped; 0: never. NaN and infinity always are."""
    spike_window_steps: int = Field(128, gt=1)
    """Updates that mean and standard deviation are taken of; nothing counts as a spike before there are so many."""
    hang_timeout_s: float = Field(1800.0, gt=0)
    """A run in which no process has moved on for so long is ended, with the stacks of its processes."""


class LoggingConfig(Section):
    """Where the numbers go besides metrics.jsonl."""

    wandb: Literal["online", "offline", "disabled"] = "offline"
    """Weights & Biases mode; `offline` needs no network and no account."""
    wandb_project: str = "megatron_moe_grpo"
    """Weights & Biases project."""
    examples: int = Field(10, ge=0)
    """Prompts whose rollouts are kept at each evaluation, for the report and the loggers."""
    samples_every: int = Field(0, ge=0)
    """Keep them every so many steps too; 0: at evaluations only."""
    tensorboard: bool = False
    """Also write TensorBoard event files into the run folder."""
    profile_steps: tuple[int, int] | None = None
    """First and last step, counted from 1, that `torch.profiler` records on the main process; None: none."""


class RunConfig(Section):
    """One training run."""

    name: str
    """Folder under `output_dir`."""
    method: Literal["sft", "moe_grpo", "grpo"]
    """`sft`: supervised on the right answer (M Table 1's baselines by `routing.guidance`); `moe_grpo`: expert selection
    as a policy; `grpo`: tokens only, on a dense model or with experts by top-K (GRPO-D with `kl.schedule: dynamic`)."""
    model: ModelConfig
    data: DataConfig
    training: TrainingConfig
    output_dir: str = "runs"
    """Parent of the run folder."""
    seed: int = Field(0, ge=0)
    """Seeds data order and sampling; results do not depend on the parallel layout."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Type of weights and activations; router logits, log-probs and losses are always fp32."""
    routing: RoutingConfig = RoutingConfig()
    rollout: RolloutConfig = RolloutConfig()
    losses: LossConfig = LossConfig()
    kl: KlConfig = KlConfig()
    reward: RewardConfig = RewardConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    parallel: ParallelConfig = ParallelConfig()
    stability: StabilityConfig = StabilityConfig()
    logging: LoggingConfig = LoggingConfig()
