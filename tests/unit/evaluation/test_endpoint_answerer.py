"""Many questions to an endpoint: pictures as data URIs, several at a time, failures counted."""

import base64
import io
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_server import Reply, chat_reply, chat_server
from PIL import Image

from megatron_moe_grpo.data.visuals import VisualFiles
from megatron_moe_grpo.evaluation.asking import Answer, AskSettings, Failure
from megatron_moe_grpo.evaluation.benchmarks.benchmark import Question
from megatron_moe_grpo.evaluation.chat_endpoint import ChatEndpoint, EndpointSettings
from megatron_moe_grpo.evaluation.endpoint_answerer import MAX_FAILURES_IN_A_ROW, EndpointAnswerer
from megatron_moe_grpo.evaluation.image_payload import image_uris

SETTINGS = AskSettings(max_new_tokens=4, video_frames=2, template="{question} Say a letter.")


def questions(count: int) -> list[Question]:
    return [Question(f"q{index}", f"{index}?", (), "B") for index in range(count)]


def picture(path: Path, **options: Any) -> VisualFiles:
    noise = np.random.default_rng(len(path.name)).integers(0, 255, (6, 9, 3), np.uint8)
    Image.fromarray(noise).save(path, **options)
    return VisualFiles((path,))


def decoded(uri: object) -> Image.Image:
    assert isinstance(uri, str)
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def number_of(body: dict[str, Any]) -> int:
    return int(body["messages"][0]["content"][-1]["text"].partition("?")[0])


def test_answers_come_for_every_question_a_few_at_a_time() -> None:
    # Two requests must meet: asked one after another, the barrier would break.
    barrier = threading.Barrier(2, timeout=20)

    def reply(body: dict[str, Any]) -> Reply:
        if number_of(body) < 2:
            barrier.wait()
        time.sleep(0.01)
        return chat_reply(f"say {number_of(body)}")

    with chat_server(reply) as server, ChatEndpoint(EndpointSettings(server.url)) as endpoint:
        found = list(EndpointAnswerer(endpoint, SETTINGS, concurrency=3).answers(questions(10), False))
        assert 2 <= server.most_at_once <= 3
    assert sorted(found, key=lambda answer: int(answer.question_id[1:])) == [
        Answer(f"q{index}", f"say {index}", False) for index in range(10)
    ]


def test_failures_are_named_and_the_rest_goes_on() -> None:
    def reply(body: dict[str, Any]) -> Reply:
        return (400, b"bad picture") if number_of(body) == 1 else chat_reply("B")

    with chat_server(reply) as server, ChatEndpoint(EndpointSettings(server.url)) as endpoint:
        found = list(EndpointAnswerer(endpoint, SETTINGS, concurrency=2).answers(questions(4), False))
    (failure,) = [answer for answer in found if isinstance(answer, Failure)]
    assert (failure.question_id, "status 400: bad picture" in failure.reason, len(found)) == ("q1", True, 4)


def test_an_endpoint_that_is_gone_is_not_asked_for_ever() -> None:
    with chat_server(lambda body: (401, b"no")) as server, ChatEndpoint(EndpointSettings(server.url)) as endpoint:
        found = list(EndpointAnswerer(endpoint, SETTINGS, concurrency=2).answers(questions(500), False))
        assert MAX_FAILURES_IN_A_ROW <= len(found) <= MAX_FAILURES_IN_A_ROW + 2
        assert len(server.requests) <= MAX_FAILURES_IN_A_ROW + 4


def test_a_picture_that_cannot_be_read_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    question = Question("q0", "Which?", (VisualFiles((tmp_path / "a.png",)),), "B")
    with chat_server(lambda body: chat_reply("B")) as server, ChatEndpoint(EndpointSettings(server.url)) as endpoint:
        (found,) = EndpointAnswerer(endpoint, SETTINGS, concurrency=1).answers([question], False)
    assert isinstance(found, Failure) and "a.png" in found.reason


def test_parts_are_sent_in_the_order_of_the_tags(tmp_path: Path) -> None:
    first, second = picture(tmp_path / "a.png"), picture(tmp_path / "bb.png")
    question = Question("q0", "See <image>\nand <image>: which?", (first, second), "B")
    with chat_server(lambda body: chat_reply("B")) as server, ChatEndpoint(EndpointSettings(server.url)) as endpoint:
        list(EndpointAnswerer(endpoint, SETTINGS, concurrency=1).answers([question], False))
        content = server.requests[-1][2]["messages"][0]["content"]
    assert [part["type"] for part in content] == ["text", "image_url", "text", "image_url", "text"]
    assert [part["text"] for part in content if "text" in part] == ["See ", "and ", ": which? Say a letter."]
    shown = [np.asarray(decoded(part["image_url"]["url"])) for part in content if "image_url" in part]
    for found, files in zip(shown, (first, second), strict=True):
        np.testing.assert_array_equal(found, np.asarray(Image.open(files.paths[0])))


def test_a_plain_jpeg_is_sent_as_it_is(tmp_path: Path) -> None:
    files = picture(tmp_path / "a.jpg")
    (uri,) = image_uris(files, SETTINGS, blank_images=False)
    assert uri.startswith("data:image/jpeg;base64,")
    assert base64.b64decode(uri.partition(",")[2]) == files.paths[0].read_bytes()


def test_a_turned_jpeg_is_sent_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    (uri,) = image_uris(picture(tmp_path / "a.jpg", exif=exif), SETTINGS, blank_images=False)
    assert (uri[:15], decoded(uri).size) == ("data:image/png;", (6, 9))


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
def test_blank_pictures_are_grey_and_keep_their_size(name: str, tmp_path: Path) -> None:
    (uri,) = image_uris(picture(tmp_path / name), SETTINGS, blank_images=True)
    assert decoded(uri).size == (9, 6)
    assert set(np.asarray(decoded(uri)).flatten().tolist()) == {128}


def test_frames_of_a_video_are_sent_as_pictures(tmp_path: Path) -> None:
    paths = tuple(picture(tmp_path / f"{'a' * (index + 1)}.png").paths[0] for index in range(5))
    uris = image_uris(VisualFiles(paths, is_video=True), SETTINGS, blank_images=False)
    assert len(uris) == 2
