"""The Grafana board as the tests read it: its panels, its queries, and its variables put in as Grafana does.

Next: `prometheus_server.py`, which answers the queries.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_server import SCRAPE_SECONDS, Prometheus

PATH = Path(__file__).resolve().parents[1] / "grafana" / "jobq.json"
LABEL_VALUES = re.compile(r"label_values\((?P<selector>.+), *(?P<label>\w+)\)")
VARIABLE = re.compile(r"\$(\w+)")


@dataclass(frozen=True)
class Query:
    """One query of a panel; `instant` ones ask for the end of the time shown, the others for all of it."""

    panel: str
    text: str
    instant: bool


def board() -> dict[str, Any]:
    """The board's JSON."""
    found: dict[str, Any] = json.loads(PATH.read_text())
    return found


def panels() -> list[dict[str, Any]]:
    """Every panel that shows something; rows only hold them together."""
    return [panel for panel in board()["panels"] if panel["type"] != "row"]


def variables(kind: str) -> dict[str, str]:
    """The board's variables of a kind ("query", "textbox"), and the query or value of each."""
    listed = [each for each in board()["templating"]["list"] if each["type"] == kind]
    return {each["name"]: each["query"]["query"] if kind == "query" else each["query"] for each in listed}


def queries() -> Iterator[Query]:
    """Every query of every panel."""
    for panel in panels():
        for target in panel["targets"]:
            yield Query(panel["title"], target["expr"], target["instant"])


def built_in(range_seconds: float) -> dict[str, str]:
    """What Grafana itself puts in, where a point of a chart stands for one second."""
    return {
        "__range": f"{range_seconds:.0f}s",
        "__interval": "1s",
        "__rate_interval": f"{max(1 + SCRAPE_SECONDS, 4 * SCRAPE_SECONDS)}s",
    }


def put_in(text: str, values: Mapping[str, str]) -> str:
    """A query with its variables replaced; fails for one that the board does not have."""
    return VARIABLE.sub(lambda match: values[match[1]], text)


def everything() -> dict[str, str]:
    """The values of a board on which nothing was chosen."""
    return {**dict.fromkeys(variables("query"), ".*"), **variables("textbox")}


def chosen(prometheus: Prometheus) -> dict[str, str]:
    """The values of a board on which every app, environment and queue that is offered was chosen one by one."""
    values = everything()
    for name, query in variables("query").items():
        match = LABEL_VALUES.fullmatch(query)
        assert match, f"a query of an unknown kind: {query}"
        offered = prometheus.label_values(match["label"], put_in(match["selector"], values))
        values[name] = "(" + "|".join(map(re.escape, offered)) + ")" if offered else ""
    return values
