"""What a task declares that it needs travels with its calls, and a call may say otherwise."""

from __future__ import annotations

from typing import Any

import pytest

from ai4s.jobq import App, DeclarationError
from ai4s.jobq.codec import Encoded
from ai4s.jobq.message import NO_NEEDS, Call, Resources
from ai4s.jobq.parts import Parts
from ai4s.jobq.submission import Invocation, make_order
from ai4s.jobq.task import Task
from ai4s.jobq.wire import Wire
from ai4s.jobq.worker.duties import Duties

app = App("resources-of-calls", "local:///nowhere")
GIB = 1024**3


@app.task(gpus=1, cpus=4, memory="8G")
def large(x: int) -> int:
    return x


@app.task
def plain(x: int) -> int:
    return x


def call_of(task: Task[..., Any, Any]) -> Call:
    """The call that `delay` would send."""
    chosen = task._chosen
    arguments = Encoded(Parts.of(b""))
    return make_order(app.client, Invocation(task.name, task.declared, chosen, arguments, by_value=None, shipped=())).call


@pytest.mark.parametrize(
    ("task", "needs"),
    [
        (plain, NO_NEEDS),
        (large, Resources(1, 4, 8 * GIB)),
        (large.options(gpus=2), Resources(2, 4, 8 * GIB)),
        (large.options(gpus=0, cpus=None, memory=None), Resources(0, None, None)),
        (large.options(memory=None).options(memory="1.5G"), Resources(1, 4, 3 * GIB // 2)),
        (plain.options(cpus=2), Resources(cpus=2)),
        (plain.options(memory="512M").options(cpus=1), Resources(None, 1, 512 * 1024**2)),
    ],
)
def test_calls_take_along_what_they_need(task: Task[..., Any, Any], needs: Resources) -> None:
    """What the task declares, with what the options say in its place; and it comes over the wire as it was."""
    call = call_of(task)
    assert call.resources == needs
    wire = Wire(app.name)
    text = wire.seal_call(call)
    assert text is not None
    assert wire.unseal_call(text, "default") == call


def test_what_needs_nothing_costs_no_byte() -> None:
    """And is known at a glance, as nearly all calls are such."""
    assert call_of(plain).resources is NO_NEEDS
    assert call_of(large.options(gpus=None, cpus=None, memory=None)).resources is NO_NEEDS
    text = Wire(app.name).seal_call(call_of(plain))
    assert text is not None
    assert Wire(app.name).unseal_call(text, "default").resources is NO_NEEDS
    assert Duties("w", {plain.name: call_of(plain).pool}).refuses(call_of(plain)) is None


@pytest.mark.parametrize(
    ("memory", "size"),
    [("1M", 1024**2), ("2048K", 2 * 1024**2), ("1.5g", 3 * GIB // 2), ("8 GiB", 8 * GIB), ("1TB", 1024 * GIB), (2**30, GIB)],
)
def test_memory_is_bytes_or_a_text(memory: int | str, size: int) -> None:
    """In powers of 1024."""
    assert plain.options(memory=memory)._chosen.resources.memory_bytes == size


@pytest.mark.parametrize(
    "given",
    [
        {"gpus": -1},
        {"gpus": 0.5},
        {"gpus": True},
        {"gpus": "1"},
        {"cpus": 0},
        {"cpus": 1.5},
        {"memory": 8},
        {"memory": "8"},
        {"memory": "8X"},
        {"memory": "-1G"},
        {"memory": "100000T"},
        {"memory": 1e9},
        {"memory": True},
    ],
)
def test_needs_that_cannot_be_are_refused_at_once(given: dict[str, Any]) -> None:
    """By the decorator and by `options`; a small number of bytes is a unit that somebody forgot."""
    (name,) = given
    with pytest.raises(DeclarationError, match=f"^{name} must be"):
        app.task(**given)(lambda: None)
    with pytest.raises(DeclarationError, match=f"^{name} must be"):
        plain.options(**given)
