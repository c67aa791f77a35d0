"""The OpenAPI 3.1 document of the API, made from its table of endpoints. Pure rules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from edgekit.controller.web.endpoint import PREFIX, Endpoint, ErrorDocument
from edgekit.state.operators import Role

_REF = "#/components/schemas/{name}"
_FAULTS = {
    "400": "A parameter, the body or the filter is not valid.",
    "401": "The request needs a token.",
    "403": "The role may not do this, or the request comes from a page of another site.",
    "404": "There is nothing of this name or number.",
    "408": "The body did not arrive in time.",
    "409": "Refused: the present state does not allow it.",
    "413": "The body is too long.",
    "503": "The database or the registry cannot be reached; try again.",
}


def openapi(endpoints: Sequence[Endpoint], version: str) -> dict[str, Any]:
    """The document.

    Args:
        endpoints: The table.
        version: Version of edgekit.
    """
    types: list[Any] = [ErrorDocument]
    for one in endpoints:
        types += [one.answer, one.parameters, one.query, *([one.body] if one.body else [])]
    schemas, components = msgspec.json.schema_components(types, ref_template=_REF)
    for schema in (*schemas, *components.values()):
        _leave_out_closed_items(schema)
    by_type = dict(zip(map(id, types), schemas, strict=True))
    paths: dict[str, Any] = {}
    for one in endpoints:
        paths.setdefault(PREFIX + one.path, {})[one.method.lower()] = _operation(one, by_type, components)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "edgekit controller",
            "version": version,
            "description": "Reads need no token on the controller's own machine. Everything else needs an operator's "
            "token: edgekit controller token add NAME --role viewer|operator|admin.",
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _leave_out_closed_items(schema: Any) -> None:
    """Remove ``items: false`` from tuples whose length is given too: it adds nothing, and generators cannot read it."""
    for inner in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        _leave_out_closed_items(inner)
    if isinstance(schema, dict) and schema.get("items") is False and schema.get("maxItems") is not None:
        del schema["items"]


def _operation(one: Endpoint, by_type: dict[int, Any], components: dict[str, Any]) -> dict[str, Any]:
    reply = {"application/json": {"schema": by_type[id(one.answer)]}}
    fault = {"application/json": {"schema": by_type[id(ErrorDocument)]}}
    read = ("408", "409", "413") if one.method == "GET" else ()
    faults = {code: text for code, text in _FAULTS.items() if code not in read}
    operation: dict[str, Any] = {
        "operationId": one.operation,
        "summary": one.summary,
        "description": f"Least role: {one.role.value}.",
        "security": [{"token": []}, {}] if one.role is Role.VIEWER else [{"token": []}],
        "parameters": [*_parameters(one.parameters, "path", components), *_parameters(one.query, "query", components)],
        "responses": {
            str(one.status): {"description": "Done.", "content": reply},
            **{code: {"description": text, "content": fault} for code, text in faults.items()},
        },
    }
    if one.body is not None:
        content = {"application/json": {"schema": by_type[id(one.body)]}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _parameters(kind: type[msgspec.Struct], place: str, components: dict[str, Any]) -> list[dict[str, Any]]:
    schema = components.get(kind.__name__, {})
    required = schema.get("required", ())
    return [
        {"name": name, "in": place, "required": place == "path" or name in required, "schema": one}
        for name, one in schema.get("properties", {}).items()
    ]
