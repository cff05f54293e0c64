"""Which rows a step takes: a pure function of (seed, step), so that resuming needs the step number alone."""

from dataclasses import dataclass

import numpy as np

from megatron_moe_grpo.errors import DataError


@dataclass(frozen=True)
class BatchOrder:
    """Endless stream of epochs, each a new permutation of all rows, cut into steps.

    No row is dropped at the end of an epoch: the step that crosses it goes on in the next, and may hold a row twice.
    """

    num_rows: int
    rows_per_step: int
    seed: int

    def __post_init__(self) -> None:
        if self.num_rows < 1 or self.rows_per_step < 1:
            raise DataError(
                "a batch order needs at least one row and one row a step",
                got=f"{self.num_rows} rows, {self.rows_per_step} a step",
            )

    def indices(self, step: int) -> list[int]:
        """Rows of optimizer step `step` (from 0), in order; `rows_per_step` of them."""
        assert step >= 0, "steps count from 0"
        rows: list[int] = []
        position = step * self.rows_per_step
        while len(rows) < self.rows_per_step:
            epoch, start = divmod(position, self.num_rows)
            taken = self._permutation(epoch)[start : start + self.rows_per_step - len(rows)]
            rows.extend(taken.tolist())
            position += len(taken)
        return rows

    def _permutation(self, epoch: int) -> np.ndarray:
        # numpy promises the same raw stream for ever, but not the same Generator.permutation: a run must resume
        # identically under another numpy.
        keys = np.random.PCG64(np.random.SeedSequence([self.seed, epoch])).random_raw(self.num_rows)
        return np.argsort(keys, kind="stable")
