"""A batch in a notebook: safe to show, and never an exception."""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from html.parser import HTMLParser
from pathlib import Path

from ai4s.jobq import App
from ai4s.jobq.ledger import Ledger
from ai4s.jobq.maps.html import batch_html
from ai4s.jobq.maps.tally import BatchTally


class Tags(HTMLParser):
    """What an HTML text consists of; `open` is empty at the end if every tag was closed."""

    def __init__(self) -> None:
        super().__init__()
        self.found, self.open, self.text = set[str](), list[str](), ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.add(tag)
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def parsed(html: str) -> Tags:
    tags = Tags()
    tags.feed(html)
    tags.close()
    assert not tags.open
    return tags


def test_all_text_is_escaped() -> None:
    """Names of tasks and exceptions are what users wrote: shown as text, without terminal escapes."""
    evil = "<script>alert(1)</script>\x1b[2J"
    made = BatchTally(id="b", task=evil, queue="default", sent=0.0, calls=10, succeeded=3, failed=1, errors=Counter({evil: 1}))
    tags = parsed(batch_html(f"Batch {evil}", made))
    assert tags.found <= {"div", "span", "b", "table", "tr", "th", "td"}
    assert "<script>alert(1)</script>\\x1b[2J (1)" in tags.text
    assert "4 of 10 and more" in tags.text


def test_an_empty_batch_has_a_picture() -> None:
    """Nothing is divided by its calls."""
    assert "0 of 0" in parsed(batch_html("Batch b", BatchTally("b", "t", "default", 0.0, submitted_all=True))).text


def test_a_notebook_shows_a_batch(tmp_path: Path) -> None:
    """With one listing and no waiting; `repr` asks for nothing at all."""
    with closing(App("shown", f"local://{tmp_path}")) as app:
        task = app.task(_double)
        batch = task.map(range(5))
        batch.tally()  # who has read what its calls share knows it from then on
        before = app.client.run(_requests)
        assert "shown" in repr(batch)
        assert app.client.run(_requests) == before
        shown = parsed(batch._repr_html_())
        assert Counter(app.client.run(_requests)) - Counter(before) == {"blob_list": 1}
        assert "0 of 5" in shown.text
        unknown = parsed(app.batch("no-such-batch-0")._repr_html_())
        assert "not known: There is no batch" in unknown.text


async def _requests(ledger: Ledger) -> dict[str, int]:
    return ledger.transport.requests.snapshot()


def _double(x: int) -> int:
    return 2 * x
