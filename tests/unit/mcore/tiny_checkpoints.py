"""Tiny models of each kind as Hugging Face folders and Megatron checkpoints, made without starting a process group."""

import json
from pathlib import Path

import torch

import megatron_moe_grpo.mcore  # noqa: F401  (the CPU platform, before anything of Megatron)
from megatron_moe_grpo.config.schema import ParallelConfig
from megatron_moe_grpo.mcore.imagined_ranks import imagined_rank
from megatron_moe_grpo.models import build
from megatron_moe_grpo.models.convert import import_huggingface
from megatron_moe_grpo.models.hf_folder import read_hf_config, read_hf_state, write_hf_folder
from megatron_moe_grpo.models.internvl import tiny as internvl
from megatron_moe_grpo.models.qwen2_vl import tiny as qwen2_vl
from megatron_moe_grpo.models.upcycle import UpcycleSettings, upcycle_state
from megatron_moe_grpo.models.vlm import VisionLanguageModel

ALONE = ParallelConfig()
KINDS = ("internvl_dense", "internvl_tied", "internvl_moe", "internvl_some_moe", "qwen2_vl_dense", "qwen2_vl_moe")


def write_kind(kind: str, folder: Path) -> Path:
    """A Hugging Face folder of that kind, in `folder`."""
    family, experts = kind.rsplit("_", 1) if not kind.endswith("some_moe") else ("internvl", "some_moe")
    dense = folder / "dense"
    if family == "internvl":
        internvl.build_tiny_internvl(dense, internvl.TinySizes(layers=2), seed=0)
    else:
        qwen2_vl.build_tiny_qwen2_vl(dense, qwen2_vl.TinySizes(layers=2), seed=0)
    state, config = read_hf_state(dense), read_hf_config(dense)
    if experts == "tied":
        config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = True
        del state["language_model.lm_head.weight"]
    elif experts != "dense":
        settings = UpcycleSettings(num_experts=4, layers="1" if experts == "some_moe" else "all")
        state, config = upcycle_state(state, config, settings)
    state = {key: tensor.to(torch.bfloat16) for key, tensor in state.items()}
    write_hf_folder(folder / kind, state, config, assets=dense)
    return folder / kind


def import_alone(source: Path, out: Path) -> Path:
    """A checkpoint of the folder, without a process group of its own."""
    with imagined_rank(ALONE, rank=0, world_size=1):
        import_huggingface(source, out)
    return out


def build_model(folder: Path, precision: str = "fp32") -> VisionLanguageModel:
    """The model of `folder`/config.json; needs process groups."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return build.build_model(config, ALONE, precision)
