"""What TARGET means: an app by its module, or by its place and name.

Next: `worker.py`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ..client import url_of
from ..config import default_url, read_settings
from ..errors import ConfigurationError
from ..layout import check_app_name

MODULE_AND_APP = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
HELP = "TARGET is MODULE:APP, as in myproj.tasks:app, or PLACE/APP, as in myaccount/myproj or local:///tmp/jobs/myproj."


@dataclass(frozen=True, slots=True)
class Target:
    """Either `module` ("myproj.tasks:app"), or the app's name and the URL of its place."""

    module: str | None = None
    app: str = ""
    url: str = ""


def parse_target(text: str) -> Target:
    """Read TARGET; raises ConfigurationError that says what would be right."""
    if MODULE_AND_APP.fullmatch(text):
        return Target(module=text)
    if re.fullmatch(r"\w+://[^/]*/?", text):
        raise ConfigurationError(f"{text!r} names a place and no app: add it, as in {text.rstrip('/')}/myproj. {HELP}")
    place, slash, app = text.rpartition("/")
    if not slash or not place or not app:
        raise ConfigurationError(f"{text!r} names no app. {HELP}")
    return Target(app=check_app_name(app), url=_place_url(place))


def _place_url(place: str) -> str:
    if place == "local":
        return default_url(read_settings(), Path.cwd())
    if place == "azurite":
        place = "azurite://"
    return url_of(place if "://" in place else f"azure://{place}")
