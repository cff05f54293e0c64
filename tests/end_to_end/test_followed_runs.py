"""Runs that are followed in every way there is: what they write, and that docs/metrics.md explains all of it."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from forked_commands import ROOT, run_command
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_training import TinyStart, expect_success, read_lines, recipe, write_recipe

PROFILED = (2, 3)
FOLLOWED = {
    "wandb": "offline", "examples": 2, "samples_every": 2, "tensorboard": True, "profile_steps": list(PROFILED),
}  # fmt: skip
KL = {"schedule": "constant", "beta": 0.1}
# Only with Expert Choice, the z-loss, or a GPU.
NOT_IN_THESE_RUNS = {
    "tokens_without_expert", "router_z_loss", "cuda_allocated_bytes", "cuda_reserved_bytes", "cuda_peak_bytes",
    "model_flops_utilisation",
}  # fmt: skip


@dataclass(frozen=True)
class Followed:
    folder: Path
    output: str

    def lines(self, name: str) -> list[dict[str, Any]]:
        return read_lines(self.folder / name)


@pytest.fixture(scope="module")
def runs(start: TinyStart, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Followed]:
    """MoE-GRPO, dense GRPO with a KL term, and supervised training."""
    out = tmp_path_factory.mktemp("followed")
    expect_success(run_command(["import", start.dense, out / "dense_start"], out / "logs" / "import"))
    sampled = {"group_size": 4, "token_temperature": 1.0, "max_new_tokens": 3}
    dense = {"model": {"checkpoint": str(out / "dense_start")}, "rollout": sampled, "kl": KL}
    found = {}
    for method, more in (("moe_grpo", {}), ("grpo", dense), ("sft", {})):
        values = recipe(start, method, out, method) | more | {"logging": FOLLOWED}
        (rank,) = run_command(["train", write_recipe(values, out / f"{method}.yaml")], out / "logs" / method)
        expect_success([rank])
        found[method] = Followed(out / method, rank.output)
    return found


def documented(file: str) -> set[str]:
    """Names in the first column of the tables below the heading that names `file`."""
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    section = next(part for part in text.split("\n## ") if part.startswith(f"`{file}`"))
    cells = [line.split(" | ")[0] for line in section.splitlines() if line.startswith("| `")]
    return {name for cell in cells for name in re.findall(r"`([\w]+)`", cell)}


@pytest.mark.parametrize("file", ["metrics.jsonl", "timing.jsonl", "samples.jsonl"])
def test_every_key_is_documented_and_every_documented_key_exists(runs: dict[str, Followed], file: str) -> None:
    written = {key for run in runs.values() if (run.folder / file).exists() for line in run.lines(file) for key in line}
    assert len(written) > 5
    assert written - documented(file) == set()
    assert documented(file) - written - NOT_IN_THESE_RUNS == set()


def test_timing_has_rates_and_memory(runs: dict[str, Followed]) -> None:
    for method, run in runs.items():
        lines = run.lines("timing.jsonl")
        assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
        assert all(line["samples_per_second"] > 0 and line["model_flops_per_second"] > 0 for line in lines)
        assert all(line["rss_peak_bytes"] > 1e8 for line in lines)
        assert all(("rollouts_per_second" in line) == (method != "sft") for line in lines)


def test_routing_is_reported_for_experts_only(runs: dict[str, Followed]) -> None:
    for method, run in runs.items():
        for line in run.lines("metrics.jsonl")[1:]:
            assert ("dead_experts" in line) == (method != "grpo")
            if method != "grpo":
                shares_LN = line["expert_load_share_LN"]
                assert [len(shares_N) for shares_N in shares_LN] == [8, 8]
                assert [sum(shares_N) for shares_N in shares_LN] == pytest.approx([1.0, 1.0])
                assert line["dead_experts"] == sum(share == 0 for shares_N in shares_LN for share in shares_N)
        if method != "grpo":
            first, *_, last = run.lines("metrics.jsonl")[1:]
            # Nothing was counted before the first step; two experts of eight are closed afterwards, fewer in a tie.
            assert first["experts_closed_to_text"] == first["experts_closed_to_vision"] == [[], []]
            assert any(last["experts_closed_to_text"]) and any(last["experts_closed_to_vision"])
            assert all(len(closed) <= 2 for closed in last["experts_closed_to_vision"])


def test_samples_come_every_so_many_steps_and_at_evaluations(runs: dict[str, Followed]) -> None:
    # Every second step, evaluations every third; two prompts each.
    for method in ("moe_grpo", "grpo"):
        assert [line["step"] for line in runs[method].lines("samples.jsonl")] == [2, 2, 3, 3, 4, 4, 6, 6]
    assert not (runs["sft"].folder / "samples.jsonl").exists()


def test_tensorboard_shows_the_numbers_of_the_files(runs: dict[str, Followed]) -> None:
    for run in runs.values():
        events = EventAccumulator(str(run.folder / "tensorboard")).Reload()
        for file, prefix in (("metrics.jsonl", ""), ("timing.jsonl", "timing/")):
            written = run.lines(file)
            for name in written[-1].keys() - {"step"}:
                values = [(line["step"], line[name]) for line in written if isinstance(line.get(name), int | float)]
                shown = [(event.step, event.value) for event in events.Scalars(prefix + name)] if values else []
                # Event files hold float32.
                assert shown == [(step, pytest.approx(value, rel=1e-6)) for step, value in values], name
        if (run.folder / "samples.jsonl").exists():
            assert [event.step for event in events.Tensors("samples/text_summary")] == [2, 3, 4, 6]


def test_wandb_has_a_table_for_each_set_of_samples(runs: dict[str, Followed]) -> None:
    for method, count in (("moe_grpo", 4), ("grpo", 4), ("sft", 0)):
        tables = list(runs[method].folder.glob("wandb/offline-run-*/files/media/table/samples_*.table.json"))
        assert len(tables) == count
        for table in tables:
            content = json.loads(table.read_text(encoding="utf-8"))
            assert content["columns"] == ["id", "problem", "solution", "response", "reward"]
            assert len(content["data"]) == 2 * 4  # two groups of four


def test_the_profile_has_our_phases_and_torchs_operations(runs: dict[str, Followed]) -> None:
    phases = {"moe_grpo": {"rollout", "reference", "update"}, "grpo": {"rollout", "update"}, "sft": {"update"}}
    for method, run in runs.items():
        (path,) = (run.folder / "profile").iterdir()
        assert path.name == "steps_2_to_3.json"
        assert str(path) in run.output
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
        names = [event["name"] for event in events if event.get("cat") == "user_annotation"]
        # The evaluation of step 3 is in it once, each phase twice.
        assert {name: names.count(name) for name in phases[method]} == dict.fromkeys(phases[method], 2)
        assert names.count("evaluate") == 1
        assert any(event["name"] == "aten::mm" for event in events)


def test_the_console_line_has_the_speed(runs: dict[str, Followed]) -> None:
    for method, shown in (("moe_grpo", "reward_mean"), ("grpo", "reward_mean"), ("sft", "loss")):
        lines = [line for line in runs[method].output.splitlines() if line.startswith("step ")]
        assert len(lines) == 6
        assert all(f"  {shown} " in line and "  tokens/s " in line and "s/step" in line for line in lines)


def test_two_ranks_report_the_same_routing_and_one_of_them_writes(
    start: TinyStart, runs: dict[str, Followed], tmp_path: Path
) -> None:
    values = recipe(start, "moe_grpo", tmp_path) | {"logging": FOLLOWED}
    expect_success(run_command(["train", write_recipe(values, tmp_path / "run.yaml")], tmp_path / "log", num_ranks=2))
    assert len(list((tmp_path / "run" / "profile").iterdir())) == 1
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 1
    names = ("expert_load_share_LN", "dead_experts", "experts_closed_to_text", "experts_closed_to_vision")
    # Two steps: rounding of the updates may flip a choice later on.
    lines = (read_lines(tmp_path / "run" / "metrics.jsonl"), runs["moe_grpo"].lines("metrics.jsonl"))
    for ours, expected in list(zip(*lines, strict=True))[1:3]:
        assert {name: ours[name] for name in names} == {name: expected[name] for name in names}
        for name in ("token_policy_kl_nats", "gate_policy_kl_nats"):
            # Measured: 3e-8.
            assert ours[name] == pytest.approx(expected[name], abs=1e-6)
