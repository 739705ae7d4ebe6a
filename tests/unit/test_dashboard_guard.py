"""Who may ask the dashboard: nobody without the token, no other name of this machine, no page elsewhere, whatever the method."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest
from dashboards import visited

from ai4s.jobq import App
from ai4s.jobq.dashboard.server import Dashboard, Options
from ai4s.jobq.errors import ConfigurationError

PATHS = ("/", "/static/main.js", "/static/plotly.min.js", "/api/overview", "/api/call/abcdefghijklmnop-000000000000", "/nothing")
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH")


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    made = App("guarded", f"local://{tmp_path}")
    made.client.run(lambda ledger: ledger.queue("default"))
    made.client.run(lambda ledger: ledger.store())
    yield made
    made.close()


async def test_nobody_is_let_in_without_the_token(app: App) -> None:
    """Every path, files included, answers 401 and nothing else, by every method."""
    async with visited(app, enters=False) as visitor:
        for path in PATHS:
            for method in METHODS:
                assert await visitor.status(path, method) == 401, (method, path)
            async with visitor.session.get(f"{visitor.base}{path}") as answer:
                assert list(await answer.json()) == ["problem"]


async def test_a_wrong_token_is_refused(app: App) -> None:
    """Neither in the URL nor as the cookie."""
    async with visited(app, enters=False) as visitor:
        for token in ("", "x", visitor.guard.token[:-1], visitor.guard.token + "x", "é" * 43, "%ed%a0%80"):
            assert await visitor.status(f"/?token={token}") == 403
            assert await visitor.status("/api/overview", cookies={f"jobq-{visitor.guard.port}": token}) == 401
        assert await visitor.status(f"/api/overview?token={visitor.guard.token}") == 401


async def test_the_token_leaves_the_address_bar(app: App) -> None:
    """The URL that is printed redirects to one without it, with a cookie that no script and no other site can use."""
    async with visited(app, enters=False) as visitor:
        async with visitor.session.get(visitor.guard.url, allow_redirects=False) as answer:
            assert (answer.status, answer.headers["Location"]) == (303, "/")
            cookie = answer.headers["Set-Cookie"]
            assert all(part in cookie for part in ("HttpOnly", "SameSite=Strict", "Path=/", f"jobq-{visitor.guard.port}="))
        assert (await visitor.get("/api/overview"))["app"] == "guarded"


async def test_a_link_from_another_page_gets_there_too(app: App) -> None:
    """From a notebook, say: a cookie set within a foreign navigation is not sent along, so our own page goes on from there."""
    async with visited(app, enters=False) as visitor:
        headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
        async with visitor.session.get(visitor.guard.url, headers=headers) as answer:
            assert answer.status == 200
            assert 'url=/"' in await answer.text()
            assert visitor.guard.token not in await answer.text()


async def test_a_ticket_is_good_once(app: App) -> None:
    """What stands on the command line of a browser can be read by others on the machine."""
    async with visited(app, enters=False) as visitor:
        path = visitor.guard.ticket().removeprefix(visitor.base)
        assert visitor.guard.token not in path
        assert [await visitor.status(path), await visitor.status(path)] == [303, 403]


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "localhost.:{port}", "[::1]:{port}"]
)
async def test_another_name_of_this_machine_is_refused(app: App, host: str) -> None:
    """A name that somebody has pointed at this machine (DNS rebinding) reaches nothing, by no method, with the cookie too."""
    async with visited(app) as visitor:
        for path in ("/", "/static/main.js", "/api/overview", "/api/actions/pause"):
            for method in METHODS:
                headers = {"Host": host.format(port=visitor.guard.port)}
                assert await visitor.status(path, method, headers=headers) == 403, (method, path)


@pytest.mark.parametrize(
    "origin", ["null", "http://evil.example", "https://127.0.0.1:{port}", "http://127.0.0.1", "http://localhost:1"]
)
async def test_another_origin_is_refused(app: App, origin: str) -> None:
    """A page elsewhere that makes a browser ask is found out, by every method, for files too."""
    async with visited(app) as visitor:
        headers = {"Origin": origin.format(port=visitor.guard.port)}
        for path in ("/", "/static/main.js", "/api/overview", "/api/actions/pause"):
            for method in METHODS:
                assert await visitor.status(path, method, headers=headers) == 403, (method, path)


async def test_another_page_cannot_embed_anything(app: App) -> None:
    """A script or an image of a page on another port, which sends no Origin but the cookie, is refused; a visit by link is none."""
    async with visited(app) as visitor:
        for site in ("same-site", "cross-site"):
            for path in ("/", "/static/main.js", "/api/overview"):
                headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "no-cors"}
                assert await visitor.status(path, headers=headers) == 403
            assert await visitor.status("/", headers={"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate"}) == 200
        assert await visitor.status("/api/overview", headers={"Sec-Fetch-Site": "same-origin"}) == 200


async def test_our_own_page_is_answered_by_either_name(app: App) -> None:
    """Both 127.0.0.1 and localhost are this machine."""
    async with visited(app) as visitor:
        for name in ("127.0.0.1", "localhost"):
            host = f"{name}:{visitor.guard.port}"
            headers = {"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
            assert await visitor.status("/api/overview", headers=headers) == 200


async def test_every_answer_forbids_what_is_not_ours(app: App) -> None:
    """The policy stands on pages, data, files and errors; no answer of data may be kept."""
    async with visited(app) as visitor:
        for path in ("/", "/static/main.js", "/api/overview", "/nothing", "/api/call/nonsense"):
            async with visitor.session.get(f"{visitor.base}{path}") as answer:
                policy = answer.headers["Content-Security-Policy"]
                assert "default-src 'none'" in policy
                assert "unsafe" not in policy
                assert answer.headers["X-Content-Type-Options"] == "nosniff"
                assert answer.headers["Referrer-Policy"] == "no-referrer"
                assert "Python" not in answer.headers["Server"]
                if path.startswith("/api"):
                    assert answer.headers["Cache-Control"] == "no-store"
                    assert answer.content_type == "application/json"


async def test_no_name_of_a_file_leads_elsewhere(app: App) -> None:
    """Only the files of the pages have URLs."""
    async with visited(app) as visitor:
        for name in ("..%2fguard.py", "%2e%2e/guard.py", "guard.py", "__init__.py", "..%2f..%2f..%2f..%2fetc%2fpasswd", "%00"):
            assert await visitor.status(f"/static/{name}") == 404, name


async def test_actions_need_leave(app: App) -> None:
    """Without --write nothing can be changed, and the answers say that."""
    async with visited(app) as visitor:
        for name in ("cancel", "retry", "purge", "pause", "resume", "drain"):
            answer = await visitor.act(name, queue="default", ids=["x"])
            assert answer["status"] == 403
            assert "--write" in answer["problem"]
        assert (await visitor.get("/api/overview"))["write"] is False


async def test_an_action_is_no_form(app: App) -> None:
    """What a form of another page could send changes nothing, though it had the cookie."""
    async with visited(app, write=True) as visitor:
        path, body = "/api/actions/pause", b'{"queue": "default"}'
        assert await visitor.status(path, "POST", data=body, headers={"Content-Type": "text/plain", "X-Jobq": "1"}) == 415
        assert await visitor.status(path, "POST", data=body, headers={"Content-Type": "application/json"}) == 403
        assert await visitor.status(path, "GET") == 405
        headers = {"Content-Type": "application/json", "X-Jobq": "1"}
        for wrong in (b"{", b"[]", b'"x"', b"\xff", b"[" * 100_000):
            assert await visitor.status(path, "POST", data=wrong, headers=headers) == 400
        for odd in ({"Content-Encoding": "gzip"}, {"Content-Type": "application/json; charset=none"}):
            assert await visitor.status(path, "POST", data=b"{", headers={**headers, **odd}) == 400
        assert await visitor.status(path, "POST", data=b" " * 300_000, headers=headers) == 413
        assert app.client.run(lambda ledger: ledger.control("default")) is None


async def test_a_taken_port_is_an_error_that_says_what_to_do(app: App) -> None:
    """It names the option."""
    async with visited(app) as visitor:
        with pytest.raises(ConfigurationError, match="--port 0"):
            await Dashboard(app, Options(port=visitor.guard.port)).start()


async def test_it_listens_on_this_machine_alone(app: App) -> None:
    """No other address of this machine answers."""
    async with visited(app) as visitor:
        with pytest.raises(aiohttp.ClientConnectorError):
            await visitor.session.get(f"http://127.0.0.2:{visitor.guard.port}/")
