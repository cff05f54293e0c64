"""The progress bar on a terminal and in a log file, and the table at the end."""

import io

import pytest

from megatron_moe_grpo.training.console import StepProgress, shown_numbers, summary_table


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run_steps(progress: StepProgress, first: int, last: int) -> None:
    for step in range(first, last + 1):
        numbers = {"reward": step / 100}
        if step == 10:
            numbers["accuracy"] = 0.25
        progress.update(step, numbers)
    progress.close()


def test_a_log_file_gets_the_first_step_and_each_twentieth() -> None:
    stream = io.StringIO()
    run_steps(StepProgress(100, stream=stream), 1, 100)
    lines = stream.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["1/100", *(f"{step}/100" for step in range(5, 101, 5))]
    assert "reward 0.050" in lines[1] and "accuracy" not in lines[1]
    # Measured at step 10, still shown at step 15.
    assert "reward 0.150  accuracy 0.250" in lines[3]
    assert "s/step" in lines[-1] and lines[-1].endswith("00:00 left")


def test_a_short_run_prints_every_step() -> None:
    stream = io.StringIO()
    run_steps(StepProgress(3, stream=stream), 1, 3)
    assert len(stream.getvalue().splitlines()) == 3


def test_a_resumed_run_counts_its_own_steps_for_the_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 6.0, 6.0, 6.0])
    monkeypatch.setattr("megatron_moe_grpo.training.console.time.monotonic", lambda: next(clock))
    stream = io.StringIO()
    progress = StepProgress(10, first_step=4, stream=stream)
    progress.update(7, {"reward": 0.5})
    # 6 s for steps 5, 6 and 7; three more to go.
    assert stream.getvalue() == "step 7/10  reward 0.500  2.00 s/step  00:06 left\n"


def test_shown_numbers_are_the_telling_ones_and_large_ones_stay_short() -> None:
    timing = {"rollout_s": 1.0, "tokens_per_second": 12345.6, "model_flops_utilisation": 0.41}
    shown = shown_numbers({"loss": 0.1, "reward_mean": 0.5, "grad_norm": 1.0, "expert_load_share_LN": [[1.0]]} | timing)
    assert shown == {"reward_mean": 0.5, "tokens/s": 12345.6, "MFU": 0.41}
    assert shown_numbers({"loss": 0.1}) == {"loss": 0.1}
    stream = io.StringIO()
    StepProgress(10, stream=stream).update(1, shown)
    assert stream.getvalue().startswith("step 1/10  reward_mean 0.500  tokens/s 12,346  MFU 0.410  ")


def test_a_terminal_gets_one_bar() -> None:
    stream = Terminal()
    run_steps(StepProgress(20, first_step=5, stream=stream), 6, 20)
    last = stream.getvalue().rstrip("\n").split("\r")[-1]
    assert last.startswith("step 20/20 |")
    assert "reward 0.200" in last and "accuracy 0.250" in last and "left" in last
    assert stream.getvalue().count("\n") == 1


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_other_ranks_print_nothing(stream: io.StringIO) -> None:
    run_steps(StepProgress(20, is_shown=False, stream=stream), 1, 20)
    assert stream.getvalue() == ""


def test_summary_table_aligns_numbers_right_and_text_left() -> None:
    table = summary_table([["dense", 0.5, 12], ["moe-grpo", 0.73111, None]], ["model", "accuracy", "steps"])
    assert table.splitlines() == [
        "model     accuracy  steps",
        "--------  --------  -----",
        "dense        0.500     12",
        "moe-grpo     0.731      -",
    ]


def test_summary_table_without_rows_is_its_head() -> None:
    assert summary_table([], ["a", "b"]).splitlines() == ["a  b", "-  -"]


def test_summary_table_refuses_a_row_of_another_length() -> None:
    with pytest.raises(ValueError):
        summary_table([[1, 2, 3]], ["a", "b"])
    with pytest.raises((ValueError, IndexError)):
        summary_table([[1]], ["a", "b"])
