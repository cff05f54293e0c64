"""nemo-evaluator with our harness package on its path."""

import os
import sys
from pathlib import Path

from harness_runs import ROOT, Ended, harness_venv, run_harness

RUN_CONFIG = "with_proxy.yml"


def run_nemo(url: str, model: str, rows: Path, out: Path, overrides: str = "", **more: str) -> Ended:
    """`nemo-evaluator run_eval` as docs/nemo.md says it, in the folder above `out`; reads RUN_CONFIG there."""
    command = [
        harness_venv("nemo-evaluator") / "bin" / "nemo-evaluator", "run_eval", "--eval_type", "moe_grpo.digit_grids",
        "--model_id", model, "--model_type", "chat", "--model_url", url, "--output_dir", out,
        "--overrides", f"config.params.extra.data={rows}{overrides}",
    ]  # fmt: skip
    if (out.parent / RUN_CONFIG).is_file():
        command += ["--run_config", RUN_CONFIG]
    path = os.pathsep.join([str(ROOT), str(ROOT / "tools" / "nemo_harness")])
    return run_harness(command, out.parent, {"PYTHONPATH": path, "MOE_GRPO_PYTHON": sys.executable, **more})
