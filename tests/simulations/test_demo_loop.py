"""What the loop claims is read from what the nodes themselves tell; a meter that counts, counts."""

import asyncio
from typing import Any

import pytest

from quietchoir.federation.events import ConsentedEvent, WithheldEvent
from quietchoir.federation.monitor.event_printer import sentence
from quietchoir.simulations.demo_loop import CONSENTED, WITHHELD, WITHHOLDS, shortcomings
from quietchoir.simulations.wire_meter import WireMeter

SHOWN: dict[str, Any] = {
    "withheld_bytes": 0,
    "withheld": {"connections": 0, "its_log_says_so": True, "rounds_that_name_it": 0},
    "kept_day_in_training": 0,
    "forgotten_in_training": 0,
    "forgotten": {"next_training": 80, "examples_before": 81, "adapter_is_marked": True},
    "accuracy": {"before": 0.0, "after": 0.3},
    "bytes_up": {"household-0": 9, "household-1": 9, "household-2": 9, WITHHOLDS: 0},
}


def test_a_loop_that_showed_everything_lacks_nothing() -> None:
    assert shortcomings(SHOWN) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"withheld_bytes": 1},
        {"withheld": SHOWN["withheld"] | {"connections": 1}},
        {"withheld": SHOWN["withheld"] | {"its_log_says_so": False}},
        {"withheld": SHOWN["withheld"] | {"rounds_that_name_it": 1}},
        {"kept_day_in_training": 1},
        {"forgotten_in_training": 1},
        {"forgotten": SHOWN["forgotten"] | {"next_training": 81}},
        {"forgotten": SHOWN["forgotten"] | {"next_training": None}},
        {"forgotten": SHOWN["forgotten"] | {"adapter_is_marked": False}},
        {"accuracy": {"before": 0.3, "after": 0.3}},
        {"bytes_up": SHOWN["bytes_up"] | {"household-1": 0}},
    ],
)
def test_whatever_was_not_shown_is_said(wrong: dict[str, Any]) -> None:
    assert len(shortcomings(SHOWN | wrong)) == 1


def test_the_words_that_the_loop_looks_for_are_those_of_a_nodes_log() -> None:
    event = ConsentedEvent(train=80, test=9, withheld=3, digest="ab" * 32)
    assert CONSENTED.findall(str(sentence(event))) == [("80", "ab" * 32)]
    assert WITHHELD in str(sentence(WithheldEvent(federation="homes", withheld=3)))


async def test_a_meter_passes_every_byte_on_and_counts_it() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readexactly(100_000) + b"!")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with WireMeter(("ann", "bob")) as meter:
        reader, writer = await asyncio.open_connection("127.0.0.1", meter.ports["ann"])
        head = f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        writer.write(head)
        assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
        writer.write(b"x" * 100_000)
        assert await reader.readexactly(100_001) == b"x" * 100_000 + b"!"
        writer.close()
        ann, bob = meter.counts["ann"], meter.counts["bob"]
    assert (ann.connections, ann.bytes_up, ann.bytes_down) == (1, len(head) + 100_000, 100_001)
    assert (bob.connections, bob.bytes_up, bob.bytes_down) == (0, 0, 0)
    server.close()
