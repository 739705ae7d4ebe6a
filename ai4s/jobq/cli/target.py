"""What TARGET means: an app by its module, or by its place and name; and where the target comes from when it is not given.

Next: the verbs, which open it.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..client import url_of
from ..config import default_url, read_settings
from ..errors import ConfigurationError
from ..layout import check_app_name
from ..transports.place import AzurePlace, parse_place

if TYPE_CHECKING:
    from ..app import App

MODULE_AND_APP = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
HELP = "TARGET is MODULE:APP, as in myproj.tasks:app, or PLACE/APP, as in myaccount/myproj or local:///tmp/jobs/myproj."


@dataclass(frozen=True, slots=True)
class Target:
    """Either `module` ("myproj.tasks:app"), or the app's name and the URL of its place."""

    module: str | None = None
    app: str = ""
    url: str = ""


@dataclass(frozen=True, slots=True)
class Chosen:
    """What the command line said before the verb; an empty text leaves the target to the environment."""

    text: str
    connection_string: str | None = None
    louder: int = 0
    """How often -v was given, less -q."""

    def target(self) -> Target:
        """The target; raises ConfigurationError that says what would be right."""
        settings = read_settings()
        text = self.text or settings.target
        if not text:
            raise ConfigurationError(f"No TARGET is given, and JOBQ_TARGET names none. {HELP}")
        return parse_target(text, self.connection_string or settings.connection_string)

    def open(self, *, create: bool = True) -> App:
        """The app: imported, or made for its place; with `create` off, what is not there is an error. Raises ConfigurationError."""
        target = self.target()
        if target.module is not None:
            app = _imported(target.module)
            app.client.move(app.client.origin._replace(create=create and app.client.create))
            return app
        from ..app import App

        return App(target.app, target.url, create=create)


def parse_target(text: str, connection_string: str | None = None) -> Target:
    """Read TARGET; raises ConfigurationError that says what would be right."""
    if MODULE_AND_APP.fullmatch(text):
        return Target(module=text)
    if text.startswith("sb://"):
        raise ConfigurationError(
            f"{text!r} is on Azure Service Bus, which is not supported: name a storage account, as in myaccount/myproj. What lies "
            "there is worked off by ai4s-jobq 3.x."
        )
    if re.fullmatch(r"\w+://[^/]*/?", text):
        raise ConfigurationError(f"{text!r} names a place and no app: add it, as in {text.rstrip('/')}/myproj. {HELP}")
    place, slash, app = text.rpartition("/")
    if not slash or not place or not app:
        raise ConfigurationError(f"{text!r} names no app. {HELP}")
    return Target(app=check_app_name(app), url=_place_url(place, connection_string))


def _place_url(place: str, connection_string: str | None) -> str:
    if place == "local":
        return default_url(read_settings(), Path.cwd())
    if place == "azurite":
        place = "azurite://"
    label = place if "://" in place else f"azure://{place}"
    if connection_string is None or not isinstance(parse_place(label), AzurePlace):
        return url_of(label)
    return _with_right(label, connection_string)


def _with_right(label: str, connection_string: str) -> str:
    """The connection string, if it is for the account that TARGET names."""
    named, given = parse_place(label), parse_place(connection_string)
    if not isinstance(named, AzurePlace) or not isinstance(given, AzurePlace) or named.account != given.account:
        told = given.account if isinstance(given, AzurePlace) else given.label
        raise ConfigurationError(f"TARGET is at {named.label}, and the connection string is for {told}: name one and the same.")
    return connection_string


def _imported(target: str) -> App:
    """The app of a module in the current folder or on the path. Raises ConfigurationError, whatever the module raises."""
    from ..worker.registry import import_app

    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        return import_app(target)
    except Exception as exc:
        if isinstance(exc, ConfigurationError):
            raise
        raise ConfigurationError(f"{target} could not be imported: {type(exc).__name__}: {exc}") from exc
