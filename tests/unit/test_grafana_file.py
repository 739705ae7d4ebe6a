"""The Grafana board's file: that Grafana can read it, that it says what it shows, and that its prices are the package's."""

from __future__ import annotations

import json
import re
from itertools import combinations
from typing import Any

import grafana_board
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from ai4s.jobq.cost.prices import CLASSES, read_prices

OURS = {"type": "prometheus", "uid": "${datasource}"}
UNMODELLED = {"__requires", "id", "definition", "builtIn", "wideLayout"}
"""What Grafana writes and reads itself, beyond its published model of version 10.1."""


def lost(given: Any, kept: Any, path: str = "") -> list[str]:
    """Where `kept` has not all that `given` has."""
    if isinstance(given, dict) and isinstance(kept, dict):
        names = [name for name in given if name not in UNMODELLED]
        return [each for name in names for each in lost(given[name], kept.get(name, "nothing"), f"{path}/{name}")]
    if isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        return [each for one, other in zip(given, kept, strict=True) for each in lost(one, other, path)]
    return [] if given == kept else [f"{path}: {given!r} is {kept!r}"]


def test_grafana_knows_all_that_the_board_says() -> None:
    """Grafana's own model of a dashboard, that of the oldest version which the board is for, reads it and loses nothing."""
    register_default_plugins()
    read = Dashboard.from_json(grafana_board.board())
    assert lost(grafana_board.board(), json.loads(JSONEncoder().encode(read))) == []


def test_each_panel_says_what_it_shows() -> None:
    """It has a title and a number of its own, a description, a unit, and queries to the data source that was chosen."""
    panels = grafana_board.panels()
    every = grafana_board.board()["panels"]
    assert len({panel["id"] for panel in every}) == len(every)
    assert len({panel["title"] for panel in panels}) == len(panels)
    for panel in panels:
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert [panel["datasource"], *(target["datasource"] for target in panel["targets"])] == [OURS] * (len(panel["targets"]) + 1)
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]) > 0


def test_panels_do_not_overlap() -> None:
    """The grid is 24 wide, and each of its places has one panel at most."""

    def places(panel: dict[str, Any]) -> set[tuple[int, int]]:
        at = panel["gridPos"]
        return {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}

    every = [(panel["title"], places(panel)) for panel in grafana_board.board()["panels"]]
    assert [(one, other) for (one, here), (other, there) in combinations(every, 2) if here & there] == []
    assert {x for _, taken in every for x, _ in taken} == set(range(24))


def test_every_variable_of_a_query_is_there() -> None:
    """Those of the board, and those that Grafana itself puts in."""
    values = {**grafana_board.everything(), **grafana_board.built_in(60)}
    texts = [*grafana_board.variables("query").values(), *(query.text for query in grafana_board.queries())]
    assert all("$" not in grafana_board.put_in(text, values) for text in texts)


def test_the_prices_are_those_of_the_package() -> None:
    """The same figures of the same day, unless somebody changes them on the board."""
    prices = read_prices()
    said = {name.removeprefix("price_"): float(value) for name, value in grafana_board.variables("textbox").items()}
    assert said == dict(prices.per_10000_requests)
    costs = [panel for panel in grafana_board.panels() if "cost" in panel["title"].lower()]
    assert len(costs) == 3
    assert all(prices.as_of in panel["description"] and prices.currency in panel["description"] for panel in costs)


def test_each_kind_of_request_has_the_price_of_its_class() -> None:
    """What a price is multiplied with counts the kinds that are charged so, and no others."""
    priced = [found for query in grafana_board.queries() for found in re.findall(r"(.+?)\$price_(\w+)", query.text)]
    assert {price for _, price in priced} == set(CLASSES.values())
    for counted, price in priced:
        (kinds,) = set(re.findall(r'jobq_request_kind=~"([^"]+)"', counted))
        assert {kind for kind in CLASSES if re.fullmatch(kinds, kind)} == {kind for kind, of in CLASSES.items() if of == price}
