"""sd_notify: one datagram where systemd asks for it, silence and no failure elsewhere."""

import os
import socket

import pytest

from libloader.web.notify import notify

pytestmark = pytest.mark.skipif(os.name == "nt", reason="no systemd there")


def test_ready_is_one_datagram_to_the_named_socket(tmp_path):
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        assert notify("READY=1", {"NOTIFY_SOCKET": path})
        assert manager.recv(100) == b"READY=1"


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1"}])
def test_without_a_socket_nothing_is_sent(environ):
    assert notify("READY=1", environ) is False


def test_a_manager_that_is_not_there_is_survived(tmp_path):
    assert notify("READY=1", {"NOTIFY_SOCKET": str(tmp_path / "gone")}) is False
