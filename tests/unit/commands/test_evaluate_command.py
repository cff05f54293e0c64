"""`evaluate` and `compare` at the command line: one verb for rows and benchmarks, and which of its options go where."""

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "evaluation"))
from chat_server import chat_reply, chat_server
from evaluated_folders import write_rows

from megatron_moe_grpo import __main__ as command_line


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["megatron_moe_grpo", *map(str, arguments)])
    return command_line.main()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["m", "--data", "d", "--blank-images"], "only benchmarks take --blank-images"),
        (["m", "--data", "d", "--timeout-s", "1"], "only benchmarks take --timeout-s"),
        (["http://h", "--data", "d"], "an endpoint is asked benchmarks only"),
        (["m", "--data", "d", "--benchmark", "mme"], "--out FOLDER"),
        (["m", "--data", "d", "--benchmark", "mne", "--out", "o"], "did you mean mme?"),
        (["m", "--data", "d", "--benchmark", "mme", "--extraction", "strict", "--out", "o"], "without --extraction"),
        (["m", "--data", "absent", "--benchmark", "mme", "--out", "o"], "absent does not exist"),
        (["ftp://h", "--data", "ROWS", "--benchmark", "counting", "--out", "o"], "not the address of an endpoint"),
        (["http://h", "--data", "ROWS", "--benchmark", "digit_grids", "--api-key-file", "no", "--out", "o"], "key"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = write_rows(tmp_path / "rows.jsonl", 2)
    found = run(monkeypatch, "evaluate", *[str(rows) if argument == "ROWS" else argument for argument in arguments])
    assert found == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--retries", "-1"),
        ("--timeout-s", "0"),
        ("--timeout-s", "nan"),
        ("--concurrency", "0"),
        ("--max-new-tokens", "0"),
    ],
)
def test_numbers_that_cannot_be_are_refused(
    option: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, "evaluate", "http://h", "--data", "d", "--benchmark", "mme", "--out", "o", option, value)
    assert caught.value.code == 2
    assert option in capsys.readouterr().err


def test_an_endpoint_is_evaluated_and_compared(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rows, key = write_rows(tmp_path / "rows.jsonl", 6), tmp_path / "key"
    key.write_text("secret\n", encoding="ascii")
    for name, right in (("first", "012"), ("second", "12345")):
        with chat_server(lambda body, right=right: chat_reply("B" if _text(body)[0] in right else "A")) as server:
            common = ["--benchmark", "digit_grids", "--data", rows, "--out", tmp_path / name]
            assert run(monkeypatch, "evaluate", server.url, *common, "--api-key-file", key, "--concurrency", 2) == 0
            assert {given for _, given, _ in server.requests} == {"Bearer secret"}
    table = capsys.readouterr().out
    assert "overall" in table and "0.833" in table
    assert "secret" not in "".join(file.read_text() for file in (tmp_path / "first").iterdir())
    assert run(monkeypatch, "compare", tmp_path / "first", tmp_path / "second") == 0
    # 3 and 5 of 6 right; 1 against 3 discordant: 2 (1 + 4) / 16.
    assert "+0.333" in (shown := capsys.readouterr().out) and "0.625" in shown
    assert run(monkeypatch, "compare", tmp_path / "first", tmp_path) == 2


def test_a_failing_endpoint_ends_with_a_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rows, out = write_rows(tmp_path / "rows.jsonl", 3), tmp_path / "out"
    with chat_server(lambda body: (400, b"no") if _text(body)[0] == "1" else chat_reply("B")) as server:
        common = ["--benchmark", "digit_grids", "--data", rows, "--out", out]
        assert run(monkeypatch, "evaluate", server.url, *common) == 2
    assert "1 of 3 questions got no answer" in capsys.readouterr().err
    assert not json.loads((out / "result.json").read_text())["is_complete"]


def _text(body: dict) -> str:
    return body["messages"][0]["content"][-1]["text"]
