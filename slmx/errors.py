"""The one kind of error that a user sees: what happened, what to type next, and the exit code."""

from __future__ import annotations

FAILED = 1
WRONG_USAGE = 2
DONE_IN_PART = 3
REFUSED = 4
INTERRUPTED = 130
TERMINATED = 143


class SlmxError(Exception):
    """Something a user can understand and act on.

    Args:
        what: what happened, with the names and numbers that matter; no secret.
        hint: what to type or look at next.
        code: the exit code of the command (see the constants of this module).
    """

    def __init__(self, what: str, *, hint: str = "", code: int = FAILED) -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint
        self.code = code

    def __str__(self) -> str:
        return f"{self.what}\n{self.hint}" if self.hint else self.what


class UsageError(SlmxError):
    """Wrong usage or configuration (exit code 2)."""

    def __init__(self, what: str, *, hint: str = "") -> None:
        super().__init__(what, hint=hint, code=WRONG_USAGE)


class RefusedError(SlmxError):
    """A safety check said no: something would be overwritten, or does not fit (exit code 4)."""

    def __init__(self, what: str, *, hint: str = "") -> None:
        super().__init__(what, hint=hint, code=REFUSED)


class PartlyDone(SlmxError):
    """The work was done in part, and the message names what was left out (exit code 3)."""

    def __init__(self, what: str, *, hint: str = "") -> None:
        super().__init__(what, hint=hint, code=DONE_IN_PART)
