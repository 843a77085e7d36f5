"""A conversation in a terminal.

Knows lines in and text out. Knows neither the engine nor the network: it is given somebody who
replies.
Always: Ctrl-C while an answer runs ends the answer; at the prompt it ends the conversation.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Protocol

from ..errors import EngineError, QuietchoirError
from ..screen import one_line, visible
from ..toolcall import ToolCall, render
from .assistant import Event, Text, ToolCallEvent, ToolResultEvent
from .context import Message

Reply = Callable[[Sequence[Message]], AsyncGenerator[Event, None]]
Read = Callable[[str], str]
Write = Callable[[str], None]
HELP = "/new begins afresh, /quit ends, Ctrl-C stops an answer\n"
JUDGING = "/up, /down: a good or a bad answer; /correct TEXT: what it should have been\n"
VERDICTS = {"up": "up", "down": "down", "correct": "corrected"}
PROMPT = "\n> "


class Feedback(Protocol):
    """Whoever keeps the conversation, and what its owner makes of it."""

    async def judge(self, verdict: str, correction: str, /) -> str:
        """Take a verdict on the last answer; returns what came of it, in words.

        Raises:
            QuietchoirError: there is no answer to judge, or it is not kept.
        """
        ...

    def renew(self) -> None:
        """Another conversation begins."""
        ...


class TerminalChat:
    """What was said so far, and how it goes on."""

    def __init__(self, reply: Reply, write: Write, feedback: Feedback | None = None) -> None:
        self.reply = reply
        self.write = write
        self.feedback = feedback
        self.messages: list[Message] = []

    async def say(self, text: str) -> None:
        """Ask, and write the answer as it comes.

        Raises:
            EngineError: the answer failed; the question is not kept.
        """
        asked = [*self.messages, Message("user", text)]
        said: list[str] = []
        calls: list[ToolCall] = []
        try:
            async with aclosing(self.reply(asked)) as events:
                async for event in events:
                    self.show(event)
                    if isinstance(event, Text):
                        said.append(event.text)
                    elif isinstance(event, ToolCallEvent):
                        calls.append(event.call)
        except asyncio.CancelledError:
            self.write(" (stopped)\n")
            raise
        self.write("\n")
        self.messages = [*asked, Message("assistant", "".join(said), tuple(calls))]

    async def judge(self, line: str) -> None:
        """`/up`, `/down` or `/correct TEXT` after an answer."""
        verdict, _, correction = line.removeprefix("/").partition(" ")
        if self.feedback is None or (verdict == "correct") != bool(correction.strip()):
            self.write(HELP if self.feedback is None else JUDGING)
            return
        try:
            told = await self.feedback.judge(VERDICTS[verdict], correction.strip())
        except QuietchoirError as error:
            told = str(error)
        self.write(f"{one_line(told)}\n")

    def renew(self) -> None:
        """Forget what was said; what is kept stays."""
        self.messages = []
        if self.feedback is not None:
            self.feedback.renew()

    def show(self, event: Event) -> None:
        """Write one event."""
        match event:
            case Text(text):
                self.write(visible(text))
            case ToolCallEvent(call=call):
                self.write(f"[{one_line(render(call))}]\n")
            case ToolResultEvent(result=result) if not result.ok:
                self.write("[did not work] ")


def converse(
    reply: Reply, runner: asyncio.Runner, read: Read, write: Write, feedback: Feedback | None = None
) -> None:
    """Read lines until /quit or the end of input, and answer each."""
    conversation = TerminalChat(reply, write, feedback)
    write(HELP + JUDGING * (feedback is not None))
    while True:
        try:
            said = read(PROMPT).strip()
        except (EOFError, KeyboardInterrupt):
            write("\n")
            return
        if said == "/quit":
            return
        if said == "/new":
            conversation.renew()
        elif said.split(" ")[0].removeprefix("/") in VERDICTS:
            runner.run(conversation.judge(said))
        elif said.startswith("/"):
            write(HELP)
        elif said:
            answer(conversation, runner, said)


def answer(conversation: TerminalChat, runner: asyncio.Runner, line: str) -> None:
    """One question; a failure is told and the conversation goes on."""
    try:
        runner.run(conversation.say(line))
    except KeyboardInterrupt:
        return
    except EngineError as error:
        conversation.write(f"\n{one_line(str(error))}\n")
