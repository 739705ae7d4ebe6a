"""RetryPolicy: which failures earn another attempt, how many, and how long until it.

The numbers travel with the call; `retry_on` holds classes, stays with the function, and is asked where user code runs.

Next: `lifecycle.py`, which spends the budgets.
"""

from __future__ import annotations

from dataclasses import dataclass

from .errors import DeclarationError
from .message import Backoff

MOST_ATTEMPTS = 1_000_000
"""More than anybody waits for; a bound keeps "for ever" from being a number that no record can hold."""

LONGEST_SECONDS = 10 * 365 * 24 * 3600
"""Ten years: what is longer is a mistake in the unit."""

LARGEST_FACTOR = 1000


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Budgets of a task: `retries` after errors and timeouts, `max_deaths` of its process before the call ends.

    `retry_on` limits retries to these exception classes; `Retry` raised by the task and timeouts always qualify.
    """

    retries: int = 0
    retry_on: tuple[type[BaseException], ...] = (Exception,)
    backoff: Backoff = Backoff()
    max_deaths: int = 3

    def covers(self, error: BaseException) -> bool:
        """Whether this exception may be followed by another attempt.

        >>> RetryPolicy(retry_on=(OSError,)).covers(FileNotFoundError())
        True
        """
        return isinstance(error, self.retry_on)


def retry_policy(*, retries: object, retry_on: object, backoff: object, max_deaths: object) -> RetryPolicy:
    """A checked policy from what a user declared; raises DeclarationError that says what would be right."""
    return RetryPolicy(
        retries=whole_number("retries", retries, least=0),
        retry_on=_exception_types(retry_on),
        backoff=_backoff(backoff),
        max_deaths=whole_number("max_deaths", max_deaths, least=1),
    )


def whole_number(name: str, value: object, *, least: int) -> int:
    """`value` if it is an int from `least` to MOST_ATTEMPTS; else DeclarationError."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MOST_ATTEMPTS:
        raise DeclarationError(f"{name} must be a whole number from {least} to {MOST_ATTEMPTS:,}; got {value!r}.")
    return value


def _exception_types(value: object) -> tuple[type[BaseException], ...]:
    types = value if isinstance(value, tuple) else (value,)
    if not types or not all(isinstance(each, type) and issubclass(each, BaseException) for each in types):
        raise DeclarationError(f"retry_on must be an exception class or a tuple of them; got {value!r}.")
    return types


def _backoff(value: object) -> Backoff:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = Backoff(first=value, factor=1.0, longest=value)
    if not isinstance(value, Backoff):
        raise DeclarationError(f"backoff must be seconds or a Backoff(first, factor, longest); got {value!r}.")
    if not all(type(number) in (int, float) for number in (value.first, value.factor, value.longest)):
        raise DeclarationError(f"backoff needs numbers; got {value!r}.")
    # Written so that NaN fails as well.
    if not (0 <= value.first <= value.longest <= LONGEST_SECONDS and 1 <= value.factor <= LARGEST_FACTOR):
        raise DeclarationError(
            f"backoff needs 0 <= first <= longest <= {LONGEST_SECONDS:,} s and factor from 1 to {LARGEST_FACTOR}; got {value!r}."
        )
    return value
