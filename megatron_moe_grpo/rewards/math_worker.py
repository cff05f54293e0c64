"""The child process that compares formulas (started by math_process.py): a line of JSON in, one byte out.

It runs Math-Verify (Apache-2.0), which parses LaTeX with ANTLR and compares with SymPy.  SymPy's own parser, which
evaluates Python, gets nothing but digits and operators from it (math_verify/parser.py, `lazy_expr_regex`).
"""

import json
import logging
import math
import os
import resource
import signal
import sys
from typing import Any

from math_verify import LatexExtractionConfig, parse, verify

from megatron_moe_grpo.rewards.math_process import READY, RIGHT, WRONG

MAX_BYTES = 2 << 30


def is_equal(answer: str, solution: str, is_whole_answer: bool, tolerance: float) -> bool:
    """Whether Math-Verify takes `answer` for `solution`; whatever it cannot parse is wrong.

    Args:
        answer: a formula, or any text.
        solution: the same.
        is_whole_answer: both are one formula from end to end; else the last formula or number in each text counts.
        tolerance: relative error allowed between two values; 0.0 compares as Math-Verify does, to six decimals.
    """
    try:
        given, right = _parsed(answer, is_whole_answer), _parsed(solution, is_whole_answer)
        # Math-Verify's own time limit is an alarm, which SymPy's long integer operations do not notice: switched off.
        if verify(right, given, timeout_seconds=None):
            return True
        return tolerance > 0 and _is_close(given, right, tolerance)
    except MemoryError:
        os._exit(1)
    except Exception:
        return False


def _parsed(text: str, is_whole_answer: bool) -> list[Any]:
    if not is_whole_answer:
        return parse(text, parsing_timeout=None)
    return parse(f"${text}$", [LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=None)


def _is_close(given: list[Any], right: list[Any], tolerance: float) -> bool:
    value, right_value = float(given[0].evalf()), float(right[0].evalf())
    return math.isfinite(right_value) and abs(value - right_value) <= tolerance * abs(right_value)


def answer_requests() -> None:
    """Answers until standard input ends."""
    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))
    # Signals meant for the trainer (Ctrl-C, a scheduler's warning) reach its children too.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)  # ANTLR prints what it cannot parse
    os.dup2(nowhere, 2)
    is_equal("\\sqrt{4}", "2", True, 0.0)  # the first one is slow: ANTLR unpacks its grammar
    replies.write(READY)
    for line in sys.stdin.buffer:
        request = json.loads(line)
        # The parent kills a worker that is late.  The alarm is for a worker whose parent is dead.
        signal.setitimer(signal.ITIMER_REAL, 2 * request.pop("timeout_s") + 1)
        reply = RIGHT if is_equal(**request) else WRONG
        signal.setitimer(signal.ITIMER_REAL, 0)
        replies.write(reply)


if __name__ == "__main__":
    answer_requests()
