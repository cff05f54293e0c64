"""The house rules of CONTRIBUTING.md that a machine can count.  Every exception is a literal here, with its reason."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "megatron_moe_grpo"
SOURCE_FOLDERS = ("megatron_moe_grpo", "tests", "tools", "examples", "launch", "docs", ".ci")

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
# A training loop is the method's table of contents and may be longer.
MAX_LOOP_LINES = 100
LOOP_FILES = {"megatron_moe_grpo/training/train_grpo.py", "megatron_moe_grpo/training/train_sft.py"}
MIN_ANNOTATED_SHARE = 0.9
VAGUE_NAMES = {"util", "utils", "helper", "helpers", "common", "misc"}
# file -> uses of hasattr and getattr that nothing better can replace; say why beside each.
ATTRIBUTE_PROBES: dict[str, int] = {}
UNSAFE_CALLS = {
    "eval", "exec", "pickle.load", "pickle.loads", "dill.load", "dill.loads", "joblib.load", "yaml.load",
    "yaml.unsafe_load",
}  # fmt: skip
UNSAFE_ARGUMENTS = {("weights_only", False), ("allow_pickle", True), ("trust_remote_code", True)}
MACHINE_PATH = re.compile(r"(?<![\w.<>*$}~-])/(?:root|home|Users|work|mnt|scratch|tmp|opt)/")
PATH_IN_README = re.compile(r"`([\w./-]+/[\w./-]*|[\w-]+\.(?:md|py|txt|toml))`")


def python_files(*folders: str) -> list[Path]:
    return sorted(file for folder in folders for file in (ROOT / folder).rglob("*.py"))


def all_python_files() -> list[Path]:
    files = python_files(*SOURCE_FOLDERS)
    assert len(files) > 10, "the sources were not found"
    return files


def text_files() -> list[Path]:
    """Every file that the repository tracks, by where they may lie (git itself may be missing)."""
    inside = [file for folder in SOURCE_FOLDERS for file in (ROOT / folder).rglob("*") if file.is_file()]
    return sorted(inside + [file for file in ROOT.iterdir() if file.is_file() and file.name != "LICENSE"])


def name_of(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def calls(tree: ast.AST) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def unsafe_calls(tree: ast.AST) -> list[str]:
    """Calls that run code found in data."""
    found = []
    for call in calls(tree):
        is_unsafe = ast.unparse(call.func) in UNSAFE_CALLS or any(
            isinstance(keyword.value, ast.Constant) and (keyword.arg, keyword.value.value) in UNSAFE_ARGUMENTS
            for keyword in call.keywords
        )
        if is_unsafe:
            found.append(f"line {call.lineno}: {ast.unparse(call)[:80]}")
    return found


def where_is_rows(readme: str) -> list[str]:
    """The table rows under the heading "Where is"."""
    section = readme.split("\n## Where is", 1)[1].split("\n## ", 1)[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    return rows[2:]


def test_files_are_short() -> None:
    lengths = {name_of(file): len(file.read_text(encoding="utf-8").splitlines()) for file in all_python_files()}
    assert {name: length for name, length in lengths.items() if length > MAX_FILE_LINES} == {}


def test_functions_are_short() -> None:
    too_long = []
    for file in all_python_files():
        limit = MAX_LOOP_LINES if name_of(file) in LOOP_FILES else MAX_FUNCTION_LINES
        for function in functions(tree_of(file)):
            length = function.end_lineno - function.lineno + 1
            if length > limit:
                too_long.append(f"{name_of(file)}:{function.lineno} {function.name}: {length} lines")
    assert too_long == []


def test_arguments_are_annotated() -> None:
    total, bare = 0, []
    for file in python_files("megatron_moe_grpo"):
        for function in functions(tree_of(file)):
            spec = function.args
            named = [*spec.posonlyargs, *spec.args, *spec.kwonlyargs, *filter(None, (spec.vararg, spec.kwarg))]
            named = [argument for argument in named if argument.arg not in ("self", "cls")]
            total += len(named)
            bare += [f"{name_of(file)}: {function.name}({a.arg})" for a in named if a.annotation is None]
    assert total > 0
    assert 1 - len(bare) / total > MIN_ANNOTATED_SHARE, bare


def test_no_file_has_a_vague_name() -> None:
    names = {name_of(file): set(re.split(r"[/_.]", name_of(file))) for file in all_python_files()}
    assert [name for name, words in names.items() if words & VAGUE_NAMES] == []


def test_nothing_uses_global() -> None:
    users = [name_of(file) for file in all_python_files() for n in ast.walk(tree_of(file)) if isinstance(n, ast.Global)]
    assert users == []


def test_no_except_is_bare() -> None:
    bare = [
        f"{name_of(file)}:{node.lineno}"
        for file in all_python_files()
        for node in ast.walk(tree_of(file))
        if isinstance(node, ast.ExceptHandler) and node.type is None
    ]
    assert bare == []


def test_attribute_probes_are_rare() -> None:
    probes: Counter[str] = Counter()
    num_lines = 0
    for file in python_files("megatron_moe_grpo"):
        num_lines += len(file.read_text(encoding="utf-8").splitlines())
        probes[name_of(file)] = sum(ast.unparse(c.func) in ("hasattr", "getattr") for c in calls(tree_of(file)))
    stale = {name: count for name, count in ATTRIBUTE_PROBES.items() if probes[name] < count}
    assert stale == {}, "exceptions that are no longer used"
    unexplained = probes - Counter(ATTRIBUTE_PROBES)
    assert unexplained.total() <= num_lines / 1000, dict(unexplained)


def test_package_runs_no_code_found_in_data() -> None:
    found = {name_of(file): unsafe_calls(tree_of(file)) for file in python_files("megatron_moe_grpo", "tools")}
    assert {name: lines for name, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "line",
    ["eval('1')", "pickle.load(f)", "torch.load(p, weights_only=False)", "np.load(p, allow_pickle=True)",
     "AutoModel.from_pretrained(p, trust_remote_code=True)"],
)  # fmt: skip
def test_unsafe_calls_sees(line: str) -> None:
    assert len(unsafe_calls(ast.parse(line))) == 1


def test_unsafe_calls_lets_model_eval_pass() -> None:
    assert unsafe_calls(ast.parse("model.eval()\ntorch.load(p, weights_only=True)\nyaml.safe_load(text)")) == []


def test_readme_where_is_table_names_existing_files() -> None:
    """A row marked "comes with issue N" names what does not exist yet, so that the mark goes when the file comes."""
    rows = where_is_rows((ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(rows) >= 10
    wrong = []
    for row in rows:
        paths = PATH_IN_README.findall(row)
        is_coming = "comes with issue" in row
        if not paths or any((ROOT / path).exists() == is_coming for path in paths):
            wrong.append(row)
    assert wrong == []


def test_test_files_are_all_collected() -> None:
    """pytest imports tests by basename: two files of one name, or a name it does not match, would run one or none."""
    names = Counter(file.name for file in python_files("tests") if file.name != "conftest.py")
    assert [name for name, count in names.items() if count > 1] == [], "two test files of one name"
    assert not [name_of(file) for file in python_files("tests") if file.name == "__init__.py"]
    lost, empty = [], []
    for file in python_files("tests"):
        is_test_file = file.name.startswith("test_")
        has_tests = any(function.name.startswith("test_") for function in functions(tree_of(file)))
        if has_tests and not is_test_file:
            lost.append(name_of(file))
        if is_test_file and not has_tests:
            empty.append(name_of(file))
    assert (lost, empty) == ([], [])


def test_two_tests_of_a_file_have_two_names() -> None:
    """The second definition of a name silently replaces the first."""
    twice = []
    for file in python_files("tests"):
        names = Counter(node.name for node in tree_of(file).body if isinstance(node, ast.FunctionDef))
        twice += [f"{name_of(file)}: {name}" for name, count in names.items() if count > 1]
    assert twice == []


def test_make_test_runs_every_tier() -> None:
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8").split("\ntest:", 1)[1].split("\n\n", 1)[0]
    assert "pytest tests/unit\n" in recipe
    assert 'pytest tests -m "not gpu and not slurm and not harness" --ignore tests/unit' in recipe
    commands = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert {"make test", "make test-slurm"} <= set(commands)


def test_no_file_names_a_path_of_one_machine() -> None:
    found, num_read = [], 0
    for file in text_files():
        raw = file.read_bytes()
        if b"\0" in raw:
            continue  # a picture or compiled file
        num_read += 1
        for number, line in enumerate(raw.decode("utf-8").splitlines(), start=1):
            if MACHINE_PATH.search(line):
                found.append(f"{name_of(file)}:{number} {line.strip()[:80]}")
    assert num_read > 20
    assert found == []


@pytest.mark.parametrize(
    ("line", "is_found"),
    [("see /" + "root/x", True), ('"/' + 'home/me/x"', True), ("https://x.org/home/y", False), ("runs/tmp/x", False)],
)
def test_machine_path_pattern(line: str, is_found: bool) -> None:
    assert (MACHINE_PATH.search(line) is not None) == is_found
