"""The bar shows bytes and the time that is left where somebody looks, and nothing elsewhere."""

import pytest

from megatron_moe_grpo.conversion.progress import progress_bar


def test_progress_bar_is_silent_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("import", 100) as progress:
        progress(100)
    assert capsys.readouterr() == ("", "")


def test_progress_bar_counts_bytes_when_forced(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("import", 4_000_000_000, is_forced=True) as progress:
        progress(1_000_000_000)
    captured = capsys.readouterr()
    assert captured.out == ""
    # 1.00G of 4.00G, time gone < time left, bytes a second.
    assert "import:  25%" in captured.err and "1.00G/4.00G [00:00<00:00" in captured.err and "B/s]" in captured.err
