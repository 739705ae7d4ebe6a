"""Submitting one call: arguments to bytes, code uploaded, key claimed, message sent; then, and only then, a handle.

Everything that can be wrong with a call is found on the caller's thread, before the first request. When a submission
has returned, the message is durable. When it raised, the call may still run; with a key it can be repeated safely.

Next: `ledger.py` for the requests, `handle.py` for what the caller gets; on the other side, `worker/attempt.py`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

from . import layout, reruns, stored
from .client import Client
from .codec import Codec, Encoded, Guard
from .errors import HandleAsArgument, KeyConflict, NotSerializable, ResultGone
from .handle import Handle, Sent
from .ledger import Ledger
from .message import Call, Spill, State
from .options import CallOptions, TaskOptions, resources_of
from .parts import Parts
from .payload import function_payload, python_minor
from .running import current_or_none
from .spill import digest
from .telemetry.sending import UNTOLD, Sending
from .transports.base import Receipt
from .wire import MAX_INLINE_ARGUMENTS


class Send(Protocol):
    """The step that puts a call's message on its queue."""

    async def __call__(self, ledger: Ledger, call: Call, /, delay_seconds: float = 0) -> Receipt | None: ...


@dataclass(frozen=True, slots=True)
class Order:
    """One call, ready to be sent: what is left to do needs the storage."""

    call: Call
    payloads: tuple[bytes, ...]
    options: CallOptions
    expires_seconds: float | None
    large: Parts | None = None
    """Arguments that no message could hold; `call` has only their size until they are spilled."""
    sending: Sending = UNTOLD
    """The block in which it is sent, for whoever follows calls across processes."""


def encode_arguments(options: TaskOptions, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Encoded:
    """The arguments as bytes; raises HandleAsArgument for a handle anywhere in them, NotSerializable for what can't travel."""
    try:
        return options.codec.dumps((args, kwargs), guard(options.codec))
    except NotSerializable as exc:
        raise _naming_the_argument(options, args, kwargs) or exc from exc.__cause__


def _naming_the_argument(options: TaskOptions, args: tuple[Any, ...], kwargs: dict[str, Any]) -> NotSerializable | None:
    """The error with the first argument that cannot travel alone, which says more than that all of them together cannot."""
    named = [*((f"number {position}", value) for position, value in enumerate(args, 1)), *kwargs.items()]
    for name, value in named:
        try:
            options.codec.dumps(value, guard(options.codec))
        except NotSerializable as exc:
            return NotSerializable(f"Argument {name} cannot travel. {exc}")
    return None


def guard(codec: Codec) -> Guard:
    """What refuses arguments that are none, in this codec."""
    return refuse_handles if codec.allows_pickle else _refuse_names


def _refuse_names(value: object) -> None:
    refuse_handles(value)
    stored.refuse(value)


def refuse_handles(value: object) -> None:
    """A guard: raises HandleAsArgument."""
    if isinstance(value, Handle):
        raise HandleAsArgument(f"A handle (of call {value.id}) is not an argument: pass handle.result(), or the value itself.")


@dataclass(frozen=True, slots=True)
class Invocation:
    """What is called and how. `by_value` is the function unless workers can import it; `shipped` the modules sent along."""

    name: str
    task: TaskOptions
    options: CallOptions
    arguments: Encoded
    by_value: Callable[..., Any] | None
    shipped: tuple[bytes, ...]


def make_order(client: Client, invocation: Invocation, batch: str | None = None) -> Order:
    """Put together the call, or what the calls of a batch share; raises NotSerializable for a function that cannot travel.

    To be called where the caller's context is: that is where the span of the submission belongs.
    """
    task, options, shipped = invocation.task, invocation.options, invocation.shipped
    function = function_payload(invocation.by_value, task.policy) if invocation.by_value else None
    name = invocation.name
    if function and task.name is None:
        name = f"{name}@{layout.sha256_of(function)[:12]}"
    parent, arguments = current_or_none(), invocation.arguments
    large = arguments.parts if arguments.size > MAX_INLINE_ARGUMENTS else None
    call = Call(
        id=client.next_call_id() if options.key is None else _keyed_id(client.name, name, options.key),
        task=name,
        queue=options.queue or task.queue,
        arguments=arguments.data if large is None else Spill(large.size, ""),
        sent=0,
        codec=task.codec.name,
        pool=task.pool,
        function=layout.sha256_of(function) if function else None,
        ship=tuple(layout.sha256_of(data) for data in shipped),
        python=python_minor() if function or arguments.has_code else None,
        retries=task.policy.retries if options.retries is None else options.retries,
        backoff=task.policy.backoff,
        max_deaths=task.policy.max_deaths,
        timeout_seconds=None if "timeout" in options.lifted else options.timeout_seconds or task.timeout_seconds,
        resources=resources_of(task, options),
        logs=None if "logs" in options.lifted else task.logs if options.logs is None else options.logs,
        root=parent.root if parent else None,
        parent=parent.id if parent else None,
    )
    payloads = (*([function] if function else []), *shipped)
    expires_seconds = None if "expires" in options.lifted else options.expires_seconds or task.expires_seconds
    sending = client.session.producing.begin(call, batch)
    traced = call if sending.trace is None else replace(call, trace=sending.trace)
    return Order(traced, payloads, options, expires_seconds, large, sending)


def _keyed_id(app: str, task: str, key: str) -> str:
    return layout.keyed_call_id(layout.sha256_of("\0".join((app, task, key)).encode()))


async def submit(client: Client, order: Order, ledger: Ledger, send: Send = Ledger.send) -> Handle[Any]:
    """Send the order's call; returns when its message is durable. Raises TransportError, and KeyConflict for a key's other use.

    `send` does the last step; tests put another one in its place.
    """
    with order.sending:
        return await _submit(client, order, ledger, send)


async def _submit(client: Client, order: Order, ledger: Ledger, send: Send) -> Handle[Any]:
    now = await ledger.transport.server_time()
    call, delay_seconds = timed(order, now)
    await client.publish(ledger, order.payloads)

    async def last(call: Call) -> Receipt | None:
        spilled = call if order.large is None else await ledger.keep_arguments(call, order.large)
        return await send(ledger, spilled, delay_seconds=delay_seconds)

    if order.options.key is not None:
        return await _submit_keyed(client, ledger, call, last, order=order)
    return _handle(client, call, await last(call))


def timed(order: Order, now: float) -> tuple[Call, float]:
    """The call as it is sent now, and how many seconds later it may run."""
    options = order.options
    eta = options.eta if options.eta is not None else now + options.countdown_seconds
    delay_seconds = max(0.0, eta - now)
    expires = options.expires_at
    if expires is None and order.expires_seconds is not None:
        expires = now + order.expires_seconds
    return replace(order.call, sent=now, eta=eta if delay_seconds else None, expires=expires), delay_seconds


async def _submit_keyed(
    client: Client, ledger: Ledger, call: Call, send: Callable[[Call], Awaitable[Receipt | None]], *, order: Order
) -> Handle[Any]:
    """Claim the key, send unless it was sent; a crash in between is mended by whoever asks again."""
    digest = await _digest(call.arguments if order.large is None else order.large)
    record = await ledger.claim_key(call.id, digest)
    if record.arguments != digest:
        raise KeyConflict(
            f"This key of task {call.task} was used before with other arguments (call {call.id}). "
            "Arguments are compared as encoded, in which a set, say, may differ from process to process. "
            "Use another key, or app.handle(id)."
        )
    if record.sent:
        return await _rerun(client, ledger, call, send) if order.options.rerun_failed else _handle(client, call, None)
    # Marked, because an earlier claimant may have sent it and died before it could say so.
    receipt = await send(replace(call, resent=True))
    await ledger.mark_key_sent(call.id, digest)
    return _handle(client, call, receipt)


async def _digest(arguments: bytes | Spill | Parts) -> str:
    """What tells other arguments from these."""
    assert not isinstance(arguments, Spill)
    return layout.sha256_of(arguments) if isinstance(arguments, bytes) else (await digest(arguments)).sha256


async def _rerun(client: Client, ledger: Ledger, call: Call, send: Callable[[Call], Awaitable[Receipt | None]]) -> Handle[Any]:
    """Send the next run if the newest one has failed; finish what an earlier asker, who was cut short, may have left undone."""
    try:
        run, outcome = await reruns.newest(ledger, call.id)
        if outcome is not None and outcome.state is State.FAILED:
            run += 1
        if run == 1:
            return _handle(client, call, None)
        failed = await reruns.claim(ledger, await reruns.letter_of(ledger, call, run - 1), purged_too=True)
    except ResultGone:  # then that is what its handle says
        return _handle(client, call, None)
    call = await reruns.checkpointed(ledger, replace(call, run=run, resent=True), failed)
    return _handle(client, call, await reruns.start(ledger, call, failed, send))


def _handle(client: Client, call: Call, receipt: Receipt | None) -> Handle[Any]:
    message = Sent(call.queue, receipt) if receipt else None
    return Handle(client, call.id, run=call.run, codec=call.codec, message=message, queue=call.queue)
