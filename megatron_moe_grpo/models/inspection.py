"""What a Hugging Face folder or a Megatron checkpoint holds, and what is wrong with it, for people."""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from megatron_moe_grpo.conversion import Converter, TensorSource
from megatron_moe_grpo.conversion.key_patterns import dtype_name, key_patterns
from megatron_moe_grpo.conversion.manifest import NAME as MANIFEST_FILE
from megatron_moe_grpo.conversion.manifest import verify_manifest
from megatron_moe_grpo.conversion.safetensors_folder import SafetensorsFolder
from megatron_moe_grpo.conversion.tensor_bytes import num_bytes_of
from megatron_moe_grpo.errors import CheckpointError, MoeGrpoError
from megatron_moe_grpo.models.hf_folder import read_hf_config
from megatron_moe_grpo.models.parameter_counts import parameter_counts
from megatron_moe_grpo.models.registry import family_of

STATE_FILE = "state.json"


@dataclasses.dataclass(frozen=True)
class Inspection:
    """The lines to print, and the message of every check that failed."""

    lines: list[str]
    problems: list[str]

    def __str__(self) -> str:
        verdict = [f"problem: {problem}" for problem in self.problems] or ["nothing is wrong"]
        return "\n".join([*self.lines, "", *verdict])


def inspect_folder(folder: Path) -> Inspection:
    """Reads config, headers and checksums; each check goes as far as it can, whatever the others found."""
    inspected = _CheckpointFolder(folder) if (folder / STATE_FILE).is_file() else _HfFolder(folder)
    lines, problems = [], []
    for check in (inspected.kind, inspected.model, inspected.weights, inspected.fit, inspected.files):
        try:
            lines.extend(check())
        except MoeGrpoError as error:
            # Two checks may stumble over the same file.
            if str(error) not in problems:
                problems.append(str(error))
    return Inspection(lines, problems)


class _HfFolder:
    """The checks; each gives lines or raises."""

    def __init__(self, folder: Path):
        self.folder, self.config_folder, self.weight_files = folder, folder, folder.glob("*.safetensors")

    def source(self) -> TensorSource:
        return SafetensorsFolder(self.folder)

    def kind(self) -> Iterator[str]:
        yield f"{self.folder}: Hugging Face folder"

    def model(self) -> Iterator[str]:
        """Family, sizes, parameters."""
        config = read_hf_config(self.config_folder)
        family = family_of(config)
        architecture = family.parse_architecture(config)
        sections = [config.get("llm_config"), config.get("text_config"), config]
        text_type = next(section for section in sections if isinstance(section, Mapping)).get("model_type")
        yield f"family: {config['model_type']}, text model {text_type}"
        yield from _size_lines(architecture)
        yield str(parameter_counts(family.weight_map(config), architecture.text.num_active))

    def weights(self) -> Iterator[str]:
        """Bytes by dtype, files, keys."""
        source = self.source()
        num_bytes: Counter[str] = Counter()
        for key, shape in source.shapes.items():
            num_bytes[dtype_name(source, key)] += num_bytes_of(shape, source.dtypes[key])
        dtypes = " and ".join(f"{count:,} bytes {name}" for name, count in num_bytes.most_common())
        yield f"weights: {len(source.shapes)} tensors, {dtypes}, in {len(list(self.weight_files))} file(s)"
        yield from (f"  {line}" for line in key_patterns(source))

    def fit(self) -> Iterable[str]:
        """Every key, shape and dtype against the family's map."""
        config = read_hf_config(self.config_folder)
        self.check(Converter(family_of(config).weight_map(config)))
        return ()

    def check(self, converter: Converter) -> None:
        converter.to_megatron(self.source())

    def files(self) -> Iterator[str]:
        """Every byte against the manifest."""
        if (self.folder / MANIFEST_FILE).is_file():
            verify_manifest(self.folder)
            yield f"{MANIFEST_FILE}: every file is as it was written"
        else:
            yield f"no {MANIFEST_FILE}: whether a file has changed cannot be told"


class _CheckpointFolder(_HfFolder):
    """The same of a Megatron checkpoint, whatever parallel layout wrote it."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.config_folder, self.weight_files = folder / "assets", (folder / "weights").glob("*.distcp")

    def source(self) -> TensorSource:
        # Not at the top: a Hugging Face folder is inspected without Megatron.
        from megatron_moe_grpo.mcore.streamed_checkpoint import MegatronCheckpoint

        return MegatronCheckpoint(self.folder)

    def kind(self) -> Iterator[str]:
        try:
            state = json.loads((self.folder / STATE_FILE).read_text(encoding="utf-8"))
            optimizer = "with" if state["has_optimizer"] else "without"
            yield f"{self.folder}: Megatron checkpoint after step {state['step']}, {optimizer} optimizer state"
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{self.folder / STATE_FILE} is damaged", got=f"{error!r}") from error

    def check(self, converter: Converter) -> None:
        converter.to_huggingface(self.source())

    def files(self) -> Iterator[str]:
        verify_manifest(self.folder)
        yield f"{MANIFEST_FILE}: every file is as it was written"


def _size_lines(architecture: Any) -> Iterator[str]:
    """A line for each part of an architecture, then what stands in none of them."""
    values = dataclasses.asdict(architecture)
    parts = {name: value for name, value in values.items() if isinstance(value, Mapping)}
    parts["model"] = {name: value for name, value in values.items() if name not in parts}
    for part, sizes in parts.items():
        known = [f"{name} {value}" for name, value in sizes.items() if value not in (None, ())]
        yield f"{part}: {', '.join(known)}"
