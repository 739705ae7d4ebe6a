"""Where the log records of a child go unless the user's modules have said so: to stderr, as the supervisor's do.

Next: back to `child.py`.
"""

from __future__ import annotations

import logging

from ..log_formats import formatter

OURS = "ai4s.jobq"
"""Above our own loggers, and those of tasks and commands."""


def show_records(log_format: str) -> None:
    """Have records written to what stderr is now, after the user's modules were imported: what these set up stays as it is.

    Written are warnings of all loggers, as Python does unasked, and what tasks say by `current().logger` from INFO on.
    """
    root, ours = logging.getLogger(), logging.getLogger(OURS)
    if root.handlers or ours.handlers:
        return
    handler = logging.StreamHandler()
    handler.setFormatter(formatter(log_format, of_tasks=True))
    handler.addFilter(_is_for_people)
    root.addHandler(handler)
    if ours.level == logging.NOTSET:
        ours.setLevel(logging.INFO)


def _is_for_people(record: logging.LogRecord) -> bool:
    """Whatever levels loggers were given since, for other handlers' sake."""
    is_wanted = record.levelno >= logging.WARNING or f"{record.name}.".startswith(f"{OURS}.")
    return is_wanted and not _has_handler(logging.getLogger(record.name))


def _has_handler(logger: logging.Logger | None) -> bool:
    """Whether somebody has put a handler on this logger, or on one above it, below the root: then it is shown there."""
    while logger is not None and logger.parent is not None:
        if logger.handlers:
            return True
        logger = logger.parent
    return False
