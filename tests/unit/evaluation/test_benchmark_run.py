"""The runner: complete or not, goes on, refuses another evaluation's folder, never loses or invents an answer."""

import fcntl
import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from evaluated_folders import SETTINGS, Scripted, evaluate, write_rows

from megatron_moe_grpo.errors import DataError, EvaluationError
from megatron_moe_grpo.evaluation.benchmark_run import BenchmarkRun, run_benchmark
from megatron_moe_grpo.evaluation.benchmarks.registry import benchmark_named

ANSWERS = {"q0": "B", "q1": "It must be B", "q2": "A", "q3": ""}


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="ascii").splitlines()]


def result(out: Path) -> dict[str, Any]:
    return json.loads((out / "result.json").read_text(encoding="ascii"))


def test_run_benchmark_writes_answers_and_scores(tmp_path: Path) -> None:
    table = evaluate(write_rows(tmp_path / "rows.jsonl", 4), tmp_path / "out", Scripted(ANSWERS))
    assert [(row.name, row.num_examples, row.official, row.strict) for row in table] == [
        ("overall", 4, 0.5, 0.25), ("problem_type.multiple choice", 4, 0.5, 0.25),
    ]  # fmt: skip
    written = lines(tmp_path / "out" / "answers.jsonl")
    assert [line["id"] for line in written] == list(ANSWERS)
    assert [line["response"] for line in written] == list(ANSWERS.values())
    assert [line["is_correct"] for line in written] == [True, False, False, False]
    assert [line["is_correct_official"] for line in written] == [True, True, False, False]
    found = result(tmp_path / "out")
    assert found["scores"]["official.overall"] == 0.5 and found["scores"]["strict.overall"] == 0.25
    assert (found["is_complete"], found["num_examples"], found["num_errors"], found["num_cut_off"]) == (True, 4, 0, 1)
    # Wilson's interval of 2 of 4.
    assert found["table"][0]["official_interval"] == pytest.approx([0.15004, 0.84996], abs=1e-5)
    assert not (tmp_path / "out" / "errors.jsonl").exists()


def test_the_same_command_asks_only_what_has_no_answer(tmp_path: Path) -> None:
    data, out = write_rows(tmp_path / "rows.jsonl", 4), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        evaluate(data, out, Scripted(ANSWERS, stops_after=2))
    # Killed while it wrote the third line.
    with (out / "answers.jsonl").open("a") as file:
        file.write('{"id": "q2", "resp')
    again = Scripted(ANSWERS)
    evaluate(data, out, again)
    assert again.asked == ["q2", "q3"]
    assert [line["id"] for line in lines(out / "answers.jsonl")] == list(ANSWERS)
    finished = Scripted({})
    evaluate(data, out, finished)
    assert finished.asked == []


def test_a_failure_is_neither_wrong_nor_forgotten(tmp_path: Path) -> None:
    data, out = write_rows(tmp_path / "rows.jsonl", 4), tmp_path / "out"
    partial = {name: ANSWERS[name] for name in ("q0", "q2")}
    with pytest.raises(EvaluationError, match="2 of 4 questions got no answer"):
        evaluate(data, out, Scripted(partial))
    assert [line["question_id"] for line in lines(out / "errors.jsonl")] == ["q1", "q3"]
    found = result(out)
    assert (found["is_complete"], found["num_errors"], found["scores"]) == (False, 2, {})
    assert [line["id"] for line in lines(out / "answers.jsonl")] == ["q0", "q2"]
    evaluate(data, out, Scripted(ANSWERS))
    assert result(out)["is_complete"]
    assert [line["id"] for line in lines(out / "answers.jsonl")] == list(ANSWERS)
    assert not (out / "errors.jsonl").exists()


def test_answers_that_come_in_another_order_end_in_file_order(tmp_path: Path) -> None:
    class Backwards(Scripted):
        def answers(self, questions: Any, blank_images: bool) -> Any:
            return super().answers(questions[::-1], blank_images)

    evaluate(write_rows(tmp_path / "rows.jsonl", 4), tmp_path / "out", Backwards(ANSWERS))
    assert [line["id"] for line in lines(tmp_path / "out" / "answers.jsonl")] == list(ANSWERS)


def test_what_a_model_leaves_out_is_a_failure(tmp_path: Path) -> None:
    class GivesUp(Scripted):
        def answers(self, questions: Any, blank_images: bool) -> Any:
            return super().answers(questions[:1], blank_images)

    with pytest.raises(EvaluationError, match=r"3 of 4(?s:.)*q1: not asked"):
        evaluate(write_rows(tmp_path / "rows.jsonl", 4), tmp_path / "out", GivesUp(ANSWERS))


def test_blank_pictures_stand_beside_and_may_come_later(tmp_path: Path) -> None:
    data, out = write_rows(tmp_path / "rows.jsonl", 4), tmp_path / "out"
    evaluate(data, out, Scripted(ANSWERS))
    model = Scripted(ANSWERS)
    table = evaluate(data, out, model, blank=True)
    assert model.asked == ["blank q0", "blank q1", "blank q2", "blank q3"]
    assert (table[0].official, table[0].blank_official, table[0].blank_strict) == (0.5, 0.0, 0.0)
    assert result(out)["scores"]["blank_official.overall"] == 0.0


def test_another_model_setting_or_data_is_refused(tmp_path: Path) -> None:
    data, out = write_rows(tmp_path / "rows.jsonl", 4), tmp_path / "out"
    evaluate(data, out, Scripted(ANSWERS))
    before = (out / "answers.jsonl").read_bytes()
    with pytest.raises(EvaluationError, match=r"another evaluation(?s:.)*model 'other'"):
        evaluate(data, out, Scripted(ANSWERS, name="other"))
    run = BenchmarkRun(benchmark_named("digit_grids"), data, out, replace(SETTINGS, max_new_tokens=9))
    with pytest.raises(EvaluationError, match="max_new_tokens 9"):
        run_benchmark(run, nullcontext(Scripted(ANSWERS)))
    with pytest.raises(EvaluationError, match="questions_digest"):
        evaluate(write_rows(tmp_path / "rows.jsonl", 5), out, Scripted(ANSWERS))
    assert (out / "answers.jsonl").read_bytes() == before


def test_a_folder_of_other_files_is_refused(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", 1)
    with pytest.raises(EvaluationError, match="holds other files"):
        evaluate(data, tmp_path, Scripted(ANSWERS))


def test_two_processes_in_one_folder_are_refused(tmp_path: Path) -> None:
    data, out = write_rows(tmp_path / "rows.jsonl", 4), tmp_path / "out"
    evaluate(data, out, Scripted(ANSWERS))
    with (out / "settings.json").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(EvaluationError, match="another process"):
            evaluate(data, out, Scripted(ANSWERS))


def test_responses_of_any_characters_come_back(tmp_path: Path) -> None:
    odd = {"q0": "a\u2028b\u0085c\nd\r", "q1": "\ud800", "q2": "\x00é漢", "q3": "B"}
    data, out = write_rows(tmp_path / "rows.jsonl", 4), tmp_path / "out"
    evaluate(data, out, Scripted(odd))
    assert {line["id"]: line["response"] for line in lines(out / "answers.jsonl")} == odd
    again = Scripted({})
    evaluate(data, out, again)
    assert again.asked == []


def test_missing_videos_are_refused_or_counted_as_wrong(tmp_path: Path) -> None:
    row = {"question": "?", "candidates": ["w", "x"], "correct_choice": 0, "question_category": "S2E"}
    rows = [row | {"id": f"q{index}", "video_path": "v.mp4", "duration_group": 15} for index in range(2)]
    (tmp_path / "lvb_val.json").write_text(json.dumps(rows), encoding="utf-8")
    run = BenchmarkRun(benchmark_named("long_video_bench"), tmp_path, tmp_path / "out", SETTINGS)
    with pytest.raises(DataError, match=r"videos of 2 of 2(?s:.)*v\.mp4"):
        run_benchmark(run, nullcontext(Scripted({})))
    model = Scripted({})
    found = run_benchmark(replace(run, missing_files="wrong"), nullcontext(model))
    assert (model.asked, found.table[0].official, found.num_examples, found.num_missing_files) == ([], 0.0, 2, 2)
    assert result(tmp_path / "out")["num_missing_files"] == 2


def test_a_damaged_settings_file_is_named(tmp_path: Path) -> None:
    data, out = write_rows(tmp_path / "rows.jsonl", 4), tmp_path / "out"
    evaluate(data, out, Scripted(ANSWERS))
    (out / "settings.json").write_text("{", encoding="utf-8")
    with pytest.raises(EvaluationError, match=r"settings\.json is damaged"):
        evaluate(data, out, Scripted(ANSWERS))
    shutil.rmtree(out)
