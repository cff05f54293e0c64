"""Makes the virtual environment of one section of requirements-eval.txt and prints its folder:

python tools/nemo_harness/make_venv.py nemo-evaluator
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

REQUIREMENTS = Path(__file__).resolve().parents[2] / "requirements-eval.txt"
HEADER = re.compile(r"# \[([\w-]+)\]\n")
STAMP = "installed.txt"
# What a harness asks for, does not need against an endpoint, and cannot import; requirements-eval.txt says more.
TAKEN_OUT = {"lmms-eval": ["torchvision"]}


class InstallationError(Exception):
    """pip could not install a section; the message is pip's last line."""


def sections(text: str) -> dict[str, str]:
    """Requirement lines, without comments, by the name in the `# [name]` line above them."""
    parts = HEADER.split(text)
    plain = [re.sub(r" *#.*\n?|\n{2,}", "\n", part).strip() + "\n" for part in parts[2::2]]
    return dict(zip(parts[1::2], plain, strict=True))


def default_folder(name: str) -> Path:
    """Where the environment `name` lies if nobody says otherwise."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "megatron-moe-grpo" / "harnesses" / name


def make_venv(name: str, folder: Path) -> Path:
    """The environment of section `name` in `folder`, which is made anew where it is unfinished or of other pins.

    Returns:
        The folder.
    Raises:
        InstallationError: the package index does not give what the section names.
    """
    requirements = sections(REQUIREMENTS.read_text(encoding="utf-8"))[name]
    wanted = f"Python {sys.version_info.major}.{sys.version_info.minor}\n{requirements}"
    stamp = folder / STAMP
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    (folder / "requirements.txt").write_text(requirements, encoding="utf-8")
    _pip(folder, "install", "--requirement", str(folder / "requirements.txt"))
    if name in TAKEN_OUT:
        _pip(folder, "uninstall", "--yes", *TAKEN_OUT[name])
    # Last, so that an installation that was stopped is repeated.
    stamp.write_text(wanted, encoding="utf-8")
    return folder


def _pip(folder: Path, *arguments: str) -> None:
    command = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    (folder / "pip.log").write_text(done.stdout, encoding="utf-8")
    if done.returncode != 0:
        raise InstallationError(done.stdout.strip().splitlines()[-1])


def main() -> int:
    """Parses, installs, says where."""
    parser = argparse.ArgumentParser(description="A virtual environment for one harness of requirements-eval.txt.")
    parser.add_argument("name", choices=sections(REQUIREMENTS.read_text(encoding="utf-8")))
    parser.add_argument("--folder", type=Path, help="default: ~/.cache/megatron-moe-grpo/harnesses/NAME")
    options = parser.parse_args()
    try:
        print(make_venv(options.name, options.folder or default_folder(options.name)))
    except InstallationError as error:
        print(f"error: pip could not install {options.name}\n  got:      {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
