"""The folder of an analysis: analysis.json, analysis.html and one picture a chart."""

import json
from pathlib import Path

from megatron_moe_grpo.data.whole_file import write_atomically
from megatron_moe_grpo.errors import ConfigError
from megatron_moe_grpo.evaluation.analysis.analyse import Analysis
from megatron_moe_grpo.evaluation.analysis.charts import chart_groups, example_chart
from megatron_moe_grpo.evaluation.analysis.page import write_analysis_page
from megatron_moe_grpo.evaluation.analysis.values import NAME
from megatron_moe_grpo.evaluation.report_charts import HeatMapChart, LineChart
from megatron_moe_grpo.evaluation.report_pictures import heat_map_picture, line_picture


def prepare_folder(out: Path) -> None:
    """Makes `out`, before the work of hours.

    Raises ConfigError for a folder with other things in it; an earlier analysis is written over.
    """
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / NAME).is_file())):
        raise ConfigError(
            "the output folder exists and is not an analysis", got=out, remedy="choose another one with --out"
        )
    out.mkdir(parents=True, exist_ok=True)


def write_analysis(analysis: Analysis, out: Path) -> Path:
    """Writes page, pictures and, last, analysis.json into `out`; returns the page."""
    pictures = out / "figures"
    pictures.mkdir(exist_ok=True)
    for group in chart_groups(analysis.values):
        for name, chart in group.charts.items():
            (pictures / f"{name}.svg").write_bytes(_picture(chart))
    for number, example in enumerate(analysis.values["examples"], start=1):
        chart = example_chart(example)
        if chart is not None:
            (pictures / f"routing_of_example_{number}.svg").write_bytes(_picture(chart))
    page = write_analysis_page(out / "analysis.html", analysis.values, analysis.example_rows, analysis.video_frames)
    text = json.dumps(analysis.values, ensure_ascii=False, allow_nan=False, indent=1)
    write_atomically(out / NAME, text + "\n")
    return page


def _picture(chart: LineChart | HeatMapChart) -> bytes:
    return line_picture(chart) if isinstance(chart, LineChart) else heat_map_picture(chart)
