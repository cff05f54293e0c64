"""The engine's bookkeeping, on two-element tensors."""

from collections import Counter

import pytest
import torch

from megatron_moe_grpo.conversion import (
    Concat,
    Converter,
    FuseQKV,
    MemorySource,
    Rename,
    Rule,
    SplitRule,
    TensorSource,
    ZeroRule,
    read_all,
)
from megatron_moe_grpo.errors import ConversionError

RULES = [
    Rule(Rename(), {"norm": (2,)}, "final_norm"),
    Rule(Concat(), {"{layer}.gate": (2,), "{layer}.up": (2,)}, "layers.{layer}.fc1", {"layer": 2}),
]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def huggingface_state(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return {key: torch.randn(2).to(dtype) for key in ("norm", "0.gate", "0.up", "1.gate", "1.up")}


class CountedSource(MemorySource):
    """Counts what is read, in order."""

    def __init__(self, tensors: dict[str, torch.Tensor]):
        super().__init__(tensors)
        self.reads: list[str] = []

    def read(self, name: str) -> torch.Tensor:
        self.reads.append(name)
        return super().read(name)


def bits(tensor: torch.Tensor) -> list[int]:
    return tensor.contiguous().view(torch.uint8).flatten().tolist()


@pytest.mark.parametrize("dtype", DTYPES)
def test_to_huggingface_undoes_to_megatron_to_the_bit(dtype: torch.dtype) -> None:
    state, converter = huggingface_state(dtype), Converter(RULES)
    # Numbers that arithmetic would change: both zeros, a NaN, the smallest subnormal.
    state["0.up"] = torch.tensor([-0.0, float("nan")], dtype=dtype)
    state["1.up"] = torch.tensor([float("-inf"), torch.finfo(dtype).smallest_normal / 2], dtype=dtype)
    megatron = converter.to_megatron(MemorySource(state))
    assert dict(megatron.shapes) == converter.megatron_shapes
    assert {name: (tuple(t.shape), t.dtype) for name, t in read_all(megatron).items()} == {
        "final_norm": ((2,), dtype), "layers.0.fc1": ((4,), dtype), "layers.1.fc1": ((4,), dtype),
    }  # fmt: skip
    huggingface = converter.to_huggingface(megatron)
    assert huggingface.dtypes == MemorySource(state).dtypes and huggingface.shapes == MemorySource(state).shapes
    assert all(bits(huggingface.read(key)) == bits(state[key]) for key in state)


def test_to_megatron_reads_nothing_until_it_is_read() -> None:
    source = CountedSource(huggingface_state())
    megatron = Converter(RULES).to_megatron(source)
    assert source.reads == []
    megatron.read("layers.1.fc1")
    assert source.reads == ["1.gate", "1.up"]


def test_to_huggingface_reads_each_fused_tensor_once_in_its_own_order() -> None:
    source = CountedSource(read_all(Converter(RULES).to_megatron(MemorySource(huggingface_state()))))
    read_all(Converter(RULES).to_huggingface(source))
    assert Counter(source.reads) == {"final_norm": 1, "layers.0.fc1": 1, "layers.1.fc1": 1}


def test_to_huggingface_gives_the_same_tensor_in_any_order() -> None:
    state = huggingface_state()
    huggingface = Converter(RULES).to_huggingface(Converter(RULES).to_megatron(MemorySource(state)))
    for key in ("1.up", "0.gate", "1.up", "1.gate", "0.gate"):
        assert torch.equal(huggingface.read(key), state[key])


def test_converter_goes_layer_by_layer_and_stack_by_stack() -> None:
    rules = [
        Rule(Rename(), {"in": (1,)}, "embedding"),
        Rule(FuseQKV(1), {f"{{layer}}.{name}": (1,) for name in "qkv"}, "stack.layers.{layer}.qkv", {"layer": 11}),
        Rule(Rename(), {"{layer}.{e}.up": (1,)}, "stack.layers.{layer}.expert.{e}.up", {"layer": 11, "e": 2}),
        Rule(Rename(), {"{layer}.{e}.down": (1,)}, "stack.layers.{layer}.expert.{e}.down", {"layer": 11, "e": 2}),
        Rule(Rename(), {"other.{layer}": (1,)}, "other.{layer}", {"layer": 2}),
        Rule(Rename(), {"out": (1,)}, "output"),
    ]
    names = list(Converter(rules).megatron_shapes)
    layers = [
        f"stack.layers.{layer}.{rest}"
        for layer in range(11)
        for rest in ("qkv", "expert.0.up", "expert.0.down", "expert.1.up", "expert.1.down")
    ]
    assert names == ["embedding", *layers, "other.0", "other.1", "output"]
    assert list(Converter(rules).huggingface_shapes)[:6] == ["in", "0.q", "0.k", "0.v", "0.0.up", "0.0.down"]


def test_to_megatron_names_every_problem_at_once() -> None:
    state = huggingface_state()
    del state["0.up"], state["norm"]
    state |= {"extra": torch.zeros(2), "1.gate": torch.zeros(3), "1.up": torch.zeros(2, dtype=torch.float64)}
    with pytest.raises(ConversionError) as caught:
        Converter(RULES).to_megatron(MemorySource(state))
    message = str(caught.value)
    assert "5 problem(s)" in message
    for problem in (
        "missing: 0.up [2]",
        "missing: norm [2]",
        "unread: extra [2]",
        "shape: 1.gate is [3], should be [2]",
        "dtype: 1.up is torch.float64, most are torch.float32",
    ):
        assert problem in message


def test_to_huggingface_is_as_strict() -> None:
    state = read_all(Converter(RULES).to_megatron(MemorySource(huggingface_state())))
    state["layers.2.fc1"] = state.pop("layers.1.fc1")
    with pytest.raises(ConversionError, match=r"(?s)missing: layers\.1\.fc1.*unread: layers\.2\.fc1"):
        Converter(RULES).to_huggingface(MemorySource(state))


def test_converter_refuses_integers() -> None:
    state = {key: torch.zeros(2, dtype=torch.int64) for key in huggingface_state()}
    with pytest.raises(ConversionError, match=r"dtype: norm is torch\.int64"):
        Converter(RULES).to_megatron(MemorySource(state))


def with_tensor(key: str, tensor: torch.Tensor) -> TensorSource:
    return MemorySource(huggingface_state() | {key: tensor})


@pytest.mark.parametrize(
    ("source", "named"),
    [
        (with_tensor("0.up", torch.zeros(2, dtype=torch.int8)), r"0\.up torch\.int8"),
        (with_tensor("0.up", torch.zeros(2, dtype=torch.float8_e4m3fn)), r"0\.up torch\.float8_e4m3fn"),
        (with_tensor("0.up.weight_scale", torch.zeros(1)), r"0\.up\.weight_scale torch\.float32"),
        (with_tensor("0.up.qweight", torch.zeros(1, dtype=torch.int32)), r"0\.up\.qweight torch\.int32"),
    ],
)
def test_converter_refuses_quantised_weights_in_their_own_words(source: TensorSource, named: str) -> None:
    with pytest.raises(ConversionError, match=f"(?s)quantised.*{named}.*unquantised version"):
        Converter(RULES).to_megatron(source)


def test_converter_does_not_call_a_mask_quantised() -> None:
    with pytest.raises(ConversionError) as caught:
        Converter(RULES).to_megatron(with_tensor("attention.mask", torch.ones(2, dtype=torch.bool)))
    assert "unread: attention.mask [2]" in str(caught.value) and "quantised" not in str(caught.value)


@pytest.mark.parametrize(("source", "target"), [("norm", "other"), ("other", "final_norm")])
def test_converter_refuses_a_map_that_names_a_key_twice(source: str, target: str) -> None:
    with pytest.raises(ConversionError, match="same key twice"):
        Converter([*RULES, Rule(Rename(), {source: (2,)}, target)])


SPLIT_RULES = [
    Rule(Rename(), {"norm": (2,)}, "final_norm"),
    SplitRule(Concat(), {"tower.{layer}.q": (1, 3), "tower.{layer}.k": (2, 3)}, "{layer}.qk", {"layer": 2}),
    Rule(Rename(), {"{layer}.out": (2,)}, "tower.{layer}.out", {"layer": 2}),
]


def test_a_split_rule_makes_several_megatron_tensors_of_one() -> None:
    state = {"norm": torch.randn(2)} | {f"{layer}.qk": torch.randn(3, 3) for layer in range(2)}
    state |= {f"{layer}.out": torch.randn(2) for layer in range(2)}
    converter = Converter(SPLIT_RULES)
    megatron = converter.to_megatron(MemorySource(state))
    assert list(megatron.shapes) == [
        "final_norm",
        *(f"tower.{n}.{part}" for n in range(2) for part in ("q", "k", "out")),
    ]
    assert torch.equal(megatron.read("tower.1.q"), state["1.qk"][:1])
    assert torch.equal(megatron.read("tower.1.k"), state["1.qk"][1:])
    back = converter.to_huggingface(megatron)
    assert {key: tuple(tensor.shape) for key, tensor in state.items()} == dict(back.shapes)
    assert all(torch.equal(back.read(key), state[key]) for key in state)
    assert sum(rule.num_parameters for rule in SPLIT_RULES) == sum(tensor.numel() for tensor in state.values())


def test_a_split_tensor_is_read_once() -> None:
    state = {"norm": torch.zeros(2)} | {f"{layer}.qk": torch.zeros(3, 3) for layer in range(2)}
    source = CountedSource(state | {f"{layer}.out": torch.zeros(2) for layer in range(2)})
    read_all(Converter(SPLIT_RULES).to_megatron(source))
    assert set(Counter(source.reads).values()) == {1}


ZERO_RULES = [*RULES, ZeroRule({"{layer}.gate_of_none": (1, 3), "{layer}.none": (3, 0)}, "{layer}.none", {"layer": 2})]


def state_with_zeros(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    shapes = {"gate_of_none": (1, 3), "none": (3, 0)}
    zeros = {f"{n}.{key}": torch.zeros(shape, dtype=dtype) for n in range(2) for key, shape in shapes.items()}
    return huggingface_state(dtype) | zeros


@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_are_not_in_megatron_and_come_back(dtype: torch.dtype) -> None:
    state, converter = state_with_zeros(dtype), Converter(ZERO_RULES)
    megatron = converter.to_megatron(MemorySource(state))
    assert megatron.shapes == Converter(RULES).megatron_shapes
    back = converter.to_huggingface(megatron)
    assert back.shapes == MemorySource(state).shapes and back.dtypes == MemorySource(state).dtypes
    assert all(bits(back.read(key)) == bits(state[key]) for key in state)
    assert converter.zero_shapes == {
        "0.gate_of_none": (1, 3), "0.none": (3, 0), "1.gate_of_none": (1, 3), "1.none": (3, 0),
    }  # fmt: skip


@pytest.mark.parametrize("value", [1e-30, -0.0, float("nan")])
def test_to_megatron_names_every_tensor_that_should_be_zero(value: float) -> None:
    state = state_with_zeros(torch.float32)
    state["1.gate_of_none"][0, 2] = value
    with pytest.raises(ConversionError, match=r"(?s)are not zero.*got: +1\.gate_of_none\n"):
        Converter(ZERO_RULES).to_megatron(MemorySource(state))


def test_tensors_of_zeros_must_be_there_and_fit() -> None:
    state = state_with_zeros(torch.float32)
    del state["0.none"]
    state["1.none"] = torch.zeros(3, 1)
    with pytest.raises(ConversionError, match=r"(?s)missing: 0\.none \[3, 0\].*shape: 1\.none is \[3, 1\]"):
        Converter(ZERO_RULES).to_megatron(MemorySource(state))


def test_to_megatron_reads_every_tensor_once_zeros_and_empty_ones_too() -> None:
    """A source whose last tensor waits for the checksums would otherwise never give its verdict."""
    source = CountedSource(state_with_zeros(torch.float32))
    read_all(Converter(ZERO_RULES).to_megatron(source))
    assert Counter(source.reads) == dict.fromkeys(source.shapes, 1)
