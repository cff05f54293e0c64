"""The curves of the run report: which keys of metrics.jsonl, under which words and units."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Curve:
    """One chart; `keys` maps keys of metrics.jsonl to the words of the legend."""

    title: str
    caption: str
    y_label: str
    keys: dict[str, str]
    controls: frozenset[str] = field(default_factory=frozenset)
    is_log: bool = False
    is_share: bool = False


@dataclass(frozen=True)
class CurveSection:
    """Charts under one heading."""

    title: str
    text: str
    curves: tuple[Curve, ...]


LEARNING = CurveSection(
    "Does it learn",
    "",
    (
        Curve(
            "Reward, mean",
            "Mean over the step's rollouts (MoE-GRPO Fig. 3a).",
            "reward",
            {"reward_mean": "mean reward"},
        ),
        Curve(
            "Reward, its parts",
            "Accuracy and, before its coefficient, format (OThink-MR1 Fig. 5).",
            "share of responses",
            {"reward_accuracy_mean": "accuracy", "reward_format_mean": "format"},
            is_share=True,
        ),
        Curve(
            "Reward, standard deviation",
            "Within a group, mean over groups (MoE-GRPO Fig. 3b).",
            "reward",
            {"reward_std": "standard deviation"},
        ),
        Curve(
            "Held-out accuracy",
            "Greedy tokens and top-K experts; dashed: the same model shown blank images.",
            "share of right answers",
            {"eval_accuracy": "with images", "eval_blank_accuracy": "blank images"},
            controls=frozenset({"eval_blank_accuracy"}),
            is_share=True,
        ),
        Curve(
            "Held-out accuracy by problem type",
            "The same evaluations, apart.",
            "share of right answers",
            {"eval_accuracy_by_type": "accuracy"},
            is_share=True,
        ),
        Curve(
            "Answer accuracy in training",
            "Supervised runs: share of answers that the model ranks first.",
            "share of right answers",
            {"answer_accuracy": "training rows"},
            is_share=True,
        ),
    ),
)
SIGNAL = CurveSection(
    "Is the signal sound",
    "",
    (
        Curve(
            "Groups without signal",
            "Share of groups whose rewards are all equal: they teach nothing.",
            "share of groups",
            {"groups_without_signal": "no signal"},
            is_share=True,
        ),
        Curve(
            "Rollout against replay",
            "Largest gap between recorded and replayed log-probabilities on unchanged weights: rounding only.",
            "gap (nats)",
            {"rollout_train_logprob_gap": "tokens", "rollout_train_selection_logprob_gap": "expert selections"},
            is_log=True,
        ),
        Curve(
            "Clipped ratios",
            "Share of ratios outside the trust region.",
            "share of ratios",
            {"token_clip_fraction": "tokens", "gate_clip_fraction": "expert selections"},
        ),
        Curve(
            "Response length",
            "Mean over rollouts, end of turn included.",
            "tokens",
            {"response_tokens_mean": "response"},
        ),
    ),
)
OPTIMISATION = CurveSection(
    "Optimisation",
    "",
    (
        Curve(
            "Losses",
            "The total adds load balancing, times its coefficient.",
            "loss",
            {"loss": "total", "token_loss": "Token-GRPO", "gate_loss": "Gate-GRPO"},
        ),
        Curve(
            "Losses of the router",
            "Means over layers, before their coefficients; load balancing of 1 is even use.",
            "loss",
            {"load_balancing_loss": "load balancing", "router_z_loss": "router z-loss"},
        ),
        Curve(
            "Distance to the start",
            "KL to the reference policy, mean over response tokens (OThink-MR1 Eq. 5).",
            "KL (nats a token)",
            {"kl_mean": "KL"},
        ),
        Curve("KL weight", "beta(s) (OThink-MR1 Eq. 3).", "beta", {"kl_beta": "beta"}),
        Curve("Gradient norm", "Global, before clipping.", "L2 norm", {"grad_norm": "gradient"}),
        Curve("Learning rate", "Of the main parameter group.", "learning rate", {"learning_rate": "learning rate"}),
    ),
)
EXPERTS = CurveSection(
    "How evenly experts are used",
    "",
    (
        Curve(
            "Router entropy",
            "Mean entropy of single tokens' router probabilities.",
            "entropy (nats)",
            {"router_entropy_nats": "router"},
        ),
        Curve(
            "Utilisation entropy",
            "Entropy of the expert shares over all held-out tokens, mean over layers "
            "(MoE-GRPO Fig. 4); ln 8 = 2.08 would be even use of 8.",
            "entropy (nats)",
            {"eval_utilisation_entropy_nats": "utilisation"},
        ),
        Curve(
            "Busiest expert",
            "Load of the busiest expert over the mean load; 1 is even.",
            "ratio",
            {"expert_load_max_over_mean": "busiest / mean"},
        ),
    ),
)
SECTIONS = (LEARNING, SIGNAL, OPTIMISATION, EXPERTS)
