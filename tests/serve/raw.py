"""Requests on a bare socket, which the test can break off or hold back."""

import json
import socket
from typing import Any
from urllib.parse import urlsplit

from tests.serve.conversation import HI
from tests.serve.fake_engine import WAIT_S

CHAT = "/v1/chat/completions"


def connect(url: str) -> socket.socket:
    address = urlsplit(url)
    assert address.hostname and address.port
    return socket.create_connection((address.hostname, address.port), timeout=WAIT_S)


def start_request(url: str, **extra: Any) -> socket.socket:
    """A chat request on a connection that the test holds in its hands."""
    body = json.dumps({"messages": HI} | extra).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    connection = connect(url)
    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return connection


def read_to_the_end(connection: socket.socket) -> bytes:
    found = b""
    while piece := connection.recv(4096):
        found += piece
    return found
