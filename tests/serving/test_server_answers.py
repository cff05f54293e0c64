"""The server over HTTP: its answers are transformers' own, in each of OpenAI's forms."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from PIL import Image
from served_folders import ask, events, noise_picture
from transformers import InternVLForConditionalGeneration

from megatron_moe_grpo.data.visuals import Visual
from megatron_moe_grpo.models.chat_prompt import ChatTurn
from megatron_moe_grpo.models.internvl.processing import InternVLProcessing
from megatron_moe_grpo.models.token_batch import pad_prompts

CASES = (
    ("How many 0s are there?", 1), ("Which is the largest digit?", 2), ("What?", 0), ("Say <|im_end|> or <img>.", 1),
    ("Which digit is in the top-left cell?", 1), ("b" * 50, 0),
)  # fmt: skip


@dataclass(frozen=True)
class Transformers:
    """The served model without anything of Megatron."""

    model: InternVLForConditionalGeneration
    processing: InternVLProcessing

    def prompt_ids(self, text: str, pictures: list[Image.Image]) -> list[int]:
        visuals = [Visual((picture,)) for picture in pictures]
        return self.processing.chat_ids([ChatTurn("user", (*(visual.size for visual in visuals), text))])

    @torch.inference_mode()
    def greedy(self, text: str, pictures: list[Image.Image], count: int) -> tuple[list[int], list[float]]:
        """Tokens and their log-probabilities."""
        processing = self.processing
        inputs = processing.visual_inputs([Visual((picture,)) for picture in pictures])
        ids = self.prompt_ids(text, pictures)
        batch = pad_prompts([ids], [inputs], processing.vision_token_ids, processing.pad_token_id)
        out = self.model.generate(
            **processing.huggingface_inputs(batch), do_sample=False, max_new_tokens=count, output_logits=True,
            return_dict_in_generate=True, eos_token_id=processing.eos_token_id, pad_token_id=processing.pad_token_id,
            suppress_tokens=list(processing.suppressed_token_ids),
        )  # fmt: skip
        tokens = out.sequences[0, len(ids) :].tolist()
        logprobs = [
            float(logits_BV[0].log_softmax(-1)[token]) for logits_BV, token in zip(out.logits, tokens, strict=True)
        ]
        return tokens, logprobs

    @torch.inference_mode()
    def logprobs(self, ids: list[int]) -> list[float]:
        """Of each token but the first."""
        logprob_SV = self.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        return [float(logprob_SV[index, token]) for index, token in enumerate(ids[1:])]


@pytest.fixture(scope="module")
def oracle(folders: dict[str, Path]) -> Transformers:
    model = InternVLForConditionalGeneration.from_pretrained(folders["internvl"], local_files_only=True)
    return Transformers(model.eval(), InternVLProcessing.from_folder(folders["internvl"]))


def post(server: httpx.Client, path: str, body: dict[str, Any]) -> dict[str, Any]:
    response = server.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def chat(server: httpx.Client, body: dict[str, Any]) -> dict[str, Any]:
    return post(server, "/v1/chat/completions", body)


def complete(server: httpx.Client, prompt: Any, **more: Any) -> dict[str, Any]:
    return post(server, "/v1/completions", {"model": "tiny", "prompt": prompt, "temperature": 0} | more)


def test_greedy_answers_and_logprobs_are_those_of_transformers(server: httpx.Client, oracle: Transformers) -> None:
    def answer(case: tuple[str, int]) -> dict[str, Any]:
        pictures = [noise_picture(seed) for seed in range(case[1])]
        return chat(server, ask(case[0], *pictures, logprobs=True, top_logprobs=2, dataset="ignored"))

    with ThreadPoolExecutor(len(CASES)) as pool:
        answers = list(pool.map(answer, CASES))
    contents = set()
    for (text, num_pictures), found in zip(CASES, answers, strict=True):
        pictures = [noise_picture(seed) for seed in range(num_pictures)]
        tokens, logprobs = oracle.greedy(text, pictures, count=8)
        choice = found["choices"][0]
        assert choice["message"] == {"role": "assistant", "content": oracle.processing.decode(tokens)}
        got = [entry["logprob"] for entry in choice["logprobs"]["content"]]
        # Measured: 3e-5, logits reach 40.
        assert got == pytest.approx(logprobs, abs=3e-4)
        assert all(len(entry["top_logprobs"]) == 2 for entry in choice["logprobs"]["content"])
        assert choice["finish_reason"] == ("stop" if tokens[-1] == oracle.processing.eos_token_id else "length")
        num_prompt = len(oracle.prompt_ids(text, pictures))
        assert found["usage"] == {
            "prompt_tokens": num_prompt, "completion_tokens": len(tokens), "total_tokens": num_prompt + len(tokens),
        }  # fmt: skip
        contents.add(choice["message"]["content"])
    assert len(contents) > 3


def test_echoed_logprobs_are_those_of_transformers(server: httpx.Client, oracle: Transformers) -> None:
    """As lm-eval asks: token ids, echo, one new token or none; a prompt of bytes that are no characters too."""
    prompts = [oracle.processing.tokenizer.encode("How many 0s are there?\nA. 1"), [97, 200, 201, 98], [60]]
    for max_tokens in (0, 1):
        found = complete(server, prompts, echo=True, logprobs=1, max_tokens=max_tokens)
        for ids, choice in zip(prompts, found["choices"], strict=True):
            shown = choice["logprobs"]
            assert shown["token_logprobs"][0] is None and shown["top_logprobs"][0] is None
            assert {len(values) for values in shown.values()} == {len(ids) + max_tokens}
            got = shown["token_logprobs"][1 : len(ids)]
            assert got == pytest.approx(oracle.logprobs(ids), abs=3e-4)
            # What lm-eval calls greedy: the token is the likeliest one by name.
            for token, logprob, top in list(
                zip(shown["tokens"], shown["token_logprobs"], shown["top_logprobs"], strict=True)
            )[1:]:
                assert len(top) == 1
                assert (token in top) == (logprob == pytest.approx(max(top.values())))
            assert choice["finish_reason"] in ("length", "stop")


def test_text_offsets_count_characters(server: httpx.Client) -> None:
    shown = complete(server, "How many 1s?\nä", echo=True, logprobs=0, max_tokens=0)["choices"][0]
    assert shown["text"] == "How many 1s?\nä"
    offsets, tokens = shown["logprobs"]["text_offset"], shown["logprobs"]["tokens"]
    assert offsets[0] == 0 and offsets == sorted(offsets)
    assert "How many 1s?\nä"[offsets[1] :].startswith(tokens[1])


def test_a_stream_is_the_whole_answer_in_pieces(server: httpx.Client) -> None:
    body = ask("How many?", noise_picture(0), n=2, seed=3, temperature=1.0, max_tokens=12)
    whole = chat(server, body)
    streamed = server.post(
        "/v1/chat/completions", json=body | {"stream": True, "stream_options": {"include_usage": True}}
    )
    assert streamed.headers["content-type"].startswith("text/event-stream")
    *chunks, last = events(streamed.text)
    assert last["usage"] == whole["usage"] and last["choices"] == []
    for index, expected in enumerate(whole["choices"]):
        own = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert own[0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(choice["delta"].get("content", "") for choice in own) == expected["message"]["content"]
        assert [choice["finish_reason"] for choice in own[:-1]] == [None] * (len(own) - 1)
        assert own[-1]["finish_reason"] == expected["finish_reason"]


def test_a_completion_streams_too(server: httpx.Client) -> None:
    whole = complete(server, "How many", max_tokens=6, echo=True)
    streamed = server.post(
        "/v1/completions",
        json={"prompt": "How many", "temperature": 0, "max_tokens": 6, "echo": True, "stream": True},
    )
    assert "".join(chunk["choices"][0]["text"] for chunk in events(streamed.text)) == whole["choices"][0]["text"]


def test_seeds_choices_and_stop_texts(server: httpx.Client) -> None:
    body = ask("How many?", temperature=1.0, n=3, max_tokens=16)
    first, again, other = (chat(server, body | {"seed": seed}) for seed in (1, 1, 2))
    contents = [[choice["message"]["content"] for choice in found["choices"]] for found in (first, again, other)]
    assert contents[0] == contents[1] != contents[2]
    assert len(set(contents[0])) == 3
    text = contents[0][0]
    stop = text[len(text) // 2 : len(text) // 2 + 2]
    stopped = chat(server, body | {"seed": 1, "n": 1, "stop": [stop]})["choices"][0]
    assert stopped["message"]["content"] == text[: text.index(stop)]
    assert stopped["finish_reason"] == "stop"


def test_routing_is_returned_and_sampled_on_request(server: httpx.Client) -> None:
    body = ask("How many?", noise_picture(1), max_tokens=4, return_routing=True, seed=1)
    top_k, sampled, other = (
        chat(server, body | change)["choices"][0]
        for change in ({}, {"routing": "sampled"}, {"routing": "sampled", "seed": 2})
    )
    num_fed = chat(server, body)["usage"]["total_tokens"] - 1
    for choice in (top_k, sampled, other):
        experts = torch.tensor(choice["routing"]["experts"])
        # Positions, layers, active experts; two different ones of eight.
        assert experts.shape == (num_fed, 2, 2)
        assert int(experts.min()) >= 0 and int(experts.max()) < 8
        assert bool((experts[..., 0] != experts[..., 1]).all())
    assert top_k["routing"] != sampled["routing"] != other["routing"]
    assert "routing" not in chat(server, ask("How many?"))["choices"][0]


def test_what_surrounds_the_model(server: httpx.Client) -> None:
    assert server.get("/health").json() == {"status": "ok"}
    (model,) = server.get("/v1/models").json()["data"]
    assert (model["id"], model["max_model_len"]) == ("tiny", 256)
    chat(server, ask("x"))
    lines = server.get("/metrics").text.splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert float(values['moe_grpo_requests_total{endpoint="/v1/chat/completions",status="200"}']) >= 1
    assert float(values["moe_grpo_completion_tokens_total"]) >= 1
    assert float(values["moe_grpo_active_sequences"]) == 0


@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/v1/chat/completions", "/nope"])
@pytest.mark.parametrize("header", ["", "Bearer", "Bearer wrong", "secret2"])
def test_everything_but_health_needs_the_key(server: httpx.Client, path: str, header: str) -> None:
    response = httpx.request(
        "POST" if "chat" in path else "GET", f"{server.base_url}{path}", headers={"Authorization": header}
    )
    assert response.status_code == 401
    assert response.json()["error"]["code"] == "invalid_api_key"
    assert httpx.get(f"{server.base_url}/health").status_code == 200
