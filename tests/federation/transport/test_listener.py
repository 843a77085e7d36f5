"""Connections of strangers end, whatever loop the server runs on and however far they came."""

import socket
import ssl
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import httpx
import pytest

from quietchoir.federation.membership import roster
from quietchoir.federation.membership.founding import TLS_KEY
from quietchoir.federation.transport import listener
from quietchoir.federation.transport.superlink import SuperLink
from quietchoir.tests.federation.transport.test_flower_rounds import free_port, make_federation

HOST, PATIENCE_S = "127.0.0.1", 60.0


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_all_of_them_end_and_the_door_stays_open(
    loop: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "HEAD_S", 3.0)
    monkeypatch.setattr(listener, "UNPROVEN", 5)
    port = free_port()
    policy = roster.load(make_federation(tmp_path, port))
    context = ssl.create_default_context(cadata=policy.coordinator.certificate)
    link = SuperLink(policy, tmp_path / TLS_KEY)
    link.serving.loop = loop
    link.start()
    try:
        with ExitStack() as held:

            def line() -> socket.socket:
                return held.enter_context(closing(socket.create_connection((HOST, port))))

            lines = [line() for _ in range(20)]  # four times as many as there may be, at once
            for _ in range(3):  # on a busy machine one may be ended in its handshake already
                with suppress(ConnectionError, ssl.SSLError):
                    wrapped = context.wrap_socket(line(), server_hostname=HOST)
                    lines.append(held.enter_context(closing(wrapped)))
            with httpx.Client(verify=context, base_url=f"https://{HOST}:{port}") as client:
                assert client.get("/v1/fleet/pull-messages").status_code == 405
            for one in lines:
                one.settimeout(PATIENCE_S)
                # reset, or ended; a time-out fails the test
                with suppress(ConnectionError, ssl.SSLError):
                    while one.recv(100):
                        pass
    finally:
        link.stop()
    assert link.thread is not None and not link.thread.is_alive()
    assert link.server is not None and not link.server.unproven and not link.server.inbound


class Counting(listener.Listener):
    """Its bookkeeping alone."""

    def __init__(self, held: list[str]) -> None:
        self.unproven = {object(): whose for whose in held}  # type: ignore[misc]


@pytest.mark.parametrize(
    ("held", "place"),
    [
        (["member", *["stranger"] * 64], 1),  # however old the member's is
        (["one", "two", "two", "one", "one"], 0),
        (["a", "b", "c"], 0),  # as many strangers as places: the oldest
    ],
)
def test_whoever_crowds_makes_room(held: list[str], place: int) -> None:
    counting = Counting(held)
    assert counting.crowding() is list(counting.unproven)[place]


@pytest.mark.parametrize(
    ("peer", "whose"),
    [
        (("192.0.2.7", 5), "192.0.2.7"),
        (("::ffff:192.0.2.7", 5, 0, 0), "192.0.2.7"),
        (("2001:db8:1:2:3:4:5:6", 5, 0, 0), "2001:db8:1:2::/64"),
        (("fe80::1%lo", 5, 0, 1), "fe80::/64"),
    ],
)
def test_who_is_behind_an_address(peer: tuple[object, ...], whose: str) -> None:
    assert listener.source(peer) == whose
