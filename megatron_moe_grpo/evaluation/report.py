"""report.html of a run folder: curves, expert maps and example rollouts in one file that needs no network."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from megatron_moe_grpo.errors import ConfigError
from megatron_moe_grpo.evaluation.accuracy import wilson_interval
from megatron_moe_grpo.evaluation.expert_analysis import expert_utilisation, mean_jensen_shannon_divergence_nats
from megatron_moe_grpo.evaluation.report_charts import (
    Figure,
    HeatMap,
    HeatMapChart,
    LineChart,
    Series,
    heat_map_figure,
    line_figure,
)
from megatron_moe_grpo.evaluation.report_curves import SECTIONS, Curve, CurveSection
from megatron_moe_grpo.evaluation.report_examples import Example, read_example
from megatron_moe_grpo.evaluation.report_page import Fact, Section, date_text, task_names, write_page
from megatron_moe_grpo.evaluation.run_files import read_json_lines, read_metrics

MAX_EXAMPLES = 40
Metrics = Sequence[Mapping[str, Any]]


def write_report(run_folder: Path) -> Path:
    """Writes `run_folder`/report.html and returns its path; series that the run does not have are listed as left out.

    Raises ConfigError where there is no config.yaml, DataError for a damaged line of metrics.jsonl or samples.jsonl.
    """
    run_folder = Path(run_folder)
    config_text = _read_config(run_folder)
    config = yaml.safe_load(config_text)
    metrics = read_metrics(run_folder)
    missing: list[str] = []
    sections = [_curve_section(section, metrics, missing) for section in SECTIONS]
    sections.append(_expert_section(metrics, missing))
    examples_step, examples = _examples(run_folder, missing)
    return write_page(
        run_folder / "report.html",
        "report.html.j2",
        name=config["name"],
        method=config["method"],
        config=config_text,
        started=date_text((run_folder / "config.yaml").stat().st_mtime),
        facts=_facts(config, metrics, run_folder),
        sections=[section for section in sections if section.figures],
        examples=examples,
        examples_step=examples_step,
        tasks=task_names([example.problem_type for example in examples]),
        missing=missing,
    )


def _curve_section(section: CurveSection, metrics: Metrics, missing: list[str]) -> Section:
    figures = []
    for curve in section.curves:
        series = list(_series(curve, metrics))
        if series:
            figures.append(
                line_figure(LineChart(curve.title, curve.caption, curve.y_label, series, curve.is_log, curve.is_share))
            )
        else:
            missing.append(f"{curve.title}: metrics.jsonl has no {' or '.join(curve.keys)}.")
    return Section(section.title, section.text, figures)


def _series(curve: Curve, metrics: Metrics) -> Iterator[Series]:
    """One line a key, or one a name where the key holds a mapping."""
    for key, label in curve.keys.items():
        lines = [line for line in metrics if key in line]
        names = sorted({name for line in lines if isinstance(line[key], Mapping) for name in line[key]})
        for name in names:
            having = [line for line in lines if name in line[key]]
            yield Series(name, [line["step"] for line in having], [line[key][name] for line in having])
        if lines and not names:
            yield Series(label, [line["step"] for line in lines], [line[key] for line in lines], key in curve.controls)


def _expert_section(metrics: Metrics, missing: list[str]) -> Section:
    figures = []
    evaluations = [line for line in metrics if "eval_expert_counts_LN" in line]
    if evaluations:
        figures.append(_layer_map(evaluations))
    else:
        missing.append("Expert utilisation by layer: metrics.jsonl has no eval_expert_counts_LN.")
    evaluations = [line for line in metrics if len(line.get("eval_expert_counts_by_type", {})) > 1]
    if evaluations:
        figures.extend([_task_map(evaluations), _divergence_curve(evaluations)])
    else:
        missing.append("Experts by problem type: metrics.jsonl has no eval_expert_counts_by_type with two types.")
    return Section(
        "Which experts answer", "Deterministic top-K selections on held-out rows, vision and text tokens.", figures
    )


def _layer_map(evaluations: Metrics) -> Figure:
    maps = [
        HeatMap(f"step {line['step']}", expert_utilisation(line["eval_expert_counts_LN"]).tolist())
        for line in _first_and_last(evaluations)
    ]
    chart = HeatMapChart(
        "Token-level expert utilisation",
        "Share of each layer's selections, first and last evaluation (MoE-GRPO Fig. 4). Rows add up to 100 %.",
        maps,
        "MoE layer",
        [str(layer) for layer in range(len(maps[0].values))],
    )
    return heat_map_figure(chart)


def _task_map(evaluations: Metrics) -> Figure:
    labels = sorted(evaluations[-1]["eval_expert_counts_by_type"])
    maps = []
    for line in _first_and_last(evaluations):
        by_type = line["eval_expert_counts_by_type"]
        # The last layer: the same number names other experts in other layers, so layers cannot be joined in one map.
        shares = [expert_utilisation(by_type[label])[-1].tolist() for label in labels]
        maps.append(HeatMap(f"step {line['step']}", shares))
    chart = HeatMapChart(
        "Expert utilisation by problem type, last layer",
        "Share of the last MoE layer's selections (after MoE-GRPO Fig. 5). Rows add up to 100 %.",
        maps,
        "problem type",
        labels,
    )
    return heat_map_figure(chart)


def _divergence_curve(evaluations: Metrics) -> Figure:
    values = [mean_jensen_shannon_divergence_nats(line["eval_expert_counts_by_type"]) for line in evaluations]
    series = Series("divergence", [line["step"] for line in evaluations], values)
    caption = (
        "Mean Jensen-Shannon divergence between the types' expert shares, over layers and pairs of types "
        "(MoE-GRPO Fig. 5); 0 alike, 0.693 disjoint."
    )
    return line_figure(LineChart("Specialisation by problem type", caption, "divergence (nats)", [series]))


def _first_and_last(evaluations: Metrics) -> Metrics:
    return evaluations if len(evaluations) == 1 else [evaluations[0], evaluations[-1]]


def _examples(run_folder: Path, missing: list[str]) -> tuple[int, list[Example]]:
    samples = list(read_json_lines(run_folder / "samples.jsonl"))
    if not samples:
        missing.append("Example rollouts: samples.jsonl is not there or empty.")
        return 0, []
    last_step = max(sample["step"] for sample in samples)
    chosen = [sample for sample in samples if sample["step"] == last_step][:MAX_EXAMPLES]
    return last_step, [read_example(sample, run_folder) for sample in chosen]


def _facts(config: Mapping[str, Any], metrics: Metrics, run_folder: Path) -> list[Fact]:
    done = metrics[-1]["step"] if metrics else 0
    facts = _accuracy_facts(metrics)
    facts.append(Fact("steps done of planned", f"{done} / {config['training']['steps']}"))
    for key, label in (
        ("eval_blank_accuracy", "accuracy on blank images"),
        ("reward_mean", "mean reward, first to last step"),
        ("groups_without_signal", "groups without signal"),
        ("eval_utilisation_entropy_nats", "expert utilisation entropy (nats)"),
    ):
        values = [f"{line[key]:.2f}" for line in metrics if key in line]
        if values:
            facts.append(Fact(label, _first_to_last(values)))
    num_bad_rows = sum(1 for _ in read_json_lines(run_folder / "bad_rows.jsonl"))
    return [*facts, Fact("rows skipped as bad", str(num_bad_rows))] if num_bad_rows else facts


def _accuracy_facts(metrics: Metrics) -> list[Fact]:
    """First and last held-out accuracy, and how sure the last one is."""
    lines = [line for line in metrics if "eval_accuracy" in line]
    if not lines:
        return []
    facts = [
        Fact("held-out accuracy, first to last", _first_to_last([f"{line['eval_accuracy']:.2f}" for line in lines]))
    ]
    num_examples = lines[-1].get("eval_num_examples")
    if num_examples is not None:
        low, high = wilson_interval(round(lines[-1]["eval_accuracy"] * num_examples), num_examples)
        facts.append(Fact(f"95 % interval of the last one, {num_examples} questions", f"{low:.2f} to {high:.2f}"))
    return facts


def _first_to_last(values: Sequence[str]) -> str:
    return values[0] if len(values) == 1 else f"{values[0]} \u2192 {values[-1]}"


def _read_config(run_folder: Path) -> str:
    path = run_folder / "config.yaml"
    if not path.is_file():
        raise ConfigError(
            "this is not a run folder",
            got=run_folder,
            expected="a folder with config.yaml and metrics.jsonl",
            remedy="name one run's folder, say runs/NAME",
        )
    return path.read_text(encoding="utf-8")
