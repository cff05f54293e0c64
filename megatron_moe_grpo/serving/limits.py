"""What a request may ask for: one object, read by every entry of the server before memory is spent."""

from dataclasses import dataclass

from megatron_moe_grpo.data.images import MAX_PIXELS


@dataclass(frozen=True)
class Limits:
    """Defaults suit benchmarks with a few pictures a question."""

    max_body_bytes: int = 64 << 20
    """Of a request as it comes over the wire; checked while it comes."""
    max_body_s: float = 30.0
    """A request that takes longer to arrive is given up."""
    max_large_bodies: int = 8
    """Bodies above `large_body_bytes` that are in memory together, until their prompts are made; others wait."""
    large_body_bytes: int = 1 << 20
    max_images: int = 16
    """Pictures of a request."""
    max_image_bytes: int = 16 << 20
    """Of one picture's file."""
    max_image_pixels: int = MAX_PIXELS
    """Of one picture; looked up in its header."""
    max_request_pixels: int = 4 * MAX_PIXELS
    """Of all pictures of a request together."""
    max_messages: int = 256
    max_parts: int = 256
    """Texts and pictures of one message."""
    max_prompts: int = 256
    """Prompts of one request to /v1/completions."""
    max_choices: int = 16
    """`n`."""
    max_stops: int = 16
    max_stop_chars: int = 256
    max_top_logprobs: int = 20
    max_new_tokens: int = 4096
    """Of one choice."""
    max_positions: int = 4096
    """Of one prompt with its response; never more than the model was made for."""
    max_sequences: int = 16
    """Decoded together."""
    max_waiting: int = 1024
    """Sequences that wait for a place; beyond it a request is refused with 429."""
    max_waiting_bytes: int = 2 << 30
    """Of their pictures, ready for the model; the same."""
