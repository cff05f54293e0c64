"""Tensors as the raw bytes that safetensors files hold."""

import math
from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from megatron_moe_grpo.conversion.ops import Shape
from megatron_moe_grpo.conversion.tensor_source import TensorSource

DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {
        "F64": torch.float64,
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "F8_E4M3": torch.float8_e4m3fn,
        "F8_E5M2": torch.float8_e5m2,
        "I64": torch.int64,
        "I32": torch.int32,
        "I16": torch.int16,
        "I8": torch.int8,
        "U8": torch.uint8,
        "BOOL": torch.bool,
    }
)
"""The file format's word -> torch's."""


def num_bytes_of(shape: Shape, dtype: torch.dtype) -> int:
    """Bytes of a tensor's values."""
    return math.prod(shape) * dtype.itemsize


def source_bytes(source: TensorSource) -> int:
    """Bytes of all values of a source."""
    return sum(num_bytes_of(shape, source.dtypes[name]) for name, shape in source.shapes.items())


def view_of_bytes(tensor: Tensor) -> memoryview:
    """The values of a CPU tensor, row by row; a tensor that is not contiguous is copied.

    safetensors is little-endian, as is every machine that torch is built for.
    """
    return memoryview(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy())
