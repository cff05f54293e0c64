"""Weights made when they are read: what they are, in which order they may be read, and what is held meanwhile."""

import itertools
import math
import random
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_moe_grpo.conversion import MemorySource, read_all
from megatron_moe_grpo.models.upcycle_settings import UpcycleSettings
from megatron_moe_grpo.models.upcycled_source import UpcycledSource

NUM_LAYERS, HIDDEN_SIZE, WIDTH = 12, 16, 24
PARTS = ("gate", "up", "down")
DENSE = "{}layers.{}.mlp.{}_proj.weight"
EXPERT = "{}layers.{}.mlp.experts.{}.{}_proj.weight"
PREFIX = "language_model.model."


def dense_state(prefix: str = PREFIX, num_layers: int = NUM_LAYERS) -> dict[str, Tensor]:
    """Seeded weights in the order of their names, as safetensors writes them: layer 10 before layer 2."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"gate": (WIDTH, HIDDEN_SIZE), "up": (WIDTH, HIDDEN_SIZE), "down": (HIDDEN_SIZE, WIDTH)}
    state = {
        DENSE.format(prefix, layer, part): torch.randn(shapes[part], generator=generator)
        for layer in range(num_layers)
        for part in PARTS
    }
    state |= {f"{prefix}norm.weight": torch.ones(HIDDEN_SIZE), "vision.layers.0.mlp.fc1.weight": torch.ones(2, 2)}
    return dict(sorted(state.items()))


def upcycled(state: dict[str, Tensor] | None = None, **settings: Any) -> UpcycledSource:
    return UpcycledSource(MemorySource(state or dense_state()), UpcycleSettings(**settings))


class WatchedSource(MemorySource):
    """Counts what is read, and knows which of it is still alive."""

    def __init__(self, tensors: dict[str, Tensor]):
        super().__init__(tensors)
        self.names: list[str] = []
        self.before_read: Callable[[], None] = lambda: None
        self._given: list[tuple[str, weakref.ref]] = []

    def read(self, name: str) -> Tensor:
        self.before_read()
        self.names.append(name)
        copy = super().read(name).clone()
        self._given.append((name, weakref.ref(copy)))
        return copy

    @property
    def feed_forwards_alive(self) -> set[str]:
        """Layers whose dense feed-forward somebody holds."""
        alive = {name for name, given in self._given if given() is not None}
        return {name.split(".mlp.")[0] for name in alive if "_proj" in name}


def test_shapes_and_dtypes_are_those_of_what_is_read() -> None:
    state = {key: weight.bfloat16() for key, weight in dense_state().items()}
    source = upcycled(state, layers="1,10", granularity=2, num_active=2)
    values = read_all(source)
    assert {name: tuple(value.shape) for name, value in values.items()} == source.shapes
    assert {value.dtype for value in values.values()} == set(source.dtypes.values()) == {torch.bfloat16}
    assert source.shapes[EXPERT.format(PREFIX, 10, 7, "down")] == (HIDDEN_SIZE, WIDTH // 2)
    assert all(value.is_contiguous() for value in values.values())


@pytest.mark.parametrize("prefix", ["model.", "language_model.model."])
def test_layers_are_found_under_any_prefix_and_others_are_left_alone(prefix: str) -> None:
    state = dense_state(prefix)
    values = read_all(upcycled(state, layers="3"))
    assert values.keys() - state.keys() == {f"{prefix}layers.3.mlp.gate.weight"} | {
        EXPERT.format(prefix, 3, expert, part) for expert in range(8) for part in PARTS
    }
    assert state.keys() - values.keys() == {DENSE.format(prefix, 3, part) for part in PARTS}
    assert all(values[key] is state[key] for key in state.keys() & values.keys())


@pytest.mark.parametrize("expert_init", ["noise", "drop"])
def test_values_do_not_depend_on_the_order_of_reading(expert_init: str) -> None:
    settings = {"expert_init": expert_init, "layers": "0-2,10"}
    expected = read_all(upcycled(**settings))
    for names in (list(reversed(expected)), random.Random(0).sample(list(expected), len(expected))):
        source = upcycled(**settings)
        assert all(torch.equal(source.read(name), expected[name]) for name in names)


def test_a_layer_alone_is_that_layer_of_the_whole() -> None:
    """One reads a shard: all that lies before it must be drawn."""
    expected = read_all(upcycled())
    name = EXPERT.format(PREFIX, 11, 3, "up")
    assert torch.equal(upcycled().read(name), expected[name])


def test_layers_are_drawn_in_the_order_of_their_numbers() -> None:
    """Layer 10 stands before layer 2 in the file, and must not take its numbers."""
    first_two = {name for name in upcycled(layers="0-1").shapes if name.startswith(f"{PREFIX}layers.1.")}
    few, all_layers = upcycled(layers="0-1"), upcycled()
    assert all(torch.equal(few.read(name), all_layers.read(name)) for name in first_two)
    later = EXPERT.format(PREFIX, 2, 0, "gate")
    assert torch.equal(upcycled(layers="0-2,10").read(later), all_layers.read(later))


def test_each_dense_weight_is_read_once_and_only_one_layer_and_one_expert_are_held() -> None:
    watched = WatchedSource(dense_state())
    source = UpcycledSource(watched, UpcycleSettings())
    made: list[tuple[str, weakref.ref]] = []

    def experts_alive() -> set[str]:
        return {name.rsplit(".", 2)[0] for name, given in made if given() is not None and ".experts." in name}

    def check_before_a_layer() -> None:
        """What is held when the next layer is read is not held beside it."""
        is_within_a_layer = sum("_proj" in name for name in watched.names) % len(PARTS) > 0
        assert is_within_a_layer or not watched.feed_forwards_alive | experts_alive()

    watched.before_read = check_before_a_layer
    for name in source.shapes:
        value = source.read(name)
        made.append((name, weakref.ref(value)))
        del value
        assert len(watched.feed_forwards_alive) <= 1 and len(experts_alive()) <= 1
    assert sorted(watched.names) == sorted(dense_state())


def test_slices_by_hand() -> None:
    """Expert e is slice e mod m: inner channels 0-7, 8-15, 16-23 of the feed-forward for m = 3."""
    state = dense_state()
    values = read_all(upcycled(state, num_experts=6, num_active=3, granularity=3, expert_init="copy", renormalise=True))
    for expert in range(6):
        channels = slice(8 * (expert % 3), 8 * (expert % 3) + 8)
        for part in ("gate", "up"):
            expected = state[DENSE.format(PREFIX, 4, part)][channels]
            assert torch.equal(values[EXPERT.format(PREFIX, 4, expert, part)], expected)
        expected = state[DENSE.format(PREFIX, 4, "down")][:, channels] * 3
        assert torch.equal(values[EXPERT.format(PREFIX, 4, expert, "down")], expected)


def test_virtual_groups_share_a_router_row_and_single_experts_do_not() -> None:
    name = f"{PREFIX}layers.5.mlp.gate.weight"
    settings = {"num_experts": 6, "num_active": 3, "granularity": 3, "router_init_std": 1.0}
    grouped_ND = upcycled(**settings).read(name)
    assert torch.equal(grouped_ND[:3], grouped_ND[:1].expand(3, -1))
    assert torch.equal(grouped_ND[3:], grouped_ND[3:4].expand(3, -1))
    assert len(grouped_ND.unique(dim=0)) == 2
    assert len(upcycled(router_init="random", **settings).read(name).unique(dim=0)) == 6


@pytest.mark.parametrize("renormalise", [False, True])
@pytest.mark.parametrize(("num_active", "granularity"), [(2, 1), (2, 2), (2, 4), (3, 2)])
def test_the_mean_over_all_choices_is_the_dense_output(num_active: int, granularity: int, renormalise: bool) -> None:
    """Uniform weights, every one of the C(N, K) choices enumerated; also where K holds no whole copy."""
    state = dense_state()
    settings = UpcycleSettings(
        num_experts=8, num_active=num_active, granularity=granularity, expert_init="copy", renormalise=renormalise,
        router_init="random",
    )  # fmt: skip
    source = UpcycledSource(MemorySource(state), settings)
    tokens_MD = torch.randn(5, HIDDEN_SIZE, generator=torch.Generator().manual_seed(1))
    outputs = [
        feed_forward(tokens_MD, *(source.read(EXPERT.format(PREFIX, 0, expert, part)) for part in PARTS))
        for expert in range(8)
    ]
    weight = 1 / num_active if renormalise else 1 / 8
    total = sum(sum(choice) * weight for choice in itertools.combinations(outputs, num_active))
    dense = feed_forward(tokens_MD, *(state[DENSE.format(PREFIX, 0, part)] for part in PARTS))
    torch.testing.assert_close(total / math.comb(8, num_active), dense, rtol=1e-5, atol=1e-4)


def feed_forward(tokens_MD: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return F.linear(F.silu(F.linear(tokens_MD, gate)) * F.linear(tokens_MD, up), down)
