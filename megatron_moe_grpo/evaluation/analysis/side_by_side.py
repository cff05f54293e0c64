"""Several analyses of the same rows beside each other: as text for a terminal, and as a page."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_moe_grpo.errors import DataError
from megatron_moe_grpo.evaluation.analysis.page import drawn
from megatron_moe_grpo.evaluation.analysis.values import read_analysis
from megatron_moe_grpo.evaluation.report_charts import HeatMap, HeatMapChart, LineChart, Series, Table
from megatron_moe_grpo.evaluation.report_page import Section, write_page

Values = Mapping[str, Any]

# Heading of the row -> section of analysis.json, and the number in it.
NUMBERS: dict[str, tuple[str, Callable[[Values], float | None]]] = {
    "accuracy, top-K route": ("accuracy", lambda values: values["top_k"]),
    "accuracy, mean of sampled routes": ("regret", lambda values: values["mean_route"]),
    "accuracy, best of the routes": ("regret", lambda values: values["best_of_routes"]),
    "routing regret": ("regret", lambda values: values["regret"]),
    "rescued by a route": ("regret", lambda values: values["rescued"]),
    "lost by every route": ("regret", lambda values: values["lost"]),
    "utilisation entropy (nats)": ("utilisation", lambda values: values["entropy_nats"]),
    "effective experts": ("utilisation", lambda values: values["effective_experts"]),
    "divergence between tasks (nats)": ("tasks", lambda values: values["divergence_nats"]),
    "sampled experts that top-K would take": ("agreement", lambda values: values["overlap"]),
    "selections that agree entirely": ("agreement", lambda values: values["same_set"]),
    "mean reward, first tenth": ("rewards", lambda values: values["first_mean"]),
    "mean reward, last tenth": ("rewards", lambda values: values["last_mean"]),
    "reward deviation, first tenth": ("rewards", lambda values: values["first_std"]),
    "reward deviation, last tenth": ("rewards", lambda values: values["last_std"]),
}


@dataclass(frozen=True)
class SideBySide:
    """Analyses of the same rows under names that tell them apart."""

    names: list[str]
    analyses: list[Values]

    def numbers(self) -> Table:
        """One row a number, one column an analysis; `-` where it was left out."""
        rows = []
        for name, (section, number) in NUMBERS.items():
            found = [number(values[section]) if section in values else None for values in self.analyses]
            rows.append([name, *(_cell(value) for value in found)])
        return Table(["", *self.names], rows)

    def accuracies(self) -> Table:
        """Accuracy of the top-K route, task by task."""
        tasks = sorted({task for values in self.analyses for task in values["accuracy"]["by_task"]})
        by_task = [values["accuracy"]["by_task"] for values in self.analyses]
        return Table(
            ["accuracy by task", *self.names], [[t, *(_share(found.get(t)) for found in by_task)] for t in tasks]
        )


def side_by_side(folders: Sequence[Path]) -> SideBySide:
    """Reads analyses that may be compared.

    Raises:
        ConfigError: a folder without analysis.json.
        DataError: analyses of different rows, whose numbers say nothing about each other; fewer than two.
    """
    if len(folders) < 2:
        raise DataError("a comparison takes at least two analyses", got=[str(folder) for folder in folders])
    analyses = [read_analysis(folder) for folder in folders]
    hashes = [values["rows"]["sha256"] for values in analyses]
    if len(set(hashes)) > 1:
        sizes = [
            f"{folder}: {values['rows']['num_rows']} rows" for folder, values in zip(folders, analyses, strict=True)
        ]
        raise DataError(
            "these analyses are of different rows and cannot be compared",
            got="; ".join(sizes),
            remedy="analyse both with the same --data and --rows",
        )
    return SideBySide(_names(folders), analyses)


def compare_analyses(folders: Sequence[Path]) -> str:
    """The comparison as plain text; writes nothing.  Arguments and errors as for `side_by_side`."""
    found = side_by_side(folders)
    return f"{_text(found.numbers())}\n\n{_text(found.accuracies())}"


def write_side_by_side(folders: Sequence[Path], page: Path) -> Path:
    """The comparison as one page with charts.  Arguments and errors as for `side_by_side`."""
    found = side_by_side(folders)
    sections = [Section("Charts", "", [drawn(chart) for chart in _charts(found)])]
    return write_page(
        page,
        "side_by_side.html.j2",
        names=found.names,
        rows=found.analyses[0]["rows"],
        missing=[
            f"{name}, {section}: {reason}."
            for name, values in zip(found.names, found.analyses, strict=True)
            for section, reason in values["left_out"].items()
        ],
        tables=[found.numbers(), found.accuracies()],
        sections=[section for section in sections if section.figures],
    )


def _charts(found: SideBySide) -> list[LineChart | HeatMapChart]:
    """One line or one map an analysis; an analysis without the section is not in the chart."""
    charts: list[LineChart | HeatMapChart] = []
    lines: list[tuple[str, str, str, str, str]] = [
        ("regret", "best_of_by_routes", "Best of several routes", "share of right answers", "routes"),
        ("utilisation", "entropy_by_layer_nats", "Utilisation entropy by layer", "entropy (nats)", "MoE layer"),
        ("tasks", "divergence_by_layer_nats", "Divergence between tasks by layer", "divergence (nats)", "MoE layer"),
        ("agreement", "by_layer", "Agreement of sampled and top-K routing", "share of experts", "MoE layer"),
        ("rewards", "mean", "Reward, mean", "reward", "step"),
        ("rewards", "std", "Reward, standard deviation", "reward", "step"),
    ]
    for section, key, title, y_label, x_label in lines:
        series = [
            Series(name, _places(values[section], key), values[section][key])
            for name, values in zip(found.names, found.analyses, strict=True)
            if section in values
        ]
        if series:
            charts.append(LineChart(title, "", y_label, series, x_label=x_label))
    maps = [
        HeatMap(name, values["utilisation"]["share_LN"])
        for name, values in zip(found.names, found.analyses, strict=True)
        if "utilisation" in values
    ]
    if len({(len(each.values), len(each.values[0])) for each in maps}) == 1:
        layers = [str(layer) for layer in range(len(maps[0].values))]
        caption = "Share of each layer's selections, in per cent (MoE-GRPO Fig. 4)."
        charts.append(HeatMapChart("Token-level expert utilisation", caption, maps, "MoE layer", layers))
    return charts


def _places(section: Values, key: str) -> list[int]:
    if "steps" in section:
        return section["steps"]
    first = 1 if key == "best_of_by_routes" else 0
    return list(range(first, first + len(section[key])))


def _names(folders: Sequence[Path]) -> list[str]:
    """Folder names; whole paths where two folders are called alike."""
    names = [folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def _text(table: Table) -> str:
    lines = [table.columns, *table.rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(table.columns))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    )


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _share(right_and_all: Sequence[int] | None) -> str:
    return "-" if right_and_all is None else f"{right_and_all[0] / right_and_all[1]:.3f}"
