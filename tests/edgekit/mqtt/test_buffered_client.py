"""The buffer in front of paho's socket: all bytes come once and in order, with few system calls."""

import socket

import pytest
from paho.mqtt.enums import CallbackAPIVersion

from edgekit.mqtt.buffered_client import READ_BYTES, BufferedClient


class CountedSocket:
    """A socket that counts the calls of recv."""

    def __init__(self, sock):
        self.sock, self.calls = sock, 0

    def recv(self, size):
        self.calls += 1
        return self.sock.recv(size)

    def __getattr__(self, name):
        return getattr(self.sock, name)


@pytest.fixture
def ends():
    near, far = socket.socketpair()
    near.setblocking(False)
    client = BufferedClient(CallbackAPIVersion.VERSION2)
    client._sock = CountedSocket(near)
    with near, far:
        yield client, far
        client._sock = None


def test_small_packets_share_a_system_call(ends):
    """paho asks for one byte, one byte and the rest of each packet; 50 packets come with one recv."""
    client, far = ends
    far.sendall(b"".join(bytes([number, 3]) + b"abc" for number in range(50)))
    for number in range(50):
        assert (client._sock_recv(1), client._sock_recv(1), client._sock_recv(3)) == (bytes([number]), b"\3", b"abc")
        assert client.buffered is (number < 49)
    assert client._sock.calls == 1
    with pytest.raises(BlockingIOError):
        client._sock_recv(1)


def test_a_block_is_read_past_the_buffer(ends):
    """What is buffered of it comes first; the rest is not copied through the buffer, and the end is an empty answer."""
    client, far = ends
    data = bytes(range(256)) * 400
    far.sendall(b"\x30" + data)
    far.close()
    received = client._sock_recv(1)
    while part := client._sock_recv(2 * READ_BYTES):
        received += part
    assert received == b"\x30" + data
    assert not client.buffered
