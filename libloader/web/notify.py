"""sd_notify: tell systemd that the service is ready or stopping. Does nothing elsewhere."""

from __future__ import annotations

import logging
import socket
from collections.abc import Mapping

log = logging.getLogger("igllama.web")


def notify(state: str, environ: Mapping[str, str]) -> bool:
    """Send `state` ("READY=1") to the socket that NOTIFY_SOCKET names; False if there is none.

    Never raises: a service must not fail because its manager does not listen.
    """
    path = environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")) or not hasattr(socket, "AF_UNIX"):
        return False
    address = "\0" + path[1:] if path.startswith("@") else path  # @ is the abstract namespace
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(state.encode(), address)
    except OSError as error:
        log.warning("cannot notify systemd at %s: %s", path, error)
        return False
    return True
