"""From tokens to text as it grows: whole characters only, and nothing that may still turn out to be a stop text."""

from collections.abc import Callable, Sequence

# What a decoder shows for bytes that are no whole character.
UNREADABLE = "\ufffd"


def first_stop(text: str, stops: Sequence[str]) -> int:
    """Where the earliest stop text begins; -1: there is none."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return min(places, default=-1)


def ends_with_stop(text: str, stops: Sequence[str]) -> bool:
    """Whether a stop text is in `text`, which is looked at after every token."""
    return first_stop(text, stops) >= 0


class GrowingText:
    """The text of one response."""

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str]):
        self._decode, self._stops = decode, stops
        self._token_ids: list[int] = []
        self._num_shown = 0

    def add(self, token_id: int | None, is_last: bool) -> str:
        """What became certain with this token; None: no token, only the end."""
        if token_id is not None:
            self._token_ids.append(token_id)
        text = self._decode(self._token_ids)
        stop = first_stop(text, self._stops)
        if stop >= 0:
            text = text[:stop]
        elif not is_last:
            text = text[: len(text) - self._num_uncertain(text)]
        shown = text[self._num_shown :]
        self._num_shown = max(self._num_shown, len(text))
        return shown

    def _num_uncertain(self, text: str) -> int:
        """Characters at the end that may change or become part of a stop text."""
        unreadable = len(text) - len(text.rstrip(UNREADABLE))
        longest = max(map(len, self._stops), default=0)
        readable = text[: len(text) - unreadable]
        for size in range(min(longest - 1, len(readable)), 0, -1):
            if any(stop.startswith(readable[-size:]) for stop in self._stops):
                return size + unreadable
        return unreadable
