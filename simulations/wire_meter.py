"""What one node sends: a proxy of its own, through which it dials, that counts.

Knows the method CONNECT (RFC 9110, section 9.3.6) and bytes. Knows nothing of TLS, messages or who
is right: what passes is sealed between the node and its coordinator.
Always: every byte of a connection is passed on in order and counted; a node that does not dial has
counts of zero.
"""

import asyncio
import threading
from collections.abc import Mapping
from dataclasses import dataclass

HEAD_BYTES = 1 << 14
PIECE_BYTES = 1 << 16
START_S = 30.0


@dataclass(slots=True)
class WireCount:
    """Of one node."""

    connections: int = 0
    bytes_up: int = 0  # sent by the node
    bytes_down: int = 0


class WireMeter:
    """A counting proxy for each of several nodes, on loopback; in a thread of its own."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.counts: Mapping[str, WireCount] = {name: WireCount() for name in names}
        self.ports: dict[str, int] = {}
        self.loop = asyncio.new_event_loop()
        self.ready = threading.Event()
        self.thread = threading.Thread(target=self.run, name="wire-meter", daemon=True)

    def __enter__(self) -> "WireMeter":
        self.thread.start()
        if not self.ready.wait(START_S):
            raise RuntimeError("the wire meter did not start")
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self.ended.set)
        self.thread.join(START_S)

    def url(self, name: str) -> str:
        """Where a node dials through."""
        return f"http://127.0.0.1:{self.ports[name]}"

    def run(self) -> None:
        """The thread."""
        asyncio.set_event_loop(self.loop)
        self.loop.run_until_complete(self.listen())
        self.loop.close()

    async def listen(self) -> None:
        """Until told to end."""
        self.ended = asyncio.Event()
        servers = []
        for name, count in self.counts.items():

            async def handle(
                reader: asyncio.StreamReader, writer: asyncio.StreamWriter, count: WireCount = count
            ) -> None:
                await pass_on(reader, writer, count)

            server = await asyncio.start_server(handle, "127.0.0.1", 0, limit=HEAD_BYTES)
            self.ports[name] = server.sockets[0].getsockname()[1]
            servers.append(server)
        self.ready.set()
        await self.ended.wait()
        for server in servers:
            server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.sleep(0)


async def pass_on(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, count: WireCount
) -> None:
    """One connection, there and back, until either side ends it."""
    count.connections += 1
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        count.bytes_up += len(head)
        method, target, _ = head.split(b" ", 2)
        if method != b"CONNECT":
            writer.write(b"HTTP/1.1 405 Method Not Allowed\r\nAllow: CONNECT\r\n\r\n")
            await writer.drain()
            return
        host, _, port = target.decode("ascii").rpartition(":")
        there, back = await asyncio.open_connection(host, int(port))
    except (OSError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        writer.close()
        return
    writer.write(b"HTTP/1.1 200 Connection Established\r\n\r\n")
    copies = [
        asyncio.ensure_future(pour(reader, back, count, "bytes_up")),
        asyncio.ensure_future(pour(there, writer, count, "bytes_down")),
    ]
    try:
        await asyncio.wait(copies, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for copy in copies:
            copy.cancel()
        for end in (writer, back):
            end.close()


async def pour(
    source: asyncio.StreamReader, target: asyncio.StreamWriter, count: WireCount, field: str
) -> None:
    """One way."""
    try:
        while piece := await source.read(PIECE_BYTES):
            setattr(count, field, getattr(count, field) + len(piece))
            target.write(piece)
            await target.drain()
    except OSError:
        return
