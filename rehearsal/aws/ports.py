"""Free ports."""

import socket


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on at present."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
