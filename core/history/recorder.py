"""Answers on their way out, kept as they end.

Knows the events of an answer. Knows nothing of where they go.
Always: an answer that broke off or was left, or whose conversation was forgotten meanwhile, is not
kept; a disk that refuses costs the record, said in the log, and never the answer.
"""

import asyncio
import secrets
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from .. import log
from ..assistant.context import Message
from ..assistant.events import (
    ApprovedEvent,
    ChatRequest,
    Event,
    Finished,
    LoopStepEvent,
    Text,
    ToolCallEvent,
    ToolResultEvent,
)
from ..assistant.thoughts import unmarked
from ..assistant.tools import ToolResult
from ..errors import QuietchoirError
from ..toolcall import ToolCall
from .store import NEVER, HistoryStore

logger = log.get("history")


class KeptChat:
    """One conversation after the other in a terminal of this node, kept and judged.

    Args:
        source: who keeps them.
    """

    def __init__(self, store: HistoryStore, source: str) -> None:
        self.store, self.source = store, source
        self.renew()

    def renew(self) -> None:
        """Another conversation begins."""
        self.conversation = f"{self.source}-{secrets.token_hex(8)}"

    async def judge(self, verdict: str, correction: str) -> str:
        """A verdict on the last answer. Raises: DataError: there is none."""
        return await asyncio.to_thread(self._judge, verdict, correction)

    def _judge(self, verdict: str, correction: str) -> str:
        if verdict == "down":
            self.store.reject(self.conversation)
            return "no example is made of it"
        if verdict == "up":
            self.store.approve(self.conversation)
        else:
            self.store.correct(self.conversation, correction)
        return kept_words(self.store.consent_of(self.conversation), self.conversation)


def kept_words(consent: str, conversation: str) -> str:
    """What became of an example."""
    if consent == NEVER:
        return (
            f"kept as an example; it trains nothing unless you consent: quietchoir data consent "
            f"conversation {conversation} personal"
        )
    return f"kept as an example; it may train: {consent}"


async def recorded(
    store: HistoryStore, request: ChatRequest, source: str, answer: AsyncGenerator[Event, None]
) -> AsyncGenerator[Event, None]:
    """The same events; before the last one the conversation is kept, this answer in it. An answer
    whose calls its owner all confirmed, and that all did what they were to and all that was asked,
    becomes an example.
    """
    began = await begun(store, request, source)
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[ToolCall] = []
    confirmed: list[bool] = []
    results: list[ToolResult] = []
    in_words = False  # what the calls left of the request was answered so, or had to be
    async with aclosing(answer) as events:
        async for event in events:
            if isinstance(event, Text):
                if event.thought:
                    thoughts.append(unmarked(event))
                else:
                    texts.append(event.text)
            elif isinstance(event, LoopStepEvent):
                thoughts.append("\n\n")
                in_words |= event.last
            elif isinstance(event, ToolCallEvent):
                calls.append(event.call)
            elif isinstance(event, ApprovedEvent):
                confirmed.append(event.approved and event.by == "owner")
            elif isinstance(event, ToolResultEvent):
                results.append(event.result)
            elif isinstance(event, Finished) and began is not None:
                said, thought = request.begun + "".join(texts), "".join(thoughts).strip()
                words = Message("assistant", said, tuple(calls), thought=thought)
                brought = [Message("tool", result.text) for result in results]  # in their order
                done = all(result.ok for result in results)
                right = (
                    len(confirmed) == len(calls) > 0 and all(confirmed) and done and not in_words
                )
                kept = (words, *brought)
                await keep(store, request, source, kept, confirmed=right, began=began)
            yield event


async def begun(store: HistoryStore, request: ChatRequest, source: str) -> float | None:
    """As `HistoryStore.begin`; None, said in the log: it cannot be kept, and is answered."""
    try:
        return await asyncio.to_thread(store.begin, request.conversation, source)
    except QuietchoirError as error:
        logger.error("the conversation is answered and not kept: %s", error)
        return None


async def keep(
    store: HistoryStore,
    request: ChatRequest,
    source: str,
    answer: Sequence[Message],
    *,
    confirmed: bool,
    began: float,
) -> None:
    """Write one conversation down, or say why not."""

    def write() -> None:
        messages = (*request.messages, *answer)
        used = request.collections
        store.keep(request.conversation, messages, source=source, collections=used, began=began)
        if confirmed:
            store.approve(request.conversation, origin="confirmed")

    try:
        await asyncio.to_thread(write)
    except QuietchoirError as error:
        logger.error("the conversation was answered and not kept: %s", error)
