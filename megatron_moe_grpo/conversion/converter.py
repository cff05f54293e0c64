"""Applies a weight map in either direction and accounts for every key."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from megatron_moe_grpo.conversion.ops import Rule, Shape
from megatron_moe_grpo.errors import ConversionError

State = dict[str, Tensor]


class Converter:
    """A weight map made runnable: `to_huggingface(to_megatron(state))` is `state`, bit for bit.

    Both directions check the whole state before they move anything: a key that no rule reads, a key that a rule
    needs and does not find, a wrong shape, or a second dtype raises one ConversionError that names them all.
    """

    def __init__(self, rules: Sequence[Rule]):
        self._rules = [concrete for rule in rules for concrete in rule.expand()]
        self.huggingface_shapes = _unique((key, shape) for rule in self._rules for key, shape in rule.sources.items())
        self.megatron_shapes = _unique(
            (rule.target, rule.op.fused_shape(list(rule.sources.values()))) for rule in self._rules
        )

    def to_megatron(self, huggingface_state: Mapping[str, Tensor]) -> State:
        """Hugging Face state to Megatron state; renamed tensors are shared, fused ones are new.

        Raises:
            ConversionError: the keys, shapes and dtypes are not exactly those of the map.
        """
        _check(huggingface_state, self.huggingface_shapes, "Hugging Face")
        return {rule.target: rule.op.forward([huggingface_state[key] for key in rule.sources]) for rule in self._rules}

    def to_huggingface(self, megatron_state: Mapping[str, Tensor]) -> State:
        """Megatron state to Hugging Face state, in the map's order.

        Raises:
            ConversionError: the keys, shapes and dtypes are not exactly those of the map.
        """
        _check(megatron_state, self.megatron_shapes, "Megatron")
        state: State = {}
        for rule in self._rules:
            parts = rule.op.inverse(megatron_state[rule.target], list(rule.sources.values()))
            state.update(zip(rule.sources, parts, strict=True))
        return state


def _unique(items: Iterable[tuple[str, Shape]]) -> dict[str, Shape]:
    """Key -> shape; a key named twice would silently overwrite a tensor, so it is an error."""
    pairs = list(items)
    twice = sorted(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
    if twice:
        raise ConversionError("A weight map names the same key twice.", got=", ".join(twice))
    return dict(pairs)


def _check(state: Mapping[str, Tensor], shapes: Mapping[str, Shape], layout: str) -> None:
    """Compares a state with what the map expects of it and reports every difference at once."""
    problems = [f"missing: {key} {list(shapes[key])}" for key in shapes if key not in state]
    problems += [f"unread: {key} {list(state[key].shape)}" for key in state if key not in shapes]
    problems += [
        f"shape: {key} is {list(state[key].shape)}, should be {list(shape)}"
        for key, shape in shapes.items()
        if key in state and tuple(state[key].shape) != shape
    ]
    dtypes = Counter(tensor.dtype for tensor in state.values())
    main_dtype = max(dtypes, key=lambda dtype: dtypes[dtype]) if dtypes else torch.float32
    problems += [
        f"dtype: {key} is {tensor.dtype}, most are {main_dtype}"
        for key, tensor in state.items()
        if tensor.dtype != main_dtype or not tensor.dtype.is_floating_point
    ]
    if problems:
        raise ConversionError(
            f"The {layout} weights do not fit the weight map: {len(problems)} problem(s).",
            got="\n            ".join(problems),
            expected=f"exactly the map's {len(shapes)} tensors, one floating-point dtype",
            remedy="check that config.json and the weights belong to the same model",
        )
