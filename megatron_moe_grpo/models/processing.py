"""What every family's processing offers to the loops: questions and visuals in, token ids and pixel values out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from torch import Tensor
from transformers import PreTrainedTokenizerFast

from megatron_moe_grpo.data.visuals import Visual, VisualSize
from megatron_moe_grpo.models.chat_prompt import ChatTurn
from megatron_moe_grpo.models.token_batch import TokenBatch
from megatron_moe_grpo.models.visual_inputs import VisualInputs


class Processing(Protocol):
    """A model folder's tokenizer, chat template and image settings; reads local files, imports no code."""

    tokenizer: PreTrainedTokenizerFast
    vision_token_ids: tuple[int, ...]
    """Tokens whose embeddings image features replace."""
    eos_token_id: int
    """End of turn: the last token of every answer."""
    pad_token_id: int

    @classmethod
    def from_folder(cls, assets: Path) -> "Processing":
        """Reads a folder's files.  Raises ConfigError: a file is missing, or the files do not belong together."""

    def encode(self, problem: str, options: tuple[str, ...], visuals: Sequence[VisualSize]) -> list[int]:
        """Prompt token ids, visuals expanded.  Raises DataError: special tokens in the text, tags that do not fit."""

    def chat_ids(self, turns: Sequence[ChatTurn]) -> list[int]:
        """Token ids of a conversation up to the assistant's mark; special tokens that are typed stay text."""

    def answer_ids(self, text: str) -> list[int]:
        """Token ids of a whole answer: its text and the end of turn.  Raises DataError: special tokens in it."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids without special tokens."""

    def visual_inputs(self, visuals: Sequence[Visual]) -> VisualInputs | None:
        """Pixel values of one prompt's visuals; None for a prompt without."""

    def rope_position_3S(self, prompt_ids: Sequence[int], grid_V3: Tensor | None) -> Tensor | None:
        """Rotary positions (time, height, width) of a prompt; None where positions simply count."""

    def huggingface_inputs(self, batch: TokenBatch) -> dict[str, Tensor]:
        """What the family's transformers class takes for this batch, `input_ids` and `attention_mask` included."""

    @property
    def special_tokens(self) -> dict[str, int]:
        """Every token that must never be typed as text -> id."""

    @property
    def suppressed_token_ids(self) -> tuple[int, ...]:
        """Ids that must never be sampled."""
