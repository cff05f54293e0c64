"""A checkpoint written under one parallel layout continues under any other, and a damaged one under none."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from forked_commands import run_command
from tiny_training import UPCYCLING, TinyStart, expect_success, read_lines, recipe, tiny_start, write_recipe

from megatron_moe_grpo.models.hf_folder import read_hf_config, read_hf_state, write_hf_folder
from megatron_moe_grpo.models.upcycle import upcycle_state

LAYOUTS: dict[str, dict[str, int]] = {
    "one": {},
    "expert": {"expert": 2},
    "tensor": {"tensor": 2},
    "tensor_expert": {"tensor": 2, "expert": 2, "expert_tensor": 1},
    "pipeline": {"pipeline": 2},
    "data": {},
}
CONTINUED = ("one", "tensor", "tensor_expert", "pipeline", "data")
MAX_GAP = 1e-5
"""Measured: 1.2e-6, the last digit of a log-prob near 10 (rollout_train_selection_logprob_gap); losses 1e-7."""


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> TinyStart:
    return tiny_start(tmp_path_factory.getbasetemp() / "tiny_start")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("layouts")


@pytest.fixture(scope="module")
def original(start: TinyStart, home: Path) -> Path:
    """A run under expert parallelism with its checkpoints after steps 2, 4 and 6."""
    return run_under("expert", values_of(start, home, "expert"), home)


@pytest.fixture(scope="module")
def continued(start: TinyStart, home: Path, original: Path) -> dict[str, Path]:
    """The same run, continued after step 2 under each other layout to its end."""
    return {
        layout: continue_under(layout, 2, original, values_of(start, home, f"expert_{layout}"), home)
        for layout in CONTINUED
    }


def values_of(start: TinyStart, home: Path, name: str) -> dict[str, Any]:
    # Greedy tokens: a near tie between two sampled ones could fall either way for a difference in the last digit.
    values = recipe(start, "moe_grpo", home, name)
    return values | {"rollout": {"group_size": 4}}


def run_under(layout: str, values: dict[str, Any], home: Path, done: int = 0) -> Path:
    path = write_recipe(values | {"parallel": LAYOUTS[layout]}, home / f"{values['name']}.yaml")
    num_ranks = 1 if layout == "one" else 2
    ranks = run_command(["train", path], home / f"log_{values['name']}", num_ranks)
    expect_success(ranks)
    # A run that silently started anew would end in the same numbers.
    assert f"step {done + 1}/6" in ranks[0].output and f"step {done}/6" not in ranks[0].output
    return home / values["name"]


def continue_under(layout: str, done: int, run: Path, values: dict[str, Any], home: Path) -> Path:
    """Copies `run` as it stood after `done` steps and goes on under another layout."""
    copy = home / values["name"]
    newer = [f"step_{step:08d}" for step in range(done + 1, 7)]
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns(*newer))
    # Only the name: the folder still says the layout it was written under, and the trainer must accept another.
    config = yaml.safe_load((copy / "config.yaml").read_text(encoding="utf-8"))
    (copy / "config.yaml").write_text(yaml.safe_dump(config | {"name": values["name"]}), encoding="utf-8")
    return run_under(layout, values, home, done)


def largest_gap(got: Path, expected: Path) -> tuple[float, str]:
    """Over every number of every step; relative above 1, absolute below."""
    pairs = zip(read_lines(got / "metrics.jsonl"), read_lines(expected / "metrics.jsonl"), strict=True)
    gaps = []
    for got_line, expected_line in pairs:
        assert got_line.keys() == expected_line.keys()
        numbers = {name: value for name, value in expected_line.items() if isinstance(value, float)}
        gaps += [
            (abs(got_line[name] - value) / max(1.0, abs(value)), f"{name} of step {expected_line['step']}")
            for name, value in numbers.items()
        ]
    return max(gaps)


@pytest.mark.parametrize("layout", CONTINUED)
def test_another_layout_continues_with_the_same_numbers(
    layout: str, original: Path, continued: dict[str, Path]
) -> None:
    gap = largest_gap(continued[layout], original)
    assert gap < (MAX_GAP, "")


@pytest.mark.parametrize("saved_under", ["tensor", "tensor_expert", "pipeline", "data"])
def test_what_another_layout_saved_continues_on_one_process(
    saved_under: str, start: TinyStart, home: Path, original: Path, continued: dict[str, Path]
) -> None:
    values = values_of(start, home, f"{saved_under}_one")
    gap = largest_gap(continue_under("one", 4, continued[saved_under], values, home), original)
    assert gap < (MAX_GAP, "")


def test_what_one_process_saved_continues_under_expert_parallelism(
    start: TinyStart, home: Path, original: Path, continued: dict[str, Path]
) -> None:
    values = values_of(start, home, "one_expert")
    gap = largest_gap(continue_under("expert", 4, continued["one"], values, home), original)
    assert gap < (MAX_GAP, "")


def test_a_resharded_checkpoint_continues_byte_for_byte(
    start: TinyStart, home: Path, original: Path, continued: dict[str, Path]
) -> None:
    """Under the layout that it was resharded for, as that layout continues from the checkpoint itself."""
    run, name = home / "resharded", "step_00000002"
    shutil.copytree(original, run, ignore=shutil.ignore_patterns(name))
    command = ["tools/reshard_checkpoint.py", original / "checkpoints" / name, run / "checkpoints" / name]
    expect_success(run_command([*command, "--tensor", 2], home / "log_reshard"))
    resumed = continue_under("tensor", 2, run, values_of(start, home, "resharded_tensor"), home)
    for file in ("metrics.jsonl", "samples.jsonl"):
        assert (resumed / file).read_bytes() == (continued["tensor"] / file).read_bytes()


def test_a_model_with_dense_layers_continues_under_another_layout(start: TinyStart, home: Path) -> None:
    """Only the second of two layers has experts: checkpoints name weights by layer, and one stage has no router."""
    state, config = read_hf_state(start.dense), read_hf_config(start.dense)
    state, config = upcycle_state(state, config, replace(UPCYCLING, layers="1"))
    write_hf_folder(home / "mixed_hf", state, config, assets=start.dense)
    expect_success(run_command(["import", home / "mixed_hf", home / "mixed"], home / "log_import_mixed"))
    mixed = replace(start, warm=home / "mixed")
    # Supervised: a model that knows nothing yet earns no reward, and its gradients would be 0.
    original = run_under("pipeline", recipe(mixed, "sft", home, "mixed_pipeline"), home)
    continued = continue_under("expert", 2, original, recipe(mixed, "sft", home, "mixed_expert"), home)
    assert largest_gap(continued, original) < (MAX_GAP, "")


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def take_from_step_4(path: Path) -> None:
    """The file of the same run's next checkpoint."""
    home = path.parents[2]
    shutil.copyfile(home / "expert/checkpoints/step_00000004" / path.name, path)


DAMAGES: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "missing_shard": ("weights/__1_0.distcp", Path.unlink, "no weights/__1_0.distcp"),
    "truncated_shard": ("weights/__0_0.distcp", cut_in_half, "weights/__0_0.distcp has the wrong size"),
    "empty_shard": ("weights/__1_0.distcp", empty, "weights/__1_0.distcp has the wrong size"),
    "flipped_byte": ("weights/__1_1.distcp", flip_byte, "weights/__1_1.distcp has changed"),
    "missing_common": ("weights/common.pt", Path.unlink, "no weights/common.pt"),
    "truncated_state": ("state.json", cut_in_half, "state.json has the wrong size"),
    "missing_manifest": ("manifest.json", Path.unlink, "no manifest.json"),
    "truncated_manifest": ("manifest.json", cut_in_half, "manifest.json is damaged"),
    "manifest_of_another_step": ("manifest.json", take_from_step_4, "state.json has"),
    "killed_while_saving.unfinished": (
        "manifest.json",
        Path.unlink,
        "killed_while_saving.unfinished is not a complete",
    ),
}


@pytest.fixture(scope="module")
def load_results(start: TinyStart, home: Path, original: Path) -> dict[str, list[dict[str, Any]]]:
    """What each of two ranks saw when it loaded each damaged copy, and at last a checkpoint of another model."""
    whole = original / "checkpoints" / "step_00000002"
    folders = []
    for name, (file, damage, _) in DAMAGES.items():
        folder = home / "damaged" / name
        shutil.copytree(whole, folder)
        damage(folder / file)
        folders.append(folder)
    dense = home / "damaged" / "dense"
    expect_success(run_command(["import", start.dense, dense], home / "log_dense"))
    out = home / "load_results"
    out.mkdir()
    command = ["tests/invariants/load_damaged.py", whole, out, *folders, dense, whole]
    expect_success(run_command(command, home / "log_damaged", num_ranks=2))
    ranks = [json.loads((out / f"rank_{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]
    return {name: [rank[name] for rank in ranks] for name in ranks[0]}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_is_refused_on_every_rank(name: str, load_results: dict[str, list[dict]]) -> None:
    for rank in load_results[name]:
        assert rank["error"] is not None and DAMAGES[name][2] in rank["error"]
        assert rank["is_model_untouched"]


def test_the_whole_checkpoint_is_loaded(load_results: dict[str, list[dict]]) -> None:
    expected = {"error": None, "is_model_untouched": False}
    assert load_results["step_00000002"] == [expected, expected]


def test_a_checkpoint_of_another_model_is_refused_on_every_rank(load_results: dict[str, list[dict]]) -> None:
    for rank in load_results["dense"]:
        assert rank["error"] is not None and "do not fit this model" in rank["error"]
