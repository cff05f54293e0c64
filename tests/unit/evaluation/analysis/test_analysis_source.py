"""What an analysis is of: runs, checkpoints inside and outside runs, and what is neither."""

import json
from pathlib import Path

import pytest
import torch

from megatron_moe_grpo.errors import CheckpointError, ConfigError
from megatron_moe_grpo.evaluation.analysis.source import find_source

CONFIG = """name: demo
method: moe_grpo
model: {checkpoint: m}
data: {train: t, evaluation: EVALUATION}
training: {steps: 9}
"""


def make_checkpoint(folder: Path, state: dict) -> Path:
    (folder / "assets").mkdir(parents=True)
    (folder / "state.json").write_text(json.dumps(state), encoding="utf-8")
    return folder


def make_run(root: Path, extra: str = "") -> Path:
    root.mkdir()
    (root / "config.yaml").write_text(CONFIG.replace("EVALUATION", str(root / "rows.jsonl")) + extra, encoding="utf-8")
    for step in (2, 10):
        counts = {"vision_LN": [[1.0, 2.0, 3.0, step]], "text_LN": [[4.0, 3.0, 2.0, 1.0]]}
        make_checkpoint(root / "checkpoints" / f"step_{step:08d}", {"step": step, "modality_counts": counts})
    return root


def test_find_source_of_a_run_is_its_newest_checkpoint_and_its_settings(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "routing: {temperature: 2.0, assignment: policy}\n")
    source = find_source(run)
    assert (source.checkpoint.name, source.step, source.run_folder) == ("step_00000010", 10, run)
    assert (source.routing.guidance, source.routing.temperature) == ("modality", 2.0)
    assert torch.equal(source.trained_counts().vision_LN, torch.tensor([[1.0, 2.0, 3.0, 10.0]], dtype=torch.float64))
    (run / "rows.jsonl").touch()
    assert source.rows_file(None) == run / "rows.jsonl"


def test_find_source_of_a_checkpoint_inside_a_run_knows_the_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    source = find_source(run / "checkpoints" / "step_00000002")
    assert (source.step, source.run_folder, source.config.name) == (2, run, "demo")


def test_find_source_of_a_checkpoint_alone_samples_plainly(tmp_path: Path) -> None:
    source = find_source(make_checkpoint(tmp_path / "start", {"step": 0}))
    assert (source.config, source.run_folder, source.trained_counts()) == (None, None, None)
    assert source.routing.guidance == "multinomial"
    with pytest.raises(ConfigError, match="which rows"):
        source.rows_file(None)
    with pytest.raises(ConfigError, match="not there"):
        source.rows_file(tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    ("settings", "guidance"),
    [
        ("guidance: none", "multinomial"),
        ("guidance: noise", "noise"),
        ("guidance: none, assignment: sinkhorn", "multinomial"),
    ],
)
def test_source_samples_as_the_run_explored(tmp_path: Path, settings: str, guidance: str) -> None:
    source = find_source(make_run(tmp_path / "run", f"routing: {{{settings}}}\n"))
    assert (source.routing.guidance, source.routing.assignment) == (guidance, "policy")


def test_find_source_refuses_what_is_neither(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="neither a run folder nor a Megatron checkpoint"):
        find_source(tmp_path)
    (tmp_path / "config.yaml").write_text(CONFIG, encoding="utf-8")
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        find_source(tmp_path)
