"""Megatron-Core 0.16.1 on a machine without CUDA: every patch of this project, each with the upstream line it answers.

Nothing is patched on a machine with CUDA.  Modules of `megatron.core` see a proxy of `torch` whose `torch.cuda` names
the CPU; the real `torch` stays as it is (except two Tensor methods that only raise on CPU), so torch.compile and the
rest of the program are untouched.  `tests/parity/test_cpu_platform.py` tells when a patch is no longer needed.
"""

import contextlib
import functools
import importlib.abc
import importlib.machinery
import queue
import sys
import types
from collections.abc import Callable
from typing import Any

import torch

from megatron_moe_grpo.errors import MoeGrpoError

CPU = torch.device("cpu")
FACTORIES = ("tensor", "zeros", "ones", "empty", "arange", "empty_like", "rand")


def install_cpu_platform() -> None:
    """Makes the next `import megatron.core` work without CUDA; does nothing where CUDA is there, or the second time."""
    if torch.cuda.is_available() or any(isinstance(finder, _MegatronFinder) for finder in sys.meta_path):
        return
    loaded = [name for name in sys.modules if name.startswith("megatron.core")]
    if loaded:
        raise MoeGrpoError(
            "megatron.core was imported before the CPU platform was in place",
            got=", ".join(loaded[:3]),
            remedy="import megatron_moe_grpo.mcore before any megatron.core module",
        )
    sys.meta_path.insert(0, _MegatronFinder())
    # megatron/core/pipeline_parallel and token_dispatcher call these on CPU tensors; on CPU they would raise.
    torch.Tensor.cuda = lambda self, *args, **kwargs: self
    torch.Tensor.record_stream = lambda self, stream: None


class _Stream:
    """A CUDA stream that is always done: work on the CPU is in order."""

    device = CPU

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def wait_stream(self, other: "_Stream") -> None:
        pass

    def wait_event(self, event: "_Event") -> None:
        pass

    def synchronize(self) -> None:
        pass

    def query(self) -> bool:
        return True

    def record_event(self, event: "_Event | None" = None) -> "_Event":
        return _Event()

    def __enter__(self) -> "_Stream":
        return self

    def __exit__(self, *exception: object) -> None:
        return None


class _Event:
    """A CUDA event that has always happened."""

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def record(self, *args: Any) -> None:
        pass

    def wait(self, *args: Any) -> None:
        pass

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, other: "_Event") -> float:
        return 0.0


class _Proxy(types.ModuleType):
    """A module with some names replaced; everything else is the target's own."""

    def __init__(self, target: types.ModuleType, replaced: dict[str, Any]):
        super().__init__(target.__name__)
        self.__dict__["_target"] = target
        self.__dict__.update(replaced)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        self.__dict__[name] = value
        return value


def _ignore(*args: Any, **kwargs: Any) -> None:
    return None


def _names_cuda(device: object) -> bool:
    return str(device).startswith("cuda")


def _on_cpu(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """A tensor factory that makes on the CPU, unpinned, what upstream asks for on `device='cuda'`."""

    @functools.wraps(factory)
    def make(*args: Any, **kwargs: Any) -> torch.Tensor:
        if "device" in kwargs and _names_cuda(kwargs["device"]):
            kwargs["device"] = CPU
        if kwargs.get("pin_memory"):
            kwargs["pin_memory"] = False
        return factory(*args, **kwargs)

    return make


def _build_proxy() -> _Proxy:
    stream = _Stream()
    cuda = _Proxy(
        torch.cuda,
        {
            "current_device": lambda: CPU,
            "device_count": lambda: 1,
            "Stream": _Stream,
            "Event": _Event,
            "current_stream": lambda *args, **kwargs: stream,
            "default_stream": lambda *args, **kwargs: stream,
            "stream": lambda _: contextlib.nullcontext(),
            "synchronize": _ignore,
            "empty_cache": _ignore,
            "set_device": _ignore,
            "get_rng_state": lambda *args, **kwargs: torch.get_rng_state(),
            "set_rng_state": lambda state, *args, **kwargs: torch.set_rng_state(state),
            "manual_seed": torch.manual_seed,
        },
    )
    return _Proxy(torch, {"cuda": cuda, **{name: _on_cpu(getattr(torch, name)) for name in FACTORIES}})


_TORCH_FOR_MEGATRON = _build_proxy()


class _MegatronFinder(importlib.abc.MetaPathFinder):
    """Finds `megatron.core` modules as usual and patches each one right after it ran."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if not name.startswith("megatron.core"):
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _PatchingLoader(spec.loader)
        return spec


class _PatchingLoader(importlib.abc.Loader):
    def __init__(self, loader: Any):
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: types.ModuleType) -> None:
        self._loader.exec_module(module)
        if module.__dict__.get("torch") is torch:
            module.torch = _TORCH_FOR_MEGATRON
        patch = MODULE_PATCHES.get(module.__name__)
        if patch is not None:
            patch(module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


def _patch_jit(module: Any) -> None:
    """jit.py:33 turns torch.compile on for ~20 small functions; on CPU that costs a C++ compiler run at first use."""
    module.disable_jit_fuser()


def _patch_random(module: Any) -> None:
    """tensor_parallel/random.py:41,72 read the CUDA generator by name; 589 and 684 use Transformer Engine names
    that only exist when it is installed (selective recompute of layer norms)."""
    module._get_cuda_rng_state = lambda *args, **kwargs: torch.get_rng_state()
    module._set_cuda_rng_state = lambda state, *args, **kwargs: torch.set_rng_state(state)
    if not module.HAVE_TE:
        no_fp8 = {"is_fp8_enabled": staticmethod(lambda: False), "get_fp8_recipe": staticmethod(lambda: None)}
        module.FP8GlobalStateManager = type("NoFP8", (), no_fp8)
        module.fp8_autocast = lambda *args, **kwargs: contextlib.nullcontext()
        module.activation_recompute_forward = lambda *args, **kwargs: contextlib.nullcontext()


def _move_to_cpu(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
    return tensor.numpy() if torch.is_tensor(tensor) and as_numpy else tensor


def _patch_moe_utils(module: Any) -> None:
    """moe_utils.py:34 defines te_general_gemm only with Transformer Engine but 1192 reads it always;
    1093 converts to numpy only tensors that were on a GPU."""
    module.__dict__.setdefault("te_general_gemm", None)
    module.maybe_move_tensor_to_cpu = _move_to_cpu


def _patch_token_dispatcher(module: Any) -> None:
    """token_dispatcher.py imported the function of moe_utils.py:1078 by name."""
    module.maybe_move_tensor_to_cpu = _move_to_cpu


def _patch_optimizer(module: Any) -> None:
    """optimizer.py:671,690 sort parameters by the string 'torch.cuda.FloatTensor'."""
    optimizer = module.Float16OptimizerWithFloat16Params
    optimizer.__init__ = _with_cuda_type_names(optimizer.__init__)


def _patch_clip_grads(module: Any) -> None:
    """clip_grads.py:167 asserts the same string."""
    module.clip_grad_by_total_norm_fp32 = _with_cuda_type_names(module.clip_grad_by_total_norm_fp32)


def _patch_distrib_optimizer(module: Any) -> None:
    """distrib_optimizer.py:361,420 sort by type string.  With torch.optim.Adam (no Apex, no Transformer Engine):
    641 asserts a step exists before the first one; 940 copies into a leaf that wants gradients and misses `step`;
    825 hands ONE step tensor to every parameter, which Adam then increments once a parameter (silently wrong)."""
    cls = module.DistributedOptimizer
    build = cls._build_model_and_main_param_groups.__func__
    cls._build_model_and_main_param_groups = classmethod(_with_cuda_type_names(build))
    save_state, load_state = cls.state_dict, cls.load_state_dict

    def state_dict(self: Any) -> dict:
        _create_adam_state(self.optimizer)
        return save_state(self)

    def load_state_dict(self: Any, state: dict) -> None:
        _create_adam_state(self.optimizer)
        load_state(self, state)
        for parameter_state in self.optimizer.state.values():
            parameter_state["step"] = parameter_state["step"].clone()

    @torch.no_grad()
    def set_states(self: Any, model_param: torch.nn.Parameter, tensors: dict[str, torch.Tensor]) -> None:
        group, order = self.model_param_group_index_map[model_param]
        main_param = self.optimizer.param_groups[group]["params"][order]
        main_param.copy_(tensors["param"])
        for key in ("exp_avg", "exp_avg_sq"):
            self.optimizer.state[main_param][key].copy_(tensors[key])

    cls.state_dict, cls.load_state_dict = state_dict, load_state_dict
    cls._set_main_param_and_optimizer_states = set_states


def _create_adam_state(adam: torch.optim.Optimizer) -> None:
    """Zero moments for parameters that have not been stepped yet, so that a fresh optimizer can be saved or loaded."""
    for group in adam.param_groups:
        for parameter in group["params"]:
            state = adam.state[parameter]
            if not state:
                state["step"] = torch.tensor(0.0)
                state["exp_avg"] = torch.zeros_like(parameter.data)
                state["exp_avg_sq"] = torch.zeros_like(parameter.data)


def _patch_filesystem_async(module: Any) -> None:
    """filesystem_async.py:51 starts a process for a queue that only asynchronous saves need: 275 MB and seconds at the
    first save, and it stays for ever when training is killed.  We save synchronously: the queue stays in-process."""
    module._get_write_results_queue = queue.Queue


def _with_cuda_type_names(function: Callable) -> Callable:
    """Runs `function` while `Tensor.type()` of a CPU tensor reads 'torch.cuda.…Tensor'."""
    real_type = torch.Tensor.type

    def cuda_type(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        name = real_type(self, *args, **kwargs)
        if args or kwargs:
            return name
        return name.replace("torch.meta.", "torch.").replace("torch.", "torch.cuda.", 1)

    def run(*args: Any, **kwargs: Any) -> Any:
        torch.Tensor.type = cuda_type
        try:
            return function(*args, **kwargs)
        finally:
            torch.Tensor.type = real_type

    return run


MODULE_PATCHES: dict[str, Callable[[Any], None]] = {
    "megatron.core.jit": _patch_jit,
    "megatron.core.tensor_parallel.random": _patch_random,
    "megatron.core.transformer.moe.moe_utils": _patch_moe_utils,
    "megatron.core.transformer.moe.token_dispatcher": _patch_token_dispatcher,
    "megatron.core.dist_checkpointing.strategies.filesystem_async": _patch_filesystem_async,
    "megatron.core.optimizer.optimizer": _patch_optimizer,
    "megatron.core.optimizer.clip_grads": _patch_clip_grads,
    "megatron.core.optimizer.distrib_optimizer": _patch_distrib_optimizer,
}
