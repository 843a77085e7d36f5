"""Tools of other plugins: what one plugin may have another do.

Knows names of plugins and tools, and how a plugin asks (`quietchoir/tools/call`, an extension of
MCP: the protocol has no such request). Knows no process: whoever runs the plugins hands over
`Carry`.
Always: only tools that the asking plugin's manifest names, one call after the other, and only while
a call of its own is waited for; nobody asks in a circle, however long, so that no two wait for each
other.

Not covered: what a plugin was told or shown, it may tell to those whose tools it calls; the effect
of its own tools counts theirs in (`PluginHost.tools`), so that its owner is asked before.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from typing import Any

from ..core.errors import QuietchoirError
from .sampling import INVALID, REFUSED, HostRefusal, RequestRate

METHOD = CAPABILITY = "quietchoir/tools/call"
MAX_CALLS = 100  # during one call of its own
MAX_REQUESTS = 600  # a minute, also of one that is called over and over itself
MAX_LINKS = 3  # of a chain of plugins that call each other
# plugin and tool that is called, and its arguments → text, and whether the tool says that it worked
Carry = Callable[[str, str, Mapping[str, Any]], Awaitable[tuple[str, bool]]]


class DelegationRefused(HostRefusal):
    """The other plugin is not asked."""


class OtherTools:
    """The tools of others that one plugin may call.

    Args:
        allowed: `permissions.tools` of its manifest.
    """

    def __init__(self, allowed: Collection[str], carry: Carry) -> None:
        self.allowed, self._carry = allowed, carry
        self._turn = asyncio.Lock()
        self._count = 0
        self._rate = RequestRate(MAX_REQUESTS)

    def begin(self) -> None:
        """A call of its own begins."""
        self._count = 0

    async def create(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The result of one request. Raises: DelegationRefused: and why."""
        wanted, arguments = params.get("tool"), params.get("arguments", {})
        if not isinstance(wanted, str) or not isinstance(arguments, dict):
            raise DelegationRefused(INVALID, "expected tool, publisher/name:tool, and arguments")
        if wanted not in self.allowed:
            named = ", ".join(self.allowed)
            raise DelegationRefused(REFUSED, f"{wanted[:200]!r} is not granted; granted: {named}")
        self._count += 1
        if self._count > MAX_CALLS:
            raise DelegationRefused(REFUSED, f"more than {MAX_CALLS} calls of others in one call")
        if self._rate.ask():
            raise DelegationRefused(
                REFUSED, f"more than {MAX_REQUESTS} calls of others in a minute"
            )
        plugin, _, tool = wanted.partition(":")
        async with self._turn:
            try:
                text, ok = await self._carry(plugin, tool, arguments)
            except QuietchoirError as error:
                raise DelegationRefused(REFUSED, str(error)) from None
        return {"content": [{"type": "text", "text": text}], "isError": not ok}


def edges(allowed: Mapping[str, Collection[str]]) -> dict[str, set[str]]:
    """Plugin → plugins that it may call; of those that are here.

    Args:
        allowed: plugin → `permissions.tools`.
    """
    return {
        plugin: {one.partition(":")[0] for one in tools} & allowed.keys()
        for plugin, tools in allowed.items()
    }


def too_long(calls: Mapping[str, Collection[str]]) -> Iterator[str]:
    """Plugins from which a chain of calls is longer than `MAX_LINKS`, or comes back."""
    for plugin in calls:
        reached = {plugin}
        for _ in range(MAX_LINKS):
            reached = {one for name in reached for one in calls.get(name, ())}
        if any(calls.get(one) for one in reached):
            yield plugin
