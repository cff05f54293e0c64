"""The charts of an analysis, drawn from the values of analysis.json alone."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from megatron_moe_grpo.evaluation.report_charts import HeatMap, HeatMapChart, LineChart, Series

Values = Mapping[str, Any]


@dataclass(frozen=True)
class ChartGroup:
    """Charts under one heading; each by the name of its picture's file."""

    title: str
    text: str
    charts: dict[str, LineChart | HeatMapChart]


def chart_groups(analysis: Values) -> list[ChartGroup]:
    """What there are values for, in the order of reading."""
    parts: list[tuple[str, Callable[[Values], ChartGroup]]] = [
        ("regret", _regret),
        ("utilisation", _utilisation),
        ("tasks", _tasks),
        ("modality", _modality),
        ("agreement", _agreement),
        ("rewards", _rewards),
    ]
    return [make(analysis[name]) for name, make in parts if name in analysis]


def example_chart(example: Values) -> HeatMapChart | None:
    """Routing probabilities of every layer for one example.  MoE-GRPO Fig. 6.  None for a dense model."""
    routing = example["routing"]
    if routing is None:
        return None
    names = {"answer": "the token that answers", "vision": "vision tokens, mean", "text": "text tokens, mean"}
    maps = []
    for part, name in names.items():
        if routing[part] is not None:
            marked = [(layer, n) for layer, experts in enumerate(routing[part]["experts_LK"]) for n in experts]
            maps.append(HeatMap(name, routing[part]["probs_LN"], marked))
    return HeatMapChart(
        "Routing probabilities",
        "Softmax of the router's logits, in per cent (MoE-GRPO Fig. 6). Framed: the experts that were chosen; of the "
        "means, those chosen most often.",
        maps,
        "MoE layer",
        _layers(maps[0].values),
        value_name="probability",
    )


def _regret(regret: Values) -> ChartGroup:
    counts = list(range(1, regret["num_routes"] + 1))
    by_task = [Series(task, counts, values["best_of_by_routes"]) for task, values in regret["by_task"].items()]
    overall = Series("all", counts, regret["best_of_by_routes"])
    top_k = Series("top-K route", counts, [regret["top_k"]] * len(counts), is_control=True)
    caption = (
        "Share of questions that at least one of so many sampled routes answers, greedy tokens throughout. Dashed: the "
        "deterministic top-K route. The best route is chosen knowing the answer, so part of the rise is luck."
    )
    chart = LineChart(
        "Best of several routes", caption, "share of right answers", [overall, top_k], is_share=True, x_label="routes"
    )
    charts: dict[str, LineChart | HeatMapChart] = {"best_of_routes": chart}
    if len(by_task) > 1:
        charts["best_of_routes_by_task"] = LineChart(
            "The same by task", "One line a task.", "share of right answers", by_task, is_share=True, x_label="routes"
        )
    return ChartGroup("What other routes would answer", "", charts)


def _utilisation(utilisation: Values) -> ChartGroup:
    shares_LN = utilisation["share_LN"]
    layers = list(range(len(shares_LN)))
    even = [utilisation["even_entropy_nats"]] * len(layers)
    return ChartGroup(
        "How evenly experts are used",
        "Deterministic top-K selections of all vision and text tokens.",
        {
            "utilisation": HeatMapChart(
                "Token-level expert utilisation",
                "Share of each layer's selections, in per cent (MoE-GRPO Fig. 4). Rows add up to 100.",
                [HeatMap("all tokens", shares_LN)],
                "MoE layer",
                _layers(shares_LN),
            ),
            "utilisation_entropy": LineChart(
                "Utilisation entropy by layer",
                "Entropy of each row of the map; dashed: even use of all experts.",
                "entropy (nats)",
                [
                    Series("utilisation", layers, utilisation["entropy_by_layer_nats"]),
                    Series("even use", layers, even, is_control=True),
                ],
                x_label="MoE layer",
            ),
        },
    )


def _tasks(tasks: Values) -> ChartGroup:
    names = list(tasks["share_LN"])
    last_layer = [tasks["share_LN"][name][-1] for name in names]
    mean = [tasks["mean_share_N"][name] for name in names]
    divergence = tasks["divergence_by_layer_nats"]
    return ChartGroup(
        "How tasks differ",
        "",
        {
            "expert_ratio_by_task": HeatMapChart(
                "Expert ratio by task",
                "Share of selections, in per cent (MoE-GRPO Fig. 5): mean over layers, and the last layer alone, "
                "because equal numbers name different experts in different layers.",
                [HeatMap("mean over layers", mean), HeatMap("last layer", last_layer)],
                "task",
                names,
            ),
            "task_divergence": LineChart(
                "Jensen-Shannon divergence by layer",
                "Between the tasks' expert shares, mean over pairs of tasks; 0 alike, 0.693 disjoint.",
                "divergence (nats)",
                [Series("divergence", list(range(len(divergence))), divergence)],
                x_label="MoE layer",
            ),
        },
    )


def _modality(modality: Values) -> ChartGroup:
    parts = {"analysed rows": modality["rows"], "training": modality["training"]}
    present = {name: values for name, values in parts.items() if values is not None}
    scores = [HeatMap(name, values["vision_score_LN"]) for name, values in present.items()]
    labels = _layers(scores[0].values)
    masks = [
        HeatMap(f"{name}: {modality_name}", [[float(is_open) for is_open in row] for row in values[key]])
        for name, values in present.items()
        for modality_name, key in (("vision", "is_open_to_vision_LN"), ("text", "is_open_to_text_LN"))
    ]
    return ChartGroup(
        "Which experts see and which read",
        "Counted on the analysed rows and, where the checkpoint holds them, the running counts that guide training.",
        {
            "modality_scores": HeatMapChart(
                "Modality-awareness score",
                "Vision's share of an expert's use, in per cent, each modality's selections counted as one whole "
                "(MoE-GRPO Eq. 7): 100 vision only, 0 text only, 50 both alike.",
                scores,
                "MoE layer",
                labels,
                value_name="vision score",
                is_two_sided=True,
            ),
            "guidance_masks": HeatMapChart(
                "Guidance mask",
                "Dark: open to sampling; light: closed, the experts of the modality's lowest scores "
                f"(P = {100 * modality['rows']['fraction']:g} %). A mask of the rows is what guidance would do now.",
                masks,
                "MoE layer",
                labels,
                value_name="open",
                has_numbers=False,
            ),
        },
    )


def _agreement(agreement: Values) -> ChartGroup:
    layers = list(range(len(agreement["by_layer"])))
    series = [Series("all tokens", layers, agreement["by_layer"])]
    for name, key in (("vision", "vision_by_layer"), ("text", "text_by_layer")):
        if agreement[key] is not None:
            series.append(Series(name, layers, agreement[key]))
    series.append(Series("chance", layers, [agreement["chance"]] * len(layers), is_control=True))
    caption = (
        "Share of a token's sampled experts that the top-K of the same logits would have taken; dashed: experts drawn "
        "blindly (K / N). Below it, guidance closes experts that top-K prefers."
    )
    chart = LineChart(
        "Agreement of sampled and top-K routing",
        caption,
        "share of experts",
        series,
        is_share=True,
        x_label="MoE layer",
    )
    return ChartGroup("How far sampling strays", "", {"agreement": chart})


def _rewards(rewards: Values) -> ChartGroup:
    def curve(title: str, caption: str, key: str) -> LineChart:
        return LineChart(title, caption, "reward", [Series(key, rewards["steps"], rewards[key])])

    return ChartGroup(
        "Reward over the run",
        "",
        {
            "reward_mean": curve("Reward, mean", "Mean over the step's rollouts (MoE-GRPO Fig. 3a).", "mean"),
            "reward_std": curve(
                "Reward, standard deviation", "Within a group, mean over groups (MoE-GRPO Fig. 3b).", "std"
            ),
        },
    )


def _layers(rows: Any) -> list[str]:
    return [str(layer) for layer in range(len(rows))]
