"""The engine's bookkeeping, on two-element tensors."""

import pytest
import torch

from megatron_moe_grpo.conversion import Concat, Converter, Rename, Rule
from megatron_moe_grpo.errors import ConversionError

RULES = [
    Rule(Rename(), {"norm": (2,)}, "final_norm"),
    Rule(Concat(), {"{layer}.gate": (2,), "{layer}.up": (2,)}, "layers.{layer}.fc1", {"layer": 2}),
]


def huggingface_state() -> dict[str, torch.Tensor]:
    return {key: torch.randn(2) for key in ("norm", "0.gate", "0.up", "1.gate", "1.up")}


def test_to_huggingface_undoes_to_megatron() -> None:
    state, converter = huggingface_state(), Converter(RULES)
    megatron_state = converter.to_megatron(state)
    assert {key: tuple(tensor.shape) for key, tensor in megatron_state.items()} == converter.megatron_shapes
    assert set(megatron_state) == {"final_norm", "layers.0.fc1", "layers.1.fc1"}
    back = converter.to_huggingface(megatron_state)
    assert back.keys() == state.keys() and all(torch.equal(back[key], state[key]) for key in state)


def test_to_megatron_names_every_problem_at_once() -> None:
    state = huggingface_state()
    del state["0.up"], state["norm"]
    state |= {"extra": torch.zeros(2), "1.gate": torch.zeros(3), "1.up": torch.zeros(2, dtype=torch.float64)}
    with pytest.raises(ConversionError) as caught:
        Converter(RULES).to_megatron(state)
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
    state = Converter(RULES).to_megatron(huggingface_state())
    state["layers.2.fc1"] = state.pop("layers.1.fc1")
    with pytest.raises(ConversionError, match=r"(?s)missing: layers\.1\.fc1.*unread: layers\.2\.fc1"):
        Converter(RULES).to_huggingface(state)


def test_converter_refuses_integers() -> None:
    state = {key: torch.zeros(2, dtype=torch.int64) for key in huggingface_state()}
    with pytest.raises(ConversionError, match=r"dtype: norm is torch\.int64"):
        Converter(RULES).to_megatron(state)


@pytest.mark.parametrize(("source", "target"), [("norm", "other"), ("other", "final_norm")])
def test_converter_refuses_a_map_that_names_a_key_twice(source: str, target: str) -> None:
    with pytest.raises(ConversionError, match="twice"):
        Converter([*RULES, Rule(Rename(), {source: (2,)}, target)])
