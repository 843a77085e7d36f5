"""A conversation in a terminal.

Knows lines in and text out. Knows neither the engine nor the network: it is given somebody who
replies.
Always: Ctrl-C while an answer runs ends the answer; at the prompt it ends the conversation.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

from ..errors import EngineError
from ..screen import one_line, visible
from ..toolcall import ToolCall, render
from .assistant import Event, Text, ToolCallEvent, ToolResultEvent
from .context import Message

Reply = Callable[[Sequence[Message]], AsyncGenerator[Event, None]]
Read = Callable[[str], str]
Write = Callable[[str], None]
HELP = "/new begins afresh, /quit ends, Ctrl-C stops an answer\n"
PROMPT = "\n> "


class TerminalChat:
    """What was said so far, and how it goes on."""

    def __init__(self, reply: Reply, write: Write) -> None:
        self.reply = reply
        self.write = write
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

    def show(self, event: Event) -> None:
        """Write one event."""
        match event:
            case Text(text):
                self.write(visible(text))
            case ToolCallEvent(call=call):
                self.write(f"[{one_line(render(call))}]\n")
            case ToolResultEvent(result=result) if not result.ok:
                self.write("[did not work] ")


def converse(reply: Reply, runner: asyncio.Runner, read: Read, write: Write) -> None:
    """Read lines until /quit or the end of input, and answer each."""
    conversation = TerminalChat(reply, write)
    write(HELP)
    while True:
        try:
            said = read(PROMPT).strip()
        except (EOFError, KeyboardInterrupt):
            write("\n")
            return
        if said == "/quit":
            return
        if said == "/new":
            conversation.messages = []
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
