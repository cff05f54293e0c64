"""The page and its values: our row, the paper's row beside it, and where the numbers come from."""

from pathlib import Path
from typing import Any

import pytest
from finished_runs import finish
from table_files import write_table

from megatron_moe_grpo.experiments.page import json_page, markdown_page, verdict
from megatron_moe_grpo.experiments.plan import make_plan
from megatron_moe_grpo.experiments.results import CellResult, Estimate, read_cells
from megatron_moe_grpo.experiments.table_file import Table, load_table

PAPER = {
    "source": "A paper, Table 9", "setting": "A model, percent right", "columns": ["MME", "Avg."], "beside": "Avg.",
}  # fmt: skip
CELLS = [
    {"name": "both", "paper": [1000, 55.7]},
    {"name": "token", "settings": {"losses.gate_coefficient": 0}, "paper": [900, 53.9], "note": "half of it"},
    {"name": "ours", "settings": {"losses.rl_method": "gspo"}, "compare_with": "token"},
]
FACTS = {
    "command": "python -m megatron_moe_grpo experiment t.yaml", "date": "2026-01-02", "versions": {"torch": "9.9"},
    "cpu_cores": 2, "start_cpu_s": 1234.5,
}  # fmt: skip
ACCURACIES = {"both": [0.80, 0.60, 0.40], "token": [0.70, 0.48, 0.32], "ours": [0.71, 0.47]}


@pytest.fixture
def page(tmp_path: Path) -> tuple[Table, list[CellResult]]:
    evaluations = [{"name": "noisy", "data": "noisy.jsonl"}]
    path = write_table(tmp_path, cells=CELLS, paper=PAPER, evaluations=evaluations, seeds=[0, 1, 2])
    table, setup, base = load_table(path)
    plan = make_plan(table, setup, base, table.seeds, tmp_path / "out")
    for run in plan.runs:
        accuracies = ACCURACIES[run.cell.name]
        if run.seed < len(accuracies):
            finish(run, accuracies[run.seed], {"noisy": [True, False]})
    return table, read_cells(table, plan.runs)


def row(text: str, heading: str, name: str) -> list[str]:
    section = text.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    (line,) = [line for line in section.splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_markdown_page_puts_the_papers_row_beside_ours(page: tuple[Table, list[CellResult]]) -> None:
    text = markdown_page(*page, {"training.steps": 3}, FACTS)
    assert row(text, "Accuracy: held-out questions", "both") == [
        "both", "0.600 [0.103, 1.097]", "-", "0.800", "0.600", "0.400", "0.250", "0.260", "55.7", "-", "-",
    ]  # fmt: skip
    assert row(text, "Accuracy: held-out questions", "token") == [
        # s = 0.190788: half-width 4.302653 * s / sqrt(3) = 0.473943.
        "token", "0.500 [0.026, 0.974]", "-0.100 [-0.150, -0.050]", "0.700", "0.480", "0.320", "0.250", "0.260",
        "53.9", "-1.8", "as in the paper",
    ]  # fmt: skip
    # Two seeds of three: 0.01 and -0.01, so nothing.
    assert row(text, "Accuracy: held-out questions", "ours")[2:] == [
        "+0.000 [-0.127, +0.127]", "0.710", "0.470", "-", "0.250", "0.260", "-", "-", "-",
    ]  # fmt: skip
    assert row(text, "Accuracy: noisy", "token")[1:3] == ["0.500 [0.500, 0.500]", "+0.000 [+0.000, +0.000]"]
    assert row(text, "A paper, Table 9", "token") == ["token", "900", "53.9"]
    assert row(text, "Cost of one run", "both") == ["both", "20", "30", "9", "3", "12", "96"]


def test_markdown_page_says_where_its_numbers_come_from(page: tuple[Table, list[CellResult]]) -> None:
    text = markdown_page(*page, {"training.steps": 3}, FACTS)
    for words in (
        FACTS["command"], "2026-01-02; code that trained the runs: aaa; bbb; torch 9.9; 2 CPU cores", "1,234 CPU s",
        "`training.steps: 3`", "| token | `losses.gate_coefficient: 0` |", "* *token*: half of it",
        "* *ours* is compared with *token*.", "* *ours*: 2 runs finished.", "Questions: 1,000.", "Questions: 2.",
        "python -m megatron_moe_grpo train",
    ):  # fmt: skip
        assert words in text, words
    assert all(line.count("|") == line.count(" |") + 1 for line in text.splitlines() if line.startswith("| "))


def test_json_page_has_the_same_numbers_and_every_run(page: tuple[Table, list[CellResult]]) -> None:
    values: dict[str, Any] = json_page(*page, {"training.steps": 3}, FACTS)
    token = values["cells"][1]
    found = token["evaluations"]["held-out questions"]
    assert found["accuracy"]["mean"] == pytest.approx(0.5)
    assert found["difference"]["by_seed"] == pytest.approx({0: -0.10, 1: -0.12, 2: -0.08})
    assert (found["difference"]["low"], found["difference"]["high"]) == pytest.approx((-0.149683, -0.050317), abs=1e-5)
    assert [run["seed"] for run in token["runs"]] == [0, 1, 2]
    assert token["runs"][0]["cost"]["cpu_s"] == 20
    assert (token["paper"], token["compared_with"]) == ((900, 53.9), "both")
    assert values["cells"][0]["compared_with"] is None
    assert values["paper"]["beside"] == "Avg." and values["date"] == "2026-01-02"


def test_a_column_of_the_paper_stands_beside_the_evaluation_of_its_name(page: tuple[Table, list[CellResult]]) -> None:
    table, results = page
    paper = table.paper.model_copy(update={"columns": ("noisy", "Avg."), "beside": None})
    text = markdown_page(table.model_copy(update={"paper": paper}), results, {}, FACTS)
    # No difference of ours at all, so chance; 900 - 1000 in the paper.
    assert row(text, "Accuracy: noisy", "token")[-3:] == ["900.0", "-100.0", "within chance"]
    assert "paper" not in text.split("## Accuracy: held-out questions")[1].split("## Accuracy")[0]


@pytest.mark.parametrize(
    ("differences", "papers", "expected"),
    [
        ([-0.10, -0.12, -0.08], -1.8, "as in the paper"),
        ([-0.10, -0.12, -0.08], 1.8, "against the paper"),
        ([-0.10, 0.12, -0.08], -1.8, "within chance"),
        ([-0.10], -1.8, "one seed"),
    ],
)
def test_verdict_needs_a_difference_beyond_chance(differences: list[float], papers: float, expected: str) -> None:
    assert verdict(Estimate(dict(enumerate(differences))), papers) == expected
