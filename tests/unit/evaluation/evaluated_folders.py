"""A benchmark of questions without pictures, a model that knows what it will say, and folders that it leaves."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

from megatron_moe_grpo.evaluation.asking import Answer, AskSettings, Failure
from megatron_moe_grpo.evaluation.benchmark_result import TableRow
from megatron_moe_grpo.evaluation.benchmark_run import BenchmarkRun, run_benchmark
from megatron_moe_grpo.evaluation.benchmarks.benchmark import Question
from megatron_moe_grpo.evaluation.benchmarks.registry import benchmark_named

SETTINGS = AskSettings(max_new_tokens=8, video_frames=8)


class Scripted:
    """Says what it is told, or fails where it is told nothing; remembers what it was asked."""

    def __init__(self, responses: Mapping[str, str], name: str = "scripted", stops_after: int | None = None):
        self.identity = {"kind": "scripted", "model": name}
        self.asked: list[str] = []
        self._responses, self._stops_after = responses, stops_after

    def answers(self, questions: Sequence[Question], blank_images: bool) -> Iterator[Answer | Failure]:
        for number, question in enumerate(questions):
            if number == self._stops_after:
                raise KeyboardInterrupt
            self.asked.append(f"blank {question.id}" if blank_images else question.id)
            if question.id in self._responses:
                response = "C" if blank_images else self._responses[question.id]
                yield Answer(question.id, response, is_cut_off=response == "")
            else:
                yield Failure(question.id, "no answer")


def write_rows(path: Path, num_rows: int) -> Path:
    """q0, q1, ...; the right answer is B."""
    rows = [
        {"id": f"q{index}", "problem": f"{index}?", "options": ["w", "x", "y"], "solution": "B"}
        for index in range(num_rows)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def evaluate(data: Path, out: Path, model: Scripted, blank: bool = False) -> list[TableRow]:
    """One evaluation of `model`."""
    run = BenchmarkRun(benchmark_named("digit_grids"), data, out, SETTINGS, with_blank_images=blank)
    return run_benchmark(run, nullcontext(model)).table
