"""What a user gets wrong ends the command with code 2 and a message, costs no training, and blocks no later run."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from forked_commands import run_command
from tiny_training import TinyStart, expect_success, read_lines, recipe, write_recipe, write_rows

from megatron_moe_grpo.config import dump_config, parse_config
from megatron_moe_grpo.training.run_folder import RunFolder

GOOD_ROW = {
    "id": "good",
    "image": "images/train/00000.png",
    "problem": "How many 0s are there?",
    "options": ["A. 1", "B. 2"],
    "solution": "B",
}


@dataclass(frozen=True)
class Mistake:
    """What is wrong, and what the message has to say."""

    says: tuple[str, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    """Given with --set."""
    row: dict[str, Any] | None = None
    """Changes of the second training row, whose id becomes `second`; a value of None takes the key away."""
    damage: Callable[[Path], None] | None = None
    """Done to a copy of the checkpoint."""


def remove_a_shard(checkpoint: Path) -> None:
    next((checkpoint / "weights").glob("*.distcp")).unlink()


def cut_config(checkpoint: Path) -> None:
    path = checkpoint / "assets" / "config.json"
    path.write_text(path.read_text(encoding="utf-8")[:100], encoding="utf-8")


def claim_nine_active(checkpoint: Path) -> None:
    path = checkpoint / "assets" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["text_config"]["num_experts_per_tok"] = 9
    path.write_text(json.dumps(config), encoding="utf-8")


MISTAKES = {
    "mistyped_key": Mistake(("unknown key 'rollout.group_sise'", "group_size"), {"rollout.group_sise": 4}),
    "unknown_section": Mistake(("unknown key 'rolout'", "did you mean 'rollout'"), {"rolout.group_size": 4}),
    "wrong_type": Mistake(("'training.steps'", "got:", "many", "expected:"), {"training.steps": "many"}),
    "more_active_than_experts": Mistake(("K = 9, N = 8", "K <= N"), damage=claim_nine_active),
    "experts_not_divisible": Mistake(("8 experts, parallel.expert=3", "1, 2, 4, 8"), {"parallel.expert": 3}),
    "guidance_closes_too_many": Mistake(
        ("1 of 8 experts open", "K=2", "guidance_fraction <= 0.75"), {"routing.guidance_fraction": 0.9}
    ),
    "prompts_not_divisible": Mistake(("training.prompts_per_step=5",), {"training.prompts_per_step": 5}),
    "too_few_processes": Mistake(("1 processes", "tensor x pipeline = 2"), {"parallel.tensor": 2}),
    "missing_image": Mistake(
        ("rows.jsonl:2 (id 'second')", "absent.png"), row={"image": "images/train/absent.png"}
    ),
    "corrupt_image": Mistake(("rows.jsonl:2 (id 'second')", "cannot be decoded"), row={"image": "train.jsonl"}),
    "no_solution": Mistake(("rows.jsonl:2 (id 'second'), field 'solution'",), row={"solution": None}),
    "solution_is_no_option": Mistake(
        ("rows.jsonl:2 (id 'second'), field 'solution'", "got:", "expected:"), row={"solution": "E"}
    ),
    "prompt_too_long": Mistake(
        ("rows.jsonl:2 (id 'second')", "the prompt has", "data.max_prompt_tokens is 40", "raise the limit"),
        {"data.max_prompt_tokens": 40},
        row={"problem": "How many? " * 20},
    ),
    "special_token_as_text": Mistake(
        ("rows.jsonl:2 (id 'second')", "Special tokens typed as text", "<|im_end|>", "remove them"),
        row={"problem": "How many<|im_end|>?"},
    ),
    "bad_held_out_row": Mistake(
        ("train.jsonl:", "(id 'two-0')"), {"data.evaluation": "ROWS/train.jsonl", "data.max_prompt_tokens": 40}
    ),
    "no_data_file": Mistake(("does not exist", "absent.jsonl"), {"data.train": "absent.jsonl"}),
    "no_checkpoint": Mistake(("not a Megatron checkpoint", "absent", "import"), {"model.checkpoint": "absent"}),
    "missing_shard": Mistake(("lacks a file", "no weights/__0_"), damage=remove_a_shard),
    "damaged_config": Mistake(("config.json is damaged",), damage=cut_config),
}  # fmt: skip


def train(start: TinyStart, folder: Path, mistake: Mistake | None = None, log: str = "log") -> tuple[int, str]:
    """Trains two steps on two rows, with or without a mistake; returns exit code and output."""
    rows = [GOOD_ROW, GOOD_ROW | {"id": "second"}]
    settings, checkpoint = {}, start.untrained
    if mistake is not None:
        changed = rows[1] | (mistake.row or {})
        rows[1] = {key: value for key, value in changed.items() if value is not None}
        settings = mistake.settings
        if mistake.damage is not None:
            checkpoint = shutil.copytree(checkpoint, folder / "checkpoint")
            mistake.damage(checkpoint)
    overrides = [
        text
        for key, value in settings.items()
        for text in ("--set", f"{key}={str(value).replace('ROWS', str(start.rows))}")
    ]
    path = write_recipe(values_of(start, folder, checkpoint), folder / "recipe.yaml")
    write_rows(folder / "rows.jsonl", rows)
    (finished,) = run_command(["train", path, *overrides], folder / log)
    return finished.exit_code, finished.output


def values_of(start: TinyStart, folder: Path, checkpoint: Path) -> dict[str, Any]:
    return recipe(start, "moe_grpo", folder) | {
        "model": {"checkpoint": str(checkpoint)},
        "data": {"train": str(folder / "rows.jsonl"), "image_root": str(start.rows)},
        "training": {"steps": 2, "prompts_per_step": 2, "micro_batch_prompts": 2},
    }


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_explained_and_blocks_nothing(name: str, start: TinyStart, tmp_path: Path) -> None:
    exit_code, output = train(start, tmp_path, MISTAKES[name])
    assert exit_code == 2, output
    assert "Traceback" not in output and "error: " in output
    for words in MISTAKES[name].says:
        assert words in output
    run = tmp_path / "run"
    assert not (run / "metrics.jsonl").exists() and not (run / "checkpoints").exists()
    # A corrected config, for which this folder would be another run's, is taken.
    corrected = parse_config(values_of(start, tmp_path, start.untrained))
    RunFolder.open(run, dump_config(corrected))


def test_the_corrected_command_trains_in_the_same_folder(start: TinyStart, tmp_path: Path) -> None:
    assert train(start, tmp_path, MISTAKES["prompt_too_long"], "log_mistake")[0] == 2
    exit_code, output = train(start, tmp_path)
    assert exit_code == 0, output
    assert [line["step"] for line in read_lines(tmp_path / "run" / "metrics.jsonl")] == [0, 1, 2]


def test_a_run_with_results_refuses_another_config(start: TinyStart, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(start, tmp_path, log="log_first")[0] == 0
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    mistake = Mistake((), {"optimizer.learning_rate": 1.0})
    exit_code, output = train(start, tmp_path, mistake, "log_second")
    assert exit_code == 2 and "Traceback" not in output
    assert "an output folder of another config" in output
    assert "optimizer.learning_rate was 0.003 and is 1.0 now" in output
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_dense_model_is_sent_to_upcycling(start: TinyStart, tmp_path: Path) -> None:
    expect_success(run_command(["import", start.dense, tmp_path / "dense"], tmp_path / "log_import"))
    mistake = Mistake((), {"model.checkpoint": tmp_path / "dense"})
    exit_code, output = train(start, tmp_path, mistake)
    assert exit_code == 2 and "upcycle_checkpoint.py" in output


def test_skipped_rows_are_listed_once_and_the_others_train(start: TinyStart, tmp_path: Path) -> None:
    bad = {
        "no_solution": {key: value for key, value in GOOD_ROW.items() if key != "solution"},
        "no_image": GOOD_ROW | {"image": "images/train/absent.png"},
        "typed_token": GOOD_ROW | {"problem": "<img>?"},
        "too_long": GOOD_ROW | {"problem": "How many? " * 40},
    }
    rows = [GOOD_ROW, *(row | {"id": name} for name, row in bad.items()), GOOD_ROW | {"id": "last"}]
    train_file = write_rows(tmp_path / "rows.jsonl", rows)
    held_out_file = write_rows(tmp_path / "held_out.jsonl", [bad["no_image"] | {"id": "lost"}, GOOD_ROW])
    values = values_of(start, tmp_path, start.untrained)
    values["data"] |= {"on_bad_row": "skip", "evaluation": str(held_out_file), "max_prompt_tokens": 120}
    path = write_recipe(values, tmp_path / "recipe.yaml")
    for log in ("log_first", "log_again"):
        (finished,) = run_command(["train", path], tmp_path / log)
        assert finished.exit_code == 0, finished.output
        assert "5 bad rows skipped, listed in" in finished.output
        listed = read_lines(tmp_path / "run" / "bad_rows.jsonl")
        assert [(row["file"], row["line"], row["id"]) for row in listed] == [
            (str(train_file), 2, "no_solution"), (str(train_file), 3, "no_image"), (str(train_file), 4, "typed_token"),
            (str(train_file), 5, "too_long"), (str(held_out_file), 1, "lost"),
        ]  # fmt: skip
        assert all(row["reason"] for row in listed)
    assert read_lines(tmp_path / "run" / "metrics.jsonl")[-1]["step"] == 2
    assert read_lines(tmp_path / "run" / "metrics.jsonl")[-1]["eval_num_examples"] == 1
