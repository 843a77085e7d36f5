"""Text into tokens and back.

Knows the vocabulary, the rule that cuts text, and which tokens mark roles. Knows nothing of the network.
Always: `encode` never yields a control token, whatever the text looks like; `decode(encode(text)) == text` as far as the
file has a token for each byte. (SmolLM2 has none for six ASCII control characters and for the lead bytes of the
unassigned planes 4 to 11: those bytes are left out, as its makers' tokenizer leaves them out.)
"""

import codecs
import re
from collections.abc import Mapping, Sequence

from tokenizers import AddedToken
from tokenizers import Tokenizer as Cutter
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer
from tokenizers.pre_tokenizers import Sequence as Chain

from ..errors import ModelFileError
from .chat import ChatTemplate
from .vocabulary import CONTROL, USER_DEFINED, Vocabulary


def splitting_rule(name: str) -> PreTokenizer:
    """How text is cut before merging, by the name a GGUF file gives the rule.

    Raises:
        ModelFileError: a rule we do not know; a wrong one would shift every token.
    """
    byte_level = ByteLevel(add_prefix_space=False, use_regex=True)
    if name in ("gpt-2", "gpt2", "default"):
        return byte_level
    if name == "smollm":
        return Chain([Digits(individual_digits=True), byte_level])
    raise ModelFileError(f"text splitting rule {name!r} is not supported; choose a model with 'smollm' or 'gpt-2'")


class Tokenizer:
    """One model's tokenizer; safe to use from several threads."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        """Raises: ModelFileError: merges, splitting rule or chat template that cannot be used."""
        self.vocabulary = vocabulary
        self.stop_tokens = vocabulary.stop
        self.start_tokens = (
            vocabulary.start
        )  # before a plain text, where the model was trained so; chat templates bring their own
        self.size = len(vocabulary.tokens)
        self._template = ChatTemplate(vocabulary.template)
        self._controls = vocabulary.of_kind(CONTROL)
        longest_first = sorted(self._controls, key=len, reverse=True)
        self._control = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if longest_first else None
        self._bytes = vocabulary.bytes_of()
        self._cutter = build(vocabulary)

    def encode(self, text: str) -> list[int]:
        """Tokens of a text. Role marks in it are letters like any others; half a surrogate pair, as JSON may bring, is "?"."""
        if not text.isascii():
            text = text.encode("utf-8", "replace").decode()
        return self._cutter.encode(text, add_special_tokens=False).ids

    def encode_chat(self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True) -> list[int]:
        """Tokens of a conversation, each message with "role" and "content".

        Raises:
            RequestError: a conversation the model cannot take.
            ModelFileError: the model has no chat template.
        """
        tokens: list[int] = []
        run = ""  # text since the last control token: cut as one, as a tokenizer that sees the whole would cut it
        for piece in self._template.render(messages, add_generation_prompt=add_generation_prompt):
            for part in [piece.text] if piece.written or self._control is None else self._control.split(piece.text):
                if not piece.written and part in self._controls:
                    tokens += [*self.encode(run), self._controls[part]]
                    run = ""
                else:
                    run += part
        return tokens + self.encode(run)

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of tokens; control tokens are left out, bytes that are not UTF-8 become U+FFFD."""
        return b"".join(self._bytes[token] for token in tokens).decode("utf-8", "replace")

    def stream(self) -> "TokenStream":
        """A decoder for tokens that arrive one by one."""
        return TokenStream(self._bytes)


class TokenStream:
    """Text of tokens that arrive one by one, in whole characters only."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        """`pieces`: the bytes of each token."""
        self._pieces = pieces
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """What became complete with this token; empty inside a character."""
        return self._decoder.decode(self._pieces[token])

    def finish(self) -> str:
        """What is left at the end: U+FFFD if the tokens stopped inside a character. Ready for the next text."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest


def build(vocabulary: Vocabulary) -> Cutter:
    """The library's tokenizer, from the file's vocabulary.

    Control tokens are not declared special to it: they are words that no merge leads to, so text cannot become one.
    """
    numbered = {token: index for index, token in enumerate(vocabulary.tokens)}
    try:
        cutter = Cutter(BPE(vocab=numbered, merges=list(vocabulary.merges)))
    except Exception as error:  # the library raises bare Exception
        raise ModelFileError(f"the file's merges do not fit its tokens ({error}); pull or download it again") from error
    cutter.pre_tokenizer = splitting_rule(vocabulary.splitting)
    defined = vocabulary.of_kind(USER_DEFINED)
    cutter.add_tokens([AddedToken(token, normalized=False, special=False) for token in defined])
    return cutter
