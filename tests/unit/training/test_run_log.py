"""metrics.jsonl: exact, ordered, and after a resume the same bytes as without one."""

import json
import math
from pathlib import Path

import pytest

from megatron_moe_grpo.config.schema import LoggingConfig
from megatron_moe_grpo.errors import DataError
from megatron_moe_grpo.training.run_folder import RunFolder
from megatron_moe_grpo.training.run_log import JoinedLog, MetricsLog, RunLog, open_run_log

METRICS = {"reward": 0.1 + 0.2, "eval": {"b": 1.0, "a": 2}, "counts_LN": [[1.0, 2.0]], "loss": 1e-17}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.open(tmp_path / "run", "name: run\n")


def write_steps(folder: RunFolder, first: int, last: int) -> None:
    log = MetricsLog(folder)
    for step in range(first, last + 1):
        log.write(step, {"loss": 1 / (step + 3), "reward": math.sqrt(step)})
        log.write_timing(step, {"step_s": 0.5})
        log.write_samples(step, [{"id": f"{step}-{i}", "problem": "\u4e8c\u2028\x85 \ud800"} for i in range(2)])


def test_write_orders_keys_and_keeps_every_digit(folder: RunFolder) -> None:
    MetricsLog(folder).write(7, METRICS)
    MetricsLog(folder).write(8, dict(reversed(METRICS.items())))
    first, second = folder.metrics.read_text().splitlines()
    assert first == (
        '{"step": 7, "counts_LN": [[1.0, 2.0]], "eval": {"a": 2, "b": 1.0}, "loss": 1e-17, '
        '"reward": 0.30000000000000004}'
    )
    assert second == first.replace('"step": 7', '"step": 8')
    assert json.loads(first)["reward"] == 0.1 + 0.2


def test_write_makes_valid_json_of_numbers_that_are_not_finite(folder: RunFolder) -> None:
    MetricsLog(folder).write(1, {"a": math.nan, "b": [math.inf, {"c": -math.inf}]})

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    line = json.loads(folder.metrics.read_text(), parse_constant=refuse)
    assert line == {"step": 1, "a": "NaN", "b": ["Infinity", {"c": "-Infinity"}]}
    assert math.isnan(float(line["a"])) and float(line["b"][1]["c"]) == -math.inf


def test_write_refuses_a_second_step_and_values_it_does_not_know(folder: RunFolder) -> None:
    with pytest.raises(ValueError, match="step"):
        MetricsLog(folder).write(1, {"step": 2})
    with pytest.raises(TypeError):
        MetricsLog(folder).write(1, {"a": object()})
    assert not folder.metrics.exists()


def test_timing_stays_out_of_metrics(folder: RunFolder) -> None:
    write_steps(folder, 1, 1)
    assert "step_s" not in folder.metrics.read_text()
    assert json.loads(folder.timing.read_text()) == {"step": 1, "step_s": 0.5}


@pytest.mark.parametrize("torn", ["", '{"step": 9, "lo', '{"step": 3}', "\u00e9"])
@pytest.mark.parametrize("checkpoint", [-1, 0, 3, 8])
def test_resume_after_a_kill_writes_the_bytes_of_an_uninterrupted_run(
    tmp_path: Path, checkpoint: int, torn: str
) -> None:
    whole = RunFolder.open(tmp_path / "whole", "name: run\n")
    write_steps(whole, 0, 12)
    killed = RunFolder.open(tmp_path / "killed", "name: run\n")
    write_steps(killed, 0, 8)
    for path in (killed.metrics, killed.timing, killed.samples):
        with path.open("ab") as file:
            file.write(torn.encode("latin-1"))
    MetricsLog(killed).truncate_after(checkpoint)
    write_steps(killed, checkpoint + 1, 12)
    for name in ("metrics.jsonl", "timing.jsonl", "samples.jsonl"):
        assert (killed.root / name).read_bytes() == (whole.root / name).read_bytes()
    assert sorted(path.name for path in killed.root.iterdir()) == sorted(path.name for path in whole.root.iterdir())


def test_truncate_after_refuses_a_damaged_line_and_leaves_the_file(folder: RunFolder) -> None:
    text = '{"step": 1}\n{"stepp": 2}\n{"step": 3}\n'
    folder.metrics.write_text(text)
    with pytest.raises(DataError, match="metrics.jsonl, line 2"):
        MetricsLog(folder).truncate_after(1)
    assert folder.metrics.read_text() == text


def test_truncate_after_without_files_makes_none(folder: RunFolder) -> None:
    MetricsLog(folder).truncate_after(5)
    assert not folder.metrics.exists()


def test_open_run_log_writes_on_one_rank_only(folder: RunFolder) -> None:
    logging = LoggingConfig(wandb="disabled")
    silent = open_run_log(folder, "run", {}, logging, is_writer=False)
    silent.truncate_after(1)
    silent.write(1, METRICS)
    silent.write_timing(1, {"step_s": 1.0})
    silent.write_samples(1, [{"id": "a"}])
    silent.finish()
    assert [path.name for path in folder.root.iterdir()] == ["config.yaml"]
    assert isinstance(open_run_log(folder, "run", {}, logging, is_writer=True), MetricsLog)


def test_joined_log_passes_everything_on() -> None:
    calls = []

    class Recorder(RunLog):
        def truncate_after(self, step: int) -> None:
            calls.append(("truncate_after", step))

        def write(self, step: int, metrics: object) -> None:
            calls.append(("write", step, metrics))

        def write_timing(self, step: int, timing: object) -> None:
            calls.append(("write_timing", step, timing))

        def write_samples(self, step: int, samples: object) -> None:
            calls.append(("write_samples", step, samples))

        def finish(self) -> None:
            calls.append(("finish",))

    log = JoinedLog([Recorder(), Recorder()])
    log.truncate_after(1)
    log.write(2, {"a": 1})
    log.write_timing(2, {"s": 1.0})
    log.write_samples(2, [])
    log.finish()
    expected = [
        ("truncate_after", 1),
        ("write", 2, {"a": 1}),
        ("write_timing", 2, {"s": 1.0}),
        ("write_samples", 2, []),
        ("finish",),
    ]
    assert calls == [call for call in expected for _ in range(2)]
