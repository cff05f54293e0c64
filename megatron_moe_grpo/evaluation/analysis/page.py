"""analysis.html: the values of analysis.json as one page, like the report of a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_moe_grpo.data.schema import Row
from megatron_moe_grpo.data.visuals import read_visual
from megatron_moe_grpo.evaluation.accuracy import wilson_interval
from megatron_moe_grpo.evaluation.analysis.charts import ChartGroup, chart_groups, example_chart
from megatron_moe_grpo.evaluation.report_charts import Figure, HeatMapChart, LineChart, heat_map_figure, line_figure
from megatron_moe_grpo.evaluation.report_examples import image_data_uri
from megatron_moe_grpo.evaluation.report_page import Fact, Section, task_names, write_page

Values = Mapping[str, Any]


@dataclass(frozen=True)
class AnalysedExample:
    """One question of the gallery."""

    id: str
    task: str
    problem: str
    options: list[str]
    solution: str
    images: list[list[str]]
    """Data URIs of each picture, one, or of each video's frames."""
    missing_images: list[str]
    response: str
    is_correct: bool
    routes: list[dict[str, Any]]
    routing: Figure | None

    @property
    def outcome(self) -> str:
        """What the gallery filters by."""
        return "right" if self.is_correct else "wrong"


def write_analysis_page(path: Path, analysis: Values, rows: Sequence[Row], video_frames: int) -> Path:
    """Writes the page.  `rows` are those of `analysis["examples"]`, in their order."""
    examples = [_example(values, row, video_frames) for values, row in zip(analysis["examples"], rows, strict=True)]
    return write_page(
        path,
        "analysis.html.j2",
        analysis=analysis,
        facts=_facts(analysis),
        accuracies=_accuracies(analysis),
        sections=[_section(group) for group in chart_groups(analysis)],
        examples=examples,
        tasks=task_names([example.task for example in examples]),
        missing=[f"{name}: {reason}." for name, reason in analysis["left_out"].items()],
    )


def drawn(chart: LineChart | HeatMapChart) -> Figure:
    """The chart as the page shows it."""
    return line_figure(chart) if isinstance(chart, LineChart) else heat_map_figure(chart)


def _section(group: ChartGroup) -> Section:
    return Section(group.title, group.text, [drawn(chart) for chart in group.charts.values()])


def _facts(analysis: Values) -> list[Fact]:
    """The page's first numbers; a dense model has one of them."""
    rows = analysis["rows"]["num_rows"]
    facts = [Fact(f"accuracy of the top-K route, {rows} questions", f"{analysis['accuracy']['top_k']:.3f}")]
    if "regret" in analysis:
        regret = analysis["regret"]
        facts += [
            Fact(
                f"best of {regret['num_routes']} sampled routes, chosen knowing the answer",
                f"{regret['best_of_routes']:.3f}",
            ),
            Fact("routing regret: the difference of these two", f"{regret['regret']:+.3f}"),
            Fact("single sampled routes, mean accuracy", f"{regret['mean_route']:.3f}"),
        ]
    if "utilisation" in analysis:
        use = analysis["utilisation"]
        label = f"utilisation entropy (nats); even use: {use['even_entropy_nats']:.2f}"
        facts.append(Fact(label, f"{use['entropy_nats']:.3f}"))
    if "tasks" in analysis:
        facts.append(Fact("divergence between tasks (nats), mean", f"{analysis['tasks']['divergence_nats']:.3f}"))
    if "agreement" in analysis:
        agreement = analysis["agreement"]
        label = f"sampled experts that top-K would take; blindly: {agreement['chance']:.2f}"
        facts.append(Fact(label, f"{agreement['overlap']:.3f}"))
    if "rewards" in analysis and analysis["rewards"]["first_mean"] is not None:
        rewards = analysis["rewards"]
        facts.append(
            Fact("mean reward, first to last tenth", f"{rewards['first_mean']:.2f} \u2192 {rewards['last_mean']:.2f}")
        )
    return facts


def _accuracies(analysis: Values) -> list[tuple[str, str, str, int]]:
    """Each task's accuracy with its 95 % interval and number of rows."""
    rows = []
    for task, (num_right, num_rows) in analysis["accuracy"]["by_task"].items():
        low, high = wilson_interval(num_right, num_rows)
        rows.append((task, f"{num_right / num_rows:.3f}", f"{low:.3f} to {high:.3f}", num_rows))
    return rows


def _example(values: Values, row: Row, video_frames: int) -> AnalysedExample:
    chart = example_chart(values)
    return AnalysedExample(
        id=values["id"],
        task=values["task"],
        problem=values["problem"],
        options=values["options"],
        solution=values["solution"],
        images=[[image_data_uri(frame) for frame in read_visual(files, video_frames).frames] for files in row.visuals],
        missing_images=[],
        response=values["response"] or "(empty)",
        is_correct=values["is_correct"],
        routes=[route | {"response": route["response"] or "(empty)"} for route in values["routes"]],
        routing=None if chart is None else heat_map_figure(chart),
    )
