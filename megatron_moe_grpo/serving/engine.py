"""The engine: one thread that owns the model, lets waiting sequences join after each token, and tells their owners."""

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from megatron_moe_grpo.errors import MoeGrpoError
from megatron_moe_grpo.mcore.decoding import decoding_mode
from megatron_moe_grpo.models.processing import Processing
from megatron_moe_grpo.models.vlm import VisionLanguageModel
from megatron_moe_grpo.serving.active_batch import ActiveBatch, ActiveSequence
from megatron_moe_grpo.serving.generation import Job, Piece, ScoredToken
from megatron_moe_grpo.serving.limits import Limits
from megatron_moe_grpo.serving.prompt_logprobs import prompt_logprobs
from megatron_moe_grpo.serving.stop_texts import ends_with_stop


class EngineFullError(MoeGrpoError):
    """More sequences wait than the limits allow."""


class Engine:
    """Continuous batching of jobs; `submit` may be called from any thread."""

    def __init__(self, model: VisionLanguageModel, processing: Processing, limits: Limits):
        self._model, self._processing, self._limits = model, processing, limits
        self._active = self._new_batch()
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_active(self) -> int:
        return len(self._active.sequences)

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queues `jobs`, all of them or none.

        Raises:
            EngineFullError: too many wait.
        """
        with self._changed:
            self._waiting = deque(job for job in self._waiting if not job.is_cancelled)
            self._refuse_too_many(jobs)
            self._waiting.extend(jobs)
            self._changed.notify()

    def _refuse_too_many(self, jobs: Sequence[Job]) -> None:
        limits = self._limits
        prompts = {id(job.prompt): job.prompt for job in (*self._waiting, *jobs)}
        num_bytes = sum(prompt.visual_bytes for prompt in prompts.values())
        if len(self._waiting) + len(jobs) > limits.max_waiting or num_bytes > limits.max_waiting_bytes:
            raise EngineFullError(
                "too many sequences wait",
                got=f"{len(self._waiting)} waiting and {len(jobs)} new ones, {num_bytes:,} bytes of pictures",
                expected=f"at most {limits.max_waiting}, with {limits.max_waiting_bytes:,} bytes",
                remedy="ask again later",
            )

    def close(self) -> None:
        """Ends the thread after the token that it works on; what is under way is told so."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        with decoding_mode(self._model):
            while self._wait_for_work():
                try:
                    self._join_waiting()
                    if self._active.sequences:
                        self._settle(self._active.step())
                # Whatever went wrong with this batch, the next one deserves an answer.
                except Exception as error:
                    self._fail(error)
        self._fail(MoeGrpoError("the server is closing"))

    def _wait_for_work(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._active.sequences or self._is_closing)
            return not self._is_closing

    def _join_waiting(self) -> None:
        jobs = self._take_waiting(self._limits.max_sequences - len(self._active.sequences))
        prompts = {
            id(job): prompt_logprobs(self._model, self._processing, job)
            for job in jobs
            if job.sampling.has_prompt_logprobs
        }
        for job in jobs:
            if job.sampling.max_new_tokens == 0:
                job.deliver(Piece(finish_reason="length", prompt=prompts.get(id(job), ())))
        jobs = [job for job in jobs if job.sampling.max_new_tokens > 0]
        if jobs:
            self._settle(self._active.join(jobs), prompts)

    def _take_waiting(self, most: int) -> list[Job]:
        jobs: list[Job] = []
        with self._changed:
            while self._waiting and len(jobs) < most:
                job = self._waiting.popleft()
                if not job.is_cancelled:
                    jobs.append(job)
        self._joining = jobs
        return jobs

    def _settle(
        self,
        grown: Sequence[tuple[ActiveSequence, ScoredToken]],
        prompts: Mapping[int, tuple[ScoredToken, ...]] = MappingProxyType({}),
    ) -> None:
        """Tells each owner of the new token; those that have ended leave the batch."""
        self._joining = []
        ended = []
        for sequence, token in grown:
            reason = self._finish_reason(sequence, token)
            if not sequence.job.is_cancelled:
                sequence.job.deliver(
                    Piece(
                        token=token,
                        finish_reason=reason,
                        prompt=prompts.get(id(sequence.job), ()),
                        experts_SLK=sequence.experts_SLK if reason else [],
                    )
                )
            if reason or sequence.job.is_cancelled:
                ended.append(sequence)
        self._active.keep([sequence for sequence in self._active.sequences if sequence not in ended])

    def _finish_reason(self, sequence: ActiveSequence, token: ScoredToken) -> str | None:
        sampling = sequence.job.sampling
        if token.token_id == self._processing.eos_token_id:
            return "stop"
        if sampling.stops and ends_with_stop(self._processing.decode(sequence.token_ids), sampling.stops):
            return "stop"
        is_full = self._active.num_positions(sequence) >= self._limits.max_positions
        return "length" if is_full or len(sequence.token_ids) >= sampling.max_new_tokens else None

    def _fail(self, error: Exception) -> None:
        with self._changed:
            lost = [*self._joining, *(sequence.job for sequence in self._active.sequences)]
            if self._is_closing:
                lost += self._waiting
                self._waiting.clear()
        self._joining = []
        for job in lost:
            job.deliver(error)
        self._active = self._new_batch()

    def _new_batch(self) -> ActiveBatch:
        self._joining: list[Job] = []
        limits = self._limits
        return ActiveBatch(self._model, self._processing, limits.max_sequences, limits.max_positions)
