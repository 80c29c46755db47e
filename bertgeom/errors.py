"""The errors a user can cause or meet, each one readable line.

Every message says what was expected, what was found, where, and what to do about it.
The command line prints only the message and exits with `exit_code`; a traceback
appears only with `--debug`.
"""

from __future__ import annotations

from typing import Any

from bertgeom.urls import without_secrets


class BertgeomError(Exception):
    """Base of all errors that bertgeom raises on purpose. No message shows a URL's secrets."""

    exit_code = 1

    def __init__(self, *parts: Any) -> None:
        super().__init__(*(without_secrets(p) if isinstance(p, str) else p for p in parts))


class UsageError(BertgeomError, ValueError):
    """An invalid argument, or an invalid combination of arguments."""

    exit_code = 2


class InputError(BertgeomError, ValueError):
    """An input file that is malformed or cannot be read.

    Args:
        expected: what the reader needed, found: what was there.
        source: file or URL; record: id of the record; line: 1-based line number.
        remedy: what the user can do.
    """

    def __init__(
        self,
        expected: str,
        found: str,
        *,
        source: str | None = None,
        record: str | None = None,
        line: int | None = None,
        remedy: str | None = None,
    ) -> None:
        self.source, self.record, self.line = source, record, line
        place = ", ".join(
            part
            for part in (
                source or "",
                f"record {record!r}" if record is not None else "",
                f"line {line}" if line is not None else "",
            )
            if part
        )
        text = f"{place}: " if place else ""
        text += f"expected {expected}, found {found}"
        if remedy:
            text += f"; {remedy}"
        super().__init__(text)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (str(self), vars(self))


def _rebuilt(text: str, attributes: dict[str, Any]) -> InputError:
    """An InputError that was raised in another process."""
    error = InputError.__new__(InputError, text)
    error.args = (text,)
    vars(error).update(attributes)
    return error


class ModelError(BertgeomError):
    """A model that cannot be loaded or whose attention cannot be observed."""


class StoreError(BertgeomError):
    """A store that is missing, incomplete, damaged, or of another format version."""


class DamagedError(StoreError):
    """A file of a store that is missing, truncated or changed."""


class MismatchError(StoreError):
    """A store that was made with another model, input or setting; names the difference."""


class PlanError(BertgeomError):
    """A plan that does not fit the budget; names the largest piece."""


class ImplementationUnavailableError(BertgeomError, RuntimeError):
    """An explicitly chosen kernel implementation that cannot run here; says what is missing."""
