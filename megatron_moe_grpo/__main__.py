"""`python -m megatron_moe_grpo VERB ...`"""

import argparse
import os
import sys
import warnings

from megatron_moe_grpo.commands import (
    analyse,
    benchmark,
    compare,
    convert,
    demo,
    evaluate,
    experiment,
    plan,
    report,
    serve,
    train,
)
from megatron_moe_grpo.errors import MoeGrpoError

VERBS = {
    "demo": (demo.add_arguments, demo.run),
    "train": (train.add_arguments, train.run),
    "import": (convert.add_import_arguments, convert.run_import),
    "export": (convert.add_export_arguments, convert.run_export),
    "evaluate": (evaluate.add_arguments, evaluate.run),
    "compare": (compare.add_arguments, compare.run),
    "analyse": (analyse.add_arguments, analyse.run),
    "report": (report.add_arguments, report.run),
    "serve": (serve.add_arguments, serve.run),
    "experiment": (experiment.add_arguments, experiment.run),
    "plan": (plan.add_arguments, plan.run),
    "benchmark": (benchmark.add_arguments, benchmark.run),
}


def main() -> int:
    """Runs one verb; a user's error is printed without a traceback and ends with code 2."""
    parser = argparse.ArgumentParser(prog="python -m megatron_moe_grpo", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for name, (add_arguments, _) in VERBS.items():
        add_arguments(verbs.add_parser(name))
    arguments = parser.parse_args()
    # Megatron warns at import about each optional kernel that is not installed; tools/check_gpu_install.py lists them.
    warnings.filterwarnings("ignore", module=r"megatron\.core")
    try:
        VERBS[arguments.verb][1](arguments)
    except MoeGrpoError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
