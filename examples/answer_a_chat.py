"""Answer a chat from Python: no server, and no network once the model is there.

python examples/answer_a_chat.py ["Why is the sky blue?" [MODEL]]    (`quietchoir model pull` first)
"""

import asyncio
import sys

from quietchoir.core.assistant.context import Message
from quietchoir.core.assistant.events import ChatRequest, Text
from quietchoir.core.config import Config, EngineConfig
from quietchoir.core.engine.sampling.params import SamplingParams
from quietchoir.node import Node


async def answer(question: str, model: str) -> None:
    """Print the answer as it comes; nothing of it is kept."""
    node = Node(Config(engine=EngineConfig(model=model)))
    async with node:
        await node.start_assistant()
        params = SamplingParams(max_tokens=64)
        ask = ChatRequest(
            messages=(Message("user", question),), sampling_params=params, use_tools=False
        )
        async for event in node.assistant.reply(ask):
            if isinstance(event, Text):
                print(event.text, end="", flush=True)
    print()


if __name__ == "__main__":
    given = (*sys.argv[1:], *("Why is the sky blue?", "smollm2-135m-instruct")[len(sys.argv) - 1 :])
    asyncio.run(answer(given[0], given[1]))
