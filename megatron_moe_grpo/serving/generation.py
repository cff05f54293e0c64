"""What is asked of the engine and what it says: values that travel between the server's threads."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from megatron_moe_grpo.models.visual_inputs import VisualInputs
from megatron_moe_grpo.routing.trace import RouteMode


@dataclass(frozen=True, eq=False)
class Prompt:
    """Encoded; shared by all choices of a request."""

    ids: tuple[int, ...]
    visuals: VisualInputs | None = None
    rope_position_3S: Tensor | None = None

    @property
    def visual_bytes(self) -> int:
        """Memory of its pictures."""
        return 0 if self.visuals is None else self.visuals.pixel_values.nbytes


@dataclass(frozen=True)
class Sampling:
    """How tokens and experts are chosen."""

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stops: tuple[str, ...] = ()
    """Texts that end a response; they are not part of it."""
    mode: RouteMode = RouteMode.TOP_K
    """SAMPLE: experts are drawn from the router's distribution, as in training without a guidance mask."""
    num_top_logprobs: int = 0
    """Most likely tokens that are reported beside each token."""
    has_prompt_logprobs: bool = False
    returns_routing: bool = False


@dataclass(frozen=True)
class ScoredToken:
    """A token of a prompt or a response, with its log-probability over the whole vocabulary at temperature 1."""

    token_id: int
    logprob_nats: float | None
    """None for a prompt's first token."""
    top: tuple[tuple[int, float], ...] = ()
    """The most likely tokens in its place, with theirs."""


@dataclass(frozen=True)
class Piece:
    """What a sequence has grown by: all that became certain with one token."""

    token: ScoredToken | None = None
    """The end of turn is one too; None: no token was asked for."""
    finish_reason: str | None = None
    """"stop", "length", or None: more will come."""
    prompt: tuple[ScoredToken, ...] = ()
    """With `has_prompt_logprobs`, in the first piece."""
    experts_SLK: list[list[list[int]]] = field(default_factory=list)
    """With `returns_routing`, in the last piece: experts of every position that was fed, prompt first."""


@dataclass(eq=False)
class Job:
    """One sequence to be decoded."""

    prompt: Prompt
    sampling: Sampling
    choice: int
    """Number among the choices of its request."""
    deliver: Callable[[Piece | Exception], None]
    """Called by the engine's thread; an exception is the last thing that comes."""
    is_cancelled: bool = False
    """Set by whoever no longer listens."""

    @property
    def stream(self) -> int:
        """Names all random draws of this sequence: the same seed and choice give the same response in any company."""
        digest = hashlib.blake2b(f"{self.sampling.seed} {self.choice}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big", signed=True)
