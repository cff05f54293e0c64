"""A run folder is made once, found again by its own config, and never taken over by another."""

from pathlib import Path

import pytest

from megatron_moe_grpo.errors import ConfigError
from megatron_moe_grpo.training.run_folder import RunFolder

CONFIG = "name: demo\ntraining:\n  steps: 3\n  seed: 0\n"


def test_open_makes_the_folder_with_its_config(tmp_path: Path) -> None:
    folder = RunFolder.open(tmp_path / "runs" / "demo", CONFIG)
    assert folder.config.read_text(encoding="utf-8") == CONFIG
    assert [path.name for path in folder.root.iterdir()] == ["config.yaml"]
    names = [folder.metrics, folder.timing, folder.samples, folder.bad_rows, folder.checkpoints, folder.report]
    assert [path.relative_to(folder.root).as_posix() for path in names] == [
        "metrics.jsonl",
        "timing.jsonl",
        "samples.jsonl",
        "bad_rows.jsonl",
        "checkpoints",
        "report.html",
    ]


def test_open_resumes_an_equal_config_whatever_its_formatting(tmp_path: Path) -> None:
    RunFolder.open(tmp_path / "demo", CONFIG).metrics.write_text("kept\n")
    folder = RunFolder.open(tmp_path / "demo", "training: {seed: 0, steps: 3}\nname: demo\n")
    assert folder.metrics.read_text() == "kept\n"
    assert folder.config.read_text(encoding="utf-8") == CONFIG


@pytest.mark.parametrize("written", ["metrics.jsonl", "checkpoints"])
def test_open_names_every_key_of_another_config_and_changes_nothing(tmp_path: Path, written: str) -> None:
    folder = RunFolder.open(tmp_path / "demo", CONFIG)
    (folder.root / written).touch()
    with pytest.raises(ConfigError, match="an output folder of another config") as caught:
        RunFolder.open(tmp_path / "demo", "name: demo\ntraining:\n  steps: 5\n  warmup: 1\n")
    message = str(caught.value)
    assert "training.steps was 3 and is 5 now" in message
    assert "training.seed was 0 and is no key now" in message
    assert "training.warmup was no key and is 1 now" in message
    assert "name was" not in message
    assert "--set name=" in message
    assert folder.config.read_text(encoding="utf-8") == CONFIG


def test_open_resumes_under_another_parallel_layout(tmp_path: Path) -> None:
    folder = RunFolder.open(tmp_path / "run", "seed: 0\nparallel: {expert: 2}\n")
    folder.metrics.write_text('{"step": 1}\n')
    assert RunFolder.open(tmp_path / "run", "seed: 0\nparallel: {expert: 1}\n") == folder
    assert folder.config.read_text() == "seed: 0\nparallel: {expert: 1}\n"
    with pytest.raises(ConfigError, match="seed was 0 and is 1 now"):
        RunFolder.open(tmp_path / "run", "seed: 1\nparallel: {expert: 1}\n")


def test_open_resumes_a_run_that_is_followed_in_another_way(tmp_path: Path) -> None:
    """A slow run can be stopped and go on with a profile; a run of an earlier release knows fewer loggers."""
    folder = RunFolder.open(tmp_path / "run", "seed: 0\nlogging: {wandb: offline}\n")
    folder.metrics.write_text('{"step": 1}\n')
    changed = "seed: 0\nlogging: {wandb: disabled, profile_steps: [3, 4]}\n"
    assert RunFolder.open(tmp_path / "run", changed).config.read_text() == changed


def test_open_takes_another_config_where_no_step_was_written(tmp_path: Path) -> None:
    RunFolder.open(tmp_path / "demo", CONFIG).bad_rows.write_text("{}\n")
    changed = CONFIG.replace("steps: 3", "steps: 5")
    assert RunFolder.open(tmp_path / "demo", changed).config.read_text(encoding="utf-8") == changed


def test_open_refuses_a_folder_that_holds_something_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ConfigError, match="not a run folder"):
        RunFolder.open(tmp_path, CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(ConfigError, match="not a run folder"):
        RunFolder.open(tmp_path / "thesis.tex", CONFIG)


def test_open_takes_an_empty_folder(tmp_path: Path) -> None:
    assert RunFolder.open(tmp_path, CONFIG).config.is_file()
