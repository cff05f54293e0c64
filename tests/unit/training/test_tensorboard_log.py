"""Event files, read back by TensorBoard itself."""

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from megatron_moe_grpo.config.schema import LoggingConfig
from megatron_moe_grpo.training.run_folder import RunFolder
from megatron_moe_grpo.training.run_log import open_run_log
from megatron_moe_grpo.training.tensorboard_log import TensorBoardLog

SAMPLE = {"id": "a", "problem": "1 | 2?", "options": ["A. 1"], "solution": "A", "responses": ["A", "<b>\n|"]}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.open(tmp_path / "run", "name: run\n")


def read(folder: RunFolder) -> EventAccumulator:
    return EventAccumulator(str(folder.tensorboard)).Reload()


def curve(folder: RunFolder, name: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in read(folder).Scalars(name)]


def test_scalars_timing_and_samples_arrive(folder: RunFolder) -> None:
    log = TensorBoardLog(folder)
    log.truncate_after(-1)
    log.write(0, {"eval_accuracy_by_type": {"where": 0.25}})
    log.write(1, {"loss": 0.5, "counts_LN": [[1, 2]], "updates_skipped": 0})
    log.write_timing(1, {"rollout_s": 2.0})
    log.write_samples(1, [SAMPLE | {"rewards": [1.0, 0.0]}])
    log.finish()
    names = {"loss", "updates_skipped", "timing/rollout_s", "eval_accuracy_by_type/where"}
    assert set(read(folder).Tags()["scalars"]) == names
    assert curve(folder, "loss") == [(1, 0.5)]
    (text,) = read(folder).Tensors("samples/text_summary")
    assert text.step == 1
    lines = text.tensor_proto.string_val[0].decode().splitlines()
    assert lines[0] == "| id | problem | solution | response | reward |"
    assert lines[2:] == [
        "| a | 1 &#124; 2?<br>A. 1 | A | A | 1.000 |",
        "| a | 1 &#124; 2?<br>A. 1 | A | &#60;b&#62;<br>&#124; | 0.000 |",
    ]


def test_a_resumed_run_replaces_the_steps_it_makes_again(folder: RunFolder) -> None:
    for first, last, factor in ((1, 5, 1.0), (4, 6, 10.0)):  # killed after step 5, resumed from step 3
        log = TensorBoardLog(folder)
        log.truncate_after(first - 1 if first > 1 else -1)
        for step in range(first, last + 1):
            log.write(step, {"loss": factor * step})
        log.finish()
    assert curve(folder, "loss") == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0), (5, 50.0), (6, 60.0)]


def test_a_run_that_writes_nothing_leaves_no_file(folder: RunFolder) -> None:
    log = TensorBoardLog(folder)
    log.truncate_after(-1)
    log.finish()
    assert not folder.tensorboard.exists()


def test_the_setting_adds_it_to_metrics_jsonl(folder: RunFolder) -> None:
    settings = LoggingConfig(wandb="disabled", tensorboard=True)
    log = open_run_log(folder, "run", {}, settings, is_writer=True)
    log.write(1, {"loss": 0.5})
    log.finish()
    assert curve(folder, "loss") == [(1, 0.5)]
    assert folder.metrics.exists()
