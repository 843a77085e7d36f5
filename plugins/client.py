"""Talk to one running plugin: JSON-RPC lines over its standard streams, a deadline on everything.

Knows MCP's handshake, tools/list and tools/call. Knows nothing of sandboxes: it is handed a started
process.
Always: a plugin that hangs, floods, answers out of turn for long or grows past its memory is
killed, and every call that waits on it ends with a `ToolError`; nothing it sends is kept beyond one
line and 64 KB of its last complaints.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from ..core.errors import ToolError
from .hidden import legible
from .sandbox import watchdog
from .sandbox.linux import MAX_LINE

PROTOCOL = "2025-11-25"
MAX_NOISE = 100  # lines in a row that answer nothing
KEPT_COMPLAINTS = 64 << 10  # bytes of standard error that are remembered
MAX_COMPLAINTS = 8 << 20  # bytes of standard error after which the plugin is killed
MAX_PAGES = 16  # of tools/list
WORDS = 200  # characters of a plugin's own reasons that are passed on
CHUNK = 1 << 16
METHOD_NOT_FOUND = -32601


class PluginConnection:
    """One running plugin, from its start to its end."""

    def __init__(self, started: asyncio.subprocess.Process, name: str, memory_bytes: int) -> None:
        self.name = name
        self.noise = 0
        self.ended: str | None = None  # why it is gone
        self.complaints = b""
        self._started = started
        self._next = 0
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._said = 0
        self._refusals: set[asyncio.Task[None]] = set()
        self._tasks = [
            asyncio.create_task(self._read_answers()),
            asyncio.create_task(self._read_complaints()),
            asyncio.create_task(watchdog.watch(started.pid, memory_bytes, self.kill)),
        ]

    @property
    def pid(self) -> int:
        """The outermost process of the sandbox."""
        return self._started.pid

    def kill(self, reason: str) -> None:
        """End the plugin now; calls that wait fail with `reason`."""
        if self.ended is not None:
            return
        self.ended = reason
        if self._started.returncode is None:
            watchdog.kill_group(self._started.pid)
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(ToolError(f"plugin {self.name} was stopped: {reason}"))

    async def close(self) -> None:
        """End the plugin and everything that listens to it."""
        self.kill("closed")
        tasks = [*self._tasks, *self._refusals]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._started.stdin is not None:
            self._started.stdin.close()
        # Standard output stays open as long as anything in the sandbox lives: read it to its end,
        # so that all is gone.
        for stream in (self._started.stdout, self._started.stderr):
            while stream is not None and await stream.read(CHUNK):
                pass
        await self._started.wait()

    async def handshake(self, deadline_s: float) -> list[dict[str, Any]]:
        """Introduce ourselves and ask for the tools.

        Raises:
            ToolError: no or a malformed answer in time; the plugin is then dead.
        """
        us = {"name": "quietchoir", "version": "1"}
        async with deadline(self, deadline_s, "its start"):
            await self._request(
                "initialize", {"protocolVersion": PROTOCOL, "capabilities": {}, "clientInfo": us}
            )
            await self._send({"jsonrpc": "2.0", "method": "notifications/initialized"})
            tools: list[dict[str, Any]] = []
            cursor: Any = None
            for _ in range(MAX_PAGES):
                page = await self._request("tools/list", {"cursor": cursor} if cursor else {})
                listed = page.get("tools")
                if not isinstance(listed, list) or not all(
                    isinstance(tool, dict) for tool in listed
                ):
                    break
                tools += listed
                cursor = page.get("nextCursor")
                if not cursor:
                    return tools
            self.kill("its tools/list is not a list of tools that ends")
            raise ToolError(f"plugin {self.name} was stopped: {self.ended}")

    async def call(
        self, tool: str, arguments: Mapping[str, Any], deadline_s: float
    ) -> tuple[str, bool]:
        """Call one tool; its text and whether the tool says that it worked.

        Raises:
            ToolError: no answer in time (the plugin is killed), the plugin died, or an answer
            without text.
        """
        async with deadline(self, deadline_s, tool):
            result = await self._request("tools/call", {"name": tool, "arguments": dict(arguments)})
        content = result.get("content")
        if not isinstance(content, list):
            raise ToolError(f"plugin {self.name} answered {tool} without content")
        parts = [
            part.get("text")
            for part in content
            if isinstance(part, dict) and part.get("type") == "text"
        ]
        return "\n".join(part for part in parts if isinstance(part, str)), result.get(
            "isError"
        ) is not True

    async def _request(self, method: str, params: Mapping[str, Any]) -> dict[str, Any]:
        self._next += 1
        number = self._next
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            await self._send({"jsonrpc": "2.0", "id": number, "method": method, "params": params})
            message = await answer
        finally:
            del self._waiting[number]
            if answer.done() and not answer.cancelled():
                answer.exception()  # it may have failed while the request was still being written
        if "error" in message:
            said = (
                message["error"].get("message")
                if isinstance(message["error"], dict)
                else message["error"]
            )
            raise ToolError(f"plugin {self.name} refused {method}: {words(str(said))}")
        result = message.get("result")
        if not isinstance(result, dict):
            raise ToolError(f"plugin {self.name} answered {method} without a result")
        return result

    async def _send(self, message: Mapping[str, Any]) -> None:
        try:
            line = json.dumps(message, ensure_ascii=False).encode() + b"\n"
        except UnicodeEncodeError:
            raise ToolError(
                "a call that holds half of a surrogate pair, which is no text; leave it out"
            ) from None
        if len(line) > MAX_LINE:
            raise ToolError(f"a call of {len(line)} bytes; plugins are sent at most {MAX_LINE}")
        if self.ended is not None or self._started.stdin is None:
            raise ToolError(f"plugin {self.name} was stopped: {self.ended}")
        try:
            self._started.stdin.write(line)
            await self._started.stdin.drain()
        except (BrokenPipeError, ConnectionResetError):
            self.kill("it closed its input")
            raise ToolError(f"plugin {self.name} was stopped: {self.ended}") from None

    async def _read_answers(self) -> None:
        stream = self._started.stdout
        assert stream is not None  # piped by the sandbox
        while self.ended is None:
            try:
                line = await stream.readline()
            except ValueError:
                self.kill(f"a line longer than {MAX_LINE} bytes")
                return
            if not line:
                self.kill("it ended by itself" + self._last_words())
                return
            await self._take(line)

    async def _take(self, line: bytes) -> None:
        """Give one line to the call that waits for it; whatever nobody waits for counts as
        noise.
        """
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            message = None
        number = (
            message.get("id") if isinstance(message, dict) and "method" not in message else None
        )
        waiting = self._waiting.get(number) if type(number) is int else None
        if waiting is not None and not waiting.done() and isinstance(message, dict):
            self.noise = 0
            waiting.set_result(message)
            return
        self.noise += 1
        if self.noise > MAX_NOISE:
            self.kill(f"{self.noise} lines that answer nothing")
        elif (
            isinstance(message, dict)
            and "method" in message
            and type(message.get("id")) in (int, str)
        ):
            refusal = {
                "code": METHOD_NOT_FOUND,
                "message": "this host answers no requests of plugins",
            }
            # In a task of its own: a plugin that does not read must not stop us from reading.
            task = asyncio.create_task(self._refuse(message["id"], refusal))
            self._refusals.add(task)
            task.add_done_callback(self._refusals.discard)

    async def _refuse(self, number: int | str, error: Mapping[str, Any]) -> None:
        try:
            await self._send({"jsonrpc": "2.0", "id": number, "error": error})
        except ToolError:
            return

    async def _read_complaints(self) -> None:
        stream = self._started.stderr
        assert stream is not None  # piped by the sandbox
        while chunk := await stream.read(CHUNK):
            self._said += len(chunk)
            self.complaints = (self.complaints + chunk)[-KEPT_COMPLAINTS:]
            if self._said > MAX_COMPLAINTS:
                self.kill(f"more than {MAX_COMPLAINTS} bytes on standard error")
                return

    def _last_words(self) -> str:
        """The last line on standard error, shortened, for the owner's message."""
        lines = self.complaints.decode(errors="replace").strip().splitlines()
        return f" ({words(lines[-1])})" if lines else ""


def words(text: str) -> str:
    """What a plugin says of its own failure: as foreign as its answers."""
    return legible(text)[:WORDS]


@asynccontextmanager
async def deadline(connection: PluginConnection, seconds: float, doing: str) -> AsyncIterator[None]:
    """Kill the plugin and raise `ToolError` if the block has not ended after `seconds`."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        reason = f"no answer to {doing} within {seconds:g} s"
        connection.kill(reason)
        raise ToolError(f"plugin {connection.name} was stopped: {reason}") from None
