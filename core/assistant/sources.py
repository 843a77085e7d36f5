"""Where an answer's passages come from: collections of this node, and libraries on other machines.

Knows names, ranks, and what each source was shown of a question. Knows nothing of files or ciphers.
Always: a library is asked only where the request names it, as its owner chose for this
conversation; what left this machine is told with the passages, also where nothing came back.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ..errors import UnknownEntryError
from ..retrieval.store import RetrievedPassage
from .citations import LIBRARY, PassageFinder, SourceReport

# What a rank is worth is 1 / (FUSION + rank). Source: Cormack, Clarke, Büttcher, "Reciprocal rank
# fusion", SIGIR 2009.
FUSION = 60

Ranked = Sequence[tuple[str, RetrievedPassage]]  # best first, each with its source


class LibraryAsker(Protocol):
    """Whoever can ask libraries without telling them what."""

    async def ask(
        self, names: Sequence[str], question: str, /
    ) -> Sequence[tuple[SourceReport, Sequence[RetrievedPassage]]]:
        """What each was sent, and the passages that were read there, best first. Ends in a bounded
        time whatever they do, and holds none of the threads that others answer with.

        Raises:
            UnknownEntryError: no such library; nothing was sent.
        """
        ...


class NoLibraries:
    """A node that knows none."""

    async def ask(
        self, names: Sequence[str], _question: str
    ) -> list[tuple[SourceReport, list[RetrievedPassage]]]:
        """Nothing; a name is refused."""
        if names:
            raise UnknownEntryError(f"no library is called {names[0][:80]!r}: this node knows none")
        return []


@dataclass(frozen=True, slots=True)
class Retrieved:
    """What was found for one question, and who saw what of it."""

    passages: Ranked
    reports: tuple[SourceReport, ...] = ()  # empty where nothing could leave this machine


@dataclass(frozen=True, slots=True)
class Sources:
    """Both kinds."""

    documents: PassageFinder
    libraries: LibraryAsker

    async def find(self, names: Sequence[str], question: str, most: int) -> Retrieved:
        """The best passages of all that are named, by their ranks in each.

        Raises:
            RetrievalError: no such collection or library, or a damaged one; nothing was sent.
        """
        remote = [name for name in names if name.startswith(LIBRARY)]
        local = [name for name in names if not name.startswith(LIBRARY)]
        own = await asyncio.to_thread(self.documents.find, local, question, most)
        if not remote:
            return Retrieved(own)
        asked = await self.libraries.ask([name.removeprefix(LIBRARY) for name in remote], question)
        lists = [[(report.name, passage) for passage in found] for report, found in asked]
        kept = tuple(SourceReport(name=name) for name in dict.fromkeys(local))
        return Retrieved(fused([own, *lists], most), (*kept, *(report for report, _ in asked)))


def fused(lists: Sequence[Ranked], most: int) -> list[tuple[str, RetrievedPassage]]:
    """One list of many. A text that stands in two of them counts twice, under its first source; in
    one of them it counts once, wherever else it stands there: no source raises its own.
    """
    worth: dict[str, float] = {}
    first: dict[str, tuple[str, RetrievedPassage]] = {}
    for one in lists:
        counted = set[str]()
        for rank, (source, passage) in enumerate(one, 1):
            text = passage.text.strip()
            if text not in counted:
                worth[text] = worth.get(text, 0.0) + 1 / (FUSION + rank)
            counted.add(text)
            first.setdefault(text, (source, passage))
    order = sorted(worth, key=lambda text: worth[text], reverse=True)  # of equal ones the first
    return [first[text] for text in order[:most]]
