"""Limits of an HTTP server: sizes, times and numbers of connections."""

from __future__ import annotations

from typing import NamedTuple


class Limits(NamedTuple):
    """Limits of one HTTP server. Times are in seconds.

    Attributes:
        connections: Most open connections of one listener; TCP and the UNIX socket have one each.
        peer_connections: Most of them from one address; 0 for no such limit, as behind a proxy all have one address.
        trusted_proxies: Addresses and networks that `peer_connections` does not hold for.
        handshake_seconds: Longest time for a TLS handshake.
        fresh_seconds: A connection that has made no request for so long gives way before those of working clients.
        header_bytes: Longest header of a request.
        header_seconds: Longest time for a header to arrive.
        body_seconds: Longest time for a body to arrive.
        keep_alive_seconds: How long a connection may stay silent between two requests.
        stalled_seconds: How long a client may read nothing of its answer.
        linger_seconds: How long the server reads and drops what a refused client still sends.
        buffered_bodies: All request bodies in memory may together have this many times `max_request_bytes`.
        cached_head_bytes: Longest head that is cached; 0 turns the cache off.
        sweep_seconds: Interval at which connections are checked for a passed deadline.
        probe_seconds: Interval at which a client that closed its sending side is asked for signs of life.
        drain_seconds: How long running requests may take when the server stops.
    """

    connections: int = 256
    peer_connections: int = 0
    trusted_proxies: tuple[str, ...] = ()
    handshake_seconds: float = 10.0
    fresh_seconds: float = 1.0
    header_bytes: int = 64 * 1024
    header_seconds: float = 20.0
    body_seconds: float = 30.0
    keep_alive_seconds: float = 75.0
    stalled_seconds: float = 30.0
    linger_seconds: float = 5.0
    buffered_bodies: int = 4
    cached_head_bytes: int = 2048
    sweep_seconds: float = 1.0
    probe_seconds: float = 0.25
    drain_seconds: float = 10.0
