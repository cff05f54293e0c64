"""Converts between Hugging Face folders and Megatron checkpoints, or says what is in one.

python tools/convert_checkpoint.py import HF_FOLDER CHECKPOINT
python tools/convert_checkpoint.py export CHECKPOINT HF_FOLDER
python tools/convert_checkpoint.py --inspect FOLDER
"""

import argparse
import warnings
from pathlib import Path

from megatron_moe_grpo.commands import convert
from megatron_moe_grpo.errors import MoeGrpoError

VERBS = {
    "import": (convert.add_import_arguments, convert.run_import),
    "export": (convert.add_export_arguments, convert.run_export),
}


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inspect", type=Path, metavar="FOLDER", help="sizes, keys, and what is wrong, if anything")
    verbs = parser.add_subparsers(dest="verb")
    for name, (add_arguments, _) in VERBS.items():
        add_arguments(verbs.add_parser(name))
    arguments = parser.parse_args()
    if (arguments.inspect is None) == (arguments.verb is None):
        parser.error("either import, export, or --inspect FOLDER")
    return arguments


def inspect(folder: Path) -> None:
    """Prints what is there; ends with code 1 if something is wrong."""
    from megatron_moe_grpo.models.inspection import inspect_folder

    inspection = inspect_folder(folder)
    print(inspection)
    raise SystemExit(1 if inspection.problems else 0)


def main() -> None:
    """Parse, convert or inspect."""
    arguments = parse_arguments()
    # Megatron warns at import about each optional kernel that is not installed.
    warnings.filterwarnings("ignore", module=r"megatron\.core")
    try:
        inspect(arguments.inspect) if arguments.verb is None else VERBS[arguments.verb][1](arguments)
    except MoeGrpoError as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
