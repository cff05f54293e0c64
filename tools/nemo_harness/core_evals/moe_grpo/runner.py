"""The command that nemo-evaluator starts: our own evaluator against the endpoint, and a check that it left nothing out.

Runs in the project's environment (MOE_GRPO_PYTHON), not in nemo-evaluator's.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

# Of the folder that nemo-evaluator was given: it writes files of its own there before it starts us.
FOLDER = "evaluation"
# nemo-evaluator's name of a parameter, and our evaluator's option.
OPTIONS = {
    "task": "--benchmark",
    "max_new_tokens": "--max-new-tokens",
    "parallelism": "--concurrency",
    "max_retries": "--retries",
    "request_timeout": "--timeout-s",
}
# Those of config.params.extra: the benchmark's file or folder, and any more options of our evaluator as one text.
EXTRA = ("data", "options")


class RefusalError(Exception):
    """A run that would not give what was asked for."""

    def __init__(self, what: str, got: object, remedy: str) -> None:
        super().__init__(f"{what}\n  got:      {got}\n  to do:    {remedy}")


def main() -> int:
    """Runs the evaluation; 0 only if every example was answered and scored."""
    parser = argparse.ArgumentParser(description="One benchmark of megatron_moe_grpo for nemo-evaluator.")
    parser.add_argument("--url", required=True, help="the endpoint, /v1/chat/completions included")
    parser.add_argument("--model", required=True, help="the model's name at the endpoint")
    parser.add_argument("--out", type=Path, required=True, help="nemo-evaluator's output folder")
    parser.add_argument("--parameters", type=json.loads, required=True, help="config.params as JSON")
    parser.add_argument("--api-key-name", help="environment variable that holds the endpoint's key")
    arguments = parser.parse_args()
    folder = arguments.out / FOLDER
    try:
        if folder.exists():
            # Our evaluator goes on where it stopped, and knows a model behind an endpoint by its name only.
            raise RefusalError(
                "the folder holds an earlier evaluation", folder, "name a new output folder for every run"
            )
        options = evaluator_options(arguments.parameters)
        key = os.environ.get(arguments.api_key_name, "") if arguments.api_key_name else ""
        if arguments.api_key_name and not key:
            raise RefusalError("no API key", f"{arguments.api_key_name} is not set", "export it, or leave out its name")
        command = [sys.executable, "-m", "megatron_moe_grpo", "evaluate", arguments.url]
        command += ["--model-name", arguments.model, "--out", str(folder), *options]
        command += ["--api-key-file", "/dev/stdin"] if key else []
        code = subprocess.run(command, input=key, text=True, check=False).returncode
        if code == 0:
            check_complete(folder)
        return code
    except RefusalError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def evaluator_options(parameters: dict[str, Any]) -> list[str]:
    """Our evaluator's options for config.params.  Raises RefusalError: a parameter that it would not heed."""
    given = {name: value for name, value in parameters.items() if value is not None and name != "extra"}
    extra = {name: value for name, value in (parameters.get("extra") or {}).items() if value is not None}
    unknown = sorted(given.keys() - OPTIONS.keys()) + sorted(f"extra.{name}" for name in extra.keys() - set(EXTRA))
    if unknown:
        known = ", ".join([*OPTIONS, *(f"extra.{name}" for name in EXTRA)])
        raise RefusalError("parameters of config.params that our evaluator does not have", ", ".join(unknown), known)
    if not extra.get("data"):
        raise RefusalError("no data", "config.params.extra.data is empty", "--overrides config.params.extra.data=FILE")
    options = [text for name, value in given.items() for text in (OPTIONS[name], str(value))]
    return [*options, "--data", str(extra["data"]), *shlex.split(extra.get("options", ""))]


def check_complete(folder: Path) -> None:
    """Raises RefusalError: the scores are of fewer examples than the benchmark has."""
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    num_answers = len((folder / "answers.jsonl").read_text(encoding="utf-8").splitlines())
    if not result["is_complete"] or num_answers != result["num_examples"]:
        raise RefusalError("answers are missing", f"{num_answers} of {result['num_examples']}", "see errors.jsonl")


if __name__ == "__main__":
    sys.exit(main())
