"""Where a row came from, so that every complaint about it can say so."""

from dataclasses import dataclass

from megatron_moe_grpo.errors import DataError

MAX_SHOWN_CHARACTERS = 120


@dataclass(frozen=True)
class RowPlace:
    """File, line (row number where the file has no lines) and id of one row."""

    source: str
    line_number: int
    row_id: str | None = None

    def problem(
        self, field: str, what: str, *, got: object = None, expected: object = None, remedy: str | None = None
    ) -> DataError:
        """The DataError to raise: names file, line, id and field."""
        name = f" (id {self.row_id!r})" if self.row_id is not None else ""
        return DataError(
            f"{self.source}:{self.line_number}{name}, field {field!r}: {what}",
            got=got,
            expected=expected,
            remedy=remedy,
        )


def shown(value: object) -> str:
    """`repr` of something a user wrote, cut to a readable length; control characters stay escaped."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN_CHARACTERS else f"{text[:MAX_SHOWN_CHARACTERS]}... ({len(text)} characters)"
