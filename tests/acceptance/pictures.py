"""The pictures of the dashboard in the docs: `python tests/acceptance/pictures.py` writes them to `docs/images`.

A place of its own is filled as forty workers and some batches would have left it, one real worker runs a few calls, and a real
browser looks at the real pages, light, dark and as a phone does. Run it after a change of the pages, and look at what it made.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]  # run by hand: no pytest has put the helpers on the path

from browsing import PHONE, browser, dashboard_here, visit  # noqa: E402  # found by the lines above
from playwright.sync_api import Page, expect  # noqa: E402
from projects import SOON, environment, program, until  # noqa: E402
from simulated import worker_status  # noqa: E402

from ai4s.jobq import App, layout  # noqa: E402
from ai4s.jobq.batches import BatchLedger  # noqa: E402
from ai4s.jobq.call_progress import CallProgress  # noqa: E402
from ai4s.jobq.distribution import Distribution  # noqa: E402
from ai4s.jobq.entry_notes import Written, notes  # noqa: E402
from ai4s.jobq.ledger import Ledger  # noqa: E402
from ai4s.jobq.message import BatchMeta, BatchTotal, Call, Cause, Failure  # noqa: E402
from ai4s.jobq.overview import current  # noqa: E402
from ai4s.jobq.packing import Code, Packed, failed  # noqa: E402

IMAGES = HERE.parent.parent / "docs" / "images"
WORKERS = 40
WATCHED_SECONDS = 30.0  # so long the curve of the throughput grows before it is taken
BATCH = "screen-kinases"
PACK, ENTRY = 1600, 100  # calls of a pack, and of an entry of its log
AT_WORK = range(30, 30 + WORKERS)  # the packs that workers have now; those before are done
PACKS = 80
FOLDER = "screen-"
# Nobody need see in which folder the pictures were made.
HIDE_FOLDER = """path => {
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
        const text = texts.currentNode;
        const [first, ...rest] = text.data.split(path);
        if (rest.length) text.data = first + rest.map(part => "~/screen" + part.slice(8)).join("");
    }
}"""
MODEL, CHARGE = Failure(Cause.RAISED, "screen.NoModel", "no"), Failure(Cause.RAISED, "ValueError", "no")


def done_of(pack: int) -> int:
    """How many calls of a pack have ended."""
    if pack not in AT_WORK:
        return PACK if pack < AT_WORK.start else 0
    return ENTRY * (3 + (pack * 7) % 11)


async def put_campaign(ledger: Ledger, name: str, task: str, packs: int) -> None:
    """A batch as it is after an hour: what each entry of its packs' logs tells."""
    store, now, chance = await ledger.store(), await ledger.transport.server_time(), random.Random(name)
    batch = BatchLedger(ledger, name)
    await batch.put_meta(BatchMeta(Call(layout.packed_call_id(name, 0), task, "default", b"", now - 3600)))
    for pack in range(packs):
        await store.put(layout.pack_input(name, pack), b"x", metadata={"first": str(pack * PACK), "count": str(PACK)})
    written = [(pack, seq) for pack in range(packs) for seq in range(done_of(pack) // ENTRY)]
    written.sort(key=lambda entry: (entry[0] in AT_WORK) + entry[1] * ENTRY / done_of(entry[0]))
    for place, (pack, seq) in enumerate(written):
        metadata = entry(chance, pack * PACK + seq * ENTRY, now - 3500 * (1 - place / len(written)))
        await store.put(layout.log_entry(name, layout.root_log(pack), seq), b"x", metadata=metadata)
    await batch.say_total(BatchTotal(packs * PACK, packs, ended=True))
    await batch.bury("default")


def backdate(place: Path) -> None:
    """Have each entry be as old as it says: a rate comes from when they were written."""
    with contextlib.closing(sqlite3.connect(place / "jobq.db")) as database, database:
        of_entries = "WHERE name LIKE 'batches/%/log/%'"
        database.execute(f"UPDATE blobs SET modified = json_extract(metadata, '$.at') {of_entries}")
        database.execute("UPDATE blobs SET modified = modified - 3600 WHERE name LIKE 'batches/%/meta'")


def entry(chance: random.Random, first: int, at: float) -> dict[str, str]:
    """The metadata of an entry; few calls fail, and those that do stand together."""
    risk = 0.3 if chance.random() < 0.03 else 0.0008
    outcomes = []
    for index in range(first, first + ENTRY):
        seconds = 0.4 * chance.lognormvariate(0.9, 1.1)
        failure = (CHARGE if chance.random() < 0.8 else MODEL) if chance.random() < risk else None
        outcomes.append(failed(index, 1, seconds, failure) if failure else Packed(index, Code.VALUE, 1, seconds, b"x"))
    return notes(outcomes, 0, Written("d16-0000-1-0000", at, {"blob_put": 1, "queue_renew": 2}))


def running(number: int, now: float, tick: int) -> str:
    """Two calls that a worker says to run, at the end of what its pack has done."""
    first = AT_WORK[number] * PACK + done_of(AT_WORK[number])
    calls = [
        current.CurrentCall(
            layout.packed_call_id(BATCH, first + place), "screen.dock", now - 5 - 11 * place - number % 17,
            CallProgress((number * 37 + tick * 9 + place * 310) % 1000, 1000, "poses"),
        )
        for place in range(2)
    ]  # fmt: skip
    return current.to_text(calls)[0]


CAMPAIGN = """
import time
from ai4s.jobq import App, current

app = App("protein-screen", {url!r})

@app.task(name="screen.prepare", retries=1)
def prepare(ligand: str, *, charge: int = 0) -> int:
    print(f"reading {{ligand}}")
    current().logger.info("force field: ff14SB")
    time.sleep(0.4)
    if charge > 1:
        raise ValueError(f"{{ligand}}: no conformer with charge {{charge}}")
    return len(ligand)

@app.task(name="screen.dock")
def dock(ligand: str) -> None:
    for pose in range(1, 1001):
        current().progress(pose, 1000, "poses")
        if pose % 20 == 1:
            print(f"pose {{pose}}: {{-7.1 - pose % 13 / 10:.1f}} kcal/mol")
        time.sleep(0.1)
"""


async def put_statuses(ledger: Ledger, tick: int) -> None:
    """What the workers say after so many ticks: each has ended some calls more, and runs others."""
    store, now = await ledger.store(), await ledger.transport.server_time()
    for number in range(WORKERS):
        name = layout.worker(f"d16-{number:04d}-1-{number * 2749:04x}")
        await store.put(name, b"", metadata=status(number, now, tick))


def status(number: int, now: float, tick: int) -> dict[str, str]:
    """What one of them says."""
    times, waits = Distribution(), Distribution()
    for place in range(40):
        times.add(0.4 * 1.13 ** ((place * 7 + number) % 34), n=7)
        waits.add(2.0 * 1.2 ** ((place * 5 + number) % 40), n=7)
    ended = 2000 + 37 * number + int(tick * (0.48 + (number + tick // 9) % 3 / 20))
    return {
        **worker_status(number, now, batch=BATCH),
        "host": f"d16-{number:04d}",
        "environment": ("spot-d16", "spot-d16", "spot-nc24", "cluster")[number % 4],
        "begun": str(ended + 8),
        "succeeded": str(ended),
        "failed": str(4 + number % 3),
        "dead": "0",
        "preempted": str(int(number % 4 == 0)),
        "calls": running(number, now, tick),
        "rate": f"{0.4 + number % 4 / 10:.1f}",
        "cpu": f"{160 + 7 * (number % 31)}",
        "memory": str((30 + number % 17) << 26),
        "runs": times.to_text(),
        "waits": waits.to_text(),
    }


@contextlib.contextmanager
def campaign(folder: Path) -> Iterator[tuple[Any, list[str]]]:
    """A module with its app, a worker that serves it, and the ids of a call that failed and of one that runs."""
    (folder / "campaign.py").write_text(textwrap.dedent(CAMPAIGN.format(url=f"local://{folder / 'place'}")))
    sys.path.insert(0, str(folder))
    import campaign as module  # type: ignore[import-not-found]

    app: App = module.app
    app.client.run(lambda ledger: put_statuses(ledger, 0))
    for name, packs, task in ((BATCH, PACKS, "screen.dock"), ("relax-side-chains", 6, "screen.relax")):
        app.client.run(lambda ledger, name=name, packs=packs, task=task: put_campaign(ledger, name, task, packs))
    backdate(folder / "place")
    command = [*program("jobq-worker"), "campaign:app", "--concurrency", "2"]
    with (folder / "worker.log").open("wb") as log:
        worker = subprocess.Popen(command, cwd=folder, env=environment(JOBQ_ENVIRONMENT_NAME="workstation"), stdout=log, stderr=log)
    try:
        failing = [module.prepare.delay(f"CHEMBL{number}", charge=2) for number in (1336, 2109)]
        until(lambda: all(handle.done() for handle in failing))
        running = module.dock.delay("CHEMBL941")
        yield app, [failing[0].id, running.id]
    finally:
        worker.terminate()
        worker.wait(SOON)
        app.close()


def take(page: Page, name: str, *, whole: bool = False) -> None:
    """One picture, in 256 colours: a third of the bytes."""
    from PIL import Image

    path = IMAGES / f"dashboard-{name}.png"
    page.evaluate(HIDE_FOLDER, f"{tempfile.gettempdir()}/{FOLDER}")
    page.screenshot(path=path, full_page=whole, animations="disabled")
    with Image.open(path) as picture:
        picture.convert("RGB").quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(path, optimize=True)


def pictures(url: str, ids: list[str]) -> None:
    """All of them."""
    failed, running = ids
    with browser() as chromium, visit(chromium, url) as visitor:
        page = visitor.page()
        page.wait_for_timeout(WATCHED_SECONDS * 1000)
        take(page, "overview", whole=True)
        visitor.page("#/batches")
        expect(page.locator("tbody tr")).to_have_count(2)
        take(page, "batches")
        visitor.page(f"#/batch/{BATCH}")
        expect(page.locator(".plot svg").first).to_be_visible()
        take(page, "batch", whole=True)
        visitor.page(f"#/call/{failed}")
        expect(page.get_by_role("log")).to_be_visible()
        take(page, "call", whole=True)
        visitor.page(f"#/call/{running}")
        expect(page.locator(".call-progress")).to_contain_text("poses", timeout=SOON * 1000)
        take(page, "call-running")
        visitor.page("#/workers")
        expect(page.locator("tbody tr").first).to_be_visible()
        take(page, "workers")
        visitor.page("#/failed")
        expect(page.locator("tbody tr").first).to_be_visible()
        take(page, "dead-letters")
        visitor.page()
        page.emulate_media(color_scheme="dark")
        expect(page.locator(".plot svg").first).to_be_visible()
        page.wait_for_timeout(500)
        take(page, "dark")
        page.emulate_media(color_scheme="light")
        page.set_viewport_size({"width": PHONE[0], "height": PHONE[1]})
        visitor.page(f"#/batch/{BATCH}")
        expect(page.locator(".shares")).to_contain_text("succeeded")
        page.wait_for_timeout(500)
        take(page, "phone")


def main() -> None:
    """Fill a place, let it move, and take the pictures."""
    IMAGES.mkdir(exist_ok=True)
    over = threading.Event()
    with tempfile.TemporaryDirectory(prefix=FOLDER) as name, campaign(Path(name)) as (app, ids):

        def move() -> None:
            for tick in itertools.count(1):
                if over.wait(1.0):
                    return
                app.client.run(partial(put_statuses, tick=tick))

        moving = threading.Thread(target=move)
        moving.start()
        try:
            with dashboard_here(app) as url:
                pictures(url, ids)
        finally:
            over.set()
            moving.join()


if __name__ == "__main__":
    os.environ.pop("JOBQ_URL", None)
    main()
