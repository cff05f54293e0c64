"""Writes geometry questions with computed answers: python tools/make_geometry.py --out data/geometry"""

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from megatron_moe_grpo.data.geometry_figures import KINDS
from megatron_moe_grpo.data.geometry_files import DEFAULT_SIDE, write_geometry
from megatron_moe_grpo.errors import DataError


def main() -> int:
    """Parses, writes, says where."""
    parser = argparse.ArgumentParser(description="Triangles, circles and parallel lines with computed answers.")
    parser.add_argument("--out", type=Path, required=True, help="folder to make; must not exist")
    parser.add_argument("--train", type=int, default=8000, help="train questions (default %(default)s)")
    parser.add_argument("--test", type=int, default=1000, help="test questions (default %(default)s)")
    parser.add_argument(
        "--pretrain", type=int, default=0, help="more clear figures, for a dense start (default %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="default %(default)s")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), help="default: all")
    parser.add_argument("--angle-step", type=int, default=10, help="degrees between angles (default %(default)s)")
    parser.add_argument("--side", type=int, default=DEFAULT_SIDE, help="of a picture, pixels (default %(default)s)")
    options = parser.parse_args()
    counts = {"pretrain": options.pretrain, "train": options.train, "test": options.test}
    counts = {split: count for split, count in counts.items() if split != "pretrain" or count}
    try:
        with tqdm(total=2 * (options.train + options.test) + options.pretrain, unit="picture") as bar:
            write_geometry(
                options.out,
                counts,
                options.seed,
                tuple(options.kinds),
                options.angle_step,
                options.side,
                on_drawn=bar.update,
            )
    except DataError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"wrote {options.out}: {options.train} train, {options.test} test, clear and shifted (a darker camera)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
