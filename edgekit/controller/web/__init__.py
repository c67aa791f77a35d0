"""What operators see and do over HTTP: a JSON API with OpenAPI, pages, and static files."""

from __future__ import annotations

from edgekit.controller.web.app import WebOptions, make_app
from edgekit.controller.web.server import serve

__all__ = ["WebOptions", "make_app", "serve"]
