"""What requests come to: prices, a batch's cost by its producer and its workers, an app's by its workers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from ai4s.jobq import App, ConfigurationError, layout
from ai4s.jobq.cli import jobq
from ai4s.jobq.cost.costs import cost_of
from ai4s.jobq.cost.prices import CLASSES, read_prices
from ai4s.jobq.ledger import Ledger
from ai4s.jobq.requests_made import KINDS, to_text

PRICES = {
    "as_of": "2026-01-02",
    "currency": "EUR",
    "per_10000_requests": {"queue": 1, "write": 10, "list": 20, "read": 2, "delete": 0},
}


@pytest.fixture
def app(tmp_path: Path) -> App:
    return App("cost-unit", f"local://{tmp_path}/place")


def priced(folder: Path, text: str) -> str:
    path = folder / "prices.json"
    path.write_text(text)
    return str(path)


def test_every_kind_has_a_price() -> None:
    """The package's table is whole."""
    assert set(CLASSES) == set(KINDS)
    assert set(read_prices().per_10000_requests) == set(CLASSES.values())


def test_requests_come_to_their_prices(tmp_path: Path) -> None:
    """By class and by kind; a kind that nobody knows costs nothing."""
    prices = read_prices(priced(tmp_path, json.dumps(PRICES)))
    cost = cost_of({"queue_send": 10_000, "queue_renew": 10_000, "blob_put": 5_000, "strange": 7, "blob_get": 0}, prices)
    assert (cost.amount, cost.total, cost.currency, cost.as_of) == (7.0, 25_007, "EUR", "2026-01-02")
    assert (cost.by_class["queue"], cost.by_class["write"], cost.by_kind["queue_renew"]) == (2.0, 5.0, 1.0)
    assert str(cost) == "25,007 requests, €7.00 (prices as of 2026-01-02)"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "[" * 100_000,
        json.dumps({**PRICES, "currency": "\n"}),
        json.dumps({**PRICES, "as_of": 3}),
        json.dumps({**PRICES, "per_10000_requests": {"queue": 1}}),
        json.dumps({**PRICES, "per_10000_requests": {**PRICES["per_10000_requests"], "queue": -1}}),  # type: ignore[dict-item]
        json.dumps({**PRICES, "per_10000_requests": {**PRICES["per_10000_requests"], "queue": "1"}}),  # type: ignore[dict-item]
        json.dumps({**PRICES, "per_10000_requests": {**PRICES["per_10000_requests"], "queues": 1}}),  # type: ignore[dict-item]
        '{"as_of": "x", "currency": "USD", "per_10000_requests": {"queue": NaN, "write":1,"list":1,"read":1,"delete":1}}',
    ],
)
def test_a_file_that_holds_no_prices_is_one_line(tmp_path: Path, text: str) -> None:
    """It says which file, what is wrong, and what would be right."""
    path = priced(tmp_path, text)
    with pytest.raises(ConfigurationError, match=r"JOBQ_PRICES=.*per_10000_requests") as raised:
        read_prices(path)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_missing_is_one_line(tmp_path: Path) -> None:
    """The name may be mistyped."""
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_prices(str(tmp_path / "none"))


def test_an_app_costs_what_its_workers_and_this_process_asked(app: App) -> None:
    """Workers say it in their statuses; one that somebody spoilt counts as nothing."""
    write_worker(app, "one-1-aa", to_text({"blob_put": 1000, "queue_receive": 5}))
    write_worker(app, "two-2-bb", to_text({"blob_put": 500}))
    write_worker(app, "bad-3-cc", "bp:x,,")
    mine = app.client.run(_mine)
    cost = app.cost()
    assert cost.requests["blob_put"] == 1500 + mine["blob_put"]
    assert cost.requests["queue_receive"] == 5
    assert cost.requests["blob_list"] == 1


async def _mine(ledger: Ledger) -> dict[str, int]:
    return ledger.transport.requests.snapshot()


def write_worker(app: App, name: str, requests: str) -> None:
    async def put(ledger: Ledger) -> None:
        await (await ledger.store()).put(layout.worker(name), b"", metadata={"state": "working", "requests": requests})

    app.client.run(put)


def test_the_command_shows_a_table(app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a total, the date of the prices, and how to change them; numbers as JSON."""
    monkeypatch.setenv("JOBQ_PRICES", priced(tmp_path, json.dumps(PRICES)))
    write_worker(app, "one-1-aa", to_text({"blob_list": 10_000}))
    target = f"{app.client.place.label}/{app.name}"
    shown = CliRunner().invoke(jobq, [target, "cost"], catch_exceptions=False)
    assert "blob_list\t10,001\tlist\t€20.00" in shown.output
    assert "Prices as of 2026-01-02; to change them, name a file of yours in JOBQ_PRICES." in shown.output
    lines = CliRunner().invoke(jobq, [target, "cost", "--json"]).stdout.splitlines()
    total = json.loads(lines[-1])
    assert (total["kind"], total["currency"], total["requests"]) == (
        "total",
        "EUR",
        sum(json.loads(line)["requests"] for line in lines[:-1]),
    )


def test_the_command_says_what_is_wrong_with_prices(app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a line, as wrong setup."""
    write_worker(app, "one-1-aa", "")
    monkeypatch.setenv("JOBQ_PRICES", str(tmp_path / "none"))
    found = CliRunner().invoke(jobq, [f"{app.client.place.label}/{app.name}", "cost"])
    assert found.exit_code == 2
    assert "JOBQ_PRICES" in found.output
