"""The sizes of a decoder-only language model, as every floor above speaks of them; needs no torch."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class DecoderSizes:
    """A Qwen2, Qwen3, Qwen3-MoE or Llama decoder, or the language half of a vision-language model."""

    num_layers: int
    hidden_size: int
    num_heads: int
    """Query heads."""
    num_kv_heads: int
    """Key-value heads, each shared by num_heads / num_kv_heads query heads."""
    head_dim: int
    ffn_size: int
    """Inner width of a dense feed-forward; unused where every layer is routed."""
    vocab_size: int
    """Rows of the embedding, padding rows included."""
    max_positions: int
    norm_epsilon: float
    rope_theta: float
    has_qk_norm: bool
    has_qkv_bias: bool
    ties_embeddings: bool
    """The output layer is the embedding."""
    mrope_section: tuple[int, ...] | None = None
    """Rotary pairs that turn with time, height and width (Qwen2-VL); None: positions simply count."""
    num_experts: int | None = None
    """N; None: a dense model."""
    num_active: int | None = None
    """K, experts active a token; None: a dense model."""
    expert_ffn_size: int | None = None
    """Inner width of one expert; None: a dense model."""
    renormalises_weights: bool = False
    """The K combination weights are divided by their sum (Hugging Face `norm_topk_prob`)."""
    dense_layers: tuple[int, ...] = ()
    """Layers, from 0, that keep a dense feed-forward in a model with experts."""

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """Layers, from 0, whose feed-forward is routed: L of them."""
        if self.num_experts is None:
            return ()
        return tuple(layer for layer in range(self.num_layers) if layer not in self.dense_layers)
