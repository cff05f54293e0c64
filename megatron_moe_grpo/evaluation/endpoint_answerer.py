"""Answers of an OpenAI-compatible endpoint, several requests at a time."""

from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from megatron_moe_grpo.errors import DataError, EvaluationError
from megatron_moe_grpo.evaluation.asking import Answer, AskSettings, Failure, prompt_parts
from megatron_moe_grpo.evaluation.benchmarks.benchmark import Question
from megatron_moe_grpo.evaluation.chat_endpoint import ChatEndpoint
from megatron_moe_grpo.evaluation.image_payload import image_uris

MAX_FAILURES_IN_A_ROW = 20
"""Then the endpoint is taken for gone: the rest is not tried."""


class EndpointAnswerer:
    """Asks `concurrency` questions at a time; frames of a video are sent as pictures."""

    def __init__(self, endpoint: ChatEndpoint, settings: AskSettings, concurrency: int):
        self._endpoint, self._settings, self._concurrency = endpoint, settings, concurrency
        self.identity = {"kind": "endpoint", "model": endpoint.model_name, "url": endpoint.base_url}

    def answers(self, questions: Sequence[Question], blank_images: bool) -> Iterator[Answer | Failure]:
        """See `Answerer`; answers come in any order, and end after MAX_FAILURES_IN_A_ROW failures one after another."""
        waiting = iter(questions)
        failures = 0
        pool = ThreadPoolExecutor(self._concurrency)
        try:
            running: set[Future[Answer | Failure]] = set()
            while True:
                # Few are handed over at a time: a picture is read when its turn comes, and an end comes at once.
                for question in waiting:
                    running.add(pool.submit(self._ask, question, blank_images))
                    if len(running) >= self._concurrency:
                        break
                if not running:
                    return
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    found = future.result()
                    failures = failures + 1 if isinstance(found, Failure) else 0
                    yield found
                if failures >= MAX_FAILURES_IN_A_ROW:
                    return
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _ask(self, question: Question, blank_images: bool) -> Answer | Failure:
        try:
            content = self._content(question, blank_images)
            response, is_cut_off = self._endpoint.ask(content, self._settings.max_new_tokens)
        except (EvaluationError, DataError) as error:
            return Failure(question.id, str(error))
        return Answer(question.id, response, is_cut_off)

    def _content(self, question: Question, blank_images: bool) -> list[dict[str, object]]:
        content: list[dict[str, object]] = []
        for part in prompt_parts(question, self._settings.template):
            if isinstance(part, str):
                content.append({"type": "text", "text": part})
            else:
                uris = image_uris(part, self._settings, blank_images)
                content += [{"type": "image_url", "image_url": {"url": uri}} for uri in uris]
        return content
