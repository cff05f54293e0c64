"""The one typed tree of settings.  Frozen, strict, importable without torch.

Each field's docstring gives its meaning, unit and the paper's value.  `load.py` reads it from YAML,
`checks.py` holds the rules that span several fields.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Guidance = Literal["none", "noise", "multinomial", "modality"]
Likelihood = Literal["plackett_luce", "set", "product"]


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


class RolloutConfig(Section):
    """How groups of answers are made."""

    group_size: int = Field(8, gt=0)
    """G, rollouts a prompt (paper 8)."""
    max_new_tokens: int = Field(2, gt=0)
    """Longest response in tokens, end-of-turn token included."""
    token_temperature: float = Field(0.0, ge=0)
    """0: greedy tokens, all randomness in the experts (the paper's setting); 1: sampled tokens (GRPO-D)."""
    prompts_per_forward: int = Field(32, gt=0)
    """Prompts decoded together on one data-parallel rank (times group_size sequences)."""


class LossConfig(Section):
    """Terms of the objective.  MoE-GRPO Eq. 4-6."""

    token_coefficient: float = Field(1.0, ge=0)
    """Weight of Token-GRPO (M Table 4: 0 switches it off)."""
    gate_coefficient: float = Field(1.0, ge=0)
    """Weight of Gate-GRPO (M Table 4: 0 switches it off)."""
    clip_epsilon: float = Field(0.2, gt=0, lt=1)
    """Half-width of the trust region of both ratios."""
    gate_tokens: Literal["response", "all"] = "response"
    """Positions whose selections Gate-GRPO trains: those that produced the response, or every position."""
    load_balancing_coefficient: float = Field(0.01, ge=0)
    """Weight of the Switch load-balancing loss."""
    load_balancing_counts: Literal["sampled", "top_k"] = "sampled"
    """Experts that the balancing loss counts: those used, or the deterministic top-K (what Megatron-Core counts)."""


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


class LoggingConfig(Section):
    """Where the numbers go besides metrics.jsonl."""

    wandb: Literal["online", "offline", "disabled"] = "offline"
    """Weights & Biases mode; `offline` needs no network and no account."""
    wandb_project: str = "megatron_moe_grpo"
    """Weights & Biases project."""
    examples: int = Field(10, ge=0)
    """Example rollouts kept for the report at each evaluation."""


class RunConfig(Section):
    """One training run."""

    name: str
    """Folder under `output_dir`."""
    method: Literal["sft", "moe_grpo"]
    """`sft`: supervised on the right answer (M Table 1's baselines by `routing.guidance`); `moe_grpo`: the paper."""
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
    optimizer: OptimizerConfig = OptimizerConfig()
    parallel: ParallelConfig = ParallelConfig()
    logging: LoggingConfig = LoggingConfig()
