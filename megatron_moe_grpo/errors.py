"""The errors a user can cause.  Every message says what happened, got, expected, and what to change."""


class MoeGrpoError(Exception):
    """Base of every error this package raises for something a user can put right."""

    def __init__(self, what: str, *, got: object = None, expected: object = None, remedy: str | None = None):
        self.what, self.got, self.expected, self.remedy = what, got, expected, remedy
        lines = [what]
        if got is not None:
            lines.append(f"  got:      {got}")
        if expected is not None:
            lines.append(f"  expected: {expected}")
        if remedy is not None:
            lines.append(f"  to do:    {remedy}")
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple:
        """Errors travel between ranks: pickle calls the class with one argument, which would lose the rest."""
        return _rebuild, (type(self), self.what, self.got, self.expected, self.remedy)


def _rebuild(kind: type, what: str, got: object, expected: object, remedy: str | None) -> MoeGrpoError:
    return kind(what, got=got, expected=expected, remedy=remedy)


class ConfigError(MoeGrpoError):
    """A configuration that cannot be run: unknown key, wrong type, or values that contradict each other."""


class DataError(MoeGrpoError):
    """A row, an image or a file of the data that cannot be used; the message names it."""


class RewardError(MoeGrpoError):
    """A reward that cannot judge: a user's function that fails, or the process that compares formulas."""


class ConversionError(MoeGrpoError):
    """Weights that cannot be mapped: unread, missing or misshapen keys."""


class CheckpointError(MoeGrpoError):
    """A checkpoint that is incomplete, damaged, or belongs to another run."""


class DamagedCheckpointError(CheckpointError):
    """Files of a checkpoint are missing, or not as they were written: an older one may still serve."""


class UpdateError(MoeGrpoError):
    """Update after update would harm the weights: the run does not go on by itself."""


class TraceError(MoeGrpoError):
    """A routing trace that was not consumed exactly once, or does not fit its tokens."""


class EvaluationError(MoeGrpoError):
    """An evaluation that is not complete, or evaluations that cannot be compared."""
