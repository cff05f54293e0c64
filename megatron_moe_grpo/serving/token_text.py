"""Single tokens as text, and where they begin: what log-probabilities are labelled with."""

from collections.abc import Sequence

from megatron_moe_grpo.models.processing import Processing
from megatron_moe_grpo.serving.stop_texts import UNREADABLE


class TokenText:
    """Remembers what it has decoded: harnesses ask for the same tokens again and again."""

    def __init__(self, processing: Processing):
        self._tokenizer = processing.tokenizer
        self._known: dict[int, str] = {}

    def of(self, token_id: int) -> str:
        """The token's text, special tokens too; `token_id:7` for bytes that are no whole character."""
        if token_id not in self._known:
            text = self._decode([token_id])
            self._known[token_id] = f"token_id:{token_id}" if UNREADABLE in text else text
        return self._known[token_id]

    def offsets(self, ids: Sequence[int], start: int = 0) -> list[int]:
        """Character at which each token begins, in the text of all of them."""
        texts = [self._decode([token_id]) for token_id in ids]
        if any(UNREADABLE in text for text in texts):
            return [start + len(self._decode(ids[:index]).rstrip(UNREADABLE)) for index in range(len(ids))]
        offsets = []
        for text in texts:
            offsets.append(start)
            start += len(text)
        return offsets

    def text(self, ids: Sequence[int]) -> str:
        """All of them together, special tokens too."""
        return self._decode(ids)

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
