"""Invertible weight-map engine and the files it reads and writes; knows no model by name."""

from megatron_moe_grpo.conversion.converter import Converter
from megatron_moe_grpo.conversion.ops import Concat, FuseQKV, Op, Rename, Rule, SplitRule, ZeroRule
from megatron_moe_grpo.conversion.tensor_source import MemorySource, TensorSource, ZeroPadded, read_all

__all__ = [
    "Concat",
    "Converter",
    "FuseQKV",
    "MemorySource",
    "Op",
    "Rename",
    "Rule",
    "SplitRule",
    "TensorSource",
    "ZeroPadded",
    "ZeroRule",
    "read_all",
]
