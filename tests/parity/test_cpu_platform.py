"""Every patch of Megatron-Core, beside the upstream lines that make it necessary.

When one of these fails after an upgrade, upstream has changed under a patch: drop the patch if the CPU works without
it, or quote the new lines here and in the patch's docstring.
"""

import importlib.util
import re
import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

import megatron_moe_grpo.mcore  # noqa: F401  (the platform, before anything of Megatron)
from megatron_moe_grpo.config.decoder_sizes import DecoderSizes
from megatron_moe_grpo.config.schema import ParallelConfig
from megatron_moe_grpo.errors import ConfigError, MoeGrpoError
from megatron_moe_grpo.mcore import cpu_platform
from megatron_moe_grpo.mcore.cpu_platform import FACTORIES, MODULE_PATCHES, install_cpu_platform
from megatron_moe_grpo.mcore.transformer_config import check_fits

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="nothing is patched on a machine with CUDA")

UPSTREAM = "0.16.1"
# Module -> what stands there, in any layout of white space.
QUOTED: dict[str, tuple[str, ...]] = {
    "megatron.core.jit": ("jit_fuser = torch.compile", "enable_jit_fuser() "),
    "megatron.core.tensor_parallel.random": (
        "return torch.cuda.random.get_rng_state(device=device)",
        "if hasattr(_C, '_cuda_setRNGState') and callable(_C._cuda_setRNGState):",
        "fp8 = FP8GlobalStateManager.is_fp8_enabled()",
        "recompute_ctx = activation_recompute_forward( activation_recompute=True, recompute_phase=True )",
        "fp8_ctx = fp8_autocast(enabled=self.ctx.fp8, fp8_recipe=self.ctx.fp8_recipe)",
    ),
    "megatron.core.transformer.moe.moe_utils": (
        "te_general_gemm, ) HAVE_TE = True except ImportError: HAVE_TE = False #",
        "if te_general_gemm is not None and router_dtype != torch.float64:",
        "if torch.is_tensor(tensor) and tensor.is_cuda: "
        'cpu_tensor = tensor.to(torch.device("cpu"), non_blocking=True) if as_numpy: cpu_tensor = cpu_tensor.numpy()',
    ),
    "megatron.core.transformer.moe.token_dispatcher": (
        " maybe_move_tensor_to_cpu, ",
        "self.input_splits = maybe_move_tensor_to_cpu( self.input_splits, as_numpy=True,",
    ),
    "megatron.core.dist_checkpointing.strategies.filesystem_async": (
        "def _get_write_results_queue():",
        'ctx = mp.get_context("spawn") _results_queue = ctx.Manager().Queue()',
    ),
    "megatron.core.optimizer.optimizer": (
        "if param.type() in ['torch.cuda.HalfTensor', 'torch.cuda.BFloat16Tensor']:",
        "elif param.type() == 'torch.cuda.FloatTensor':",
    ),
    "megatron.core.optimizer.clip_grads": ("assert param.grad.type() == 'torch.cuda.FloatTensor'",),
    "megatron.core.optimizer.distrib_optimizer": (
        "if model_param.type() in ['torch.cuda.HalfTensor', 'torch.cuda.BFloat16Tensor']:",
        "elif model_param.type() == 'torch.cuda.FloatTensor':",
        'steps = list(set([s["step"].item() for s in inner_state_dict["state"].values()])) assert len(steps) == 1',
        "step = torch.tensor(steps[0], dtype=torch.float) for s in state_dict_state.values(): "
        '# Native PyTorch state dict requires step (i.e., iteration). s["step"] = step',
        'dst_tensors = {"param": main_param, **optim_state} for key in dst_tensors: '
        "dst_tensors[key].copy_(tensors[key])",
    ),
}
# Outside the modules that this project loads on a CPU.
UNUSED_PARTS = ("fsdp", "inference", "export", "post_training")


@cache
def source(module: str) -> str:
    """The module's text with every run of white space as one space; nothing is imported."""
    path = importlib.util.find_spec(module).origin
    return " ".join(Path(path).read_text(encoding="utf-8").split()) + " "


@cache
def used_sources() -> str:
    """All of megatron.core that may run here, as one text."""
    root = Path(importlib.util.find_spec("megatron.core").origin).parent
    files = (path for path in sorted(root.rglob("*.py")) if not set(path.relative_to(root).parts) & set(UNUSED_PARTS))
    return "\n".join(path.read_text(encoding="utf-8") for path in files)


def test_upstream_is_the_version_that_was_read() -> None:
    assert version("megatron-core") == UPSTREAM


def test_every_patched_module_is_quoted() -> None:
    assert QUOTED.keys() == MODULE_PATCHES.keys()


@pytest.mark.parametrize(("module", "quote"), [(module, quote) for module in QUOTED for quote in QUOTED[module]])
def test_upstream_still_needs_the_patch(module: str, quote: str) -> None:
    assert quote in source(module)


def replaced_names() -> list[str]:
    """Names of torch.cuda that are ours in Megatron's view of it (it also remembers the real ones it was asked for)."""
    proxy = vars(cpu_platform._TORCH_FOR_MEGATRON.cuda)
    real = vars(torch.cuda)
    return sorted(name for name in proxy if not name.startswith("_") and proxy[name] is not real.get(name))


@pytest.mark.parametrize("name", replaced_names())
def test_upstream_still_uses_each_replaced_name_of_torch_cuda(name: str) -> None:
    assert re.search(rf"torch\.cuda\.{name}\b", used_sources())


@pytest.mark.parametrize("name", FACTORIES)
def test_upstream_still_asks_each_factory_for_cuda(name: str) -> None:
    assert re.search(rf"torch\.{name}\((?:[^()]|\([^()]*\))*cuda", used_sources())
    with pytest.raises((AssertionError, RuntimeError)):
        vars(torch)[name](torch.ones(1) if name.endswith("_like") else 1, device="cuda")


@pytest.mark.parametrize("method", ["cuda", "record_stream"])
def test_upstream_still_calls_the_two_replaced_tensor_methods(method: str) -> None:
    assert re.search(rf"\.{method}\(", used_sources())


def test_megatron_sees_the_cpu_and_the_program_sees_the_real_torch() -> None:
    from megatron.core.tensor_parallel import layers

    assert layers.torch is not torch
    assert layers.torch.cuda.current_device() == torch.device("cpu")
    assert layers.torch.empty(2, device=layers.torch.cuda.current_device(), dtype=torch.float64).device.type == "cpu"
    assert layers.torch.zeros(2, device="cuda").device.type == "cpu"
    assert layers.torch.nn is torch.nn and layers.torch.float32 is torch.float32
    with pytest.raises((AssertionError, RuntimeError)):
        torch.cuda.current_device()
    with pytest.raises((AssertionError, RuntimeError)):
        torch.zeros(2, device="cuda")


def test_the_name_of_a_tensor_type_is_only_lent() -> None:
    def asks_and_fails() -> None:
        assert torch.zeros(1).type() == "torch.cuda.FloatTensor"
        assert torch.zeros(1, dtype=torch.bfloat16).type() == "torch.cuda.BFloat16Tensor"
        raise KeyError

    with pytest.raises(KeyError):
        cpu_platform._with_cuda_type_names(asks_and_fails)()
    assert torch.zeros(1).type() == "torch.FloatTensor"


def test_install_cpu_platform_twice_is_once() -> None:
    before = list(sys.meta_path)
    install_cpu_platform()
    assert sys.meta_path == before


def test_install_cpu_platform_refuses_to_come_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    others = [finder for finder in sys.meta_path if not isinstance(finder, cpu_platform._MegatronFinder)]
    monkeypatch.setattr(sys, "meta_path", others)
    with pytest.raises(MoeGrpoError, match="before the CPU platform was in place"):
        install_cpu_platform()


def test_experts_cut_both_ways_are_refused() -> None:
    """Gloo's all_gather of unequal parts fails in the middle of a step; NCCL's does not."""
    sizes = DecoderSizes(
        num_layers=2, hidden_size=32, num_heads=4, num_kv_heads=2, head_dim=8, ffn_size=24, vocab_size=40,
        max_positions=16, norm_epsilon=1e-6, rope_theta=1e4, has_qk_norm=True, has_qkv_bias=False,
        ties_embeddings=False, num_experts=8, expert_ffn_size=24, num_active=2,
    )  # fmt: skip
    with pytest.raises(ConfigError, match="expert_tensor=1"):
        check_fits(sizes, ParallelConfig(tensor=2, expert=2))
    check_fits(sizes, ParallelConfig(tensor=2, expert=2, expert_tensor=1))
    check_fits(sizes, ParallelConfig(tensor=2))


def test_optimizer_steps_of_two_parameters_do_not_share_one_counter() -> None:
    """What distrib_optimizer.py's one `step` tensor does to torch's Adam, and why the patch copies it."""
    parameters = [torch.nn.Parameter(torch.ones(1)) for _ in range(2)]
    adam = torch.optim.Adam(parameters)
    cpu_platform._create_adam_state(adam)
    shared = torch.tensor(5.0)
    for parameter in parameters:
        adam.state[parameter]["step"] = shared
        parameter.grad = torch.ones(1)
    adam.step()
    assert float(shared) == 7
