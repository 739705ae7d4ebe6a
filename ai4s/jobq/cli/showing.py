"""How results are shown: what a command has written, a text as it is, any other value as Python shows it; or all of it as JSON.

What came of a call goes to stdout, and what is said about it to stderr, so that `$(jobq … push --wait -c 'nproc')` is a number.

Next: back to the verb.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import click

from ..call_progress import CallProgress
from ..errors import CallCancelled, CallExpired, CommandFailed, ResultGone, ResultTimeout
from ..message import State
from ..printable import describe, kind, printable
from ..shell_result import ShellResult
from .output import note, told_lines

STATES: dict[type[BaseException], str] = {
    CallCancelled: State.CANCELLED,
    CallExpired: State.EXPIRED,
    ResultGone: "forgotten",
    ResultTimeout: "pending",
}


class Shower:
    """Shows what came of calls. `failed` counts those without a value; with `several`, each is introduced by its id."""

    def __init__(self, *, as_json: bool, several: bool = False) -> None:
        self._as_json, self._several = as_json, several
        self.failed = 0

    def show(
        self,
        call: str,
        error: Callable[[], BaseException | None],
        value: Callable[[], Any],
        progress: Callable[[], CallProgress | None] = lambda: None,
    ) -> None:
        """Show the error that there is, else the value; of a call that has not ended, how far it said it was.

        What asking for them raises passes through, but for time and `forget`.
        """
        try:
            found = error()
        except (ResultTimeout, ResultGone) as exc:
            found = exc
        if isinstance(found, ResultTimeout):
            self.failed += 1
            self._show_failure(call, found, progress())
        elif found is None:
            self._show_value(call, value())
        else:
            self.failed += 1
            self._show_failure(call, found)

    def _show_value(self, call: str, value: Any) -> None:
        if self._as_json:
            _echo_json({"id": call, "state": str(State.SUCCEEDED), **_fields(value)})
            return
        if self._several:
            note(f"{call}: {_summary(value)}")
        _echo_text(value.output if isinstance(value, ShellResult) else value if isinstance(value, str) else _repr(value))

    def _show_failure(self, call: str, exc: BaseException, progress: CallProgress | None = None) -> None:
        state = next((state for kind_, state in STATES.items() if isinstance(exc, kind_)), str(State.FAILED))
        output = {"exit_code": exc.exit_code, "output": exc.output} if isinstance(exc, CommandFailed) else {}
        if self._as_json:
            output = output if progress is None else {"progress": asdict(progress)}
            _echo_json({"id": call, "state": state, "error": kind(exc), "message": describe(exc), **output})
            return
        if isinstance(exc, CommandFailed):
            _echo_text(exc.output)
        said = printable(describe(exc).partition("\n")[0])
        # Whose message names the call need not be told which; the exception of a task does not.
        said = said if progress is None else f"{said} It said it was at {progress}."
        note(f"Error: {said}" if call in said else f"Error: call {call}: {printable(kind(exc).rpartition('.')[2])}: {said}")


def _summary(value: Any) -> str:
    return f"done in {value.seconds:.1f} s" if isinstance(value, ShellResult) else "done"


def _fields(value: Any) -> dict[str, Any]:
    if isinstance(value, ShellResult):
        return {"exit_code": value.exit_code, "output": value.output, "seconds": value.seconds}
    with suppress(ValueError, TypeError, RecursionError):
        json.dumps(value, allow_nan=False)
        return {"value": value}
    return {"repr": _repr(value)}


def _repr(value: Any) -> str:
    try:
        return repr(value)
    except Exception as exc:  # noqa: BLE001  # __repr__ is user code
        return f"<{kind(value)} whose repr() raises {type(exc).__name__}>"


def _echo_text(text: str) -> None:
    if text:
        # Not without its colours, where it is piped: `told_lines` knows what may pass.
        click.echo(told_lines(text), nl=not text.endswith("\n"), color=True)


def _echo_json(fields: dict[str, Any]) -> None:
    click.echo(json.dumps(fields))
