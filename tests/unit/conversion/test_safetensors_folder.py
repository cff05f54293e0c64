"""Reading: what the safetensors library wrote comes back; every kind of damage is refused by name, without memory."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from forked_work import memory_growth_bytes
from safetensors.torch import save_file

from megatron_moe_grpo.conversion import read_all
from megatron_moe_grpo.conversion.safetensors_folder import SafetensorsFolder
from megatron_moe_grpo.errors import ConversionError

INDEX = "model.safetensors.index.json"
DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
]  # fmt: skip


def write_shards(folder: Path, shards: dict[str, dict[str, torch.Tensor]], weight_map: dict[str, str]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, tensors in shards.items():
        save_file(tensors, folder / name, metadata={"format": "pt"})
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def two_shards(folder: Path) -> Path:
    shards = {"s1.safetensors": {"a": torch.ones(2)}, "s2.safetensors": {"b": torch.zeros(3, 4), "c": torch.ones(1)}}
    return write_shards(folder, shards, {"a": "s1.safetensors", "b": "s2.safetensors", "c": "s2.safetensors"})


def raw_file(header: object, data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def refusal_of(folder: Path) -> str:
    """The message; and it took little memory to come to it."""
    messages: list[str] = []

    def refuse() -> None:
        with pytest.raises(ConversionError) as caught:
            SafetensorsFolder(folder)
        messages.append(str(caught.value))

    # Measured: 1 MB, and 58 MB for seventy thousand tensors.
    assert memory_growth_bytes(refuse) < 64 * 2**20
    refuse()
    return messages[0]


def test_safetensors_folder_reads_what_the_library_wrote_in_every_dtype(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    state = {f"{dtype}": torch.randint(0, 2, (3, 5), generator=generator).to(dtype) for dtype in DTYPES}
    state |= {"scalar": torch.tensor(3.5), "empty": torch.zeros(0, 7, dtype=torch.bfloat16)}
    save_file(state, tmp_path / "model.safetensors")
    source = SafetensorsFolder(tmp_path)
    read = read_all(source)
    assert read.keys() == state.keys()
    for name, tensor in state.items():
        assert (source.shapes[name], source.dtypes[name]) == (tuple(tensor.shape), tensor.dtype)
        assert read[name].dtype == tensor.dtype and torch.equal(read[name].float(), tensor.float())


def test_safetensors_folder_reads_shards(tmp_path: Path) -> None:
    read = read_all(SafetensorsFolder(two_shards(tmp_path)))
    assert {name: tensor.tolist() for name, tensor in read.items()} == {"a": [1, 1], "b": [[0] * 4] * 3, "c": [1]}


def test_safetensors_folder_gives_tensors_of_their_own(tmp_path: Path) -> None:
    source = SafetensorsFolder(two_shards(tmp_path))
    source.read("a").zero_()
    assert source.read("a").tolist() == [1, 1]


def test_safetensors_folder_reads_through_the_links_of_a_download_cache(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "blob")
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "model.safetensors").symlink_to("../blob")
    assert SafetensorsFolder(tmp_path / "snapshot").read("a").tolist() == [1, 1]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", ""),
        (b"\x08\0\0", ""),
        (raw_file({"a": entry([4], 0, 16)}, b"\0" * 15), ""),  # one byte is lost
        (raw_file({"a": entry([4], 0, 16)}, b"\0" * 17), ""),
        (raw_file({"a": entry([4], 0, 16), "b": entry([4], 8, 24)}, b"\0" * 24), ""),  # overlap
        (raw_file({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, b"\0" * 12), ""),  # a hole
        (raw_file({"a": entry([2**40], 0, 2**42)}), ""),
        (raw_file({"a": entry([2**40, 2**40], 0, 4)}, b"\0" * 4), ""),
        (raw_file({"a": entry([4], 16, 0)}, b"\0" * 16), ""),
        (raw_file({"a": entry([-1], 0, 4)}, b"\0" * 4), ""),
        (raw_file({"a": {"dtype": "F32"}}), ""),
        (raw_file([1, 2]), ""),
        ((2**62).to_bytes(8, "little") + b"{}", "a header of 4,611,686,018,427,387,904 bytes"),
        ((90 * 2**20).to_bytes(8, "little") + b"{}", "a header of 94,371,840 bytes"),
        (b"PK\x03\x04" + b"\0" * 200, ""),
        (b"\x02\0\0\0\0\0\0\0" + b"[[", ""),
    ],
)
def test_safetensors_folder_refuses_a_damaged_file(tmp_path: Path, content: bytes, why: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    message = refusal_of(tmp_path)
    assert message.startswith("A weight file is damaged.") and str(tmp_path / "model.safetensors") in message
    assert why in message


def test_safetensors_folder_refuses_the_longest_header_within_its_memory(tmp_path: Path) -> None:
    # Empty tensors under as many names as a header may hold, and one byte of data that is none of theirs.
    entries = {f"a{number}": entry([0], 0, 0) for number in range(62_000)}
    (tmp_path / "model.safetensors").write_bytes(raw_file(entries, b"x"))
    assert 3.5 * 2**20 < (tmp_path / "model.safetensors").stat().st_size < 4 * 2**20
    assert "damaged" in refusal_of(tmp_path)


def test_safetensors_folder_takes_little_memory_for_many_names(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(raw_file({f"a{n}": entry([0], 0, 0) for n in range(62_000)}))
    small = two_shards(tmp_path / "small")
    growth = memory_growth_bytes(lambda: SafetensorsFolder(tmp_path), lambda: SafetensorsFolder(small))
    assert growth < 64 * 2**20  # measured: 26 MB


def test_safetensors_folder_refuses_numbers_it_does_not_know(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(raw_file({"a": entry([2], 0, 16, "C64")}, b"\0" * 16))
    with pytest.raises(ConversionError, match="(?s)does not know.*model.safetensors: a: C64"):
        SafetensorsFolder(tmp_path)


@pytest.mark.parametrize("dtype", ["F8_E8M0", "F8_E4M3FNUZ", "F4"])
def test_safetensors_folder_calls_numbers_of_a_byte_or_less_quantised(tmp_path: Path, dtype: str) -> None:
    num_bytes = 1 if dtype == "F4" else 2
    header = {"a": entry([2], 0, num_bytes, dtype)}
    (tmp_path / "model.safetensors").write_bytes(raw_file(header, b"\0" * num_bytes))
    with pytest.raises(ConversionError, match=f"(?s)quantised.*a {dtype}.*unquantised version"):
        SafetensorsFolder(tmp_path)


def test_read_names_a_file_that_became_shorter(tmp_path: Path) -> None:
    source = SafetensorsFolder(two_shards(tmp_path))
    path = tmp_path / "s2.safetensors"
    path.write_bytes(path.read_bytes()[:-6])
    with pytest.raises(ConversionError, match=r"s2\.safetensors: it ends within [bc]"):
        read_all(source)


def rewrite_index(weight_map: object) -> Callable[[Path], object]:
    return lambda folder: (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


HONEST = {"a": "s1.safetensors", "b": "s2.safetensors", "c": "s2.safetensors"}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "s2.safetensors").unlink(), r"are missing(?s:.*)lacks s2\.safetensors"),
        (rewrite_index(HONEST | {"d": "s3.safetensors"}), r"are missing(?s:.*)lacks s3\.safetensors"),
        (rewrite_index(HONEST | {"d": "s1.safetensors"}), r"in no shard(?s:.*)d should be in s1\.safetensors"),
        (rewrite_index(HONEST | {"c": "s1.safetensors"}), r"another shard(?s:.*)c is in s2\.safetensors, not in s1"),
        (rewrite_index({"a": "s1.safetensors", "b": "s2.safetensors"}), r"does not name(?s:.*)c in s2\.safetensors"),
        (rewrite_index(HONEST | {"a": "../s1.safetensors"}), r"outside the folder(?s:.*)index\.json: \.\./s1"),
        (rewrite_index(HONEST | {"a": "/etc/passwd"}), "outside the folder"),
        (rewrite_index(HONEST | {"a": ".."}), "(?s)outside the folder|are missing"),
        (rewrite_index(HONEST | {"a": 3}), r"cannot be read(?s:.*)index\.json"),
        (rewrite_index(HONEST | {"a": ""}), r"cannot be read|outside|are missing"),
        (rewrite_index([]), r"cannot be read(?s:.*)index\.json"),
        (rewrite_index({}), r"is empty(?s:.*)index\.json"),
        (lambda folder: (folder / INDEX).write_text("[" * 100_000), "index of the weight files cannot be read"),
        (lambda folder: (folder / INDEX).write_bytes(b"\xff\xfe"), "index of the weight files cannot be read"),
        (
            lambda folder: save_file({"a": torch.ones(2), "b": torch.ones(1)}, folder / "s1.safetensors"),
            r"two shards(?s:.*)b in s1\.safetensors and s2\.safetensors",
        ),
    ],
)
def test_safetensors_folder_refuses_an_index_that_lies(
    tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(two_shards(tmp_path))
    with pytest.raises(ConversionError, match=message):
        SafetensorsFolder(tmp_path)


def touch(*names: str) -> Callable[[Path], object]:
    return lambda folder: [(folder / name).write_bytes(b"x") for name in names]


@pytest.mark.parametrize(
    ("fill", "message"),
    [
        (touch(), "There are no weights here"),
        (touch("pytorch_model.bin"), r"pickle files(?s:.*)pytorch_model\.bin(?s:.*)safe_serialization=True"),
        (touch("model.pt"), r"pickle files(?s:.*)model\.pt"),
        (touch("model.pth"), r"pickle files(?s:.*)model\.pth"),
        (touch("last.ckpt"), r"pickle files(?s:.*)last\.ckpt"),
        (touch("model-Q4_K_M.gguf"), r"GGUF(?s:.*)model-Q4_K_M\.gguf(?s:.*)original safetensors"),
        (touch("adapter_model.safetensors", "adapter_config.json"), r"adapter(?s:.*)merge_and_unload"),
        (touch("model.safetensors", "adapter_config.json"), r"adapter(?s:.*)adapter_config\.json"),
        (touch("model.safetensors", INDEX), r"Two sets of weights(?s:.*)model\.safetensors"),
    ],
)
def test_safetensors_folder_says_what_a_folder_has_instead(
    tmp_path: Path, fill: Callable[[Path], object], message: str
) -> None:
    fill(tmp_path)
    with pytest.raises(ConversionError, match=message):
        SafetensorsFolder(tmp_path)


def test_safetensors_folder_refuses_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="no such folder"):
        SafetensorsFolder(tmp_path / "absent")
