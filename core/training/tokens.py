"""Examples as token ids: what is read, what must be said.

Knows the tokenizer and its chat template. Knows nothing of tensors' values or of training.
Always: an answer ends with the end-of-turn token, so a model that is right also stops.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from ..errors import DataError
from ..models.tokenizer.tokenizer import Tokenizer
from .examples import Example


@dataclass(frozen=True, slots=True)
class TokenExample:
    """One conversation. Input rows are all tokens but the last, which is only ever a target."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]

    @property
    def rows(self) -> int:
        """Input rows: the last token of the answer is not read by anything."""
        return len(self.prompt) + len(self.answer) - 1


def tokenize(
    examples: Sequence[Example], tokenizer: Tokenizer, *, longest: int
) -> list[TokenExample]:
    """Turn conversations into tokens, in their order.

    Args:
        longest: most tokens of one conversation, the model's context.

    Raises:
        DataError: no examples, a conversation that is too long, or a chat template that does not
        end an answer.
    """
    if not examples:
        raise DataError("there are no examples; train on at least one conversation")
    found = []
    for number, example in enumerate(examples, start=1):
        prompt = tokenizer.encode_chat(example.messages[:-1])
        whole = tokenizer.encode_chat(example.messages, add_generation_prompt=False)
        answer = until_stop(whole[len(prompt) :], tokenizer.stop_tokens)
        if whole[: len(prompt)] != prompt or not answer:
            raise DataError(
                f"example {number}: the model's chat template does not end an answer with a stop "
                f"token; choose another model"
            )
        if len(prompt) + len(answer) > longest:
            raise DataError(
                f"example {number} has {len(prompt) + len(answer)} tokens, the model takes "
                f"{longest}; shorten or remove it"
            )
        found.append(TokenExample(tuple(prompt), tuple(answer)))
    return found


def until_stop(tokens: Sequence[int], stops: frozenset[int]) -> list[int]:
    """Tokens up to and with the first stop token; empty if there is none."""
    for index, token in enumerate(tokens):
        if token in stops:
            return list(tokens[: index + 1])
    return []


def shared_start(examples: Sequence[TokenExample]) -> int:
    """How many tokens all prompts begin with alike, at most all but the last of the shortest
    prompt.

    The system message is the same everywhere, so its rows need computing once for all examples.
    """
    first, *others = [example.prompt[:-1] for example in examples]
    shared = len(first) if others else 0
    for prompt in others:
        alike = takewhile(
            lambda pair: pair[0] == pair[1], zip(first[:shared], prompt, strict=False)
        )
        shared = sum(1 for _ in alike)
    return shared
