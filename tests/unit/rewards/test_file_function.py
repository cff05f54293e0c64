import pickle
from pathlib import Path

import pytest

from megatron_moe_grpo.errors import ConfigError, RewardError
from megatron_moe_grpo.rewards.file_function import FileFunction

SOURCE = """
from pathlib import Path

SCALE = 0.5

def length(response, solution, options):
    return SCALE * len(response) + len(options)

def whole(response, solution, options=()):
    return int(response == solution)

def two(response, solution): return 1.0
def broken(response, solution, options): return 1 / len(response)
def text(response, solution, options): return "1.0"
def nothing(response, solution, options): pass
def nan(response, solution, options): return float("nan")
def infinite(response, solution, options): return float("inf")
def enormous(response, solution, options): return -10**400
def complex_number(response, solution, options): return 1j

class Stateful:
    def __init__(self): self.calls = 0
    def __call__(self, response, solution, options):
        self.calls += 1
        return self.calls

counter = Stateful()
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "my rewards.py"
    path.write_text(SOURCE)
    return path


def test_file_function_calls_the_users_function(file: Path) -> None:
    assert FileFunction(f"python {file}:length")("abc", "B", ("A. 1", "B. 2")) == 3.5
    assert FileFunction(f"python {file}:whole")("x", "x", ()) == 1.0
    assert FileFunction(f"python  {file}:counter")("x", "x", ()) == 1.0
    assert FileFunction(f"python {file}:whole").problem_with("x", ()) is None


def test_file_function_takes_a_path_from_the_working_directory(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    assert FileFunction(f"python {file.name}:whole")("x", "x", ()) == 1.0


@pytest.mark.parametrize(
    ("name", "got"),
    [("broken", "ZeroDivisionError"), ("text", "'1.0'"), ("nothing", "None"), ("complex_number", "1j")],
)
def test_file_function_names_the_response_that_failed(file: Path, name: str, got: str) -> None:
    with pytest.raises(RewardError, match=f"{name}") as caught:
        FileFunction(f"python {file}:{name}")("", "the right one", ())
    assert got in str(caught.value) and "'the right one'" in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # errors travel between ranks


@pytest.mark.parametrize(("name", "reward"), [("nan", "nan"), ("infinite", "inf"), ("enormous", "-inf")])
def test_file_function_passes_numbers_that_are_not_finite(file: Path, name: str, reward: str) -> None:
    assert str(FileFunction(f"python {file}:{name}")("", "B", ())) == reward


def test_file_function_shortens_a_long_response(file: Path) -> None:
    with pytest.raises(RewardError) as caught:
        FileFunction(f"python {file}:nothing")("x" * 100_000, "B", ())
    assert len(str(caught.value)) < 2000 and "(100002 characters)" in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "match"),
    [
        ("python {file}:absent", "no function 'absent'"),
        ("python {file}:SCALE", "no function 'SCALE'"),
        ("python {file}:two", "other arguments"),
        ("python {file}", "no Python file|names no reward function"),
        ("python {file}:", "names no reward function"),
        ("python :f", "names no reward function"),
        ("python missing.py:f", "no Python file"),
        ("python {folder}:f", "no Python file"),
    ],
)
def test_file_function_refuses_a_wrong_setting(file: Path, setting: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        FileFunction(setting.format(file=file, folder=file.parent))


@pytest.mark.parametrize("source", ["def f(:", "import no_such_package", "1 / 0"])
def test_file_function_refuses_a_file_that_cannot_be_run(tmp_path: Path, source: str) -> None:
    path = tmp_path / "bad.py"
    path.write_text(source)
    with pytest.raises(ConfigError, match="cannot be run"):
        FileFunction(f"python {path}:f")
