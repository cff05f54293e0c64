"""A reward of the user's own: `python path/to/rewards.py:function` in `reward.by_problem_type`."""

import importlib.util
import inspect
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

from megatron_moe_grpo.errors import ConfigError, RewardError

PREFIX = "python "
SIGNATURE = "function(response, solution, options) -> float"
MAX_SHOWN_CHARS = 300


class FileFunction:
    """Calls a function of a user's file with the whole response, tags included, and checks what it returns.

    NaN and infinity are numbers and pass: training skips the update and counts it (training/update_guard.py), so that
    one response in a million does not end a run of days.  Anything else that is no number is a mistake in the function.

    The file runs with all rights of this process, as any program of the user's does; a relative path starts from the
    working directory.

    Raises:
        ConfigError: no such file or function, the file cannot be run, or the function takes other arguments.
    """

    def __init__(self, setting: str):
        self._setting = setting
        path, colon, name = setting.removeprefix(PREFIX).strip().rpartition(":")
        if not (setting.startswith(PREFIX) and path and colon and name):
            raise ConfigError("this names no reward function", got=setting, expected="python FILE:FUNCTION")
        self._function = _checked(vars(_loaded(Path(path), setting)).get(name), name, setting)

    def __call__(self, response: str, solution: str, options: Sequence[str]) -> float:
        """What the function returns.

        Raises:
            RewardError: it raises, or returns anything but a float or whole number; names response and solution.
        """
        try:
            reward = self._function(response, solution, tuple(options))
        except Exception as error:
            raise self._problem("raised an error", f"{type(error).__name__}: {error}", response, solution) from error
        # Not float(reward): a text "1" or a tensor would pass, and hide a mistake.
        if not isinstance(reward, int | float):
            raise self._problem("returned no number", repr(reward), response, solution)
        try:
            return float(reward)
        except OverflowError:
            # A whole number of more than 308 digits.
            return math.inf if reward > 0 else -math.inf

    def problem_with(self, solution: str, options: Sequence[str]) -> str | None:
        return None

    def _problem(self, what: str, got: str, response: str, solution: str) -> RewardError:
        shown = f"response {_short(repr(response))}, solution {_short(repr(solution))}"
        return RewardError(
            f"the reward function {what}: {self._setting}",
            got=f"{_short(got)} for {shown}",
            expected="a number for any response text",
            remedy="put the function right; the run goes on from its last checkpoint",
        )


def _loaded(path: Path, setting: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise ConfigError(f"the reward function's file is no Python file: {path}", got=setting)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(
            f"the reward function's file cannot be run: {path}", got=f"{type(error).__name__}: {error}"
        ) from error
    return module


def _checked(function: object, name: str, setting: str) -> Callable[[str, str, tuple[str, ...]], float]:
    if not callable(function):
        raise ConfigError(f"the reward function's file has no function {name!r}", got=setting, expected=SIGNATURE)
    try:
        inspect.signature(function).bind("response", "solution", ())
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"the reward function takes other arguments: {setting}", got=error, expected=SIGNATURE
        ) from None
    return function


def _short(text: str) -> str:
    return text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}... ({len(text)} characters)"
