"""Several JSONL files of rows as one:  python tools/join_rows.py A.jsonl B.jsonl --out BOTH.jsonl"""

import argparse
import sys
from pathlib import Path

from megatron_moe_grpo.data.joined_rows import join_rows
from megatron_moe_grpo.errors import DataError


def main() -> int:
    """Parses, writes, says where."""
    parser = argparse.ArgumentParser(description="Several JSONL files of rows as one; pictures stay where they are.")
    parser.add_argument("files", type=Path, nargs="+", help="JSONL files of rows")
    parser.add_argument("--out", type=Path, required=True, help="file to write, above the folders of all pictures")
    options = parser.parse_args()
    try:
        num_rows = join_rows(options.files, options.out)
    except DataError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"wrote {options.out}: {num_rows} rows")
    return 0


if __name__ == "__main__":
    sys.exit(main())
