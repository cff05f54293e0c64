"""Where numbers come from: commit, versions, cores, date."""

import os
import shlex
import subprocess
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "megatron-core", "transformers")
# What numbers depend on.  Results lie elsewhere: they are written by the very command that states its commit.
CODE = ("megatron_moe_grpo", "tools", "examples")


def current_commit() -> str:
    """The commit of the code, with `, dirty` where it was changed or has files of its own; `unknown` outside of git."""
    commit = _git("rev-parse", "--short=12", "HEAD")
    if commit is None:
        return "unknown"
    changed = _git("status", "--porcelain", "--", *CODE)
    return f"{commit}, dirty" if changed else commit


def provenance(command: Sequence[str]) -> dict[str, Any]:
    """The command with its arguments, date, versions, cores: nothing that names the machine."""
    return {
        "command": f"python -m megatron_moe_grpo {shlex.join(command)}",
        "date": datetime.now(timezone.utc).date().isoformat(),
        "versions": {name: version(name) for name in PACKAGES},
        "cpu_cores": len(os.sched_getaffinity(0)),
    }


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
