"""Writes the digit-grid questions: python tools/make_digit_grids.py --out data/digit_grids"""

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from megatron_moe_grpo.data.cameras import CAMERAS
from megatron_moe_grpo.data.digit_grid_files import write_digit_grids
from megatron_moe_grpo.errors import DataError


def main() -> int:
    """Parses, writes, says where."""
    parser = argparse.ArgumentParser(description="Four-choice questions on 2x2 grids of real handwritten digits.")
    parser.add_argument("--out", type=Path, required=True, help="folder to make; must not exist")
    parser.add_argument("--train", type=int, default=8000, help="train questions (default %(default)s)")
    parser.add_argument("--test", type=int, default=2000, help="test questions (default %(default)s)")
    parser.add_argument(
        "--pretrain",
        type=int,
        default=0,
        help="more clear grids of the train split's digits, for a dense start (default %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="default %(default)s")
    parser.add_argument("--cameras", nargs="+", choices=list(CAMERAS), default=list(CAMERAS), help="default: all")
    parser.add_argument("--scale", type=int, default=2, help="pixels a source pixel becomes (default %(default)s)")
    options = parser.parse_args()
    try:
        with tqdm(
            total=(options.train + options.test) * len(options.cameras) + options.pretrain, unit="picture"
        ) as bar:
            write_digit_grids(
                options.out,
                options.train,
                options.test,
                options.seed,
                tuple(options.cameras),
                options.scale,
                on_written=bar.update,
                num_pretrain=options.pretrain,
            )
    except DataError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"wrote {options.out}: {options.train} train, {options.test} test, cameras {', '.join(options.cameras)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
