"""Rules of access over HTTP: names of the server, origins, and roles. Pure.

Reads are free for programs and people on the machine itself (loopback, no proxy in between), because they can read the
database anyway. Everything else needs an operator's token, or the session that its owner opened with it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Mapping
from urllib.parse import urlsplit

import msgspec

from edgekit.state.operators import Operator, Role

LOCAL_HOSTS = frozenset(("localhost", "127.0.0.1", "::1"))
PROXY_HEADERS = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip")


class Visitor(msgspec.Struct, frozen=True):
    """The person or program that makes a request.

    Attributes:
        name: Name of the operator; empty without a login.
        role: What the visitor may do; None for nothing.
        csrf: The value that a form or script must send along with an action; empty where the request carries the token
            itself, which no web page of others can.
    """

    name: str = ""
    role: Role | None = None
    csrf: str = ""

    def may(self, role: Role) -> bool:
        """True if the visitor may do what needs `role`."""
        return self.role is not None and self.role.includes(role)


def visitor_of(operator: Operator | None, *, local: bool, csrf: str = "") -> Visitor:
    """The visitor of a request.

    Args:
        operator: The operator whose token or session the request carries; None for none.
        local: The request comes from this machine, and the settings let it read without a login.
        csrf: The value of the session; empty for a token.
    """
    if operator is not None:
        return Visitor(operator.name, operator.role, csrf)
    return Visitor(role=Role.VIEWER if local else None)


def is_local(client: str, headers: Mapping[str, str]) -> bool:
    """True if a request comes from this machine and passed no proxy.

    Args:
        client: Address of the other end of the connection.
        headers: The request's headers, with lower-case names.
    """
    try:
        loopback = ipaddress.ip_address(client).is_loopback
    except ValueError:
        return False
    return loopback and not any(name in headers for name in PROXY_HEADERS)


def host_fault(host: str, served: Collection[str]) -> str:
    """Why a request with this Host header is refused; empty if it is not.

    A page of another site can make a browser connect here under a name of its own (DNS rebinding). It cannot choose the
    Host header.

    Args:
        host: The header.
        served: Names of this server, besides those of the loopback.
    """
    name = _hostname(f"//{host}")
    if name and (name in LOCAL_HOSTS or name in served):
        return ""
    expected = ", ".join([*sorted(served), "localhost or 127.0.0.1"])
    return f"host is {host[:100]!r}, expected {expected}; add other names to the setting api_hosts"


def origin_fault(headers: Mapping[str, str]) -> str:
    """Why an action that a browser sends is refused: it comes from a page of another site. Empty if it does not."""
    site = headers.get("sec-fetch-site", "same-origin")
    if site not in ("same-origin", "none"):
        return f"the action comes from a page of another site (Sec-Fetch-Site is {site[:20]!r})"
    origin, host = headers.get("origin"), headers.get("host", "")
    if origin is not None and _netloc(origin) != host.lower():
        return f"the action comes from a page of {origin[:100]!r}, expected one of this server"
    return ""


def _netloc(origin: str) -> str:
    """Host and port of an origin; empty for one without."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _hostname(url: str) -> str:
    try:
        return (urlsplit(url).hostname or "").lower()
    except ValueError:
        return ""
