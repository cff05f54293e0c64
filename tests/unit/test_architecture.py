"""Reads every import and fails on an arrow that runs up.  The floors are drawn in docs/architecture.md."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "megatron_moe_grpo"

# A part (folder or file of the package) may import its own floor and every floor below.
FLOORS = {
    "errors": 0,
    "config": 0,
    "routing": 1,
    "losses": 1,
    "rewards": 1,
    "conversion": 1,
    "data": 1,
    "mcore": 2,
    "rollout": 3,
    "models": 3,
    # Evaluation is called by training and reads what training wrote from files; it never imports it.
    "evaluation": 4,
    "planning": 4,
    # Measures whole steps, so it stands where the steps are; nothing imports it but its verb.
    "benchmark": 5,
    # Starts commands and reads what they left; never imports the loops.
    "experiments": 5,
    # Answers requests with a model; nothing imports it but its verb.
    "serving": 5,
    "training": 5,
    "commands": 6,
    # Disturbs runs from outside; a user starts it by its module name.
    "testing": 6,
    "__main__": 6,
}
# The package's root holds only its version; tools and examples import anything.
ROOT_FLOOR, OUTSIDE_FLOOR = 0, 7
OUTSIDE_FOLDERS = ("tools", "examples", "launch")

PURE_MATHS = {"torch"}
ALLOWED_PACKAGES = {
    "errors": {"pydantic", "yaml"},
    "config": {"pydantic", "yaml"},
    "routing": PURE_MATHS,
    "losses": PURE_MATHS,
    "rewards": PURE_MATHS | {"math_verify"},
    "conversion": PURE_MATHS | {"safetensors", "tqdm"},
    "data": {"av", "datasets", "numpy", "PIL", "pyarrow", "sklearn"},
}

MEGATRON_DOOR = (
    "megatron_moe_grpo/mcore/*.py",
    "megatron_moe_grpo/models/*/model.py",
    "megatron_moe_grpo/models/vlm.py",
)
MAY_PATCH = "megatron_moe_grpo/mcore/cpu_platform.py"


def imported_modules(source: str) -> set[str]:
    """Dotted names that `source` imports anywhere; `from a.b import c` counts as a.b.c (c may be a module)."""
    modules = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import; write the whole name"
            modules.update(f"{node.module}.{alias.name}" for alias in node.names)
    return modules


def floor_and_part(module: str) -> tuple[int, str]:
    """Floor and part of a dotted name inside the package."""
    part = f"{module}.".split(".")[1]
    if part in ("", "__version__"):
        return ROOT_FLOOR, ""
    assert part in FLOORS, f"{module} stands on no floor: add {part!r} to FLOORS"
    return FLOORS[part], part


def module_name(path: Path) -> str:
    names = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(names[:-1] if names[-1] == "__init__" else names)


def package_files() -> list[Path]:
    files = sorted((ROOT / PACKAGE).rglob("*.py"))
    assert len(files) > 5, "the package was not found"
    return files


def outside_files() -> list[Path]:
    return sorted(file for folder in OUTSIDE_FOLDERS for file in (ROOT / folder).rglob("*.py"))


def patched_names(source: str) -> list[str]:
    """Assignments to attributes of foreign imports: `torch.x = ...`, `setattr(torch, ...)`, `sys.modules[...]`."""
    tree = ast.parse(source)
    foreign = _foreign_names(tree)
    patched = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.Delete):
            targets = node.targets
        elif isinstance(node, ast.AugAssign | ast.AnnAssign):
            targets = [node.target]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("setattr", "delattr"):
            targets = [ast.Attribute(value=node.args[0], attr="setattr")]
        else:
            continue
        patched += [ast.unparse(target) for target in targets if _is_patch(target, foreign)]
    return patched


def _foreign_names(tree: ast.Module) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update((alias.asname or alias.name).split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith(PACKAGE):
            names.update(alias.asname or alias.name for alias in node.names)
    return names - {PACKAGE}


def _is_patch(target: ast.expr, foreign: set[str]) -> bool:
    if isinstance(target, ast.Tuple | ast.List):
        return any(_is_patch(element, foreign) for element in target.elts)
    if isinstance(target, ast.Subscript):
        return ast.unparse(target.value) == "sys.modules"
    if not isinstance(target, ast.Attribute):
        return False
    root = target.value
    while isinstance(root, ast.Attribute):
        root = root.value
    return isinstance(root, ast.Name) and root.id in foreign


def _arrows() -> list[tuple[Path, int, str, str]]:
    """(file, its floor, its part, imported module of ours) for every import of ours."""
    arrows = []
    for file in package_files() + outside_files():
        is_ours = file.is_relative_to(ROOT / PACKAGE)
        floor, part = floor_and_part(module_name(file)) if is_ours else (OUTSIDE_FLOOR, "outside")
        for module in sorted(imported_modules(file.read_text(encoding="utf-8"))):
            if module.split(".")[0] == PACKAGE:
                arrows.append((file, floor, part, module))
    return arrows


def test_imports_run_down_only() -> None:
    runs_up = [
        f"{file.relative_to(ROOT)} (floor {floor}) imports {module} (floor {floor_and_part(module)[0]})"
        for file, floor, _, module in _arrows()
        if floor_and_part(module)[0] > floor
    ]
    assert runs_up == []


def test_no_two_parts_import_each_other() -> None:
    edges = {(part, floor_and_part(module)[1]) for _, _, part, module in _arrows()}
    assert [edge for edge in sorted(edges) if edge[0] < edge[1] and edge[::-1] in edges] == []


def test_lower_floors_import_only_their_packages() -> None:
    wrong = []
    for file in package_files():
        allowed = ALLOWED_PACKAGES.get(floor_and_part(module_name(file))[1])
        if allowed is None:
            continue
        imported = {module.split(".")[0] for module in imported_modules(file.read_text(encoding="utf-8"))}
        extra = imported - allowed - set(sys.stdlib_module_names) - {PACKAGE}
        wrong += [f"{file.relative_to(ROOT)} imports {name}" for name in sorted(extra)]
    assert wrong == []


def test_megatron_core_is_imported_at_its_door_only() -> None:
    importers = {
        file.relative_to(ROOT)
        for file in package_files() + outside_files()
        if any(f"{module}.".startswith("megatron.") for module in imported_modules(file.read_text(encoding="utf-8")))
    }
    assert importers, "nothing imports megatron.core: the check looks in the wrong place"
    assert [str(file) for file in sorted(importers) if not any(file.match(door) for door in MEGATRON_DOOR)] == []


def test_only_the_cpu_platform_patches_other_packages() -> None:
    patches = {
        str(file.relative_to(ROOT)): patched_names(file.read_text(encoding="utf-8"))
        for file in package_files() + outside_files()
    }
    assert {file: names for file, names in patches.items() if names and file != MAY_PATCH} == {}


def test_config_is_importable_without_torch() -> None:
    code = f"import sys, {PACKAGE}.config; print(sorted({{'torch', 'megatron', 'transformers'}} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import torch\ntorch.cuda.is_available = lambda: True", ["torch.cuda.is_available"]),
        ("from torch import nn as layers\nlayers.Linear.forward = None", ["layers.Linear.forward"]),
        ("import torch\nsetattr(torch.Tensor, 'cuda', None)", ["torch.Tensor.setattr"]),
        ("import sys\nsys.modules['apex'] = None", ["sys.modules['apex']"]),
        ("import os\nos.environ['A'] = '1'\nself.x = os.sep", []),
        ("from megatron_moe_grpo import errors\nerrors.x = 1", []),
    ],
)
def test_patched_names_sees_each_way_to_patch(source: str, expected: list[str]) -> None:
    assert patched_names(source) == expected


def test_imported_modules_sees_nested_and_from_imports() -> None:
    source = "import a.b\ndef f():\n    from c.d import e\nif True:\n    from megatron_moe_grpo import mcore"
    assert imported_modules(source) == {"a.b", "c.d.e", "megatron_moe_grpo.mcore"}


def test_floor_and_part_refuses_a_folder_on_no_floor() -> None:
    assert floor_and_part("megatron_moe_grpo.training.update") == (5, "training")
    with pytest.raises(AssertionError, match="stands on no floor"):
        floor_and_part("megatron_moe_grpo.attic.old")
