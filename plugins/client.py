"""Talk to one running plugin: JSON-RPC lines over its standard streams, a deadline on everything.

Knows MCP's handshake, tools/list and tools/call, and what a server may ask of us (README.md has the
table). Knows nothing of sandboxes: it is handed a started process.
Always: a call that is late or no longer wanted is cancelled, and a plugin that then does not answer
a ping is killed; so is one that floods, answers nobody for long or grows past its bounds. Every
call that waits on it ends with a `ToolError`; nothing it sends is kept beyond one line and 64 KB of
its last complaints.
"""

import asyncio
import json
import logging
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import PurePosixPath
from typing import Any

from ..core import log
from ..core.errors import ToolError
from ..core.screen import one_line
from . import delegation, elicitation
from .delegation import OtherTools
from .elicitation import OwnersForms
from .hidden import legible
from .manifest import MAX_DEPTH, OFFERS, deeper
from .sampling import REFUSED, HostRefusal, ModelAccess
from .sandbox.linux import MAX_LINE
from .sandbox.watchdog import Bounds, Watchdog

PROTOCOLS = ("2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05")  # newest first
MAX_NOISE = 100  # lines in a row that are no message, or answer nobody
MAX_CHATTER = 10_000  # notifications and requests of a plugin between two of its answers
MAX_SERVING = 4  # texts of the model and answers of other plugins that it waits for at once
MAX_UNREAD = 100  # answers of ours that a plugin has not read
MAX_ID = 256  # characters of a request's number: each unread answer holds one
MAX_PASSED = 16 << 20  # bytes of a line that is passed over because it is longer than `MAX_LINE`
KEPT_COMPLAINTS = 64 << 10  # bytes of standard error that are remembered
MAX_COMPLAINTS = 8 << 20  # bytes of standard error after which the plugin is killed
MAX_PAGES, MAX_TOOLS = 256, 1024  # of tools/list
MAX_LISTED = 2 << 20  # bytes of all that is read while a list is asked for, page by page
WORDS = 200  # characters of a plugin's own reasons that are passed on
GRACE_S = 1.0  # after a call was cancelled the plugin has so long to answer a ping
END_S = 10.0  # how long its end is waited for after it was killed
CHUNK = 1 << 16
METHOD_NOT_FOUND = -32601
CANCELLED = frozenset(  # requests that nobody waits for any more are cancelled by a notice
    {"tools/call", "resources/list", "resources/read", "prompts/list", "prompts/get"}
)
logger = log.get("plugins")


class PluginConnection:
    """One running plugin, from its start to its end."""

    def __init__(
        self,
        started: asyncio.subprocess.Process,
        name: str,
        bounds: Bounds,
        folders: Sequence[str] = (),
        model: ModelAccess | None = None,
        others: OtherTools | None = None,
        forms: OwnersForms | None = None,
    ) -> None:
        """
        Args:
            folders: of its owner's, as it sees them: told to a server that asks for its roots.
            model: what it may have the model write; None: nothing. others: tools of other
            plugins that it may call; None: none. forms: its owner, whom it may ask; None: nobody
            can be asked.
        """
        self.name = name
        self.roots = [
            {"uri": PurePosixPath(one).as_uri(), "name": PurePosixPath(one).name} for one in folders
        ]
        self.noise = self.chatter = 0
        self._read = 0  # bytes of whole lines
        self._others = others
        self._forms = forms
        self._limit: asyncio.Timeout | None = None  # of the call that waits
        self._services: dict[str, ModelAccess | OtherTools | OwnersForms] = {}
        if model is not None:
            self._services["sampling/createMessage"] = model
        if others is not None:
            self._services[delegation.METHOD] = others
        if forms is not None:
            self._services[elicitation.METHOD] = forms
        self._serving = set[asyncio.Task[None]]()
        self.offers: tuple[str, ...] = ()  # besides tools, as it says
        self.afterwards: Callable[[], None] = lambda: None  # what is to be done when it is gone
        self.list_changed = False  # it says that it offers other tools now
        self.server: dict[str, Any] = {}  # what it says of itself: name, version
        self.ended: str | None = None  # why it is gone
        self.complaints = b""
        self.watchdog = Watchdog(started.pid, bounds, self.kill)
        self._started = started
        self._next = 0
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._said = 0
        self._replies: set[asyncio.Task[None]] = set()
        self._settling: asyncio.Task[None] | None = None
        self._service: asyncio.Task[None] | None = None
        self._tasks = [
            asyncio.create_task(self._read_answers()),
            asyncio.create_task(self._read_complaints()),
            asyncio.create_task(self.watchdog.watch()),
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
        self.watchdog.end(collected=self._started.returncode is not None)
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(ToolError(f"plugin {self.name} was stopped: {reason}"))
        if self._service is not None:
            self._service.cancel()

    def attend(self, service: Coroutine[Any, Any, None]) -> None:
        """Run what serves this plugin outside of its sandbox, as long as it lives; it dies with
        that.
        """

        async def served() -> None:
            try:
                await service
            except OSError as error:
                logger.debug("plugin %s: %s", self.name, error)
            except ToolError as error:
                self.kill(str(error))
            except Exception as error:
                self.kill(f"what serves it broke ({error})")

        self._service = asyncio.create_task(served())

    async def close(self) -> None:
        """End the plugin and everything that listens to it."""
        self.kill("closed")
        served = [self._service] if self._service is not None else []
        tasks = [
            *self._tasks,
            *self._replies,
            *served,
            *([self._settling] if self._settling else []),
        ]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._started.stdin is not None:
            self._started.stdin.close()
        # Standard output stays open as long as anything in the sandbox lives: read it to its end,
        # so that all is gone.
        try:
            async with asyncio.timeout(END_S):
                for stream in (self._started.stdout, self._started.stderr):
                    while stream is not None and await stream.read(CHUNK):
                        pass
                await self._started.wait()
        except TimeoutError:
            logger.error(
                "plugin %s: a process of it lives %g s after it was killed", self.name, END_S
            )
        await asyncio.to_thread(self.afterwards)

    async def handshake(self, deadline_s: float) -> list[dict[str, Any]]:
        """Introduce ourselves and ask for the tools.

        Raises:
            ToolError: no or a malformed answer in time, or a protocol that we do not speak; the
            plugin is then dead.
        """
        us = {"name": "quietchoir", "version": "1"}
        can: dict[str, Any] = {"roots": {"listChanged": False}} if self.roots else {}
        can |= {"sampling": {}} if "sampling/createMessage" in self._services else {}
        can |= {elicitation.CAPABILITY: {}} if self._forms is not None else {}
        if self._others is not None:
            can["experimental"] = {delegation.CAPABILITY: {"tools": list(self._others.allowed)}}
        hello = {"protocolVersion": PROTOCOLS[0], "capabilities": can, "clientInfo": us}
        try:
            async with asyncio.timeout(deadline_s):
                said = await self._request("initialize", hello)
                if said.get("protocolVersion") not in PROTOCOLS:
                    found = words(str(said.get("protocolVersion")))
                    raise ToolError(
                        f"plugin {self.name} speaks MCP of {found!r}; this version speaks "
                        f"{', '.join(PROTOCOLS)}"
                    )
                about = said.get("serverInfo")
                self.server = about if isinstance(about, dict) else {}
                able = said.get("capabilities")
                self.offers = tuple(one for one in OFFERS if isinstance(able, dict) and one in able)
                await self._send({"jsonrpc": "2.0", "method": "notifications/initialized"})
                return await self._list_tools()
        except TimeoutError:
            self.kill(f"no answer to its start within {deadline_s:g} s")
            raise ToolError(f"plugin {self.name} was stopped: {self.ended}") from None
        except ToolError as error:
            self.kill(str(error))
            raise

    async def tools(self, deadline_s: float) -> list[dict[str, Any]]:
        """What it offers now. Raises: ToolError: as `handshake`."""
        self.list_changed = False
        try:
            async with asyncio.timeout(deadline_s):
                return await self._list_tools()
        except TimeoutError:
            self.kill(f"no answer to tools/list within {deadline_s:g} s")
            raise ToolError(f"plugin {self.name} was stopped: {self.ended}") from None
        except BaseException:
            self.list_changed = True  # nobody compared it: the next call asks again
            raise

    async def call(
        self, tool: str, arguments: Mapping[str, Any], deadline_s: float
    ) -> tuple[str, bool]:
        """Call one tool; its text and whether the tool says that it worked.

        Raises:
            ToolError: no answer in time (the call is cancelled; other calls go on), the plugin
            died, or an answer without content.
        """
        asked = {"name": tool, "arguments": dict(arguments)}
        result = await self.ask("tools/call", asked, deadline_s, about=tool)
        text = text_of(result)
        if text is None:
            raise ToolError(f"plugin {self.name} answered {tool} without content")
        return text, result.get("isError") is not True

    async def ask(
        self, method: str, params: Mapping[str, Any], deadline_s: float, *, about: str = ""
    ) -> dict[str, Any]:
        """The result of one request. Raises: ToolError: as `call`."""
        for service in (self._others, self._forms):
            if service is not None:
                service.begin()
        try:
            async with asyncio.timeout(deadline_s) as self._limit:
                return await self._request(method, params)
        except TimeoutError:
            raise ToolError(
                f"plugin {self.name} was stopped: no answer to {about or method} within "
                f"{deadline_s:g} s"
            ) from None
        finally:
            self._limit = None
            if not self._waiting:  # nobody waits for what is done for it
                for task in self._serving:
                    task.cancel()

    async def listed(self, method: str, field: str, deadline_s: float) -> list[dict[str, Any]]:
        """All pages of a list that is not pinned. Raises: ToolError: as `call`, or it is none."""
        try:
            async with asyncio.timeout(deadline_s):
                found = await self._pages(method, field)
        except TimeoutError:
            raise ToolError(
                f"plugin {self.name} was stopped: no answer to {method} within {deadline_s:g} s"
            ) from None
        if found is None:
            raise ToolError(f"plugin {self.name}: its {method} is not a list that ends")
        return found

    async def settled(self) -> None:
        """Wait until a plugin whose call was cancelled has answered a ping, or is dead."""
        if self._settling is not None:
            await asyncio.wait([self._settling])

    async def _pages(self, method: str, field: str) -> list[dict[str, Any]] | None:
        """A whole list; None if it is none, or does not end."""
        found: list[dict[str, Any]] = []
        cursor: Any = None
        begun = self._read
        for _ in range(MAX_PAGES):
            page = await self._request(method, {"cursor": cursor} if cursor else {})
            listed = page.get(field)
            if self._read - begun > MAX_LISTED:
                break
            if not isinstance(listed, list) or not all(isinstance(row, dict) for row in listed):
                break
            found += listed
            cursor, before = page.get("nextCursor"), cursor
            if not cursor:
                return found
            if len(found) > MAX_TOOLS or cursor == before:
                break
        return None

    async def _list_tools(self) -> list[dict[str, Any]]:
        if (tools := await self._pages("tools/list", "tools")) is not None:
            return tools
        self.kill("its tools/list is not a list of tools that ends")
        raise ToolError(f"plugin {self.name} was stopped: {self.ended}")

    async def _request(self, method: str, params: Mapping[str, Any]) -> dict[str, Any]:
        self._next += 1
        number = self._next
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            await self._send({"jsonrpc": "2.0", "id": number, "method": method, "params": params})
            message = await answer
        except asyncio.CancelledError:
            self._cancel(number, method)
            raise
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

    def _cancel(self, number: int, method: str) -> None:
        """Tell the plugin that nobody waits for `number` any more, and see whether it listens."""
        if method in CANCELLED and self.ended is None and self._settling_is_over():
            self._settling = asyncio.create_task(self._settle(number))

    def _settling_is_over(self) -> bool:
        return self._settling is None or self._settling.done()

    async def _settle(self, number: int) -> None:
        gone = {"requestId": number, "reason": "nobody waits for it any more"}
        try:
            async with asyncio.timeout(GRACE_S):
                await self._send(
                    {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": gone}
                )
                await self._request("ping", {})
        except TimeoutError:
            self.kill(f"it did not answer within {GRACE_S:g} s after a call was cancelled")
        except ToolError:
            return  # it is dead already, or it answered: with a refusal

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
            line = await self._line(stream)
            if line is None:
                continue
            if not line:
                self.kill("it ended by itself" + self._last_words())
                return
            self._read += len(line)
            try:
                message = json.loads(line)
                # who counts takes time, so only where there are brackets enough
                many = line.count(b"[") + line.count(b"{") > MAX_DEPTH
                too_deep = many and deeper(message, MAX_DEPTH)
            except ValueError:
                message, too_deep = None, False
            except RecursionError:
                too_deep = True
            if too_deep:
                self.kill(f"a message nested deeper than {MAX_DEPTH}")
                return
            # one line may hold several messages (MCP 2025-03-26)
            for one in message if isinstance(message, list) and message else (message,):
                self._receive(one)
            if self._replies:
                await asyncio.sleep(0)  # who reads them is no flood: let them be written

    async def _line(self, stream: asyncio.StreamReader) -> bytes | None:
        """The next line, empty at the end; None for one that is too long: it is passed over, and
        whoever waits is told so.
        """
        passed = 0
        while passed <= MAX_PASSED:
            try:
                line = await stream.readuntil(b"\n")
            except asyncio.IncompleteReadError as end:
                return end.partial
            except asyncio.LimitOverrunError as over:
                passed += over.consumed
                await stream.readexactly(over.consumed)
                continue
            if not passed:
                return line
            reason = f"plugin {self.name} answered with {passed} bytes; at most {MAX_LINE} are read"
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(ToolError(reason))
            return None
        self.kill(f"a line longer than {MAX_PASSED} bytes")
        return None

    def _receive(self, message: Any) -> None:
        """Give an answer to the call that waits for it, and answer what the plugin asks."""
        if isinstance(message, dict) and isinstance(message.get("method"), str):
            self._hear(message)
            return
        number = message.get("id") if isinstance(message, dict) else None
        if isinstance(number, str) and number.isdecimal() and len(number) < 20:
            number = int(number)  # some servers answer to every number as a text
        waiting = self._waiting.get(number) if type(number) is int else None
        if waiting is not None and not waiting.done():
            self.noise = self.chatter = 0
            waiting.set_result(message)
            return
        self.noise += 1
        if self.noise > MAX_NOISE:
            self.kill(f"{self.noise} lines that answer nothing")

    def _hear(self, message: Mapping[str, Any]) -> None:
        """A notification, or a request of the plugin's."""
        self.chatter += 1
        if self.chatter > MAX_CHATTER:
            self.kill(f"{self.chatter} messages that answer nothing")
            return
        method, number = message["method"], message.get("id")
        if type(number) not in (int, str):
            self.list_changed |= method == "notifications/tools/list_changed"
            return
        if isinstance(number, str) and len(number) > MAX_ID:
            self.kill(f"a request whose number has {len(number)} characters; at most {MAX_ID}")
            return
        if len(self._replies) >= MAX_UNREAD:
            self.kill("it asks, and does not read what it is answered")
            return
        answers: dict[str, Any] = {"ping": {}}
        if self.roots:
            answers["roots/list"] = {"roots": self.roots}
        answer: dict[str, Any]
        if (service := self._services.get(method)) is not None:
            if len(self._serving) < MAX_SERVING and self._limit is not None:
                params = message.get("params")
                self._serve(number, params if isinstance(params, dict) else {}, service)
                return
            why = "nothing is done but for a call that is waited for, and a few things at once"
            answer = {"error": {"code": REFUSED, "message": why}}
        elif (known := answers.get(method)) is not None:
            answer = {"result": known}
        else:
            why = "this host answers no such request"
            answer = {"error": {"code": METHOD_NOT_FOUND, "message": why}}
        # In a task of its own: a plugin that does not read must not stop us from reading.
        task = asyncio.create_task(self._reply({"jsonrpc": "2.0", "id": number, **answer}))
        self._replies.add(task)
        task.add_done_callback(self._replies.discard)

    def _serve(
        self,
        number: Any,
        params: Mapping[str, Any],
        service: ModelAccess | OtherTools | OwnersForms,
    ) -> None:
        """Do what it asks for, beside the call of it that waits."""

        async def served() -> None:
            answer: dict[str, Any]
            try:
                with self.paused() if service is self._forms else nullcontext():
                    answer = {"result": await service.create(params)}
            except HostRefusal as error:
                answer = {"error": {"code": error.code, "message": str(error)}}
            except asyncio.CancelledError:  # it waits for an answer even then
                answer = {"error": {"code": REFUSED, "message": "nobody waits for the call"}}
            await self._reply({"jsonrpc": "2.0", "id": number, **answer})

        task = asyncio.create_task(served())
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The time of the call that waits does not run: its owner reads.

        Raises:
            HostRefusal: it stands still already, or no call is waited for.
        """
        limit, loop = self._limit, asyncio.get_running_loop()
        until = limit.when() if limit is not None else None
        if limit is None or until is None:
            raise HostRefusal(REFUSED, "its owner is asked once already, or no call is waited for")
        left = until - loop.time()
        limit.reschedule(None)
        try:
            yield
        finally:
            if self._limit is limit:  # else nobody waits any more
                limit.reschedule(loop.time() + left)

    async def _reply(self, message: Mapping[str, Any]) -> None:
        try:
            await self._send(message)
        except ToolError:
            return

    async def _read_complaints(self) -> None:
        stream = self._started.stderr
        assert stream is not None  # piped by the sandbox
        while chunk := await stream.read(CHUNK):
            self._said += len(chunk)
            self.complaints = (self.complaints + chunk)[-KEPT_COMPLAINTS:]
            if logger.isEnabledFor(logging.DEBUG):
                for line in chunk.decode(errors="replace").splitlines():
                    logger.debug("plugin %s: %s", self.name, one_line(legible(line)))
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


def text_of(result: Mapping[str, Any]) -> str | None:
    """An answer's parts as one text; what is no text is named, with its kind and size. None if
    there is nothing that could be an answer.
    """
    content, structured = result.get("content"), result.get("structuredContent")
    parts = content if isinstance(content, list) else ()
    shown = [part_text(part) for part in parts if isinstance(part, dict)]
    told = any(told for _, told in shown)
    if not told and isinstance(structured, dict):
        shown.append((json.dumps(structured, ensure_ascii=False), True))
    elif not isinstance(content, list):
        return None
    return "\n".join(text for text, _ in shown)


def part_text(part: Mapping[str, Any]) -> tuple[str, bool]:
    """One part of an answer, and whether its text is the part's own words."""
    match part:
        case {"type": "text", "text": str(text)}:
            return text, True
        case {"type": "resource", "resource": {"text": str(text)}}:
            return text, True
        case {"type": "resource", "resource": {"blob": str(data), **about}}:
            return f"[file {about.get('uri', '')}: {size_of(data)} bytes, not shown]", False
        case {"type": "resource_link", "uri": str(uri)}:
            return f"[file {part.get('title') or part.get('name') or ''}: {uri}]", False
        case {"type": ("image" | "audio") as kind, "data": str(data)}:
            return f"[{kind} {part.get('mimeType', '')}: {size_of(data)} bytes, not shown]", False
    return f"[{part.get('type')!r}: no text, not shown]", False


def size_of(data: str) -> int:
    """Bytes that a base64 text holds."""
    return len(data.rstrip("=")) * 3 // 4
