"""Makes one JSONL file of several: python tools/mix_rows.py DATA/a/x.jsonl DATA/b/x.jsonl --out DATA/both.jsonl"""

import argparse
import sys
from pathlib import Path

from megatron_moe_grpo.data.mixed_rows import mix_rows
from megatron_moe_grpo.errors import DataError


def main() -> int:
    """Parses, writes, says how many."""
    parser = argparse.ArgumentParser(description="The rows of several files in turn, as one file.")
    parser.add_argument("sources", nargs="+", type=Path, help="JSONL files of one picture a row")
    parser.add_argument(
        "--out", type=Path, required=True, help="file to write, in a folder that all pictures lie under"
    )
    options = parser.parse_args()
    try:
        num_rows = mix_rows(options.sources, options.out)
    except DataError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"wrote {options.out}: {num_rows} rows")
    return 0


if __name__ == "__main__":
    sys.exit(main())
