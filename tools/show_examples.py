"""Draws rows of a data file on one page: python tools/show_examples.py --data data/digit_grids/clear/test.jsonl"""

import argparse
import sys
from itertools import islice
from pathlib import Path

from megatron_moe_grpo.data.contact_sheet import draw_contact_sheet
from megatron_moe_grpo.data.sources import load_rows
from megatron_moe_grpo.errors import DataError


def main() -> int:
    """Parses, draws, says where."""
    parser = argparse.ArgumentParser(description="A contact sheet of the first rows of a data file.")
    parser.add_argument("--data", type=Path, required=True, help=".jsonl or .json file, or a folder from save_to_disk")
    parser.add_argument("--image-root", type=Path, help="folder of the image paths (default: that of the data file)")
    parser.add_argument("--count", type=int, default=10, help="rows to draw (default %(default)s)")
    parser.add_argument("--columns", type=int, default=5, help="rows side by side (default %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("examples.png"), help="PNG to write (default %(default)s)")
    options = parser.parse_args()
    if min(options.count, options.columns) < 1:
        parser.error("--count and --columns must be at least 1")
    try:
        rows = load_rows(options.data, options.image_root, check_images=False).rows
        draw_contact_sheet(list(islice(rows, options.count)), options.columns).save(options.out)
    except DataError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"wrote {options.out}: {min(options.count, len(rows))} of {len(rows)} rows of {options.data}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
