"""Rows are checked as the prompts they become; pictures are decoded once a prompt."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from megatron_moe_grpo.config.schema import DataConfig, RewardConfig
from megatron_moe_grpo.data.visuals import Visual, VisualSize
from megatron_moe_grpo.errors import ConfigError, DataError
from megatron_moe_grpo.models.internvl.processing import InternVLProcessing
from megatron_moe_grpo.models.internvl.tiny import TinySizes, build_tiny_internvl
from megatron_moe_grpo.rewards.judge import Judge
from megatron_moe_grpo.rollout.prompts import (
    EncodedRow,
    check_positions,
    check_rows,
    encode_rows,
    padded_positions,
    prepare_prompts,
)

SIZES = TinySizes(
    image_size=16, patch_size=4, vision_hidden_size=8, vision_layers=1, vision_heads=2, hidden_size=8, layers=1,
    heads=2, kv_heads=1, head_dim=4, ffn_size=8, max_positions=64,
)  # fmt: skip


@pytest.fixture(scope="module")
def processing(tmp_path_factory: pytest.TempPathFactory) -> InternVLProcessing:
    folder = tmp_path_factory.mktemp("processing") / "tiny"
    build_tiny_internvl(folder, SIZES, seed=0)
    return InternVLProcessing.from_folder(folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index, grey in enumerate((0, 100, 255)):
        Image.new("RGB", (16, 16), (grey, grey, grey)).save(tmp_path / f"{index}.png")
    return tmp_path


def write(folder: Path, *rows: dict) -> str:
    defaults = {"problem": "Which?", "options": ["A. 1", "B. 2"], "solution": "B"}
    lines = [json.dumps({"id": f"row-{index}"} | defaults | row) + "\n" for index, row in enumerate(rows)]
    (folder / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
    return str(folder / "rows.jsonl")


def checked(folder: Path, processing: InternVLProcessing, *rows: dict) -> list[EncodedRow]:
    return encode_rows(check_rows(write(folder, *rows), DataConfig(train=""), processing).rows, processing)


def grey_levels(processing: InternVLProcessing, *levels: int) -> list[float]:
    """What pictures of one grey become under the model's own normalisation."""
    pictures = [Image.new("RGB", (16, 16), (level, level, level)) for level in levels]
    inputs = processing.visual_inputs([Visual((picture,), is_video=False) for picture in pictures])
    return pytest.approx(inputs.pixel_values.mean(dim=(1, 2, 3)).tolist())


def test_check_rows_measures_the_prompt_that_will_be_encoded(folder: Path, processing: InternVLProcessing) -> None:
    row = {"images": ["0.png", "1.png"], "problem": "<image> or <image>?"}
    (encoded,) = checked(folder, processing, row)
    num_tokens = len(encoded.prompt_ids)
    assert encoded.prompt_ids.count(processing.image_token_id) == 2 * processing.num_image_tokens
    path = write(folder, row)
    check_rows(path, DataConfig(train=path, max_prompt_tokens=num_tokens), processing)
    with pytest.raises(DataError) as caught:
        check_rows(path, DataConfig(train=path, max_prompt_tokens=num_tokens - 1), processing)
    message = str(caught.value)
    assert "rows.jsonl:1 (id 'row-0')" in message
    assert f"the prompt has {num_tokens} tokens" in message
    assert f"data.max_prompt_tokens is {num_tokens - 1}" in message


@pytest.mark.parametrize("token", ["<|im_end|>", "<img>", "<IMG_CONTEXT>"])
@pytest.mark.parametrize("field", ["problem", "options"])
def test_check_rows_names_the_row_with_a_special_token(
    token: str, field: str, folder: Path, processing: InternVLProcessing
) -> None:
    bad = {"problem": f"a{token}b"} if field == "problem" else {"options": ["A. 1", f"B. {token}"]}
    path = write(folder, {}, bad)
    with pytest.raises(DataError) as caught:
        check_rows(path, DataConfig(train=path), processing)
    assert "rows.jsonl:2 (id 'row-1')" in str(caught.value)
    assert "Special tokens typed as text" in str(caught.value) and token in str(caught.value)


def test_check_rows_skips_what_only_the_tokenizer_refuses(folder: Path, processing: InternVLProcessing) -> None:
    path = write(folder, {}, {"problem": "<|im_end|>"}, {"problem": "word " * 60}, {"image": "1.png"})
    data = DataConfig(train=path, on_bad_row="skip", max_prompt_tokens=40)
    loaded = check_rows(path, data, processing)
    assert [row.id for row in loaded.rows] == ["row-0", "row-3"]
    assert [(skipped.line, skipped.id) for skipped in loaded.skipped] == [(2, "row-1"), (3, "row-2")]
    assert "Special tokens" in loaded.skipped[0].reason and "the prompt has" in loaded.skipped[1].reason


def test_check_rows_starts_image_paths_from_image_root(folder: Path, processing: InternVLProcessing) -> None:
    (folder / "lists").mkdir()
    path = write(folder / "lists", {"image": "2.png"})
    with pytest.raises(DataError, match="does not exist"):
        check_rows(path, DataConfig(train=path), processing)
    loaded = check_rows(path, DataConfig(train=path, image_root=str(folder)), processing)
    assert [files.paths for files in loaded.rows[0].visuals] == [((folder / "2.png").resolve(),)]


def test_encode_rows_ends_the_answer_with_the_end_of_turn(folder: Path, processing: InternVLProcessing) -> None:
    (encoded,) = checked(folder, processing, {})
    assert encoded.answer_ids[-1] == processing.eos_token_id
    assert processing.decode(encoded.answer_ids) == "B"
    assert processing.tokenizer.decode(encoded.prompt_ids).endswith("assistant\n")


def test_encode_rows_with_the_plain_template_is_the_question_with_its_options(
    folder: Path, processing: InternVLProcessing
) -> None:
    (encoded,) = checked(folder, processing, {"image": "0.png", "problem": "a <image>\n which?"})
    sizes = [VisualSize(16, 16)]
    assert list(encoded.prompt_ids) == processing.encode(encoded.row.problem, encoded.row.options, sizes)


def test_encode_rows_puts_the_question_into_the_template(folder: Path, processing: InternVLProcessing) -> None:
    path = write(folder, {"image": "0.png"}, {"image": "0.png", "problem": "Is <image> it?"})
    data = DataConfig(train=path, prompt_template="Look. {question} Why?")
    rows = check_rows(path, data, processing).rows
    for encoded, question in zip(
        encode_rows(rows, processing, prompts=data.prompt_template), ("Which?", "Is {} it?"), strict=True
    ):
        text = processing.tokenizer.decode(encoded.prompt_ids)
        picture = "<img>" + "<IMG_CONTEXT>" * processing.num_image_tokens + "</img>\n"
        expected = f"Look. {question}\nA. 1\nB. 2 Why?"
        expected = expected.format(picture) if "{}" in question else picture + expected
        assert text == f"<|im_start|>user\n{expected}<|im_end|>\n<|im_start|>assistant\n"


def test_encode_rows_teaches_the_answer_template(folder: Path, processing: InternVLProcessing) -> None:
    template = "<think>{rationale}</think><answer>{option}</answer>"
    path = write(folder, {"rationale": "so"}, {})
    data = DataConfig(train=path, answer_template=template)
    with pytest.raises(DataError, match=r"rows.jsonl:2 \(id 'row-1'\), field 'row': the row has no rationale"):
        check_rows(path, data, processing)
    loaded = check_rows(path, data.model_copy(update={"on_bad_row": "skip"}), processing)
    (encoded,) = encode_rows(loaded.rows, processing, answers=template)
    assert processing.decode(encoded.answer_ids) == "<think>so</think><answer>B. 2</answer>"
    assert encoded.answer_ids[-1] == processing.eos_token_id
    untaught = check_rows(path, data, processing, is_taught=False).rows
    assert [row.answer_ids for row in encode_rows(untaught, processing, answers=None)] == [(), ()]


@pytest.mark.parametrize("token", ["<|im_end|>", "<IMG_CONTEXT>", "<video>"])
def test_check_rows_refuses_special_tokens_in_answers(token: str, folder: Path, processing: InternVLProcessing) -> None:
    path = write(folder, {"options": [], "problem_type": "open-ended", "solution": f"a {token}"})
    with pytest.raises(DataError, match="Special tokens typed as text") as caught:
        check_rows(path, DataConfig(train=path), processing)
    assert "the solution and the rationale" in str(caught.value)


def test_check_rows_asks_the_judge(folder: Path, processing: InternVLProcessing) -> None:
    path = write(folder, {}, {"options": [], "problem_type": "riddle", "solution": "time"})
    with pytest.raises(DataError, match=r"rows.jsonl:2 \(id 'row-1'\).*riddle"):
        check_rows(path, DataConfig(train=path), processing, Judge(RewardConfig()))
    judge = Judge(RewardConfig(by_problem_type={"riddle": "text_match"}))
    assert len(check_rows(path, DataConfig(train=path), processing, judge).rows) == 2
    assert len(check_rows(path, DataConfig(train=path), processing).rows) == 2


@pytest.mark.parametrize("solution", ["A, C", "<answer>AC</answer>", "A and C"])
def test_check_rows_reads_several_right_letters(solution: str, folder: Path, processing: InternVLProcessing) -> None:
    row = {"options": ["one", "two", "three"], "problem_type": "Multiple_answers", "solution": solution}
    path, judge = write(folder, row), Judge(RewardConfig())
    (found,) = check_rows(path, DataConfig(train=path), processing, judge).rows
    # All of them, half of the union, none.
    assert [judge(response, found).accuracy for response in ("C, A", "A", "B")] == [1.0, 0.5, 0.0]


def test_check_rows_names_letters_without_an_option(folder: Path, processing: InternVLProcessing) -> None:
    path = write(folder, {"options": ["one", "two"], "problem_type": "multiple answers", "solution": "A, C"})
    with pytest.raises(DataError, match="no list of letters of the 2 options"):
        check_rows(path, DataConfig(train=path), processing, Judge(RewardConfig()))


def test_prepare_prompts_keeps_each_picture_with_its_prompt(folder: Path, processing: InternVLProcessing) -> None:
    rows = checked(folder, processing, {"image": "1.png"}, {}, {"images": ["2.png", "0.png"]})
    num_positions = padded_positions(rows, 0, 1)
    prompts = prepare_prompts(rows, num_positions, processing)
    batch = prompts.batch(0, 3)
    assert batch.pixel_values.mean(dim=(1, 2, 3)).tolist() == grey_levels(processing, 100, 255, 0)
    part = prompts.batch(1, 3)
    assert part.token_ids_BS.shape == (2, num_positions)
    assert part.pixel_values.mean(dim=(1, 2, 3)).tolist() == grey_levels(processing, 255, 0)
    assert torch.equal(part.token_ids_BS, batch.token_ids_BS[1:])
    assert prompts.batch(1, 2).pixel_values is None


def test_prepare_prompts_blanks_pictures_and_nothing_else(folder: Path, processing: InternVLProcessing) -> None:
    rows = checked(folder, processing, {"image": "0.png"}, {}, {"image": "2.png"})
    seen, blank = (prepare_prompts(rows, 40, processing, is_blank).batch(0, 3) for is_blank in (False, True))
    assert torch.equal(seen.token_ids_BS, blank.token_ids_BS)
    assert blank.pixel_values.mean(dim=(1, 2, 3)).tolist() == grey_levels(processing, 128, 128)
    assert not torch.equal(seen.pixel_values, blank.pixel_values)


@pytest.mark.parametrize(
    ("lengths", "num_appended", "multiple_of", "expected"),
    [([3, 7], 1, 1, 7), ([3, 7], 1, 2, 7), ([3, 7], 2, 2, 8), ([7], 1, 4, 7), ([7], 2, 4, 10), ([1], 0, 8, 8)],
)
def test_padded_positions_fits_prompt_and_answer(
    lengths: list[int], num_appended: int, multiple_of: int, expected: int, folder: Path, processing: InternVLProcessing
) -> None:
    (row,) = checked(folder, processing, {})
    rows = [EncodedRow(row.row, (1,) * length, row.answer_ids) for length in lengths]
    found = padded_positions(rows, num_appended, multiple_of)
    assert found == expected
    assert (found + num_appended) % multiple_of == 0


def test_check_positions_counts_the_longest_answer_too(folder: Path, processing: InternVLProcessing) -> None:
    rows = checked(folder, processing, {}, {"image": "0.png"})
    longest = len(rows[1].prompt_ids)
    check_positions(rows, max_new_tokens=4, max_positions=longest + 4)
    with pytest.raises(ConfigError, match=rf"row row-1: {longest} prompt tokens and 5 new ones"):
        check_positions(rows, max_new_tokens=5, max_positions=longest + 4)


def test_check_positions_counts_taught_answers(folder: Path, processing: InternVLProcessing) -> None:
    short, long = checked(folder, processing, {}, {})
    long = EncodedRow(long.row, short.prompt_ids, (1,) * 9)
    num_prompt = len(short.prompt_ids)
    check_positions([short, long], max_new_tokens=2, max_positions=num_prompt + 9)
    with pytest.raises(ConfigError, match="row row-1: .* 9 new ones"):
        check_positions([short, long], max_new_tokens=2, max_positions=num_prompt + 8)
