"""Draws the KL weight over a run: python tools/plot_kl_schedule.py examples/paper/grpo_d_qwen2_vl_2b_counting.yaml"""

import argparse
import sys
from pathlib import Path

from matplotlib.figure import Figure

from megatron_moe_grpo.config import RunConfig, load_config
from megatron_moe_grpo.errors import ConfigError
from megatron_moe_grpo.training.kl_control import kl_schedule


def main() -> int:
    """Parses, draws, says where and the weights at the corners."""
    parser = argparse.ArgumentParser(description="beta(s) of a recipe, OThink-MR1 Eq. 3.")
    parser.add_argument("config", help="YAML recipe with a kl section, see examples/")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, default=Path("kl_schedule.svg"), help="SVG or PNG (default %(default)s)")
    options = parser.parse_args()
    try:
        config = load_config(options.config, options.overrides)
        steps = range(config.training.steps + 1)
        schedule = kl_schedule(config.kl, config.training.steps)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    betas = [schedule.beta_at(step) for step in steps]
    draw_schedule(betas, config).savefig(options.out, bbox_inches="tight")
    lowest = min(steps, key=betas.__getitem__)
    corners = f"{betas[0]:.4g} at step 0, {betas[lowest]:.4g} at {lowest}, {betas[-1]:.4g} at the end"
    print(f"{config.kl.schedule}: {corners}")
    print(f"wrote {options.out}")
    return 0


def draw_schedule(betas: list[float], config: RunConfig) -> Figure:
    """Weight over steps."""
    figure = Figure(figsize=(7, 3.2))
    axes = figure.subplots()
    axes.plot(betas, color="#1f5fa8", linewidth=2)
    axes.set(xlabel="step", ylabel="KL weight, beta", title=f"{config.name}: {config.kl.schedule}")
    axes.set_ylim(bottom=0)
    axes.margins(x=0)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    sys.exit(main())
