"""SuperCLEVR and GeoQA as R1-V asks and judges them; the demo's rows as training does."""

import json
from pathlib import Path
from typing import Any

import pytest
from benchmark_files import png, scores_of, values_of

from megatron_moe_grpo.data.digit_grid_files import write_digit_grids
from megatron_moe_grpo.errors import ConfigError, DataError
from megatron_moe_grpo.evaluation.benchmarks.geo_qa import GeoQA
from megatron_moe_grpo.evaluation.benchmarks.registry import BENCHMARKS, benchmark_named
from megatron_moe_grpo.evaluation.benchmarks.super_clevr import SuperCLEVR


def jsonl(tmp_path: Path, *truths: object) -> Path:
    (tmp_path / "images").mkdir(exist_ok=True)
    (tmp_path / "images" / "1.png").write_bytes(png())
    path = tmp_path / "prompts.jsonl"
    rows = [{"image_path": "./images/1.png", "question": "How many?", "ground_truth": truth} for truth in truths]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_super_clevr_asks_as_r1v(tmp_path: Path) -> None:
    (question,) = SuperCLEVR().load(jsonl(tmp_path, 4), None)
    assert question.prompt == (
        "How many? First output the thinking process in <think> </think> and final answer (number) in <answer> "
        "</answer> tags."
    )
    assert (question.reference, question.visuals[0].paths[0].name) == ("4", "1.png")


@pytest.mark.parametrize(
    ("response", "official", "strict"),
    [
        ("<think>two and two</think><answer> 4 </answer>", True, True),
        ("<answer>four</answer>", False, True),
        ("<answer>4 items</answer>", False, True),
        ("4", False, True),
        ("<answer>5</answer>", False, False),
        ("<answer>4</answer><answer>5</answer>", True, False),
        ("<answer>04</answer>", True, True),
    ],
)
def test_super_clevr_reads_the_tagged_number(response: str, official: bool, strict: bool, tmp_path: Path) -> None:
    (question,) = SuperCLEVR().load(jsonl(tmp_path, 4), None)
    assert SuperCLEVR().is_correct(question, response, "official") == official
    assert SuperCLEVR().is_correct(question, response, "strict") == strict


@pytest.mark.parametrize("truth", ["many", None, True, [3]])
def test_super_clevr_refuses_what_is_no_count(truth: object, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="ground_truth"):
        SuperCLEVR().load(jsonl(tmp_path, truth), None)


def test_geo_qa_compares_values(tmp_path: Path) -> None:
    benchmark = GeoQA()
    questions = benchmark.load(jsonl(tmp_path, "140°", "$2\\sqrt{3}$", "5"), None)
    assert questions[0].prompt.startswith("How many? Output the thinking")
    responses = ["<answer>140</answer>", "So it is $\\sqrt{12}$", "<answer>6</answer>"]
    assert values_of(scores_of(benchmark, questions, responses, "official")) == pytest.approx({"overall": 2 / 3})
    assert values_of(scores_of(benchmark, questions, responses, "strict")) == pytest.approx({"overall": 1 / 3})


def test_geo_qa_takes_ground_truths_that_are_no_formulas(tmp_path: Path) -> None:
    (question,) = GeoQA().load(jsonl(tmp_path, "AB ~ CD ?!"), None)
    assert GeoQA().is_correct(question, "<answer>AB ~ CD ?!</answer>", "strict")
    with pytest.raises(DataError, match="empty"):
        GeoQA().load(jsonl(tmp_path, ""), None)


def test_digit_grids_are_training_rows(tmp_path: Path) -> None:
    write_digit_grids(tmp_path / "grids", 3, 3, seed=0, cameras=("clear",), scale=1)
    rows: list[dict[str, Any]] = [
        json.loads(line) for line in (tmp_path / "grids" / "clear" / "test.jsonl").read_text().splitlines()
    ]
    benchmark = benchmark_named("digit_grids")
    questions = benchmark.load(tmp_path / "grids" / "clear" / "test.jsonl", None)
    assert [question.prompt for question in questions] == ["\n".join([r["problem"], *r["options"]]) for r in rows]
    right = [row["solution"].removeprefix("<answer>")[0] for row in rows]
    scores = scores_of(benchmark, questions, right, "strict")
    assert (scores["overall"].value, scores["overall"].num_examples) == (1.0, 3)


def test_counting_and_geometry_have_open_answers(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(png())
    row = {"id": "q", "image": "1.png", "problem": "How many?", "solution": "3"}
    for kind in ("counting", "geometry"):
        path = tmp_path / f"{kind}.jsonl"
        path.write_text(json.dumps(row | {"problem_type": kind}) + "\n", encoding="utf-8")
        (question,) = benchmark_named(kind).load(path, None)
        assert benchmark_named(kind).is_correct(question, "<think>1 2 3</think><answer>3</answer>", "strict")
        assert not benchmark_named(kind).is_correct(question, "<answer>4</answer>", "official")


@pytest.mark.parametrize("name", ["mme", "mmbench", "mmstar", "mmt_bench", "ai2d", "video_mme", "long_video_bench"])
def test_tables_may_be_names_of_the_hub(name: str) -> None:
    with pytest.raises(DataError, match="cannot be loaded from the hub"):
        benchmark_named(name).load(Path("hub:nobody/nothing:val"), None)


def test_every_benchmark_has_its_own_name() -> None:
    assert len(BENCHMARKS) == 14
    with pytest.raises(ConfigError, match=r"mm_star(?s:.)*did you mean mmstar"):
        benchmark_named("mm_star")
