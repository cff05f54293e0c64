"""`demo`: the whole job on a laptop, each step a command of its own that is printed before it runs.

Real digits, a dense model trained on clear pictures, upcycling, MoE-GRPO on washed-out pictures from reward alone,
supervised training on the same examples beside it, export, and two independent evaluations.
A step whose output exists is not run again, so a stopped demo goes on where it was.
"""

import argparse
import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
ONE_PROCESS = (sys.executable, "-m", "megatron_moe_grpo")
TWO_PROCESSES = (
    sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "megatron_moe_grpo",
)  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One command of the job."""

    title: str
    command: tuple[str, ...]
    output: Path
    """Exists when the step is done."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder of everything the demo writes")
    parser.add_argument("--seed", type=int, default=0, help="seed of data, models and sampling")


def run(arguments: argparse.Namespace) -> None:
    """Runs every step that is not done, then prints the summary."""
    out, seed = arguments.out, arguments.seed
    steps = demo_steps(out, seed)
    started_s = time.monotonic()
    for number, step in enumerate(steps, start=1):
        print(f"\n[{number}/{len(steps)}] {step.title}\n$ {shlex.join(_readable(step.command))}", flush=True)
        if step.output.exists():
            print("done before", flush=True)
            continue
        # One thread a process: two processes on two cores lose more to each other's threads than they gain.
        environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)} | dict(os.environ)
        if subprocess.run(step.command, env=environment, check=False).returncode:
            raise SystemExit(f"the demo stops: step {number} failed (the command above)")
    _print_summary(out, minutes=(time.monotonic() - started_s) / 60)


def demo_steps(out: Path, seed: int) -> list[Step]:
    """The job, in order."""
    rows = out / "data" / "washed_out" / "test.jsonl"
    return [
        *_data_steps(out, seed),
        *_dense_steps(out, seed),
        *_upcycling_steps(out, seed),
        _train("MoE-GRPO on washed-out pictures, from reward alone (2 processes, experts divided over them)",
               "2_moe_grpo", out, seed, out / "moe_start", "washed_out"),
        _train("for comparison: supervised training on the same examples", "3_supervised", out, seed,
               out / "moe_start", "washed_out"),
        Step("export to a stock Hugging Face folder",
             (*ONE_PROCESS, "export", str(_last_checkpoint(out, "moe_grpo")), str(out / "moe_grpo_hf")),
             out / "moe_grpo_hf"),
        Step("held-out accuracy with our engine",
             (*ONE_PROCESS, "evaluate", str(_last_checkpoint(out, "moe_grpo")), "--data", str(rows),
              "--out", str(out / "answers_ours.jsonl")),
             out / "answers_ours.jsonl"),
        Step("held-out accuracy of the exported folder with plain transformers",
             (*ONE_PROCESS, "evaluate", str(out / "moe_grpo_hf"), "--data", str(rows),
              "--out", str(out / "answers_transformers.jsonl")),
             out / "answers_transformers.jsonl"),
        Step("the report", (*ONE_PROCESS, "report", str(out / "moe_grpo")), out / "moe_grpo" / "report.html"),
    ]  # fmt: skip


def _print_summary(out: Path, minutes: float) -> None:
    from megatron_moe_grpo.evaluation.demo_summary import COLUMNS, agreement, summary_rows
    from megatron_moe_grpo.training.console import summary_table

    num_equal, num_answers = agreement(out)
    print("\nHeld-out accuracy; the letters' own share is 1/4, and a model that sees blank images scores near it.\n")
    print(summary_table(summary_rows(out), COLUMNS))
    print(f"\nour engine and plain transformers agree on {num_equal} of {num_answers} answers")
    print(f"report: {out / 'moe_grpo' / 'report.html'}    pictures: {out / 'examples.png'}    {minutes:.1f} minutes")


def _data_steps(out: Path, seed: int) -> list[Step]:
    data = out / "data"
    return [
        Step("real handwritten digits in 2x2 grids, four-choice questions, three cameras",
             _tool("make_digit_grids.py", "--out", data, "--seed", seed, "--pretrain", 40000), data),
        Step("ten of them on a contact sheet",
             _tool("show_examples.py", "--data", data / "washed_out" / "train.jsonl", "--out", out / "examples.png"),
             out / "examples.png"),
    ]  # fmt: skip


def _dense_steps(out: Path, seed: int) -> list[Step]:
    return [
        Step("a small InternVL in Hugging Face format, made offline",
             _tool("make_tiny_internvl.py", out / "dense_hf_untrained", "--seed", seed), out / "dense_hf_untrained"),
        Step("import into Megatron",
             (*ONE_PROCESS, "import", str(out / "dense_hf_untrained"), str(out / "dense_start")), out / "dense_start"),
        _train("supervised training on clear pictures, until competent but not finished", "1_dense_sft", out, seed,
               out / "dense_start", "clear", "pretrain"),
        Step("export the dense model",
             (*ONE_PROCESS, "export", str(_last_checkpoint(out, "dense_sft")), str(out / "dense_hf")),
             out / "dense_hf"),
        Step("the dense model meets a washed-out camera",
             (*ONE_PROCESS, "evaluate", str(out / "dense_hf"),
              "--data", str(out / "data" / "washed_out" / "test.jsonl"), "--out", str(out / "answers_dense.jsonl")),
             out / "answers_dense.jsonl"),
    ]  # fmt: skip


def _upcycling_steps(out: Path, seed: int) -> list[Step]:
    return [
        Step("upcycling to 8 experts a layer, 2 active",
             _tool("upcycle_checkpoint.py", out / "dense_hf", out / "moe_hf", "--noise-scale", "1.0", "--seed", seed),
             out / "moe_hf"),
        Step("import into Megatron", (*ONE_PROCESS, "import", str(out / "moe_hf"), str(out / "moe_start")),
             out / "moe_start"),
    ]  # fmt: skip


def _train(title: str, recipe: str, out: Path, seed: int, checkpoint: Path, camera: str, split: str = "train") -> Step:
    """A recipe of examples/demo with this demo's folders."""
    name = recipe.partition("_")[2]
    settings = {
        "output_dir": out,
        "seed": seed,
        "model.checkpoint": checkpoint,
        "data.train": out / "data" / camera / f"{split}.jsonl",
        "data.evaluation": out / "data" / camera / "test.jsonl",
    }
    overrides = [text for key, value in settings.items() for text in ("--set", f"{key}={value}")]
    recipe_file = REPOSITORY / "examples" / "demo" / f"{recipe}.yaml"
    return Step(title, (*TWO_PROCESSES, "train", str(recipe_file), *overrides), _last_checkpoint(out, name))


def _last_checkpoint(out: Path, name: str) -> Path:
    """Where the demo's recipe of this name ends."""
    steps = {"dense_sft": 3000, "moe_grpo": 300, "supervised": 300}
    return out / name / "checkpoints" / f"step_{steps[name]:08d}"


def _tool(name: str, *arguments: object) -> tuple[str, ...]:
    return (sys.executable, str(REPOSITORY / "tools" / name), *map(str, arguments))


def _readable(command: tuple[str, ...]) -> list[str]:
    """The command as a person would type it in the repository."""
    return ["python" if part == sys.executable else part.removeprefix(f"{REPOSITORY}/") for part in command]
