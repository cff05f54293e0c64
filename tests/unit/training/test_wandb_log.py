"""W&B offline: the numbers arrive, the id lasts, what fails is said and never stops a run."""

import time
from pathlib import Path

import pytest
import wandb

from megatron_moe_grpo.config.schema import LoggingConfig
from megatron_moe_grpo.errors import ConfigError
from megatron_moe_grpo.training.run_folder import RunFolder
from megatron_moe_grpo.training.wandb_log import WandbLog

OFFLINE = LoggingConfig(wandb="offline")


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.open(tmp_path / "run", "name: run\n")


def test_offline_run_holds_scalars_and_keeps_its_id_over_a_resume(folder: RunFolder) -> None:
    for step in (1, 1):  # the second is a resume from an older checkpoint: W&B's own step could not go back
        log = WandbLog(folder, "run", {"seed": 0}, OFFLINE)
        log.write(step, {"reward_mean": 0.03125, "eval": {"where": 0.25}, "counts_LN": [[1, 2]]})
        log.write_timing(step, {"step_s": 2.0})
        log.finish()
        time.sleep(1.1)  # W&B names offline folders by the second
    run_id = (folder.wandb / "run_id").read_text()
    files = list(folder.wandb.glob(f"offline-run-*/run-{run_id}.wandb"))
    assert len(files) == len(list(folder.wandb.glob("offline-run-*"))) == 2
    # wandb ships no reader of its binary file; the records in it are plain protobuf, names and values as text.
    content = _when_written(files[0], b"0.03125")
    for name in (b"reward_mean", b"eval/where", b"timing/step_s", b"0.03125"):
        assert name in content
    assert b"counts_LN" not in content


def _when_written(path: Path, last: bytes) -> bytes:
    """W&B's own process writes the file, and `finish` can return a moment before its last flush."""
    deadline_s = time.monotonic() + 20
    while last not in (content := path.read_bytes()) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    return content


def test_no_account_is_an_error_at_the_start(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**arguments: object) -> None:
        raise wandb.errors.UsageError("No API key configured")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(ConfigError, match="No API key configured") as caught:
        WandbLog(folder, "run", {}, LoggingConfig(wandb="online"))
    assert "logging.wandb=offline" in str(caught.value)


def test_a_failure_in_training_is_said_once_and_at_the_end(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class FailingRun:
        def define_metric(self, *arguments: object, **named: object) -> None:
            pass

        def log(self, values: dict) -> None:
            raise wandb.errors.CommError("the disk is full")

        def finish(self) -> None:
            is_closed.append(True)
            raise wandb.errors.CommError("a second one")

    is_closed: list[bool] = []
    monkeypatch.setattr(wandb, "init", lambda **arguments: FailingRun())
    log = WandbLog(folder, "run", {}, OFFLINE)
    for step in range(3):
        log.write(step, {"a": 1.0})
    assert capsys.readouterr().err.count("stopped working (CommError: the disk is full); training goes on") == 1
    log.finish()
    assert is_closed == [True]
    said = capsys.readouterr().err
    assert "Weights & Biases is incomplete: CommError: the disk is full" in said
    assert "stopped working" not in said
