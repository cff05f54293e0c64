"""Import and export of a real model's shapes beside `cp` of the same bytes on the same disk, interleaved.

Each conversion runs in a process of its own, whose memory is measured; its clock starts after Python's imports.  A
conversion ends when its bytes are on the disk, and so does `cp` here; plain `cp`, which returns before, is shown too.
All start alike: their input in the page cache, nothing left to write, and free memory that is really there.
"""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import torch

from megatron_moe_grpo.benchmark.measure import Spread, peak_memory_bytes
from megatron_moe_grpo.benchmark.real_configs import REAL_CONFIGS
from megatron_moe_grpo.conversion import Converter
from megatron_moe_grpo.conversion.manifest import NAME as MANIFEST_FILE
from megatron_moe_grpo.conversion.ops import Shape
from megatron_moe_grpo.models.hf_folder import write_safetensors_folder
from megatron_moe_grpo.models.registry import family_of

GIGABYTE = 10**9
Numbers = dict[str, Any]


class RandomSource:
    """Random bfloat16 bits: every value there is, NaNs included, has to arrive."""

    def __init__(self, shapes: dict[str, Shape], seed: int):
        self.shapes, self.dtypes = shapes, dict.fromkeys(shapes, torch.bfloat16)
        self._generator = torch.Generator().manual_seed(seed)

    def read(self, name: str) -> torch.Tensor:
        bits = torch.empty(self.shapes[name], dtype=torch.int16)
        return bits.random_(-(2**15), 2**15, generator=self._generator).view(torch.bfloat16)


def run_conversion_benchmark(model: str, num_rounds: int, scratch: Path | None = None) -> Numbers:
    """Everything that is measured, as JSON values; ratios are speeds over that of `cp` in the same round.

    Args:
        model: a name of REAL_CONFIGS.
        scratch: where to write three times the model's size; None for the system's temporary folder.
    """
    with tempfile.TemporaryDirectory(dir=scratch) as temporary:
        source = Path(temporary) / "source"
        _say(f"writing random weights of {model}")
        write_random_model(REAL_CONFIGS[model](), source)
        shard_bytes = [path.stat().st_size for path in source.glob("*.safetensors")]
        rounds = []
        for number in range(num_rounds):
            _say(f"round {number + 1} of {num_rounds}: cp, import, export")
            rounds.append(_one_round(Path(temporary), source, is_last=number == num_rounds - 1))
    return {
        "model": model,
        "bytes": sum(shard_bytes),
        "peak_bound_bytes": int(1.5 * max(shard_bytes)) + GIGABYTE,
        "rounds": num_rounds,
        "cores": os.cpu_count(),
        "load_average_at_end": os.getloadavg()[0],
        "cp": _summary(rounds, "cp"),
        "cp_flushed": _summary(rounds, "cp_flushed"),
        "import": _summary(rounds, "import"),
        "export": _summary(rounds, "export"),
    }


def write_random_model(config: dict[str, Any], folder: Path) -> None:
    """A Hugging Face folder of that configuration, without a tokenizer."""
    shapes = Converter(family_of(config).weight_map(config)).huggingface_shapes
    write_safetensors_folder(folder, RandomSource(shapes, seed=0), config, assets=folder.parent)


def _one_round(folder: Path, source: Path, is_last: bool) -> dict[str, Numbers]:
    """cp, import, export, each from a disk that has nothing left to write; what was written is removed again."""
    copy, checkpoint, exported = folder / "copy", folder / "checkpoint", folder / "exported"
    digests = _weight_digests(source)
    timed = _copy(source, copy)
    shutil.rmtree(copy)
    timed["import"] = _in_a_new_process("import_huggingface", source, checkpoint)
    if is_last:  # Room for models that fit three times only.
        shutil.rmtree(source)
    timed["export"] = _in_a_new_process("export_huggingface", checkpoint, exported)
    assert _weight_digests(exported) == digests, "the exported bytes are not those that were imported"
    shutil.rmtree(checkpoint)
    shutil.rmtree(exported)
    return timed


def _copy(source: Path, copy: Path) -> dict[str, Numbers]:
    _settle(source)
    started_s = time.perf_counter()
    subprocess.run(["cp", "-r", source, copy], check=True)
    copied_s = time.perf_counter() - started_s
    os.sync()
    return {"cp": {"wall_s": copied_s}, "cp_flushed": {"wall_s": time.perf_counter() - started_s}}


def _in_a_new_process(function: str, source: Path, out: Path) -> Numbers:
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_convert, function, source, out).result()


def _convert(function: str, source: Path, out: Path) -> Numbers:
    """Runs in the new process."""
    # Megatron warns at import about each optional kernel that is not installed.
    warnings.filterwarnings("ignore", module=r"megatron\.core")
    from megatron_moe_grpo.config.schema import ParallelConfig
    from megatron_moe_grpo.mcore.parallel import start_parallel, stop_parallel
    from megatron_moe_grpo.models import convert

    work = {"import_huggingface": convert.import_huggingface, "export_huggingface": convert.export_huggingface}
    start_parallel(ParallelConfig(), seed=0)
    _settle(source)
    imports_bytes, started_s, started_cpu_s = _high_water_bytes(), time.perf_counter(), time.process_time()
    work[function](source, out)
    numbers = {
        "wall_s": time.perf_counter() - started_s,
        "cpu_s": time.process_time() - started_cpu_s,
        "imports_bytes": imports_bytes,
        "peak_bytes": _high_water_bytes(),
    }
    stop_parallel()
    return numbers


def _settle(source: Path) -> None:
    """The same start for everyone.

    A virtual machine gives memory that was free for two seconds back to its host, and getting it again costs several
    times what copying does (measured: 2 s/GB): whoever comes first after a pause would pay for all.
    """
    paths = [path for path in source.rglob("*") if path.is_file()]
    for path in paths:
        with path.open("rb") as file:
            while file.read(2**20):
                pass
    os.sync()
    # Twice the size was not enough: the kernel took other pages.
    num_bytes = min(5 * sum(path.stat().st_size for path in paths), psutil.virtual_memory().available // 2)
    subprocess.run([sys.executable, "-c", f"b'x' * {num_bytes}"], check=True)


def _high_water_bytes() -> int:
    """Largest resident size of this program; `ru_maxrss` also counts the process that it was forked from."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return peak_memory_bytes()
    (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def _weight_digests(folder: Path) -> dict[str, str]:
    files = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))["files"]
    return {name: entry["sha256"] for name, entry in files.items() if name.endswith(".safetensors")}


def _summary(rounds: list[dict[str, Numbers]], name: str) -> Numbers:
    """Spreads over the rounds; ratios between neighbours in one round; the largest memory."""
    spans = [one[name] for one in rounds]
    seconds = [span["wall_s"] for span in spans]
    summary: Numbers = {"wall_s": asdict(Spread.of(seconds)), "best_s": min(seconds)}
    for reference in ("cp", "cp_flushed"):
        ratios = [one[reference]["wall_s"] / one[name]["wall_s"] for one in rounds]
        summary[f"speed_over_{reference}"] = asdict(Spread.of(ratios))
    if "cpu_s" in spans[0]:
        summary["cpu_s"] = asdict(Spread.of([span["cpu_s"] for span in spans]))
        summary |= {key: max(span[key] for span in spans) for key in ("imports_bytes", "peak_bytes")}
    return summary


def _say(text: str) -> None:
    print(f"benchmark: {text}", file=sys.stderr, flush=True)
