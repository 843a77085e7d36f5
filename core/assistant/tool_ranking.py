"""Which tools a prompt tells of, where it has no room for all.

Knows names and descriptions of tools, a full-text index and, where the node has one, a model that
turns texts into vectors. Knows nothing of prompts.
Always: the order among the chosen is that in which they are offered, so that the same choice gives
the same prompt.
"""

import re
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

import numpy as np

from .context import Message
from .tools import ToolInfo

ASKED = 3  # of the user's newest messages decide what is relevant
DAMPING = 60  # of reciprocal rank fusion. Source: Cormack, Clarke and Büttcher, SIGIR 2009
WORD = re.compile(r"\w+")
Size = Callable[[Sequence[ToolInfo]], int]  # tokens that a prompt with these tools takes
Embed = Callable[[Sequence[str]], Any]  # texts → [N, D], each of length 1


class ToolRanking:
    """Orders tools by how likely a conversation needs them."""

    def __init__(self, embed: Callable[[], Embed | None] = lambda: None) -> None:
        """`embed`: gives the model of this node, if it has one; asked when first needed."""
        self._embed = embed
        self._vectors: dict[str, Any] = {}  # of tools' texts, which seldom change

    def chosen(
        self,
        tools: Sequence[ToolInfo],
        messages: Sequence[Message],
        size: Size,
        room: int,
        most: int | None = None,
    ) -> Sequence[ToolInfo]:
        """All of the tools, or the likeliest `most` of them that take at most `room` tokens; one
        at least.
        """
        room += size(())
        if len(tools) <= (most or len(tools)) and size(tools) <= room:
            return tools
        ranked = self.ranked(tools, messages)[:most]
        if size(ranked) <= room:
            likeliest = {tool.name for tool in ranked}
            return [tool for tool in tools if tool.name in likeliest]
        fits, too_many = 1, len(ranked)
        while too_many - fits > 1:
            count = (fits + too_many) // 2
            fits, too_many = (count, too_many) if size(ranked[:count]) <= room else (fits, count)
        likeliest = {tool.name for tool in ranked[:fits]}
        return [tool for tool in tools if tool.name in likeliest]

    def ranked(self, tools: Sequence[ToolInfo], messages: Sequence[Message]) -> list[ToolInfo]:
        """The likeliest first: by words and by meaning, fused."""
        asked = [message.content for message in messages if message.role == "user"][-ASKED:]
        query = "\n".join(asked)
        texts = [described(tool) for tool in tools]
        orders = [by_words(texts, query)]
        if (embed := self._embed()) is not None:
            orders.append(self.by_meaning(texts, query, embed))
        scores = np.zeros(len(tools))
        for order in orders:
            for rank, place in enumerate(order):
                scores[place] += 1 / (DAMPING + rank)
        return [tools[place] for place in np.argsort(-scores, kind="stable")]

    def by_meaning(self, texts: Sequence[str], query: str, embed: Embed) -> list[int]:
        """Places of the texts, the nearest to the query first."""
        if new := [text for text in texts if text not in self._vectors]:
            if len(self._vectors) > 4096:
                self._vectors.clear()
                new = list(texts)
            self._vectors.update(zip(new, np.asarray(embed(new)), strict=True))
        matrix = np.stack([self._vectors[text] for text in texts])
        return [int(place) for place in np.argsort(-(matrix @ np.asarray(embed([query]))[0]))]


def described(tool: ToolInfo) -> str:
    """What a tool is about, in words: `HassTurnOn` is "Hass Turn On"."""
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[_.-]", " ", tool.name)
    properties = tool.schema.get("properties")
    return f"{name}: {tool.description} {' '.join(properties) if properties else ''}"


def by_words(texts: Sequence[str], query: str) -> list[int]:
    """Places of the texts by BM25, those that share a word with the query alone."""
    words = {word.lower() for word in WORD.findall(query)}
    if not words:
        return []
    with closing(sqlite3.connect(":memory:")) as database:
        database.execute("CREATE VIRTUAL TABLE tool USING fts5(text, tokenize = 'porter')")
        database.executemany(
            "INSERT INTO tool (rowid, text) VALUES (?, ?)", enumerate(texts, start=1)
        )
        # quoted, so that nothing of the query is read as a command of the index
        found = database.execute(
            "SELECT rowid FROM tool WHERE tool MATCH ? ORDER BY bm25(tool)",
            (" OR ".join(f'"{word}"' for word in sorted(words)),),
        )
        return [rowid - 1 for (rowid,) in found]
