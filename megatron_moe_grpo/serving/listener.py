"""One request's sequences under way: pieces that the engine's thread delivers, awaited by the request's own task."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Sequence

from fastapi import Request

from megatron_moe_grpo.serving.engine import Engine, EngineFullError
from megatron_moe_grpo.serving.generation import Job, Piece, Prompt, Sampling
from megatron_moe_grpo.serving.request_error import RequestError

# How often it is looked whether the client is still there.
POLL_S = 0.25


class Listener:
    """Submits at once; iterate over `pieces` until it ends, or `cancel`."""

    def __init__(self, engine: Engine, prompts: Sequence[Prompt], sampling: Sampling, num_choices: int):
        """
        Args:
            num_choices: of each prompt; choices are numbered prompt by prompt.
        Raises:
            RequestError: 429, the engine is full.
        """
        loop, self._queue = asyncio.get_running_loop(), asyncio.Queue()

        def job(number: int) -> Job:
            def deliver(piece: Piece | Exception) -> None:
                loop.call_soon_threadsafe(self._queue.put_nowait, (number, piece))

            # The same prompt under the same seed answers alike wherever it stands in a request.
            return Job(prompts[number // num_choices], sampling, number % num_choices, deliver)

        self._jobs = [job(number) for number in range(len(prompts) * num_choices)]
        try:
            engine.submit(self._jobs)
        except EngineFullError as error:
            raise RequestError(429, str(error).splitlines()[0], code="overloaded") from error

    async def pieces(self, request: Request) -> AsyncIterator[tuple[int, Piece]]:
        """(Number of the choice, piece) as they come.

        Raises:
            RequestError: 500, the engine gave up; 499, the client has gone.
        """
        num_open, looked_s = len(self._jobs), time.monotonic()
        try:
            while num_open:
                # Pieces may come faster than it is looked, or not at all for a long time.
                if time.monotonic() - looked_s > POLL_S:
                    looked_s = time.monotonic()
                    if await request.is_disconnected():
                        raise RequestError(499, "the client has gone")
                try:
                    number, piece = await asyncio.wait_for(self._queue.get(), POLL_S)
                except asyncio.TimeoutError:
                    continue
                if isinstance(piece, Exception):
                    raise RequestError(500, f"the engine failed: {type(piece).__name__}") from piece
                num_open -= piece.finish_reason is not None
                yield number, piece
        finally:
            self.cancel()

    def cancel(self) -> None:
        """Nobody listens any more."""
        for job in self._jobs:
            job.is_cancelled = True


def random_seed() -> int:
    """For requests that name none."""
    return secrets.randbits(62)
