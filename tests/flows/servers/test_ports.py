"""Which ports are free, and who has the others."""

import os
import socket
from contextlib import closing

import pytest
from operated import free_port

from flows.servers import ports


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
def test_a_port_that_somebody_listens_on_is_not_free(address):
    with closing(socket.socket()) as holder:
        holder.bind((address, 0))
        holder.listen()
        port = holder.getsockname()[1]
        assert not ports.is_free(port)
        assert ports.holder(port).startswith(f" by process {os.getpid()} (")
        assert len(ports.holder(port)) < 140
        assert ports.next_free(port - 1) > port
    assert ports.is_free(port)
    assert ports.holder(port) == ""


def test_the_next_free_port_is_none_that_is_wanted_otherwise():
    port = free_port()
    first = ports.next_free(port)
    assert first > port
    assert ports.next_free(port, {first}) > first
