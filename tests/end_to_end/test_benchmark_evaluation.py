"""`evaluate --benchmark` of a checkpoint and of its export, on real files, as a person would type it."""

import json
import os
from pathlib import Path

import pytest
from forked_commands import run_command
from tiny_training import TinyStart, expect_success, read_lines, write_rows

from megatron_moe_grpo.evaluation.benchmarks.mme import COGNITION, PERCEPTION

ASKED = " Please answer yes or no."


class Shell:
    """Commands that write below one folder."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self._num_run = 0

    def run(self, *arguments: object, code: int = 0) -> str:
        self._num_run += 1
        ranks = run_command(arguments, self.out / "logs" / str(self._num_run))
        if code == 0:
            expect_success(ranks)
        assert ranks[0].exit_code == code, ranks[0].output
        return ranks[0].output


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory, start: TinyStart) -> Shell:
    shell = Shell(tmp_path_factory.mktemp("benchmarks"))
    shell.run("export", start.warm, shell.out / "hf")
    for name, model in (("ours", start.warm), ("theirs", shell.out / "hf")):
        rows = ["--data", start.rows / "train.jsonl"]
        shell.run("evaluate", model, *rows, "--benchmark", "digit_grids", "--out", shell.out / name, "--blank-images")
    shell.run("evaluate", start.warm, "--data", start.rows / "train.jsonl", "--out", shell.out / "rows.jsonl")
    return shell


def test_checkpoint_and_export_answer_alike(shell: Shell) -> None:
    ours, theirs = read_lines(shell.out / "ours" / "answers.jsonl"), read_lines(shell.out / "theirs" / "answers.jsonl")
    assert ours == theirs
    assert len({line["response"] for line in ours}) > 1
    assert "+0.000" in shell.run("compare", shell.out / "ours", shell.out / "theirs")


def test_a_benchmark_of_rows_gives_what_evaluate_gives(shell: Shell) -> None:
    by_benchmark = {line["id"]: line for line in read_lines(shell.out / "ours" / "answers.jsonl")}
    by_rows = read_lines(shell.out / "rows.jsonl")
    assert len(by_rows) == len(by_benchmark)
    for line in by_rows:
        assert by_benchmark[line["id"]]["response"] == line["response"]
        assert by_benchmark[line["id"]]["is_correct"] == line["is_correct"]


def test_the_result_has_its_control(shell: Shell) -> None:
    result = json.loads((shell.out / "ours" / "result.json").read_text(encoding="utf-8"))
    blank = read_lines(shell.out / "ours" / "blank_answers.jsonl")
    assert result["scores"]["blank_strict.overall"] == sum(line["is_correct"] for line in blank) / len(blank)
    assert result["is_complete"] and result["num_examples"] == len(blank)


def test_another_checkpoint_is_refused_the_folder(shell: Shell, start: TinyStart) -> None:
    rows = ["--data", start.rows / "train.jsonl", "--benchmark", "digit_grids", "--out", shell.out / "ours"]
    assert "holds another evaluation" in shell.run("evaluate", start.untrained, *rows, code=2)


def test_mme_of_a_checkpoint(shell: Shell, start: TinyStart) -> None:
    for subtask in PERCEPTION + COGNITION:
        folder = shell.out / "MME" / subtask
        folder.mkdir(parents=True)
        os.link(start.rows / "images" / "test" / "00000.png", folder / "1.png")
        texts = [f"Is there one?{ASKED}\tYes", f"Are there two?{ASKED}\tNo"]
        (folder / "1.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    out = shell.out / "mme"
    table = shell.run(
        "evaluate", start.warm, "--data", shell.out / "MME", "--benchmark", "mme", "--out", out, "--max-new-tokens", 2
    )
    assert "accuracy_plus.count" in table
    assert [line["id"] for line in read_lines(out / "answers.jsonl")][:2] == ["OCR/1/1", "OCR/1/2"]


def test_a_wrong_row_is_named_before_the_model_is_loaded(shell: Shell, start: TinyStart) -> None:
    rows = write_rows(shell.out / "bad.jsonl", [{"id": "x", "problem": "?", "options": ["1", "2"], "solution": "C"}])
    output = shell.run(
        "evaluate", start.warm, "--data", rows, "--benchmark", "counting", "--out", shell.out / "o", code=2
    )
    assert "id 'x'" in output and "there is no option C" in output
