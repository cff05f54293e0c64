"""`analyse` on a run, on checkpoints and on a dense model, against what training itself measured."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from forked_commands import run_command
from tiny_training import TinyStart, expect_success, read_lines, recipe, write_recipe, write_rows

STEPS = 3
NUM_ROUTES = 3


def analyse(log: Path, *arguments: object) -> str:
    ranks = run_command(["analyse", *arguments], log)
    expect_success(ranks)
    return ranks[0].output


def values_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "analysis.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("analyse")


@pytest.fixture(scope="module")
def run_folder(start: TinyStart, folder: Path) -> Path:
    """Explores at a temperature that lets nothing but the largest logits through."""
    values = recipe(start, "moe_grpo", folder, "cold")
    values["training"] |= {"steps": STEPS, "evaluate_every": 0, "save_every": STEPS, "updates_per_rollout": 1}
    values["optimizer"]["warmup_steps"] = 0
    values["routing"] = {"temperature": 1e-6, "guidance": "multinomial"}
    expect_success(run_command(["train", write_recipe(values, folder / "cold.yaml")], folder / "log_train"))
    return folder / "cold"


@pytest.fixture(scope="module")
def of_run(run_folder: Path, folder: Path) -> dict[str, Any]:
    output = analyse(folder / "log_run", run_folder, "--out", folder / "run", "--routes", NUM_ROUTES, "--examples", 4)
    assert f"written: {folder / 'run' / 'analysis.html'}" in output
    return values_of(folder / "run")


def test_analyse_of_a_run_finds_what_the_last_evaluation_found(of_run: dict[str, Any], run_folder: Path) -> None:
    last = read_lines(run_folder / "metrics.jsonl")[-1]
    assert of_run["step"] == last["step"] == STEPS
    assert of_run["accuracy"]["top_k"] == pytest.approx(last["eval_accuracy"])
    assert of_run["rows"]["num_rows"] == last["eval_num_examples"]
    assert of_run["utilisation"]["counts_LN"] == last["eval_expert_counts_LN"]
    assert of_run["utilisation"]["entropy_nats"] == pytest.approx(last["eval_utilisation_entropy_nats"])
    by_task = {task: right / count for task, (right, count) in of_run["accuracy"]["by_task"].items()}
    assert by_task == pytest.approx(last["eval_accuracy_by_type"])
    assert of_run["rewards"]["steps"] == [1, 2, 3]
    assert of_run["settings"]["from"] == "the run's config.yaml"
    assert of_run["left_out"] == {}


def test_analyse_of_cold_routes_finds_only_the_top_k_route(of_run: dict[str, Any]) -> None:
    agreement, regret = of_run["agreement"], of_run["regret"]
    assert (agreement["overlap"], agreement["same_set"]) == (1.0, 1.0)
    assert agreement["by_layer"] == agreement["vision_by_layer"] == agreement["text_by_layer"] == [1.0, 1.0]
    assert (regret["regret"], regret["rescued"], regret["lost"]) == (0.0, 0.0, 0.0)
    assert regret["best_of_by_routes"] == pytest.approx([of_run["accuracy"]["top_k"]] * NUM_ROUTES)
    for example in of_run["examples"]:
        assert [route["response"] for route in example["routes"]] == [example["response"]] * NUM_ROUTES


def test_analyse_shows_examples_with_the_routing_of_every_layer(of_run: dict[str, Any], folder: Path) -> None:
    assert len(of_run["examples"]) == 2
    for example in of_run["examples"]:
        for part in ("answer", "vision", "text"):
            probs_LN, experts_LK = (example["routing"][part][key] for key in ("probs_LN", "experts_LK"))
            assert [len(row) for row in probs_LN] == [8, 8] and [len(row) for row in experts_LK] == [2, 2]
            assert [sum(row) for row in probs_LN] == pytest.approx([1.0, 1.0], abs=1e-5)
        # Those of the answering token are the two largest.
        for probs_N, experts_K in zip(*example["routing"]["answer"].values(), strict=True):
            assert sorted(experts_K) == sorted(sorted(range(8), key=lambda n: -probs_N[n])[:2])
    html = (folder / "run" / "analysis.html").read_text(encoding="utf-8")
    assert html.count("data:image/png") == html.count('<article class="example"') == 2
    assert (folder / "run" / "figures" / "routing_of_example_2.svg").is_file()


def test_analyse_counts_only_what_was_sampled(
    start: TinyStart, run_folder: Path, of_run: dict[str, Any], folder: Path
) -> None:
    """The same checkpoint under `explore: response` and guidance: prompts keep their top-K."""
    copy = folder / "response"
    copy.mkdir()
    (copy / "checkpoints").symlink_to(run_folder / "checkpoints")
    config = yaml.safe_load((run_folder / "config.yaml").read_text(encoding="utf-8"))
    config["routing"] |= {"explore": "response", "temperature": 1.0, "guidance": "modality"}
    # A bad row, which this run skips.
    rows = [*read_lines(start.rows / "test.jsonl"), {"id": "bad", "problem": "?", "options": ["A. 1"], "solution": "Z"}]
    config["data"] |= {"image_root": str(start.rows), "on_bad_row": "skip"}
    config["data"]["evaluation"] = str(write_rows(copy / "rows.jsonl", rows))
    (copy / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    analyse(folder / "log_response", copy, "--out", folder / "of_response", "--routes", NUM_ROUTES, "--examples", 0)
    values = values_of(folder / "of_response")
    assert (values["rows"]["num_rows"], values["rows"]["num_skipped"]) == (len(rows) - 1, 1)
    agreement, num_answers = values["agreement"], NUM_ROUTES * values["rows"]["num_rows"]
    # Two tokens an answer at most, each produced at one position.
    assert num_answers <= agreement["num_tokens"] <= 2 * num_answers
    assert agreement["vision_by_layer"] is None and agreement["overlap"] < 1.0
    assert of_run["agreement"]["num_tokens"] > 10 * num_answers
    assert values["settings"]["guidance_mask"] and not of_run["settings"]["guidance_mask"]
    assert values["accuracy"] == of_run["accuracy"], "top-K knows neither temperature nor guidance"
    assert "reward_mean" in values["left_out"]["rewards"]


def test_analyse_of_a_checkpoint_does_not_depend_on_the_batch(start: TinyStart, folder: Path) -> None:
    # Grids, questions without a picture and with two.
    rows, options = start.rows / "train.jsonl", ["--routes", NUM_ROUTES, "--examples", 18]
    found = []
    for size in (4, 64):
        out = folder / f"batch_{size}"
        analyse(folder / f"log_{size}", start.untrained, "--data", rows, "--out", out, "--batch-size", size, *options)
        found.append(values_of(out))
    small, large = found
    for section in ("accuracy", "regret", "agreement", "rows", "settings", "left_out", "modality"):
        assert small[section] == large[section], section
    assert small["utilisation"]["counts_LN"] == large["utilisation"]["counts_LN"]
    assert small["rows"]["num_rows"] == len(small["examples"]) == 18
    is_text = {example["id"]: example["routing"]["vision"] is None for example in small["examples"]}
    assert [name for name in is_text if is_text[name]] == ["text-0", "text-1", "text-2"]
    # Warm routes do stray: an agreement of 1 would mean that nothing was sampled.
    assert small["agreement"]["chance"] < small["agreement"]["overlap"] < 0.9
    assert small["settings"]["from"] == "defaults" and "metrics.jsonl" in small["left_out"]["rewards"]


def test_analyse_of_a_dense_model_leaves_routing_out(start: TinyStart, folder: Path) -> None:
    expect_success(run_command(["import", start.dense, folder / "dense_start"], folder / "log_import"))
    rows = start.rows / "test.jsonl"
    analyse(folder / "log_dense", folder / "dense_start", "--data", rows, "--out", folder / "dense", "--rows", 1)
    values = values_of(folder / "dense")
    assert values["rows"]["num_rows"] == 1
    assert set(values["left_out"]) == {"rewards", "utilisation", "tasks", "modality", "agreement", "regret"}
    assert all(example["routing"] is None for example in values["examples"])


def test_analyse_puts_analyses_of_the_same_rows_side_by_side(of_run: dict[str, Any], folder: Path) -> None:
    (folder / "copy").mkdir()
    (folder / "copy" / "analysis.json").write_text(json.dumps(of_run), encoding="utf-8")
    output = analyse(folder / "log_pair", folder / "run", folder / "copy", "--out", folder / "pair")
    accuracy = f"{of_run['accuracy']['top_k']:.3f}"
    assert f"{accuracy}  {accuracy}" in output
    assert (folder / "pair" / "side_by_side.html").is_file()


def test_analyse_refuses_what_it_cannot_use(start: TinyStart, folder: Path) -> None:
    for arguments, message in (
        ([start.moe, "--out", folder / "x"], "neither a run folder nor a Megatron checkpoint"),
        ([start.untrained, "--out", folder / "x"], "nothing says which rows"),
        ([start.untrained, "--data", start.rows / "test.jsonl", "--out", start.rows], "is not an analysis"),
    ):
        (rank,) = run_command(["analyse", *arguments], folder / f"log_{message[:7]}")
        assert rank.exit_code == 2 and message in rank.output
        assert "Traceback" not in rank.output
    assert not (folder / "x" / "analysis.json").exists()
