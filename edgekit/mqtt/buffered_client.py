"""A paho client that reads many packets with one system call."""

from __future__ import annotations

from paho.mqtt.client import Client

READ_BYTES = 64 * 1024


class BufferedClient(Client):
    """A paho client with a buffer in front of its socket.

    paho reads each packet with three or more system calls, and one packet in each turn of the event loop. The owner
    calls `loop_read` again while `buffered` is True: nothing else says that these bytes are there.
    """

    _received = b""
    _used = 0

    @property
    def buffered(self) -> bool:
        """True while bytes were received that no packet has used, and the connection is open."""
        return bool(self._received) and self.socket() is not None

    def _sock_recv(self, bufsize: int) -> bytes:
        """Up to `bufsize` bytes; paho calls this for every part of a packet."""
        if not self._received:
            if bufsize >= READ_BYTES:
                return super()._sock_recv(bufsize)
            self._received, self._used = super()._sock_recv(READ_BYTES), 0
        data = self._received[self._used : self._used + bufsize]
        self._used += len(data)
        if self._used >= len(self._received):
            self._received = b""
        return data
