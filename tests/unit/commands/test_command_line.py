"""The command line: every verb parses, a user's mistake is said once with code 2, a program's is not hidden."""

import runpy
import sys
from pathlib import Path

import pytest
import yaml

from megatron_moe_grpo import __main__ as command_line
from megatron_moe_grpo.errors import DataError

RECIPE = {
    "name": "run",
    "method": "sft",
    "model": {"checkpoint": "absent"},
    "data": {"train": "train.jsonl"},
    "training": {"steps": 1},
}


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["megatron_moe_grpo", *map(str, arguments)])
    return command_line.main()


def raise_data_error(arguments: object) -> None:
    raise DataError("row 3 is bad", got="nothing", expected="something", remedy="fix it")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(RECIPE), encoding="utf-8")
    return path


@pytest.mark.parametrize("verb", command_line.VERBS)
def test_every_verb_explains_itself(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, verb, "--help")
    assert caught.value.code == 0
    assert verb in capsys.readouterr().out


def test_an_unknown_verb_is_refused_with_the_list(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, "trian")
    assert caught.value.code == 2
    assert "train" in capsys.readouterr().err


def test_a_users_mistake_is_said_without_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], recipe: Path
) -> None:
    assert run(monkeypatch, "train", recipe, "--set", "training.step=2") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: unknown key 'training.step'")
    assert "did you mean 'steps'?" in captured.err and "Traceback" not in captured.err


def test_overrides_are_applied_in_order(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], recipe: Path
) -> None:
    assert run(monkeypatch, "train", recipe, "--set", "method=ppo", "--set", "method=sft", "--set", "seed=x") == 2
    assert "'seed'" in capsys.readouterr().err


@pytest.mark.parametrize(("rank", "is_said"), [("0", True), ("1", False)])
def test_only_the_first_rank_says_it(
    rank: str, is_said: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setitem(command_line.VERBS, "report", (command_line.VERBS["report"][0], raise_data_error))
    assert run(monkeypatch, "report", "folder") == 2
    assert ("error: row 3 is bad" in capsys.readouterr().err) == is_said


def test_a_mistake_of_the_program_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(arguments: object) -> None:
        raise KeyError("ours")

    monkeypatch.setitem(command_line.VERBS, "report", (command_line.VERBS["report"][0], fail))
    with pytest.raises(KeyError, match="ours"):
        run(monkeypatch, "report", "folder")


def test_the_module_ends_with_the_code_of_main(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["megatron_moe_grpo", "train", str(tmp_path / "absent.yaml")])
    monkeypatch.delitem(sys.modules, "megatron_moe_grpo.__main__")
    with pytest.raises(SystemExit) as caught:
        runpy.run_module("megatron_moe_grpo", run_name="__main__", alter_sys=True)
    assert caught.value.code == 2
