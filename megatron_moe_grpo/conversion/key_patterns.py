"""Thousands of keys as a few lines: `layers.{0..27}.mlp.gate_proj.weight [3072, 1024] bf16 x 28`."""

import re
from collections.abc import Sequence

from megatron_moe_grpo.conversion.tensor_source import TensorSource

# Longer ones are names, and Python refuses to read thousands of digits.
NUMBER = re.compile(r"(?<![^.])\d{1,9}(?![^.])")
SHORT_DTYPES = {"float64": "fp64", "float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


def key_patterns(source: TensorSource) -> list[str]:
    """One line for all keys that differ in their numbers only, in the order of the first of each."""
    groups: dict[tuple[tuple[str, ...], str], list[list[int]]] = {}
    for key, shape in source.shapes.items():
        words = tuple(NUMBER.split(key))
        kind = f"{list(shape)} {dtype_name(source, key)}"
        groups.setdefault((words, kind), []).append([int(number) for number in NUMBER.findall(key)])
    lines = []
    for (words, kind), numbers in groups.items():
        spans = [_span(sorted(set(column))) for column in zip(*numbers, strict=True)]
        pattern = "".join(word + span for word, span in zip(words, [*spans, ""], strict=True))
        lines.append(f"{pattern} {kind}" + (f" x {len(numbers)}" if len(numbers) > 1 else ""))
    return lines


def dtype_name(source: TensorSource, key: str) -> str:
    """`bf16` and the like."""
    name = str(source.dtypes[key]).removeprefix("torch.")
    return SHORT_DTYPES.get(name, name)


def _span(numbers: Sequence[int]) -> str:
    """`3`, `{0..27}`, or `{0,2,3}`."""
    if len(numbers) == 1:
        return str(numbers[0])
    if numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"{{{numbers[0]}..{numbers[-1]}}}"
    return f"{{{','.join(map(str, numbers))}}}"
