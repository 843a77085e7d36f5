"""The token list of one model file, and which bytes each token stands for.

Knows token texts, kinds, merges and the marks that end an answer. Knows nothing of how text is cut into tokens.
Always: token ids are positions in the file's list; a control token stands for no bytes.
"""

from dataclasses import dataclass, field
from functools import cache

from ..errors import ModelFileError
from .gguf import GgufFile

CONTROL, USER_DEFINED, UNUSED = 3, 4, 5  # GGUF's token types that are not ordinary text
ENDS = ("<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<end_of_turn>", "</s>")  # end an answer, where present


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """What a file says about its tokens."""

    tokens: tuple[str, ...] = field(repr=False)  # in the byte-level alphabet, except control and user-defined ones
    kinds: tuple[int, ...] = field(repr=False)  # GGUF token types
    merges: tuple[tuple[str, str], ...] = field(repr=False)  # best first
    splitting: str  # the file's name of the rule that cuts text before merging
    start: tuple[int, ...]  # tokens that stand before every plain text, mostly none
    stop: frozenset[int]  # tokens that end an answer
    template: str  # chat template, jinja2; empty where the file has none

    @classmethod
    def read(cls, file: GgufFile) -> "Vocabulary":
        """Take the vocabulary from a file's metadata.

        Raises:
            ModelFileError: not a byte-level vocabulary, or lists that do not fit each other.
        """
        model = file.value("tokenizer.ggml.model", str)
        if model != "gpt2":
            raise ModelFileError(
                f"{file.path}: tokenizer {model!r} is not supported; choose a model with a 'gpt2' (byte-level) one"
            )
        tokens = texts(file, "tokenizer.ggml.tokens")
        kinds = tuple(file.value("tokenizer.ggml.token_type", list))
        if len(kinds) != len(tokens) or len(set(tokens)) != len(tokens):
            raise ModelFileError(
                f"{file.path}: {len(tokens)} tokens, {len(kinds)} types; each token must occur once, with a type"
            )
        merges = tuple(tuple(merge.split(" ")) for merge in texts(file, "tokenizer.ggml.merges"))
        eos = file.value("tokenizer.ggml.eos_token_id", int, -1)
        ends = {eos, file.value("tokenizer.ggml.eot_token_id", int, -1)} - {-1}
        ends |= {
            index for index, (token, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind == CONTROL and token in ENDS
        }
        starts = file.value("tokenizer.ggml.add_bos_token", bool, False)
        start = (file.value("tokenizer.ggml.bos_token_id", int),) if starts else ()
        if any(not 0 <= token < len(tokens) for token in (*ends, *start)):
            raise ModelFileError(f"{file.path}: an end or start token is beyond the {len(tokens)} tokens; get the model again")
        return cls(
            tokens=tokens,
            kinds=kinds,
            merges=merges,  # type: ignore[arg-type]  # checked where the merges are used: the library refuses odd ones
            splitting=file.value("tokenizer.ggml.pre", str, "gpt-2"),
            start=start,
            stop=frozenset(ends),
            template=file.value("tokenizer.chat_template", str, ""),
        )

    def of_kind(self, *kinds: int) -> dict[str, int]:
        """Texts and ids of all tokens of these types."""
        return {token: index for index, token in enumerate(self.tokens) if self.kinds[index] in kinds}

    def bytes_of(self) -> list[bytes]:
        """The bytes of each token, by id; control tokens and unused ones have none."""
        alphabet = byte_of_letter()
        pieces: list[bytes] = []
        for token, kind in zip(self.tokens, self.kinds, strict=True):
            if kind in (CONTROL, UNUSED):
                pieces.append(b"")
            elif kind == USER_DEFINED or not alphabet.keys() >= set(token):
                pieces.append(token.encode())
            else:
                pieces.append(bytes(map(alphabet.__getitem__, token)))
        return pieces


def texts(file: GgufFile, key: str) -> tuple[str, ...]:
    """A metadata list of texts."""
    found = file.value(key, list)
    if not all(isinstance(item, str) for item in found):
        raise ModelFileError(f"{file.path}: {key} holds something that is not text; get the model again")
    return tuple(found)


@cache
def byte_of_letter() -> dict[str, int]:
    """The byte-level alphabet: 256 printable letters, one a byte.

    Source: GPT-2's `bytes_to_unicode`: printable Latin-1 stands for itself, the other bytes follow from U+0100 on.
    """
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    other = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + place): byte for place, byte in enumerate(other)}
