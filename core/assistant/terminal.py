"""A conversation in a terminal.

Knows lines in and text out. Knows neither the engine nor the network: it is given somebody who
replies.
Always: Ctrl-C while an answer runs ends the answer; at the prompt it ends the conversation.
"""

import asyncio
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import replace
from typing import Protocol

from ..errors import EngineError, QuietchoirError
from ..screen import one_line, visible
from ..toolcall import render
from .citations import Cited
from .context import LeftOut, Message
from .elicitation import ElicitResult, Form
from .events import (
    ApprovalEvent,
    ApprovedEvent,
    ElicitationEvent,
    ElicitedEvent,
    Event,
    Finished,
    Text,
    ToolCallEvent,
    ToolResultEvent,
    ToolsListedEvent,
)

Read = Callable[[str], str]
Write = Callable[[str], None]
BLOCK = '"""'
HELP = (
    "/new begins afresh, /retry asks again, /help says this, /quit ends, Ctrl-C stops an answer\n"
    f"{BLOCK} begins and ends a text of several lines\n"
)
JUDGING = "/up, /down: a good or a bad answer; /correct TEXT: what it should have been\n"
VERDICTS = {"up": "up", "down": "down", "correct": "corrected"}
PROMPT, MORE = "\n> ", ". "
CHOICES = " [y]es, [n]o, [a]lways in this conversation: "
ONCE = " [y]es, [n]o: "  # what reaches outside is asked each time


class Replier(Protocol):
    """Somebody who answers conversations, and asks before he acts."""

    def reply(self, messages: Sequence[Message], /) -> AsyncGenerator[Event, None]:
        """Answer one conversation."""
        ...

    async def answer(self, id: str, approved: bool, remember: bool) -> None:
        """The owner's word on one of its questions."""
        ...

    async def respond(self, id: str, result: ElicitResult) -> None:
        """What became of a form of a tool's."""
        ...

    def renew(self) -> None:
        """Another conversation begins: what was allowed in the last one holds no more."""
        ...


CUT = {"length": "cut at the length limit", "repetition": "ended, it only repeated itself"}


class Feedback(Protocol):
    """Whoever keeps the conversation, and what its owner makes of it."""

    async def judge(self, verdict: str, correction: str, /) -> str:
        """Take a verdict on the last answer; returns what came of it, in words.

        Raises:
            QuietchoirError: there is no answer to judge, or it is not kept.
        """
        ...


class TerminalChat:
    """What was said so far, and how it goes on."""

    def __init__(
        self, replier: Replier, read: Read, write: Write, feedback: Feedback | None = None
    ) -> None:
        self.replier = replier
        self.read = read
        self.write = write
        self.feedback = feedback
        self.messages: list[Message] = []

    async def say(self, text: str) -> None:
        """ChatRequest, and write the answer as it comes. What was said until it is stopped stays in
        the conversation, so that the next question may be about it.

        Raises:
            EngineError: the answer failed; the question is not kept.
        """
        asked = [*self.messages, Message("user", text)]
        said: list[str] = []
        called = Message("assistant", "")
        brought: list[Message] = []
        try:
            async with aclosing(self.replier.reply(asked)) as events:
                async for event in events:
                    self.show(event)
                    if isinstance(event, Text):
                        said += [] if event.thought else [event.text]
                    elif isinstance(event, ToolCallEvent):
                        call = replace(event.call, id=event.id)
                        called = replace(called, calls=(*called.calls, call))
                    elif isinstance(event, ToolResultEvent):
                        brought.append(Message("tool", event.result.text, (), event.id))
                    elif isinstance(event, ApprovalEvent):
                        await self.decide(event)
                    elif isinstance(event, ElicitationEvent):
                        await self.fill_in(event)
        except (asyncio.CancelledError, KeyboardInterrupt):
            self.write(" (stopped)\n")
            if said and not called.calls:  # a call without its result would be half an exchange
                self.messages = [*asked, Message("assistant", "".join(said))]
            raise
        self.write("\n")
        tools = [called, *brought] if called.calls else []
        self.messages = [*asked, *tools, Message("assistant", "".join(said))]

    async def decide(self, event: ApprovalEvent) -> None:
        """Have a question answered; the end of the input is a no."""
        choices = ONCE if event.effect == "outside" else CHOICES
        with interruptible():
            try:
                word = self.read(f"{one_line(event.question)}{choices}").strip().lower()[:1]
            except EOFError:
                word = "n"
        try:
            always = word == "a" and choices == CHOICES
            await self.replier.answer(event.id, word == "y" or always, always)
        except QuietchoirError as error:
            self.write(f"{one_line(str(error))}\n")

    async def fill_in(self, event: ElicitationEvent) -> None:
        """Have a form filled in, or not."""

        async def read(prompt: str) -> str:
            with interruptible():
                return self.read(prompt)

        result = await fill_in(event.form, read, self.write)
        try:
            await self.replier.respond(event.id, result)
        except QuietchoirError as error:
            self.write(f"{one_line(str(error))}\n")

    async def judge(self, line: str) -> None:
        """`/up`, `/down` or `/correct TEXT` after an answer."""
        verdict, _, correction = line.removeprefix("/").partition(" ")
        if self.feedback is None or (verdict == "correct") != bool(correction.strip()):
            self.write("nothing is kept here to be judged\n" if self.feedback is None else JUDGING)
            return
        try:
            told = await self.feedback.judge(VERDICTS[verdict], correction.strip())
        except QuietchoirError as error:
            told = str(error)
        self.write(f"{one_line(told)}\n")

    def take_back(self) -> str:
        """Take the newest question back, with its answer; "": there is none."""
        asked = [place for place, one in enumerate(self.messages) if one.role == "user"]
        if not asked:
            return ""
        question = self.messages[asked[-1]].content
        self.messages = self.messages[: asked[-1]]
        return question

    def renew(self) -> None:
        """Forget what was said; what is kept stays."""
        self.messages = []
        self.replier.renew()

    def show(self, event: Event) -> None:
        """Write one event."""
        match event:
            case LeftOut():
                self.write(f"[{event.told()}]\n")
            case Text(text):
                self.write(visible(text))
            case Cited(citations, sources):
                for one in citations:
                    self.write(f"[{one.number}] {one_line(one.place)}\n")
                for source in sources:
                    self.write(f"[{one_line(source.told())}]\n")
            case ToolCallEvent(call=call):
                self.write(f"[{one_line(render(call))}]\n")
            case ToolResultEvent(result=result) if not result.ok:
                self.write(f"[did not work: {one_line(result.text)}] ")
            case Finished(reason=reason) if reason in CUT:
                self.write(f" [{CUT[reason]}]")
            case ApprovedEvent(by="timeout"):
                self.write("[no answer in time, so it is not done] ")
            case ElicitedEvent(by="timeout"):
                self.write("[no answer in time, so it is told nothing] ")
            case ToolsListedEvent(names, offered):
                self.write(f"[of {offered} tools, {len(names)} that may fit are shown to it]\n")


async def fill_in(form: Form, read: Callable[[str], Awaitable[str]], write: Write) -> ElicitResult:
    """Put a tool's form to whoever sits here; whatever it says is on the lines that we begin."""
    write(f"{one_line(form.plugin)} asks: {one_line(form.message)}\n")
    for field in form.fields:
        write(f"  {one_line(field.described())}\n")
    try:
        if (await read("Answer it? [y/N] ")).strip().lower() not in ("y", "yes"):
            return ElicitResult("decline")
        given = {}
        for field in form.fields:
            while text := (await read(f"{one_line(field.label)}: ")).strip():
                try:
                    given[field.name] = field.read(text)
                    break
                except ValueError as error:
                    write(f"expected {one_line(str(error))}\n")
    except EOFError:
        return ElicitResult("decline")
    try:
        return ElicitResult("accept", form.checked(given))
    except ValueError as error:
        write(f"not sent: {one_line(str(error))}\n")
        return ElicitResult("cancel")


@contextmanager
def interruptible() -> Iterator[None]:
    """While a line is read inside the event loop: Ctrl-C ends the reading, as it does outside."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def converse(
    replier: Replier,
    runner: asyncio.Runner,
    read: Read,
    write: Write,
    feedback: Feedback | None = None,
) -> None:
    """Read lines until /quit or the end of input, and answer each."""
    conversation = TerminalChat(replier, read, write, feedback)
    words = HELP + JUDGING * (feedback is not None)
    write(words)
    while True:
        try:
            said = typed(read)
        except (EOFError, KeyboardInterrupt):
            write("\n")
            return
        if said == "/quit":
            return
        if said == "/retry" and not (said := conversation.take_back()):
            write("nothing was asked yet\n")
        if said == "/new":
            conversation.renew()
        elif said.startswith("/") and said.split(" ")[0].removeprefix("/") in VERDICTS:
            runner.run(conversation.judge(said))
        elif said.startswith("/") and "\n" not in said:
            write(words if said == "/help" else f"no command {one_line(said)}\n{words}")
        elif said:
            answer(conversation, runner, said)


def typed(read: Read) -> str:
    """A line, or, between marks, several.

    Raises:
        EOFError, KeyboardInterrupt: from `read`; what was begun is given up.
    """
    said = read(PROMPT).strip()
    if not said.startswith(BLOCK):
        return said
    lines = [said.removeprefix(BLOCK)]
    while not lines[-1].rstrip().endswith(BLOCK):
        lines.append(read(MORE))
    lines[-1] = lines[-1].rstrip().removesuffix(BLOCK)
    return "\n".join(lines).strip()


def answer(conversation: TerminalChat, runner: asyncio.Runner, line: str) -> None:
    """One question; a failure is told and the conversation goes on."""
    try:
        runner.run(conversation.say(line))
    except KeyboardInterrupt:
        return
    except EngineError as error:
        conversation.write(f"\n{one_line(str(error))}\n")
