"""Applies a weight map in either direction, one tensor at a time, and accounts for every key."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from megatron_moe_grpo.conversion.ops import Rule, Shape, SplitRule, ZeroRule
from megatron_moe_grpo.conversion.tensor_source import TensorSource, ZeroPadded
from megatron_moe_grpo.conversion.weight_formats import quantised_weights
from megatron_moe_grpo.errors import ConversionError

QUANTISED_SUFFIXES = (
    ".qweight",
    ".qzeros",
    ".scales",
    ".weight_scale",
    ".weight_scale_inv",
    ".weight_packed",
    ".g_idx",
)


class Converter:
    """A weight map made runnable: `to_huggingface(to_megatron(source))` is `source`, bit for bit.

    Both directions check the whole source before anything is read: a key that no rule reads, a key that a rule
    needs and does not find, a wrong shape, or a second dtype raises one ConversionError that names them all.  What they
    give is a source again: a tensor is made when it is read, and nothing larger than one rule's tensors is held.

    The tensors of ZeroRules are read first, and dropped: what follows is the same without them.
    """

    def __init__(self, rules: Sequence[Rule]):
        expanded = [concrete for rule in rules for concrete in rule.expand()]
        zero_rules = [rule for rule in expanded if isinstance(rule, ZeroRule)]
        concrete = _layer_by_layer([rule for rule in expanded if not isinstance(rule, ZeroRule)])
        self.zero_shapes = _unique(item for rule in zero_rules for item in rule.huggingface_shapes.items())
        """Of the Hugging Face tensors, those that no Megatron tensor stands for."""
        self.huggingface_shapes = _unique(
            item for rule in [*concrete, *zero_rules] for item in rule.huggingface_shapes.items()
        )
        self.megatron_shapes = _unique(item for rule in concrete for item in rule.megatron_shapes.items())
        self._rules = [rule for rule in concrete if not isinstance(rule, SplitRule)]
        self._split_rules = [rule for rule in concrete if isinstance(rule, SplitRule)]

    def to_megatron(self, huggingface: TensorSource) -> TensorSource:
        """Hugging Face weights as Megatron weights, layer by layer.

        Raises:
            ConversionError: the keys, shapes and dtypes are not exactly those of the map, or values that should be
                zeros are not.
        """
        dtype = _check(huggingface, self.huggingface_shapes, "Hugging Face")
        _refuse_values(huggingface, self.zero_shapes)
        return _Converted(huggingface, self._rules, self._split_rules, self.megatron_shapes, dtype)

    def to_huggingface(self, megatron: TensorSource) -> TensorSource:
        """Megatron weights as Hugging Face weights, layer by layer.

        Raises:
            ConversionError: the keys, shapes and dtypes are not exactly those of the map.
        """
        dtype = _check(megatron, self.megatron_shapes, "Megatron")
        shapes = {name: shape for name, shape in self.huggingface_shapes.items() if name not in self.zero_shapes}
        return ZeroPadded(_Converted(megatron, self._split_rules, self._rules, shapes, dtype), self.zero_shapes)


class _Converted:
    """The other layout's tensors: joined of their parts when they are read, or taken out of a joined one.

    The other parts of the tensor that was taken apart last wait until they are read, so it is read once.
    """

    def __init__(
        self,
        source: TensorSource,
        joins: Sequence[Rule],
        splits: Sequence[Rule],
        shapes: Mapping[str, Shape],
        dtype: torch.dtype,
    ):
        self._source = source
        self._joins = {rule.target: rule for rule in joins}
        self._splits = {key: rule for rule in splits for key in rule.sources}
        self._waiting: dict[str, Tensor] = {}
        self.shapes, self.dtypes = shapes, dict.fromkeys(shapes, dtype)

    def read(self, name: str) -> Tensor:
        if name in self._joins:
            rule = self._joins[name]
            return rule.op.forward([self._source.read(key) for key in rule.sources])
        if name not in self._waiting:
            self._waiting = {}
            rule = self._splits[name]
            parts = rule.op.inverse(self._source.read(rule.target), list(rule.sources.values()))
            self._waiting = dict(zip(rule.sources, parts, strict=True))
        return self._waiting.pop(name)


def _layer_by_layer(rules: Sequence[Rule]) -> list[Rule]:
    """All tensors of a layer together, so that one read of a file and one write of another go side by side.

    A layer is the first number in a Megatron name, an expert the second; stacks of layers, and what is in none, keep
    the map's order.
    """
    stacks: dict[str, int] = {}

    def place(rule: Rule) -> tuple[int, ...]:
        name = next(iter(rule.megatron_shapes))
        before, *numbers = re.split(r"\.(\d+)(?:\.|$)", name)
        indices = [int(number) for number in numbers[::2]]
        # What stands in no stack is a stack of its own.
        stack = stacks.setdefault(before if indices else name, len(stacks))
        return stack, *indices

    return sorted(rules, key=place)


def _unique(items: Iterable[tuple[str, Shape]]) -> dict[str, Shape]:
    """Key -> shape; a key named twice would silently overwrite a tensor, so it is an error."""
    pairs = list(items)
    twice = sorted(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
    if twice:
        raise ConversionError("A weight map names the same key twice.", got=", ".join(twice))
    return dict(pairs)


def _check(source: TensorSource, shapes: Mapping[str, Shape], layout: str) -> torch.dtype:
    """Compares a source with what the map expects of it, reports every difference at once, and gives the one dtype."""
    _refuse_quantised(source)
    problems = [f"missing: {key} {list(shapes[key])}" for key in shapes if key not in source.shapes]
    problems += [f"unread: {key} {list(shape)}" for key, shape in source.shapes.items() if key not in shapes]
    problems += [
        f"shape: {key} is {list(source.shapes[key])}, should be {list(shape)}"
        for key, shape in shapes.items()
        if key in source.shapes and tuple(source.shapes[key]) != shape
    ]
    dtypes = Counter(source.dtypes.values())
    main_dtype = max(dtypes, key=lambda dtype: dtypes[dtype]) if dtypes else torch.float32
    problems += [
        f"dtype: {key} is {dtype}, most are {main_dtype}"
        for key, dtype in source.dtypes.items()
        if dtype != main_dtype or not dtype.is_floating_point
    ]
    if problems:
        raise ConversionError(
            f"The {layout} weights do not fit the weight map: {len(problems)} problem(s).",
            got="\n            ".join(problems),
            expected=f"exactly the map's {len(shapes)} tensors, one floating-point dtype",
            remedy="check that config.json and the weights belong to the same model",
        )
    return main_dtype


def _refuse_values(source: TensorSource, zero_shapes: Mapping[str, Shape]) -> None:
    """Raises ConversionError for tensors that are not zeros to the bit; -0.0 would come back as 0.0."""
    # All are read, empty ones too: a VerifiedSource waits for its last tensor.
    found = [key for key in zero_shapes if source.read(key).reshape(-1).view(torch.uint8).any()]
    if found:
        raise ConversionError(
            "Weights that the Megatron model does without are not zero.",
            got=f"{', '.join(found[:5])}" + (f" and {len(found) - 5} more" if len(found) > 5 else ""),
            expected="nothing but 0.0, as training here and upcycling leave them",
            remedy="set them to zero, if the model answers the same",
        )


def _refuse_quantised(source: TensorSource) -> None:
    """Numbers of one byte are no weights but codes, which mean nothing without their scales; bools are masks."""
    codes = [key for key, dtype in source.dtypes.items() if dtype.itemsize == 1 and dtype != torch.bool]
    quantised = [f"{key} {source.dtypes[key]}" for key in codes]
    quantised += [f"{key} {source.dtypes[key]}" for key in source.dtypes if key.endswith(QUANTISED_SUFFIXES)]
    if quantised:
        raise quantised_weights(quantised)
