"""Text into tokens and back.

Knows the vocabulary, and which tokens mark roles. Knows nothing of the network; `pretokenizers.py`
knows how text is cut.
Always: `encode` never yields a control token, whatever the text looks like, and `encode_chat` no
mark that the template did not write; `decode(encode(text)) == text` as far as the file has a token
for each byte. (SmolLM2 has none for six ASCII control characters and for the lead bytes of the
unassigned planes 4 to 11: those bytes are left out, as its makers' tokenizer leaves them out.
Qwen's tokenizer composes letters and accents first, as its makers' does.)
"""

import codecs
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer as BackendTokenizer

from ...errors import ChatTemplateError
from .chat_template import ChatTemplate, RenderedPiece, plain, texts
from .pretokenizers import backend_encode, build
from .vocabulary import CONTROL, USER_DEFINED, Vocabulary, is_mark


class Tokenizer:
    """One model's tokenizer; safe to use from several threads."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        backend: BackendTokenizer | None = None,
        after_control: BackendTokenizer | None = None,
    ) -> None:
        """Take a vocabulary.

        Args:
            backend: what cuts text, where the model brings one of its own (tokenizer.json).
            after_control: what cuts text behind a control token, where that is not the same.

        Raises:
            ModelFileError: merges or a splitting rule that cannot be used.
        """
        self.vocabulary = vocabulary
        self.stop_tokens = vocabulary.stop
        self.start_tokens = (
            vocabulary.start
        )  # before a plain text, where the model was trained so; chat templates bring their own
        self.size = len(vocabulary.tokens)
        self._template = ChatTemplate(vocabulary.template, dict(vocabulary.named))
        self._controls = vocabulary.of_kind(CONTROL)
        self._words = {
            token: index
            for token, index in vocabulary.of_kind(USER_DEFINED).items()
            if is_mark(token, vocabulary.template)
        }
        self._marks = {**self._controls, **self._words}
        self._mark_ids = frozenset(self._marks.values())
        self._word, self._mark = one_of(self._words), one_of(self._marks)
        self._bytes = vocabulary.bytes_of()
        self._backend = backend or build(vocabulary)
        self._backend_after_control = after_control or self._backend

    def encode(self, text: str) -> list[int]:
        """Tokens of a text that its asker writes whole. Control tokens' names in it are letters
        like any others, words that the file declares user-defined are read, as `transformers` reads
        them; half a surrogate pair, as JSON may bring, is "?".

        Raises:
            ModelFileError: the model's own tokenizer breaks on it.
        """
        tokens: list[int] = []
        for part in self._word.split(text) if self._word else [text]:
            if part in self._words:
                tokens.append(self._words[part])
            else:
                tokens += self._run(part, tokens)
        return tokens

    def encode_prompt(self, text: str) -> list[int]:
        """Tokens of a text that a model is to go on with: `encode`, behind the start tokens that
        the file asks for.

        Raises:
            ModelFileError: as `encode`.
        """
        return [*self.start_tokens, *self.encode(text)]

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[int]:
        """Tokens of a conversation, each message with "role" and "content".

        They are those of `transformers`' `apply_chat_template`, but that role marks inside contents
        are letters, whether the file declares them control tokens or user-defined words.

        Raises:
            RequestError: a conversation the model cannot take.
            ChatTemplateError: the model has no chat template, or one that cannot be used.
        """
        tokens: list[int] = []
        # text since the last control token: cut as one, as a tokenizer that sees the whole would
        # cut it
        run = ""
        pieces = self._template.render(
            messages, add_generation_prompt=add_generation_prompt, tools=tools
        )
        self._check_marks(pieces, messages, tools)
        for piece in pieces:
            for part in (
                [piece.text]
                if piece.written or self._mark is None
                else self._mark.split(piece.text)
            ):
                if part and not piece.written and part in self._marks:
                    tokens += [*self._run(run, tokens), self._marks[part]]
                    run = ""
                else:
                    run += part
        return tokens + self._run(run, tokens)

    @property
    def template(self) -> ChatTemplate:
        """How this model writes a conversation down."""
        return self._template

    @property
    def control_names(self) -> Container[str]:
        """The names of control tokens, which no text becomes."""
        return self._controls

    def check_template(self) -> None:
        """Whether this model can chat at all.

        Raises:
            ChatTemplateError: no; the sentence says why.
        """
        self._template.compiled()

    def _check_marks(self, pieces: Sequence[RenderedPiece], *given: Any) -> None:
        """Refuse a template that makes its marks in a way that loses whose they are: the model
        would see mere letters.
        """
        for piece in pieces:
            found = (
                [name for name in self._marks if name and name in piece.text]
                if piece.written
                else []
            )
            for name in found:
                if not any(name in text for one in given for text in texts(plain(one))):
                    raise ChatTemplateError(
                        f"the model's chat template makes {name!r:.60} in a way that cannot be "
                        f"told from what people write; "
                        "use plain completion or another model"
                    )

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of tokens; control tokens are left out, bytes that are not UTF-8 become U+FFFD."""
        text = b"".join(self._bytes[token] for token in tokens).decode("utf-8", "replace")
        return text.removeprefix(" ") if self.vocabulary.space_first else text

    def spell(self, token: int) -> bytes:
        """The bytes of a token; a control token's name."""
        return self._bytes[token] or self.vocabulary.tokens[token].encode()

    def stream(self) -> "TokenStream":
        """A decoder for tokens that arrive one by one."""
        return TokenStream(self._bytes, skip_space=self.vocabulary.space_first)

    def _run(self, text: str, before: Sequence[int]) -> list[int]:
        """Tokens of text between marks, behind those in `before`."""
        if before and before[-1] in self.vocabulary.trims_after:
            text = text.lstrip()
        return self._encode(text, self._backend_after_control if before else self._backend)

    def _encode(self, text: str, backend: BackendTokenizer) -> list[int]:
        if not text.isascii():
            text = text.encode("utf-8", "replace").decode()
        tokens = backend_encode(backend, text) if text else []
        if self._mark_ids.isdisjoint(tokens):
            return tokens
        # A vocabulary whose merges lead to a role mark: the mark is spelled out instead.
        return [
            part
            for token in tokens
            for part in (self._spelled(token) if token in self._mark_ids else (token,))
        ]

    def _spelled(self, mark: int) -> list[int]:
        """The letters of a mark's text, each a token of its own."""
        table = {piece: token for token, piece in enumerate(self._bytes) if piece}
        tokens: list[int] = []
        for letter in self.vocabulary.tokens[mark]:
            whole = letter.encode()
            tokens += [
                table[piece]
                for piece in ([whole] if whole in table else map(int.to_bytes, whole))
                if piece in table
            ]
        return tokens


def one_of(names: Iterable[str]) -> re.Pattern[str] | None:
    """A pattern that cuts a text at any of these names, the longest first; None without names."""
    longest_first = sorted(filter(None, names), key=len, reverse=True)
    return (
        re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if longest_first else None
    )


class TokenStream:
    """Text of tokens that arrive one by one, in whole characters only."""

    def __init__(self, pieces: Sequence[bytes], *, skip_space: bool = False) -> None:
        """`pieces`: the bytes of each token; `skip_space`: a space at the very start is the
        tokenizer's, not the text's.
        """
        self._pieces = pieces
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._skip_space = self._at_start = skip_space

    def push(self, token: int) -> str:
        """What became complete with this token; empty inside a character."""
        text = self._decoder.decode(self._pieces[token])
        if text and self._at_start:
            self._at_start = False
            return text.removeprefix(" ")
        return text

    def finish(self) -> str:
        """What is left at the end: U+FFFD if the tokens stopped inside a character. Ready for
        the next text.
        """
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        self._at_start = self._skip_space
        return rest
