"""The controller over HTTP, for operators: a JSON API with OpenAPI, pages, and static files.

Reading and changing the fleet is in `edgekit.controller.operations`; no rule of the fleet may live here.
"""

from __future__ import annotations

from edgekit.controller.web.app import WebOptions, make_app
from edgekit.controller.web.server import serve

__all__ = ["WebOptions", "make_app", "serve"]
