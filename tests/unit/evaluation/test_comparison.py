"""`compare`: the same examples or none, groups where the benchmark counts them."""

import json
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
from evaluated_folders import SETTINGS, Scripted, evaluate, write_rows
from PIL import Image

from megatron_moe_grpo.errors import EvaluationError
from megatron_moe_grpo.evaluation.answer_folder import read_answers
from megatron_moe_grpo.evaluation.benchmark_run import BenchmarkRun, run_benchmark
from megatron_moe_grpo.evaluation.benchmarks.registry import benchmark_named
from megatron_moe_grpo.evaluation.comparison import compare_folders
from megatron_moe_grpo.evaluation.paired_tests import mcnemar_p_value


def folder(tmp_path: Path, name: str, right: str, num_rows: int = 8) -> Path:
    """A model that knows the questions whose numbers are in `right`."""
    data = write_rows(tmp_path / f"rows{num_rows}.jsonl", num_rows)
    answers: Mapping[str, str] = {f"q{i}": "I say B" if str(i) in right else "A" for i in range(num_rows)}
    evaluate(data, tmp_path / name, Scripted(answers, name))
    return tmp_path / name


def test_compare_folders_against_the_first(tmp_path: Path) -> None:
    folders = [folder(tmp_path, "base", "012"), folder(tmp_path, "better", "1234567"), folder(tmp_path, "same", "012")]
    base, better, same = compare_folders(folders, "official")
    assert (base.accuracy.value, base.against_first) == (3 / 8, None)
    assert (better.accuracy.num_correct, better.accuracy.num_examples) == (7, 8)
    paired = better.against_first
    assert paired is not None and same.against_first is not None
    assert (paired.difference, paired.num_only_first, paired.num_only_second) == (0.5, 1, 5)
    assert paired.p_value == mcnemar_p_value(1, 5) == 14 / 64
    assert paired.low < 0.5 < paired.high
    assert (same.against_first.difference, same.against_first.p_value) == (0.0, 1.0)
    assert {model.accuracy.num_correct for model in compare_folders(folders, "strict")} == {0}


def test_compare_folders_refuses_other_examples(tmp_path: Path) -> None:
    folders = [folder(tmp_path, "a", "0"), folder(tmp_path, "b", "0", num_rows=7)]
    with pytest.raises(EvaluationError, match=r"different examples(?s:.)*the first: q7"):
        compare_folders(folders, "official")


def test_compare_folders_refuses_a_question_that_changed(tmp_path: Path) -> None:
    folders = [folder(tmp_path, "a", "0"), folder(tmp_path, "b", "0")]
    text = (folders[1] / "answers.jsonl").read_text(encoding="ascii")
    digest = read_answers(folders[1] / "answers.jsonl")["q3"].question_digest
    (folders[1] / "answers.jsonl").write_text(text.replace(digest, "0" * 64), encoding="ascii")
    with pytest.raises(EvaluationError, match="the first: q3"):
        compare_folders(folders, "official")


def test_compare_folders_refuses_other_settings(tmp_path: Path) -> None:
    first, data = folder(tmp_path, "a", "0"), tmp_path / "rows8.jsonl"
    run = BenchmarkRun(
        benchmark_named("digit_grids"), data, tmp_path / "b", replace(SETTINGS, template="So: {question}")
    )
    run_benchmark(run, nullcontext(Scripted({f"q{index}": "B" for index in range(8)})))
    with pytest.raises(EvaluationError, match="evaluated otherwise(?s:.)*template 'So"):
        compare_folders([first, tmp_path / "b"], "official")


def test_compare_folders_refuses_what_is_not_complete(tmp_path: Path) -> None:
    first = folder(tmp_path, "a", "0")
    with pytest.raises(EvaluationError):
        evaluate(tmp_path / "rows8.jsonl", tmp_path / "b", Scripted({"q0": "A"}))
    with pytest.raises(EvaluationError, match=r"not complete(?s:.)*1 of 8"):
        compare_folders([first, tmp_path / "b"], "official")
    with pytest.raises(EvaluationError, match="holds no evaluation"):
        compare_folders([first, tmp_path], "official")
    with pytest.raises(EvaluationError, match="two folders"):
        compare_folders([first], "official")


def test_compare_folders_counts_circular_groups(tmp_path: Path) -> None:
    rows = ["index\tquestion\tA\tB\tanswer\timage_path"]
    for number in (1, 2):
        rows += [f"{number}\t?\tx\ty\tA\tp.png", f"{1000000 + number}\t?\ty\tx\tB\tp.png"]
    (tmp_path / "rows.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    Image.new("RGB", (8, 8)).save(tmp_path / "p.png")
    for name, answers in (("a", "BBAA"), ("b", "ABAB")):
        ids = ["1", "1000001", "2", "1000002"]
        run = BenchmarkRun(benchmark_named("mmbench"), tmp_path / "rows.tsv", tmp_path / name, SETTINGS)
        run_benchmark(run, nullcontext(Scripted(dict(zip(ids, answers, strict=True)), name)))
    first, second = compare_folders([tmp_path / "a", tmp_path / "b"], "strict")
    # a: right on one copy of each question, once the first and once the second; b: wholly right on both.
    assert (first.accuracy.value, second.accuracy.value, second.accuracy.num_examples) == (0.0, 1.0, 2)
    scores = json.loads((tmp_path / "b" / "result.json").read_text(encoding="ascii"))["scores"]
    assert scores["strict.overall"] == 1.0
