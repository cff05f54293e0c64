"""The routing trace: which experts a rollout used, as a value that travels with its tokens.  METHOD 2.

A rollout records it; every later forward of the same tokens replays it.  It is owned by the training step, never by
a global list, and `TraceLedger` counts that each part was replayed exactly as often as it should have been.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

import torch
from torch import Tensor
from torch.nn.functional import pad

from megatron_moe_grpo.errors import TraceError


class RouteMode(Enum):
    """How a router chooses its experts."""

    TOP_K = "top_k"
    """Deterministic, by rank: inference."""
    SAMPLE = "sample"
    """Stochastic, and recorded: rollout."""
    REPLAY = "replay"
    """As recorded: every later forward of a rollout's tokens."""


@dataclass(frozen=True, eq=False)
class RoutingTrace:
    """The experts of B sequences at S positions in L MoE layers.  E of MoE-GRPO Eq. 4-5."""

    experts_BSLK: Tensor
    """int16, distinct along K, in the order of sampling."""
    logprob_BSL: Tensor
    """float32, nats, log-likelihood of the selection when it was made; detached."""
    is_allowed_L2N: Tensor | None
    """bool, the guidance mask it was made under (0 = text, 1 = vision); None: no mask."""

    def rows(self, start: int, stop: int) -> "RoutingTrace":
        """Sequences start..stop-1."""
        return replace(self, experts_BSLK=self.experts_BSLK[start:stop], logprob_BSL=self.logprob_BSL[start:stop])

    def select(self, index_B: Tensor) -> "RoutingTrace":
        """Sequences by index, in that order, repeats allowed."""
        return replace(self, experts_BSLK=self.experts_BSLK[index_B], logprob_BSL=self.logprob_BSL[index_B])

    def trim_positions(self, start: int, stop: int) -> "RoutingTrace":
        """Positions start..stop-1."""
        return replace(self, experts_BSLK=self.experts_BSLK[:, start:stop], logprob_BSL=self.logprob_BSL[:, start:stop])

    def pad_positions(self, num_left: int, num_right: int) -> "RoutingTrace":
        """Add padding positions.  They hold experts 0..K-1 with log-likelihood 0.

        Padding runs through the model like any token, so its K experts must be distinct and exist.
        """
        num_sequences, _, num_layers, num_active = self.experts_BSLK.shape
        filler_K = torch.arange(num_active, dtype=self.experts_BSLK.dtype, device=self.experts_BSLK.device)
        left = filler_K.expand(num_sequences, num_left, num_layers, num_active)
        right = filler_K.expand(num_sequences, num_right, num_layers, num_active)
        return replace(
            self,
            experts_BSLK=torch.cat([left, self.experts_BSLK, right], dim=1),
            logprob_BSL=pad(self.logprob_BSL, (0, 0, num_left, num_right)),
        )

    @staticmethod
    def cat(traces: Sequence["RoutingTrace"]) -> "RoutingTrace":
        """One trace of all the sequences.

        Raises:
            TraceError: no trace at all, different shapes, or different guidance masks.
        """
        if not traces:
            raise TraceError("No routing traces to join")
        shapes = {tuple(trace.experts_BSLK.shape[1:]) for trace in traces}
        if len(shapes) > 1:
            raise TraceError(
                "Routing traces of different shapes cannot be joined",
                got=f"[S, L, K] of {sorted(shapes)}",
                expected="one shape",
                remedy="bring them to one length with pad_positions or trim_positions",
            )
        if not all(_same_mask(traces[0].is_allowed_L2N, trace.is_allowed_L2N) for trace in traces[1:]):
            raise TraceError("Routing traces made under different guidance masks cannot be joined")
        return replace(
            traces[0],
            experts_BSLK=torch.cat([trace.experts_BSLK for trace in traces]),
            logprob_BSL=torch.cat([trace.logprob_BSL for trace in traces]),
        )

    def validate(self, num_experts: int) -> None:
        """Check the trace against the model it will be replayed in.

        Raises:
            TraceError: types, shapes, an expert that does not exist, an expert chosen twice, or a log-likelihood that
                is not a log-probability.
        """
        self._validate_layout(num_experts)
        lowest, highest = int(self.experts_BSLK.min()), int(self.experts_BSLK.max())
        if lowest < 0 or highest >= num_experts:
            raise TraceError(
                "A routing trace names an expert that does not exist",
                got=f"experts {lowest}..{highest}",
                expected=f"0..{num_experts - 1}",
            )
        sorted_BSLK = self.experts_BSLK.sort(dim=-1).values
        is_repeated_BSL = (sorted_BSLK[..., 1:] == sorted_BSLK[..., :-1]).any(-1)
        if is_repeated_BSL.any():
            sequence, position, layer = is_repeated_BSL.nonzero()[0].tolist()
            raise TraceError(
                "A routing trace chooses an expert twice",
                got=f"{self.experts_BSLK[sequence, position, layer].tolist()} at sequence {sequence}, "
                f"position {position}, layer {layer}",
                expected="distinct experts",
            )
        # Rounding may leave a certain selection a few ulp above log 1.
        if not (self.logprob_BSL.isfinite() & (self.logprob_BSL < 1e-5)).all():
            raise TraceError("A routing trace holds a log-likelihood that is not finite or above 0")

    def _validate_layout(self, num_experts: int) -> None:
        got = {
            "experts_BSLK": (self.experts_BSLK.dtype, tuple(self.experts_BSLK.shape)),
            "logprob_BSL": (self.logprob_BSL.dtype, tuple(self.logprob_BSL.shape)),
        }
        expected = {
            "experts_BSLK": (torch.int16, (*self.logprob_BSL.shape, self.experts_BSLK.shape[-1])),
            "logprob_BSL": (torch.float32, tuple(self.experts_BSLK.shape[:-1])),
        }
        if self.is_allowed_L2N is not None:
            got["is_allowed_L2N"] = (self.is_allowed_L2N.dtype, tuple(self.is_allowed_L2N.shape))
            expected["is_allowed_L2N"] = (torch.bool, (self.logprob_BSL.shape[-1], 2, num_experts))
        if got != expected:
            raise TraceError("A routing trace of the wrong layout", got=got, expected=expected)


class TraceLedger:
    """Counts how often each (micro-batch, layer) of a trace was replayed in one pass over a batch.

    Create one for each pass, count in the router, and close the pass with `assert_consumed`.  Activation recompute runs
    a router a second time in the backward pass: those replays are counted apart, so that neither can hide the other.
    """

    def __init__(self, num_micro_batches: int, layers: Sequence[int], *, has_recompute: bool = False):
        """`layers`: the MoE layers of this rank (all of them without pipeline parallelism)."""
        self._expected = {(micro_batch, layer) for micro_batch in range(num_micro_batches) for layer in layers}
        self._expected_replays = (1, int(has_recompute))
        self._forward: Counter[tuple[int, int]] = Counter()
        self._recompute: Counter[tuple[int, int]] = Counter()

    def record(self, micro_batch: int, layer: int, *, is_recompute: bool = False) -> None:
        """Note one replay."""
        counter = self._recompute if is_recompute else self._forward
        counter[micro_batch, layer] += 1

    def assert_consumed(self) -> None:
        """Check that every part was replayed once forwards, and once more in recompute where that is on.

        Raises:
            TraceError: names each layer and micro-batch that was not, with its counts.
        """
        wrong = []
        for key in sorted(self._expected | self._forward.keys() | self._recompute.keys()):
            expected = self._expected_replays if key in self._expected else (0, 0)
            replays = (self._forward[key], self._recompute[key])
            if replays != expected:
                wrong.append(
                    f"layer {key[1]}, micro-batch {key[0]}: {replays[0]} forward and {replays[1]} recompute replays "
                    f"instead of {expected[0]} and {expected[1]}"
                )
        if wrong:
            raise TraceError(
                f"{len(wrong)} parts of the routing trace were not consumed exactly as recorded",
                got="; ".join(wrong),
                expected=f"{len(self._expected)} parts, each replayed once a forward and recompute",
            )


def _same_mask(first: Tensor | None, second: Tensor | None) -> bool:
    if first is None or second is None:
        return first is second
    return torch.equal(first, second)
