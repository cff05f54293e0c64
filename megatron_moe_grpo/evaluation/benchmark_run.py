"""One evaluation of one model on one benchmark: goes on where it stopped, and is complete or says that it is not."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from megatron_moe_grpo.errors import DataError, EvaluationError
from megatron_moe_grpo.evaluation.answer_folder import (
    ANSWERS,
    BLANK_ANSWERS,
    ERRORS,
    RESULT,
    AnswerFile,
    AnswerRecord,
    opened_folder,
    read_answers,
    write_json,
    write_lines,
)
from megatron_moe_grpo.evaluation.asking import Answer, Answerer, AskSettings, Failure
from megatron_moe_grpo.evaluation.benchmark_result import BenchmarkResult, flat_scores, score_table
from megatron_moe_grpo.evaluation.benchmarks.benchmark import Benchmark, Question
from megatron_moe_grpo.evaluation.question_digest import joined_digest, question_digest

MissingFiles = Literal["error", "wrong"]
Progress = Callable[[int, int], object]
MAX_SHOWN_FAILURES = 3


@dataclass(frozen=True)
class BenchmarkRun:
    """What to ask, of which files, and where to."""

    benchmark: Benchmark
    data: Path
    out: Path
    settings: AskSettings
    image_root: Path | None = None
    with_blank_images: bool = False
    """Ask everything once more with blank pictures: the control."""
    missing_files: MissingFiles = "error"
    """What to do with questions whose video is not there: refuse, or count them as wrong and say so."""
    on_progress: Progress = lambda num_done, num_questions: None


def run_benchmark(run: BenchmarkRun, answerer: AbstractContextManager[Answerer]) -> BenchmarkResult:
    """Asks what has no answer yet, and writes result.json.

    Args:
        answerer: opened after the benchmark's files were found good.
    Raises:
        DataError: the benchmark's files.
        EvaluationError: `run.out` is another evaluation's; or some questions got no answer: result.json says so, and
            the same command asks them again.
    """
    questions = run.benchmark.load(run.data, run.image_root)
    if not questions:
        raise DataError(f"{run.data} holds no question of {run.benchmark.name}", remedy="see docs/evaluation.md")
    _refuse_missing(questions, run.missing_files)
    digests = {question.id: question_digest(question) for question in questions}
    with answerer as opened:
        settings = _settings(run, opened, digests)
        with opened_folder(run.out, settings):
            failures = _ask_all(run, opened, questions, digests, run.out / ANSWERS, False)
            if run.with_blank_images and not failures:
                failures = _ask_all(run, opened, questions, digests, run.out / BLANK_ANSWERS, True)
            return _finish(run, settings, questions, failures)


def _settings(run: BenchmarkRun, answerer: Answerer, digests: Mapping[str, str]) -> dict[str, Any]:
    return {
        "benchmark": run.benchmark.name,
        "num_questions": len(digests),
        "questions_digest": joined_digest(list(digests.values())),
        **asdict(run.settings),
        **{f"model_{key}" if key != "model" else key: value for key, value in answerer.identity.items()},
    }


def _ask_all(
    run: BenchmarkRun,
    answerer: Answerer,
    questions: Sequence[Question],
    digests: Mapping[str, str],
    file: Path,
    is_blank: bool,
) -> list[Failure]:
    """Appends to `file` until every question has a line, or a failure."""
    by_id = {question.id: question for question in questions}
    done = read_answers(file)
    failures: list[Failure] = []
    with AnswerFile(file) as answers:
        for question in questions:
            if question.missing_file is not None and question.id not in done:
                done[question.id] = _record(run.benchmark, question, Answer(question.id, "", False), digests)
                answers.add(done[question.id])
        left = [question for question in questions if question.id not in done]
        run.on_progress(len(done), len(questions))
        for found in answerer.answers(left, is_blank) if left else ():
            if isinstance(found, Failure):
                failures.append(found)
                continue
            done[found.question_id] = _record(run.benchmark, by_id[found.question_id], found, digests)
            answers.add(done[found.question_id])
            run.on_progress(len(done), len(questions))
    failed = {failure.question_id for failure in failures}
    unasked = [question.id for question in left if question.id not in done and question.id not in failed]
    return failures + [Failure(question_id, "not asked: too many failures before it") for question_id in unasked]


def _record(benchmark: Benchmark, question: Question, answer: Answer, digests: Mapping[str, str]) -> AnswerRecord:
    is_asked = question.missing_file is None
    return AnswerRecord(
        id=question.id,
        response=answer.response,
        is_correct=is_asked and benchmark.is_correct(question, answer.response, "strict"),
        is_correct_official=is_asked and benchmark.is_correct(question, answer.response, "official"),
        is_cut_off=answer.is_cut_off,
        prompt=question.prompt,
        reference=question.reference,
        options=question.options,
        facets=dict(question.facets),
        group=question.group,
        question_digest=digests[question.id],
        missing_file=question.missing_file,
    )


def _finish(
    run: BenchmarkRun, settings: Mapping[str, Any], questions: Sequence[Question], failures: Sequence[Failure]
) -> BenchmarkResult:
    answers = read_answers(run.out / ANSWERS)
    blank = read_answers(run.out / BLANK_ANSWERS) if run.with_blank_images else None
    num_missing = sum(question.missing_file is not None for question in questions)
    num_cut_off = sum(answer.is_cut_off for answer in answers.values())
    result: dict[str, Any] = {
        "benchmark": run.benchmark.name,
        "model": settings["model"],
        "is_complete": not failures,
        "num_examples": len(questions),
        "num_errors": len(failures),
        "num_missing_files": num_missing,
        "num_cut_off": num_cut_off,
        "settings": dict(settings),
    }
    write_lines(run.out / ERRORS, [asdict(failure) for failure in failures])
    if failures:
        # A score of those that were answered would be one of another, easier set.
        write_json(run.out / RESULT, result | {"scores": {}, "table": []})
        raise EvaluationError(
            f"{len(failures)} of {len(questions)} questions got no answer",
            got="; ".join(f"{failure.question_id}: {failure.reason}" for failure in failures[:MAX_SHOWN_FAILURES]),
            remedy=f"give the same command again to ask them again; all are listed in {run.out / ERRORS}",
        )
    for name, found in ((ANSWERS, answers), (BLANK_ANSWERS, blank)):
        if found is not None:
            write_lines(run.out / name, [asdict(found[question.id]) for question in questions])
    table = score_table(run.benchmark, questions, answers, blank)
    write_json(run.out / RESULT, result | {"scores": flat_scores(table), "table": [asdict(row) for row in table]})
    (run.out / ERRORS).unlink()
    return BenchmarkResult(table, len(questions), num_missing, num_cut_off)


def _refuse_missing(questions: Sequence[Question], policy: MissingFiles) -> None:
    missing = [question for question in questions if question.missing_file is not None]
    if policy == "error" and missing:
        raise DataError(
            f"the videos of {len(missing)} of {len(questions)} questions are not there",
            got=f"{missing[0].missing_file} (question {missing[0].id})",
            remedy="download them, or count these questions as wrong: --missing-files wrong",
        )
