"""The demo's steps fit together: each finds what an earlier one leaves, under the name that its recipe gives."""

import argparse
import subprocess
from pathlib import Path

import pytest

from megatron_moe_grpo import __main__ as command_line
from megatron_moe_grpo.commands import demo
from megatron_moe_grpo.config import RunConfig, load_config

OUT = Path("runs") / "demo"


@pytest.fixture
def steps() -> list[demo.Step]:
    return demo.demo_steps(OUT, seed=3)


def verb_arguments(step: demo.Step) -> argparse.Namespace | None:
    """The parsed command, None for a tool; a flag that the verb does not know ends the test."""
    if "megatron_moe_grpo" not in step.command:
        return None
    verb, *arguments = step.command[step.command.index("megatron_moe_grpo") + 1 :]
    parser = argparse.ArgumentParser(prog=verb)
    command_line.VERBS[verb][0](parser)
    return parser.parse_args(arguments)


def trainings(steps: list[demo.Step]) -> list[tuple[demo.Step, RunConfig]]:
    found = [(step, verb_arguments(step)) for step in steps if "train" in step.command]
    return [(step, load_config(arguments.config, arguments.overrides)) for step, arguments in found]


def test_demo_steps_parse_and_their_tools_exist(steps: list[demo.Step]) -> None:
    for step in steps:
        if verb_arguments(step) is None:
            assert Path(step.command[1]).is_file(), step.command


def test_demo_steps_leave_their_output_where_the_recipe_says(steps: list[demo.Step]) -> None:
    assert {config.method for _, config in trainings(steps)} == {"sft", "moe_grpo"}
    for step, config in trainings(steps):
        checkpoint = f"step_{config.training.steps:08d}"
        assert step.output == Path(config.output_dir) / config.name / "checkpoints" / checkpoint, step.title
        assert config.seed == 3


def test_demo_steps_start_from_what_earlier_steps_left(steps: list[demo.Step]) -> None:
    outputs = [str(step.output) for step in steps]
    assert len(set(outputs)) == len(outputs)
    for index, step in enumerate(steps):
        earlier = outputs[:index]
        for part in step.command:
            value = part.partition("=")[2] or part
            is_ours = value.startswith(str(OUT)) and value not in (str(OUT), outputs[index])
            is_made = any(f"{value}/".startswith(f"{known}/") or known.startswith(f"{value}/") for known in earlier)
            assert is_made or not is_ours, (step.title, value)


def test_run_skips_finished_steps_and_stops_at_a_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "first").touch()
    made = [demo.Step(name, ("python", name), tmp_path / name) for name in ("first", "second", "third")]
    monkeypatch.setattr(demo, "demo_steps", lambda out, seed: made)
    commands = []

    def fail(command: tuple[str, ...], **settings: object) -> subprocess.CompletedProcess:
        commands.append(command)
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(demo.subprocess, "run", fail)
    with pytest.raises(SystemExit, match="step 2 failed"):
        demo.run(argparse.Namespace(out=tmp_path, seed=0))
    assert commands == [("python", "second")]
    assert "[1/3] first" in capsys.readouterr().out
