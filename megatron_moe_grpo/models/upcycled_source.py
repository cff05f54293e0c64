"""The weights of an upcycled model, made when they are read: never more than one dense layer and one expert in memory.

Knows no family: dense feed-forwards are found by their keys, `....layers.N.mlp.{gate,up,down}_proj.weight`.
"""

import re
from typing import NamedTuple

import torch
from torch import Tensor

from megatron_moe_grpo.conversion import TensorSource
from megatron_moe_grpo.conversion.ops import Shape
from megatron_moe_grpo.models.upcycle_settings import UpcycleSettings

DENSE_KEY = re.compile(r"(?P<mlp>.+\.layers\.(?P<layer>\d+)\.mlp)\.(?P<part>gate|up|down)_proj\.weight")
PARTS = ("gate", "up", "down")


class _Step(NamedTuple):
    """What is drawn at once: a layer's router (`expert` None), or one expert."""

    layer: int
    expert: int | None


class _Place(NamedTuple):
    """Where a new tensor comes from."""

    step: int
    """Number of the step, in the order of drawing."""
    part: str
    """gate, up, down, or `router`."""


class UpcycledSource:
    """A dense model's weights as a mixture of experts.  METHOD 5.

    Values are those of one generator that goes through the routed layers in order, each router before its experts, each
    expert gate, up, down: they depend on the seed and the dense weights, not on the order of reading.  Reading in the
    order of `shapes` draws everything once; a jump forward draws what it passes, and a jump back goes on from the
    state that the generator had there (5 KB an expert are kept).
    """

    def __init__(self, dense: TensorSource, settings: UpcycleSettings):
        """
        Args:
            dense: Hugging Face weights, any floating dtype (kept), of a model that fits its weight map; what stays the
                same is read through.
        Raises:
            ConfigError: the settings name layers that do not exist.
        """
        self._dense, self._settings = dense, settings
        self._feed_forward = _dense_feed_forwards(dense)
        routed = settings.chosen_layers(len(self._feed_forward))
        self._steps: list[_Step] = []
        self._places: dict[str, _Place] = {}
        replaced = {key for layer in routed for key in self._feed_forward[layer].values()}
        self.shapes: dict[str, Shape] = {key: shape for key, shape in dense.shapes.items() if key not in replaced}
        self.dtypes = {key: dense.dtypes[key] for key in self.shapes}
        for layer in routed:
            self._add_layer(layer)
        self._generator = torch.Generator().manual_seed(settings.seed)
        # In one block: small tensors that live on between large ones that come and go keep the heap from shrinking
        # (InternVL3.5-1B: a peak of 2.6 GB instead of 0.7).
        self._states = torch.empty(len(self._steps) + 1, len(self._generator.get_state()), dtype=torch.uint8)
        """The generator before each step that was reached so far."""
        self._states[0] = self._generator.get_state()
        self._num_reached = 1
        self._made: tuple[int, dict[str, Tensor]] = (-1, {})
        """A step and its tensors by part."""
        self._layer: tuple[int, dict[str, Tensor]] = (-1, {})
        """A layer and its dense feed-forward."""

    def read(self, name: str) -> Tensor:
        """The tensor of that name: drawn, or the dense model's own."""
        if name not in self._places:
            return self._dense.read(name)
        place = self._places[name]
        if place.step != self._made[0]:
            self._go_to(place.step)
        return self._made[1][place.part]

    def _add_layer(self, layer: int) -> None:
        """Names, shapes and dtypes of one routed layer."""
        keys, settings = self._feed_forward[layer], self._settings
        mlp, dtype = DENSE_KEY.fullmatch(keys["gate"])["mlp"], self._dense.dtypes[keys["gate"]]
        width, hidden_size = self._dense.shapes[keys["gate"]]
        inner = (width // settings.granularity, hidden_size)
        self._steps.append(_Step(layer, None))
        self._add(f"{mlp}.gate.weight", (settings.num_experts, hidden_size), dtype, "router")
        for expert in range(settings.num_experts):
            self._steps.append(_Step(layer, expert))
            for part in PARTS:
                shape = inner[::-1] if part == "down" else inner
                self._add(f"{mlp}.experts.{expert}.{part}_proj.weight", shape, self._dense.dtypes[keys[part]], part)

    def _add(self, name: str, shape: Shape, dtype: torch.dtype, part: str) -> None:
        """A tensor of the last step so far."""
        self.shapes[name], self.dtypes[name] = shape, dtype
        self._places[name] = _Place(len(self._steps) - 1, part)

    def _go_to(self, target: int) -> None:
        """Makes the tensors of a step, and before them those of all steps that were never drawn."""
        for step in range(min(target, self._num_reached - 1), target + 1):
            # Before the next ones are made, or two experts would be in memory.
            self._made = (-1, {})
            # A copy: torch 2.13's set_state reads from the start of the storage, and a row may stand elsewhere.
            self._generator.set_state(self._states[step].clone())
            self._made = (step, self._make(self._steps[step]))
            if step + 1 == self._num_reached:
                self._states[self._num_reached] = self._generator.get_state()
                self._num_reached += 1

    def _make(self, step: _Step) -> dict[str, Tensor]:
        dense = self._read_layer(step.layer)
        if step.expert is None:
            return {"router": self._router(dense["gate"])}
        granularity = self._settings.granularity
        if granularity > 1:
            dense = _slice(dense, step.expert % granularity, granularity)
        return self._expert(dense)

    def _read_layer(self, layer: int) -> dict[str, Tensor]:
        """The dense feed-forward of one layer, read once for all its experts."""
        if self._layer[0] != layer:
            self._layer = (-1, {})
            self._layer = (layer, {part: self._dense.read(key) for part, key in self._feed_forward[layer].items()})
        return self._layer[1]

    def _router(self, gate: Tensor) -> Tensor:
        settings = self._settings
        num_tied = settings.granularity if settings.router_init == "virtual_groups" else 1
        rows = torch.randn(settings.num_experts // num_tied, gate.shape[1], generator=self._generator)
        router_ND = (rows * settings.router_init_std).repeat_interleave(num_tied, dim=0)
        return router_ND.to(gate.dtype)

    def _expert(self, dense: dict[str, Tensor]) -> dict[str, Tensor]:
        """One expert in the dense weights' dtype; drawn in fp32, one weight after the other."""
        settings, num_channels = self._settings, dense["gate"].shape[0]
        dropped = None
        if settings.expert_init == "drop":
            order = torch.randperm(num_channels, generator=self._generator)
            dropped = order[: round(settings.drop_fraction * num_channels)]
        expert = {}
        for part in PARTS:
            weight = dense[part].float()
            if settings.expert_init == "noise":
                weight = self._noise(weight).mul_(settings.noise_scale).add_(weight)
            elif dropped is not None:
                weight = self._redraw(weight, dropped, is_down=part == "down")
            if part == "down":
                weight = weight * settings.down_scale
            # A copy, because equal experts must not share storage with one another or with the dense weights.
            expert[part] = weight.to(dense[part].dtype, copy=True)
        return expert

    def _noise(self, weight: Tensor) -> Tensor:
        return torch.randn(weight.shape, generator=self._generator).mul_(weight.std())

    def _redraw(self, weight: Tensor, channels: Tensor, is_down: bool) -> Tensor:
        """Draws inner channels anew: rows of gate and up, columns of down."""
        drawn = self._noise(weight).add_(weight.mean())
        redrawn = weight.clone()
        if is_down:
            redrawn[:, channels] = drawn[:, channels]
        else:
            redrawn[channels] = drawn[channels]
        return redrawn


def _slice(dense: dict[str, Tensor], index: int, count: int) -> dict[str, Tensor]:
    """The index-th of `count` slices of the inner channels."""
    return {part: weight.chunk(count, dim=1 if part == "down" else 0)[index] for part, weight in dense.items()}


def _dense_feed_forwards(dense: TensorSource) -> dict[int, dict[str, str]]:
    """Layer -> part -> key."""
    found: dict[int, dict[str, str]] = {}
    for match in map(DENSE_KEY.fullmatch, dense.shapes):
        if match:
            found.setdefault(int(match["layer"]), {})[match["part"]] = match[0]
    return found
