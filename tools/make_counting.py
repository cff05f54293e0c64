"""Writes counting questions about CLEVR-like scenes: python tools/make_counting.py --out data/counting"""

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from megatron_moe_grpo.data.counting_files import DEFAULT_SIDE, write_counting
from megatron_moe_grpo.data.counting_picture import COLOURS
from megatron_moe_grpo.data.counting_scenes import MAX_THINGS, SHAPES, CountingSettings
from megatron_moe_grpo.errors import DataError


def main() -> int:
    """Parses, writes, says where."""
    parser = argparse.ArgumentParser(description="Counting questions about CLEVR-like scenes, in two worlds.")
    parser.add_argument("--out", type=Path, required=True, help="folder to make; must not exist")
    parser.add_argument("--train", type=int, default=8000, help="train questions a world (default %(default)s)")
    parser.add_argument("--test", type=int, default=1000, help="test questions a world (default %(default)s)")
    parser.add_argument(
        "--pretrain", type=int, default=0, help="more clear scenes, for a dense start (default %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="default %(default)s")
    parser.add_argument("--max-count", type=int, default=MAX_THINGS, help="largest answer (default %(default)s)")
    parser.add_argument("--colours", nargs="+", choices=list(COLOURS), default=list(COLOURS), help="default: all")
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES), help="default: all")
    parser.add_argument("--side", type=int, default=DEFAULT_SIDE, help="of a picture, pixels (default %(default)s)")
    options = parser.parse_args()
    counts = {"pretrain": options.pretrain, "train": options.train, "test": options.test}
    counts = {split: count for split, count in counts.items() if split != "pretrain" or count}
    settings = CountingSettings(options.max_count, tuple(options.colours), tuple(options.shapes))
    try:
        with tqdm(total=2 * (options.train + options.test) + options.pretrain, unit="picture") as bar:
            write_counting(options.out, counts, options.seed, settings, options.side, on_drawn=bar.update)
    except DataError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"wrote {options.out}: {options.train} train, {options.test} test, in the clear and in the shifted world")
    return 0


if __name__ == "__main__":
    sys.exit(main())
