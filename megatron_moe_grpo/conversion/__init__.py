"""Invertible weight-map engine; knows no model by name."""

from megatron_moe_grpo.conversion.converter import Converter
from megatron_moe_grpo.conversion.ops import Concat, FuseQKV, Op, Rename, Rule

__all__ = ["Concat", "Converter", "FuseQKV", "Op", "Rename", "Rule"]
