"""The dashboard's pages in a real browser, at a real worker that works on a storage account.

One browser, one worker and one dashboard for all: each test looks at calls of its own, so that their order does not matter but for
the last one, which lets the worker go. What any page wrote to the console, or asked of anybody else, fails the test that opened it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from axe_playwright_python.sync_playwright import Axe
from browsing import DESKTOP, PHONE, Visit, browser, dashboard_here, dashboard_of, visit
from playwright.sync_api import Browser, Page, expect
from projects import SOON, Project, new_project, until
from simulated import put_batch, put_workers

from ai4s.jobq import App, layout
from ai4s.jobq.ledger import Ledger

HOSTILE = "<img src=x onerror=alert(1)></script><script>alert(2)</script>\u202etxt.exe"
TEXT = "<img src=x onerror=alert(1)></script><script>alert(2)</script>"  # as far as it is shown as it is
ROUTES = ("#/", "#/batches", "#/workers", "#/failed")

TASKS = f"""
HOSTILE = {HOSTILE!r}
LONG = "x" * 10_000
Hostile = type(HOSTILE, (Exception,), {{}})

def opened(name):
    while not (HERE / name).exists():
        time.sleep(0.05)

@app.task
def square(x):
    return x * x

@app.task
def half(x):
    if x % 2 and not (HERE / "mended").exists():
        raise ValueError(f"{{x}} is odd")
    return x // 2

@app.task
def bad(text):
    print(HOSTILE, LONG)
    raise Hostile(HOSTILE + LONG)

@app.task
def sometimes():
    if not (HERE / "mended").exists():
        raise LookupError("not yet")

@app.task
def steps(gate):
    print("step one")
    current().progress(3, 10, "halfway, " + HOSTILE)
    opened(gate)
    print("step two")

@app.task(queue="aside")
def aside(x):
    return x
"""


@dataclass
class Stage:
    """What all tests share."""

    project: Project
    browser: Browser
    url: str
    visit: Visit
    running: Any

    def open(self, name: str) -> None:
        """Let the calls go on that wait for this file."""
        (self.project.folder / name).touch()


@pytest.fixture(scope="module")
def stage(azurite_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with new_project(tmp_path_factory.mktemp("pages"), azurite_url, TASKS) as project:
        running = project.task("steps").delay("never")  # before the worker comes: it is in its first status
        project.task("aside").delay(1)  # a queue that nobody serves
        project.app.client.run(put_hostile)
        project.worker("--concurrency", "3", "--queue", "default", JOBQ_ENVIRONMENT_NAME="<b>lab</b>")
        with dashboard_of(project, "--write", "--refresh", "1s") as url, browser() as chromium, visit(chromium, url) as visitor:
            yield Stage(project, chromium, url, visitor, running)


@pytest.fixture(autouse=True)
def no_offence(stage: Stage) -> Iterator[None]:
    """Nothing on the console, and nobody else asked."""
    stage.visit.offences.clear()
    yield
    assert stage.visit.offences == []


async def put_hostile(ledger: Ledger) -> None:
    """A worker and a dead letter that say of themselves what no honest one would."""
    store, said = await ledger.store(), quote(HOSTILE)
    status = {"state": "working", "environment": TEXT, "host": TEXT, "trouble": TEXT, "slots": "1", "running": "1", "version": TEXT}
    calls = f"{layout.call_id('a' * 16, 7)}~{said}~1700000000~1~10~{said}"
    await store.put(layout.worker("forged-1-abcd"), b"", metadata={**status, "calls": calls, "queues": "default"})
    letter = layout.dead_letter("default", layout.call_id("a" * 16, 7), 1)
    await store.put(letter, b"x", metadata={"task": said, "cause": said, "error": said, "message": said})


def submitted(stage: Stage, name: str, count: int) -> Any:
    """A batch of a task's calls that has ended."""
    batch = stage.project.task(name).map(range(count))
    until(lambda: batch.progress().done == count)
    return batch


def row(page: Page, text: str) -> Any:
    """The rows of tables that hold this text."""
    return page.locator("tbody tr").filter(has_text=text)


def is_harmless(page: Page) -> bool:
    """Whether what was written as markup is no element of the page."""
    return page.evaluate("!document.querySelector('main img, main script, main b, main iframe')")


def test_the_overview_follows_what_happens_without_reloading(stage: Stage) -> None:
    """A new batch comes by itself, what was selected and focused stays so, and its own page tells when it has ended."""
    page = stage.visit.page()
    expect(page).to_have_title("Overview · jobq")
    expect(row(page, "aside").first).to_contain_text("open")
    expect(page.locator("#app")).to_have_text(stage.project.app.name)
    expect(row(page, "<b>lab</b>").first).to_contain_text("3")
    page.evaluate("window.stamp = 'still the same page'")
    page.get_by_role("button", name="Pause aside").focus()
    page.evaluate("getSelection().selectAllChildren(document.querySelector('.tile-title'))")
    batch = stage.project.task("steps").map(["second"])
    expect(row(page, batch.id).first).to_contain_text("steps")
    assert page.evaluate("document.activeElement.textContent") == "Pause"
    assert page.evaluate("String(getSelection())") == "Calls left"
    page.get_by_role("link", name="Batches").click()
    row(page, batch.id).first.get_by_role("link").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text(batch.id)
    expect(page.locator(".shares")).to_contain_text("1 ")
    stage.open("second")
    expect(page.locator(".shares")).to_have_text("1 succeeded (100 %)")
    assert page.evaluate("window.stamp") == "still the same page"


def test_every_chart_has_its_table(stage: Stage) -> None:
    """The run times are there as a picture with a summary in words, and as numbers."""
    batch = submitted(stage, "half", 6)
    page = stage.visit.page(f"#/batch/{batch.id}")
    chart = page.locator("figure").filter(has_text="Run time of its calls")
    expect(chart.get_by_role("img", name=re.compile("Run time of its calls: half within"))).to_be_visible()
    expect(chart.locator(".bars path").first).to_be_visible()
    chart.locator("summary").click()
    expect(chart.get_by_role("region")).to_contain_text("≤")
    with visit(stage.browser, stage.url) as visitor:  # where the chart library is not installed, the table stands open
        visitor.context.route("**/plotly.min.js", lambda route: route.fulfill(status=404))
        chart = visitor.page(f"#/batch/{batch.id}").locator("figure").filter(has_text="Run time of its calls")
        expect(chart.get_by_role("region")).to_contain_text("≤")
        expect(chart).to_contain_text("pip install")


def test_failures_of_a_batch_are_grouped_and_retried(stage: Stage) -> None:
    """On the map by keyboard, and by exception; after the retry of one kind all have succeeded."""
    batch = submitted(stage, "half", 8)
    page = stage.visit.page(f"#/batch/{batch.id}")
    expect(page.locator(".shares")).to_contain_text("4 failed (50 %)")
    expect(row(page, "ValueError").first).to_contain_text("4")
    page.locator("summary").filter(has_text="Table").first.click()
    expect(page.get_by_role("region", name="States of the calls, as a table")).to_contain_text("failed")
    canvas = page.locator("canvas")
    canvas.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(page.locator(".tip")).to_have_text("Call 1: failed")
    stage.open("mended")
    page.get_by_role("button", name="Retry the calls that failed with ValueError").click()
    expect(page.locator("#toast")).to_have_text("Retried: 4")
    expect(page.locator(".shares")).to_contain_text("8 succeeded (100 %)")
    (stage.project.folder / "mended").unlink()


def test_a_batch_is_cancelled_after_a_question(stage: Stage) -> None:
    """Esc leaves it alone and gives the focus back; the button in the dialog asks for the cancel."""
    batch = stage.project.task("aside").map(range(5))
    page = stage.visit.page(f"#/batch/{batch.id}")
    button = page.get_by_role("button", name="Cancel batch")
    button.click()
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(button).to_be_focused()
    button.click()
    page.get_by_role("button", name="Cancel the batch").click()
    expect(page.locator("#toast")).to_have_text("Asked to cancel: 1")
    expect(page.locator(".facts").first).to_contain_text("a cancel was asked for")


def test_a_failed_call_shows_why_and_hostile_text_as_text(stage: Stage) -> None:
    """Its exception's name and message, what it was given and what it printed are shown as they are written."""
    handle = stage.project.task("bad").delay(HOSTILE)
    until(handle.done)
    page = stage.visit.page(f"#/call/{handle.id}")
    expect(page.locator(".badge").first).to_have_text("failed")
    expect(page.locator(".failure")).to_contain_text(TEXT)
    expect(page.get_by_role("region", name="Traceback")).to_contain_text("raise Hostile(HOSTILE + LONG)")
    expect(page.get_by_role("region", name="Traceback")).to_contain_text("x" * 10_000)
    expect(page.get_by_role("region", name="Arguments")).to_be_visible()
    expect(page.get_by_role("log")).to_contain_text(TEXT)
    expect(row(page, "raised").first).to_contain_text(stage.project.workers[0].log.split(" serves app ")[0].split()[-1])
    assert is_harmless(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= DESKTOP[0]


def test_a_running_call_shows_its_progress_and_its_log_and_is_cancelled(stage: Stage) -> None:
    """Both come while it runs; a cancel ends it, and the page says so by itself."""
    page = stage.visit.page(f"#/call/{stage.running.id}")
    expect(page.get_by_role("log")).to_contain_text("step one")
    expect(page.locator(".badge").first).to_have_text("running")
    expect(page.locator(".call-progress")).to_contain_text("3 of 10 (30 %): halfway, <img src=x")
    page.get_by_role("button", name="Cancel call").click()
    page.get_by_role("button", name="Cancel the call").click()
    expect(page.locator("#toast")).to_have_text("Cancelled: 1")
    expect(page.locator(".badge").first).to_have_text("cancelled")
    assert is_harmless(page)


def test_workers_are_sorted_and_filtered(stage: Stage) -> None:
    """By a heading, and by words; what a worker says of itself is text."""
    page = stage.visit.page("#/workers")
    expect(row(page, "forged-1-abcd").first).to_contain_text(TEXT)
    page.get_by_role("button", name="Memory").click()
    expect(page.locator("th[aria-sort=descending]")).to_contain_text("Memory")
    expect(page.locator("tbody tr").first).to_contain_text("MiB")
    page.get_by_label("Filter").fill("lab working")
    expect(page.locator("tbody tr")).to_have_count(1)
    expect(page.get_by_role("status").filter(has_text="of 2 workers")).to_have_text("1 of 2 workers")
    page.get_by_label("Filter").fill("nothing is called this")
    expect(page.get_by_text("No worker fits the filter.")).to_be_visible()
    assert is_harmless(page)


def test_dead_letters_are_grouped_retried_and_purged(stage: Stage) -> None:
    """A group's retry runs its calls again; a purge asks first."""
    first, second = (stage.project.task("sometimes").delay() for _ in range(2))
    until(lambda: first.done() and second.done())
    page = stage.visit.page("#/failed")
    group = page.get_by_role("region", name="Dead letters by cause").locator("tbody tr").filter(has_text="LookupError")
    expect(group).to_contain_text("2")
    letters = page.get_by_role("region", name="Newest dead letters").locator("tbody tr")
    letters.filter(has_text=second.id).get_by_role("button", name="Purge").click()
    expect(page.get_by_role("dialog")).to_contain_text(second.id)
    page.get_by_role("dialog").get_by_role("button", name="Purge").click()
    expect(letters.filter(has_text=second.id)).to_have_count(0)
    stage.open("mended")
    group.get_by_role("button", name="Retry").click()
    expect(page.locator("#toast")).to_have_text("Retried: 1")
    expect(group).to_have_count(0)
    assert stage.project.app.handle(first.id).result(timeout=SOON) is None
    (stage.project.folder / "mended").unlink()
    expect(letters.filter(has_text=TEXT).first).to_be_visible()
    assert is_harmless(page)


def test_a_queue_is_paused_and_resumed(stage: Stage) -> None:
    """One button that changes its name and keeps the focus."""
    page = stage.visit.page()
    page.get_by_role("button", name="Pause aside").click()
    expect(row(page, "aside").first).to_contain_text("paused")
    resume = page.get_by_role("button", name="Resume aside")
    expect(resume).to_be_focused()
    resume.click()
    expect(row(page, "aside").first).to_contain_text("open")


def test_an_account_that_does_not_answer_is_said_and_forgotten(stage: Stage) -> None:
    """The last data stay, with their age and since when they are old; so it is if the dashboard itself is gone."""
    page = stage.visit.page("#/workers")
    expect(row(page, "lab").first).to_be_visible()

    def unreachable(route: Any) -> None:
        data = route.fetch().json()
        route.fulfill(json={**data, "problem": "No route to host", "problem_since": data["now"] - 90, "as_of": data["now"] - 90})

    page.route("**/api/workers", unreachable)
    expect(page.locator("#banner")).to_contain_text("Cannot reach the account since")
    expect(page.locator("#age")).to_contain_text("data from 1 min 3")
    page.unroute("**/api/workers")
    expect(page.locator("#banner")).to_be_hidden()
    expect(row(page, "lab").first).to_be_visible()
    page.route("**/api/workers", lambda route: route.abort())
    expect(page.locator("#banner")).to_contain_text("The dashboard does not answer")
    expect(row(page, "lab").first).to_be_visible()
    assert {offence for offence in stage.visit.offences if "ERR_FAILED" not in offence} == set()
    stage.visit.offences.clear()  # the browser's own words on what was just made to fail


def test_pages_are_used_by_keyboard_and_say_what_is_not_there(stage: Stage) -> None:
    """The first stop skips to the content, an id is opened from the field, and an unknown one is said in words."""
    stage.visit.leave()
    page = stage.visit.page()
    page.keyboard.press("Tab")
    expect(page.get_by_text("Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    page.get_by_label("Id of a call or a batch").fill("no-such-batch")
    page.keyboard.press("Enter")
    expect(page.locator("main .empty").first).to_contain_text("no batch", ignore_case=True)
    expect(page.locator("main")).to_be_focused()
    page.get_by_label("Id of a call or a batch").fill("No/id")
    page.keyboard.press("Enter")
    expect(page.locator("main .empty").first).to_contain_text("A batch's name is")
    expect(page.locator("#banner")).to_be_hidden()


def test_nothing_stands_in_anybodys_way(stage: Stage) -> None:
    """No rule of axe is violated on any page, light, dark, or on a phone, where none is wider than the screen."""
    batch = submitted(stage, "half", 6)
    # Axe is put in as a script, which the pages' own policy forbids: nothing else is done in this context.
    with visit(stage.browser, stage.url, bypass_csp=True) as visitor:
        page = visitor.page()
        page.evaluate(Axe().axe_script)
        for route in (*ROUTES, f"#/batch/{batch.id}", f"#/call/{stage.running.id}"):
            assert page == visitor.page(route)
            expect(page.locator("main")).to_contain_text(re.compile(r".{80}"))
            assert violations(page, {}) == "", route
            page.emulate_media(color_scheme="dark")
            assert violations(page, {"runOnly": ["color-contrast"]}) == "", f"{route} in the dark"
            page.emulate_media(color_scheme="light")
            page.set_viewport_size({"width": PHONE[0], "height": PHONE[1]})
            assert violations(page, {}) == "", f"{route} on a phone"
            assert page.evaluate("document.documentElement.scrollWidth") <= PHONE[0], route
            page.set_viewport_size({"width": DESKTOP[0], "height": DESKTOP[1]})
        assert visitor.offences == []


def violations(page: Page, options: dict[str, Any]) -> str:
    """What axe finds wrong with a page; nothing for a sound one."""
    found = page.evaluate("options => axe.run(document, options)", {"resultTypes": ["violations"], **options})
    return "\n".join(f"{each['id']}: {each['help']}: {each['nodes'][0]['html']}" for each in found["violations"])


def test_a_large_fleet_and_a_large_batch_are_shown_read_only(
    stage: Stage, tmp_path: Path, without_waiting_for_the_disk: None
) -> None:
    """1,000 workers and a batch of 100,000 calls are drawn; there is no button that changes anything."""
    app = App("large", f"local://{tmp_path}")
    app.client.run(lambda ledger: put_workers(ledger, 1000, batch="nightly"))
    app.client.run(lambda ledger: put_batch(ledger, "nightly", 100_000))
    with dashboard_here(app) as url, visit(stage.browser, url) as visitor:
        page = visitor.page("#/workers")
        expect(page.get_by_text("1,000 workers")).to_be_visible()
        page.get_by_role("button", name="Show all 1,000").click()
        expect(page.locator("tbody tr")).to_have_count(1000)
        page = visitor.page("#/batch/nightly")
        expect(page.locator(".shares")).to_contain_text("85,500 succeeded")
        expect(page.get_by_text("Calls 0 to 99,999")).to_be_visible()
        page.locator("canvas").click(position={"x": 4, "y": 4})
        expect(page.get_by_role("button", name="All calls")).to_be_visible()
        expect(page.locator("[data-action]:visible")).to_have_count(0)
        expect(page.locator("#mode")).to_have_text("read only")
        assert visitor.offences == []
    app.close()


def test_draining_lets_the_worker_go(stage: Stage) -> None:
    """The last test, for it ends the worker: the page says that it has stopped."""
    stage.open("never")
    page = stage.visit.page()
    page.get_by_role("button", name="Drain default").click()
    page.get_by_role("dialog").get_by_role("button", name="Drain").click()
    expect(row(page, "default").first).to_contain_text("drained")
    stage.project.workers[0].wait(SOON)
    page.get_by_role("link", name="Workers").click()
    expect(row(page, "lab").first).to_contain_text("stopped")
