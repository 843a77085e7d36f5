"""Conversations that outlive the cache: out of it into files, and back.

Knows blocks, prefixes and what a model's cache can read and write. What a file looks like knows
`conversations`.
Always: a conversation that does not fit changes nothing; one that fits stands in the cache like any
other that has ended. The cache is read and written between two steps, so other requests wait for
one copy (some 50 ms for 2,000 tokens of a 135M model); files are read and written in the caller's
thread.
"""

from collections import abc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import log
from ..errors import CacheError, EngineError, OverloadedError
from ..models.transformers_model import ServedModel
from . import conversations
from .adapters import AdapterRegistry
from .backends.backend import Backend
from .conversations import SavedConversation
from .prefix_cache import PrefixNode, StateSnapshot
from .scheduler import Scheduler

logger = log.get("engine")


@dataclass(frozen=True, slots=True)
class PromptCache:
    """One engine's cache, seen as conversations."""

    scheduler: Scheduler
    backend: Backend
    weights: ServedModel
    adapters: AdapterRegistry
    between_steps: Callable[[Callable[[], Any]], Any]  # runs a piece of work on the engine's thread

    def save(self, tokens: abc.Sequence[int], path: Path, *, adapter: str | None = None) -> int:
        """Write what the cache still holds of the beginning of `tokens` (prompt, answer, …) to a
        file.

        Returns:
            How many of the tokens, a multiple of a block's 16.

        Raises:
            CacheError: nothing of them. RequestError: no such adapter.
            QuietchoirError: no space or no permission; an older file is untouched.
        """
        digest = self._digest(adapter)
        conversation: SavedConversation = self.between_steps(lambda: self.copy(tokens, digest))
        conversations.write(path, conversation)
        return len(conversation.tokens)

    def restore(self, path: Path, *, adapter: str | None = None) -> int:
        """Read a saved conversation into the cache, where the next request that begins with its
        tokens finds it.

        Returns:
            How many tokens that request need not compute.

        Raises:
            CacheError: damaged, or of another model, adapter or layout of the cache; nothing was
            restored. OverloadedError: no room now. RequestError: no such adapter.
        """
        digest, conversation = self._digest(adapter), conversations.read(path)
        if conversation.adapter != digest:
            raise CacheError(
                f"{path} was computed with another version of the adapter, or with "
                f"none; let it compute anew"
            )
        self._restore(conversation)
        return len(conversation.tokens)

    def save_latest(self, folder: Path, most: int) -> int:
        """Let `folder` hold the `most` latest conversations of the cache and no others; returns how
        many.

        Raises:
            QuietchoirError: no space or no permission.
        """
        found: list[SavedConversation] = self.between_steps(lambda: self.latest(most))
        conversations.replace_all(folder, found)
        return len(found)

    def restore_latest(self, folder: Path) -> int:
        """Read back what `save_latest` wrote, of whatever adapter; what does not fit is logged
        and left out.
        """
        restored = 0
        for path in conversations.saved(folder):
            try:
                self._restore(conversations.read(path))
                restored += 1
            except EngineError as error:
                logger.warning("%s was not restored: %s", path, error)
        return restored

    # On the engine's thread.

    def copy(self, tokens: abc.Sequence[int], adapter: str) -> SavedConversation:
        """What the cache holds of the beginning of `tokens`.

        Raises:
            CacheError: nothing.
        """
        prefixes, size = self.scheduler.prefixes, self.scheduler.pool.block_tokens
        found = prefixes.follow(prefixes.root(adapter), tokens, len(tokens) // size)
        found = self._saved(found)
        if not found:
            raise CacheError(
                f"the cache holds nothing of these {len(tokens)} tokens; save right "
                f"after the answer"
            )
        return self._of(found, adapter)

    def latest(self, most: int) -> list[SavedConversation]:
        """The `most` latest conversations, the oldest of them first."""
        leaves = [
            (adapter, path)
            for adapter, leaf in self.scheduler.prefixes.leaves()
            if (path := self._saved(leaf.path()))
        ]
        return [self._of(path, adapter) for adapter, path in leaves[max(0, len(leaves) - most) :]]

    def put_back(self, conversation: SavedConversation) -> None:
        """Let requests that begin with these tokens find them in the cache.

        Raises:
            CacheError: of another model or layout, or tokens that this model does not know.
            OverloadedError: no room now.
        """
        pool, prefixes = self.scheduler.pool, self.scheduler.prefixes
        tokens, size = conversation.tokens, pool.block_tokens
        count = len(tokens) // size
        if conversation.model != self.weights.digest:
            found, own = conversation.model[:12], self.weights.digest[:12]
            raise CacheError(
                f"it was computed with model {found}…, this engine runs {own}…; let it compute anew"
            )
        if (
            not tokens
            or len(tokens) % size
            or not 0 <= min(tokens) <= max(tokens) < self.weights.vocab_size
        ):
            raise CacheError(
                f"its {len(tokens)} tokens are not whole blocks of {size} of this "
                f"model's tokens; delete it"
            )
        if not self.scheduler.limits.share_prefixes:
            raise CacheError(
                "engine.share_prefixes is false, so nobody would find it; set it to true"
            )
        if count + len(self.scheduler.running) > pool.free:
            raise OverloadedError(
                f"it needs {count} blocks of the cache, {pool.free} are free; try again later"
            )
        blocks, cache, snapshot = pool.allocate(count), conversation.cache, None
        try:
            if self.scheduler.snapshots is not None and (states := self.backend.states) is not None:
                end = max(len(cache) - states.saved_bytes, 0)
                snapshot = StateSnapshot(states.load(cache[end:]), len(tokens))
                cache = cache[:end]
            self.backend.write_cache(blocks, cache)
        except BaseException:
            pool.release(blocks)
            raise
        if self.scheduler.window:  # what none saw from its end on was given back before
            seen = self.scheduler.first_seen(count)
            pool.hollow.update(blocks[self.scheduler.kept_blocks : seen])
        parent = prefixes.root(conversation.adapter)
        for place, block in enumerate(blocks):
            parent = prefixes.add(parent, tokens[place * size : (place + 1) * size], block)
            # it was there already: hold that one, so that it goes after those behind it
            if parent.block != block:
                pool.share(parent.block)
                pool.release([block])
                blocks[place] = parent.block
        if snapshot is not None and self.scheduler.snapshots is not None:
            self.scheduler.snapshots.put(parent, snapshot)
        pool.release(blocks)

    def _saved(self, found: list[PrefixNode]) -> list[PrefixNode]:
        """As many of these blocks as a file can hold with all that layers remember at their end."""
        states = self.backend.states
        return [] if states is not None and not states.saved_bytes else self.scheduler.usable(found)

    def _of(self, path: abc.Sequence[PrefixNode], adapter: str) -> SavedConversation:
        tokens = tuple(token for prefix in path for token in prefix.tokens)
        cache, states = self.backend.read_cache([prefix.block for prefix in path]), b""
        snapshot = path[-1].snapshot
        if snapshot is not None and self.backend.states is not None:
            states = self.backend.states.dump(snapshot.state)
        return SavedConversation(self.weights.digest, adapter, tokens, cache + states)

    def _restore(self, conversation: SavedConversation) -> None:
        self.between_steps(lambda: self.put_back(conversation))

    def _digest(self, adapter: str | None) -> str:
        version = self.adapters.find(adapter)
        return "" if version is None else version.digest
