"""What is served in the tests, and what is asked of it."""

import base64
import io
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

import megatron_moe_grpo.mcore  # noqa: F401  (the CPU platform, before anything of Megatron)
from megatron_moe_grpo.config.schema import ParallelConfig
from megatron_moe_grpo.mcore.imagined_ranks import imagined_rank
from megatron_moe_grpo.models.convert import import_huggingface
from megatron_moe_grpo.models.hf_folder import read_hf_config, read_hf_state, write_hf_folder
from megatron_moe_grpo.models.internvl import tiny as internvl
from megatron_moe_grpo.models.qwen2_vl import tiny as qwen2_vl
from megatron_moe_grpo.models.upcycle import UpcycleSettings, upcycle_state

ROOT = Path(__file__).resolve().parents[2]
# Experts as different as unrelated ones and routers that prefer some: which one is chosen matters.
ROUTING_MATTERS = UpcycleSettings(noise_scale=1.0, router_init_std=0.3, seed=1)
SIZES: dict[str, Any] = {"layers": 2}


@dataclass(frozen=True)
class RunningServer:
    """A server process, and who talks to it."""

    client: httpx.Client
    pid: int


def write_served_folders(folder: Path) -> dict[str, Path]:
    """By name: internvl, qwen2_vl (Hugging Face, fp32, with experts) and checkpoint, the first one imported."""
    internvl.build_tiny_internvl(folder / "internvl_dense", internvl.TinySizes(**SIZES), seed=0)
    qwen2_vl.build_tiny_qwen2_vl(folder / "qwen2_vl_dense", qwen2_vl.TinySizes(**SIZES), seed=0)
    found = {}
    for family in ("internvl", "qwen2_vl"):
        dense = folder / f"{family}_dense"
        state, config = upcycle_state(read_hf_state(dense), read_hf_config(dense), ROUTING_MATTERS)
        # Untrained heads prefer nothing; sharper ones make greedy answers differ from prompt to prompt.
        state = {key: tensor * 20 if "lm_head" in key else tensor for key, tensor in state.items()}
        write_hf_folder(folder / family, state, config, assets=dense)
        found[family] = folder / family
    found["checkpoint"] = folder / "checkpoint"
    with imagined_rank(ParallelConfig(), rank=0, world_size=1):
        import_huggingface(found["internvl"], found["checkpoint"])
    return found


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def noise_picture(seed: int, side: int = 32) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def data_uri(picture: Image.Image) -> str:
    content = io.BytesIO()
    picture.save(content, "PNG")
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()


def ask(text: str, *pictures: Image.Image, **more: Any) -> dict[str, Any]:
    """A chat request, greedy unless told otherwise."""
    parts: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": data_uri(picture)}} for picture in pictures
    ]
    message = {"role": "user", "content": [*parts, {"type": "text", "text": text}]}
    return {"model": "tiny", "messages": [message], "temperature": 0, "max_tokens": 8} | more


def events(text: str) -> list[Any]:
    """The objects of a stream; its end mark must be there."""
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]
