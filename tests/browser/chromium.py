"""A real Chromium, driven over its DevTools protocol. Small: open a page, run a script in it,
take a picture.
"""

import asyncio
import base64
import itertools
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = [
    "--headless",
    "--no-sandbox",  # its own; the page it opens is ours, from this machine
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
]
START_S, WAIT_S = 60.0, 30.0


def find() -> str | None:
    """The browser on this machine, if there is one."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Tab:
    """One page. `problems` collects what its console complained about, refusals of the page's
    own policy included.
    """

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket
        self.numbers = itertools.count(1)
        self.waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.problems: list[str] = []
        self.urls: list[str] = []
        self.stand_ins: dict[str, bytes] = {}  # what a URL of this end brings instead
        self.sent: set[asyncio.Task[object]] = set()
        self.saving: dict[str, str] = {}  # names of files under way, by their downloads' numbers
        self.saved: asyncio.Queue[str] = asyncio.Queue()  # names of those that are whole
        self.reader = asyncio.create_task(self.read())

    async def read(self) -> None:
        async for message in self.socket:
            self.take(message.json())

    def take(self, data: dict[str, Any]) -> None:
        if "id" in data:
            self.waiting.pop(data["id"]).set_result(data)
        elif data["method"] == "Log.entryAdded" and data["params"]["entry"]["level"] == "error":
            self.problems.append(data["params"]["entry"]["text"])
        elif data["method"] == "Runtime.exceptionThrown":
            self.problems.append(str(data["params"]["exceptionDetails"]))
        elif data["method"] == "Network.requestWillBeSent":
            self.urls.append(data["params"]["request"]["url"])
        elif data["method"] == "Browser.downloadWillBegin":
            self.saving[data["params"]["guid"]] = data["params"]["suggestedFilename"]
        elif data["method"] == "Browser.downloadProgress":
            if data["params"]["state"] == "completed":
                self.saved.put_nowait(self.saving.pop(data["params"]["guid"]))
        elif data["method"] == "Fetch.requestPaused":
            task = asyncio.create_task(self.stand_in(**data["params"]))
            self.sent.add(task)
            task.add_done_callback(self.sent.discard)

    async def stand_in(self, requestId: str, request: dict[str, Any], **_: Any) -> None:
        """Answer a request in the node's place."""
        [body] = [body for end, body in self.stand_ins.items() if request["url"].endswith(end)]
        await self.send(
            "Fetch.fulfillRequest",
            requestId=requestId,
            responseCode=200,
            body=base64.b64encode(body).decode("ascii"),
        )

    async def replace(self, end: str, body: bytes) -> None:
        """From now on a URL that ends so brings this."""
        self.stand_ins[end] = body
        patterns = [{"urlPattern": f"*{one}"} for one in self.stand_ins]
        await self.send("Fetch.enable", patterns=patterns)

    async def save_to(self, folder: Path) -> None:
        """From now on what the page saves lies there."""
        await self.send(
            "Browser.setDownloadBehavior",
            behavior="allow",
            downloadPath=str(folder),
            eventsEnabled=True,
        )

    async def next_saved(self) -> str:
        """Name of the next file that the page saved, once it is whole."""
        return await asyncio.wait_for(self.saved.get(), WAIT_S)

    async def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self.numbers)
        self.waiting[number] = asyncio.get_running_loop().create_future()
        await self.socket.send_json({"id": number, "method": method, "params": parameters})
        answer = await asyncio.wait_for(self.waiting[number], WAIT_S)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return dict(answer["result"])

    async def open(self, url: str) -> None:
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.send(f"{domain}.enable")
        await self.send("Page.navigate", url=url)

    async def run(self, script: str) -> Any:
        """Value of an expression in the page; promises are awaited."""
        answer = await self.send(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"])
        return answer["result"].get("value")

    async def until(self, script: str) -> None:
        """Wait until an expression in the page is true."""
        try:
            async with asyncio.timeout(WAIT_S):
                while not await self.holds(script):
                    await asyncio.sleep(0.02)  # the page's work, not ours, is waited for
        except TimeoutError:
            text = await self.run("document.body?.innerText")
            raise AssertionError(
                f"never true: {script}; the page says {text!r}, its console {self.problems}"
            ) from None

    async def holds(self, script: str) -> bool:
        """Is an expression true; of a page that goes away just now none is."""
        try:
            return bool(await self.run(f"Boolean({script})"))
        except RuntimeError as error:
            if "navigated" in str(error) or "context was destroyed" in str(error):
                return False
            raise

    async def type(self, text: str) -> None:
        await self.send("Input.insertText", text=text)

    async def press(self, key: str, code: str, *, alt_shift: bool = False) -> None:
        """One key, down and up."""
        for kind in ("keyDown", "keyUp"):
            await self.send(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=code,
                windowsVirtualKeyCode=27 if key == "Escape" else ord(key[0]),
                modifiers=9 if alt_shift else 0,
            )

    async def press_enter(self) -> None:
        for kind in ("keyDown", "keyUp"):
            await self.send(
                "Input.dispatchKeyEvent",
                type=kind,
                key="Enter",
                code="Enter",
                windowsVirtualKeyCode=13,
                text="\r",
            )

    async def picture(
        self, path: Path, width: int = 1280, height: int = 800, dark: bool = False
    ) -> None:
        await self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.send("Emulation.setEmulatedMedia", features=[theme])
        answer = await self.send("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(answer["data"]))


@asynccontextmanager
async def browser() -> AsyncIterator[Tab]:
    """Start a browser with a fresh profile, give its one tab, and end it with all its children."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        program = find() or "chromium"
        running = await asyncio.create_subprocess_exec(
            program,
            *FLAGS,
            f"--user-data-dir={profile}",
            "about:blank",
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        try:
            port = await asyncio.wait_for(listening_port(running), START_S)
            drain = asyncio.create_task(running.stderr.read())  # type: ignore[union-attr]
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{port}/json/list") as response:
                    tabs = [tab for tab in await response.json() if tab["type"] == "page"]
                async with session.ws_connect(
                    tabs[0]["webSocketDebuggerUrl"], max_msg_size=0
                ) as socket:
                    tab = Tab(socket)
                    yield tab
                    tab.reader.cancel()
        finally:
            os.killpg(running.pid, signal.SIGKILL)
            await running.wait()
        await drain


async def listening_port(running: asyncio.subprocess.Process) -> int:
    """The port of DevTools, which the browser says on standard error."""
    while line := await running.stderr.readline():  # type: ignore[union-attr]
        if b"DevTools listening on ws://" in line:
            return int(line.split(b"ws://")[1].split(b"/")[0].rpartition(b":")[2])
    raise RuntimeError("the browser ended before it listened")
