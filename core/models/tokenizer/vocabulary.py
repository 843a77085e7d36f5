"""The token list of one model, and which bytes each token stands for.

Knows token texts, kinds, merges and the marks that end an answer. Knows nothing of how text is cut
into tokens.
Always: token ids are positions in the list; a control token stands for no bytes.
"""

from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

from ...errors import ModelFileError
from ..families import FAMILIES
from ..files.gguf import GgufFile

# GGUF's token types that are not ordinary text
UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 2, 3, 4, 5, 6
ENDS = (
    "<|endoftext|>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<end_of_turn>",
    "</s>",
    "<|end|>",
)  # end an answer
# Rules whose files ask for the start token where they do not say.
# Source: llama.cpp's llama-vocab.cpp.
STARTED = (
    *("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
    "tekken",
)
SPACE = "▁"  # stands for a space in SentencePiece's tokens
LONGEST = 1024  # letters of one token; those of known models have at most 256
Spelling = Literal["bytes", "sentencepiece"]
# What a chat template calls a token, and GGUF's key of its number. Source: gguf-py's constants.
NAMED = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """What a model says about its tokens."""

    # in the spelling below, except control and user-defined ones
    tokens: tuple[str, ...] = field(repr=False)
    token_types: tuple[int, ...] = field(repr=False)  # GGUF token types
    merges: tuple[tuple[str, str], ...] = field(repr=False)  # best first
    splitting: str  # the file's name of the rule that cuts text before merging
    start: tuple[int, ...]  # tokens that stand before every plain text, mostly none
    stop: frozenset[int]  # tokens that end an answer
    template: str  # chat template, jinja2; empty where the file has none
    # how tokens stand for bytes: GPT-2's letters, or text with ▁ and <0x0A>
    spelling: Spelling = "bytes"
    # of SentencePiece: the higher, the earlier a token is merged
    scores: tuple[float, ...] = field(default=(), repr=False)
    space_first: bool = False  # a space is put before every text, and taken away again
    # control tokens that swallow the white space behind them
    trims_after: frozenset[int] = frozenset()
    # what a template calls "bos_token" and "eos_token", where the model has them
    named: tuple[tuple[str, str], ...] = ()

    @classmethod
    def read(cls, file: GgufFile) -> "Vocabulary":
        """Take the vocabulary from a file's metadata.

        Raises:
            ModelFileError: a kind of vocabulary we do not know, or lists that do not fit each
            other.
        """
        model = file.value("tokenizer.ggml.model", str)
        if model not in ("gpt2", "llama", "gemma4"):
            raise ModelFileError(
                f"{file.path}: tokenizer {model!r:.40} is not supported; choose a model with a "
                f"byte-level ('gpt2') or SentencePiece ('llama', 'gemma4') one"
            )
        tokens, kinds = read_tokens(file)
        pieces = model != "gpt2"
        merges = (
            ()
            if model == "llama"
            else tuple(tuple(merge.split(" ")) for merge in texts(file, "tokenizer.ggml.merges"))
        )
        family = file.value("general.architecture", str)
        return cls(
            tokens=tokens,
            token_types=kinds,
            merges=merges,  # type: ignore[arg-type]  # checked where the merges are used: the library refuses odd ones
            splitting=file.value("tokenizer.ggml.pre", str, "default" if pieces else "gpt-2"),
            template=file.value("tokenizer.chat_template", str, ""),
            spelling="sentencepiece" if pieces else "bytes",
            scores=read_scores(file, len(tokens)) if model == "llama" else (),
            space_first=model == "llama"
            and file.value("tokenizer.ggml.add_space_prefix", bool, True),
            trims_after=read_trims(family, tokens, kinds) if pieces else frozenset(),
            **read_ends(
                file,
                tokens,
                kinds,
                default_start=pieces or file.metadata.get("tokenizer.ggml.pre") in STARTED,
            ),
        )

    def of_kind(self, *kinds: int) -> dict[str, int]:
        """Texts and ids of all tokens of these types."""
        return {
            token: index
            for index, token in enumerate(self.tokens)
            if self.token_types[index] in kinds
        }

    def bytes_of(self) -> list[bytes]:
        """The bytes of each token, by id; control tokens and unused ones have none."""
        spell = spell_bytes if self.spelling == "bytes" else spell_piece
        return [
            spell(token, kind) for token, kind in zip(self.tokens, self.token_types, strict=True)
        ]


def is_mark(token: str, template: str) -> bool:
    """Whether a user-defined token may be one by which a model tells roles, thoughts or calls
    apart, so that only the template may write it. Harmless are white space and plain words, as
    long as the template does not name them.

    Published files declare role marks so, too ("<|User|>" of distilled models), so the kind alone
    tells nothing.
    """
    told = token.replace(SPACE, " ").strip()
    return bool(told) and (told in template or not all(c.isalnum() or c.isspace() for c in told))


def spell_bytes(token: str, kind: int) -> bytes:
    """The bytes of a token of GPT-2's alphabet."""
    if kind in (CONTROL, UNUSED):
        return b""
    alphabet = byte_of_letter()
    if kind == USER_DEFINED or not alphabet.keys() >= set(token):
        return token.encode()
    return bytes(map(alphabet.__getitem__, token))


def spell_piece(token: str, kind: int) -> bytes:
    """The bytes of a SentencePiece token."""
    if kind in (CONTROL, UNUSED, UNKNOWN):
        return b""
    if kind == BYTE:
        return bytes([byte_of_piece(token)])
    return token.replace(SPACE, " ").encode()


def byte_of_piece(token: str) -> int:
    """The byte that "<0x0A>" stands for; raises ValueError for another text."""
    if len(token) != 6 or not token.startswith("<0x") or not token.endswith(">"):
        raise ValueError(f"{token!r:.20} is marked as a byte, expected a text such as <0x0A>")
    return int(token[3:5], 16)


def read_tokens(file: GgufFile) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Token texts and types, each token once."""
    tokens = texts(file, "tokenizer.ggml.tokens")
    kinds = tuple(file.value("tokenizer.ggml.token_type", list))
    if len(kinds) != len(tokens) or len(set(tokens)) != len(tokens):
        raise ModelFileError(
            f"{file.path}: {len(tokens)} tokens, {len(kinds)} types; each token "
            f"must occur once, with a type"
        )
    try:
        for token, kind in zip(tokens, kinds, strict=True):
            if len(token) > LONGEST:
                raise ValueError(f"a token of {len(token)} letters, at most {LONGEST} are read")
            if kind == BYTE:
                byte_of_piece(token)
    except ValueError as error:
        raise ModelFileError(f"{file.path}: {error}; get the model again") from error
    return tokens, kinds


def read_scores(file: GgufFile, count: int) -> tuple[float, ...]:
    """The score of each token."""
    scores = tuple(file.value("tokenizer.ggml.scores", list))
    if len(scores) != count or not all(
        isinstance(score, float) and score == score for score in scores
    ):
        raise ModelFileError(
            f"{file.path}: {len(scores)} scores for {count} tokens, expected a "
            f"number each; get it again"
        )
    return scores


def read_ends(
    file: GgufFile, tokens: tuple[str, ...], kinds: tuple[int, ...], *, default_start: bool
) -> dict[str, Any]:
    """The fields `start`, `stop` and `named`."""
    numbers = {
        name: file.value(f"tokenizer.ggml.{key}_token_id", int, -1) for name, key in NAMED.items()
    }
    bos, eos = numbers["bos_token"], numbers["eos_token"]
    ends = {eos, file.value("tokenizer.ggml.eot_token_id", int, -1)} - {-1}
    ends |= {
        index for index, token in enumerate(tokens) if kinds[index] == CONTROL and token in ENDS
    }
    starts = file.value("tokenizer.ggml.add_bos_token", bool, default_start and bos >= 0)
    start = (file.value("tokenizer.ggml.bos_token_id", int),) if starts else ()
    if (
        any(not -1 <= token < len(tokens) for token in (*ends, *start, *numbers.values()))
        or -1 in start
    ):
        raise ModelFileError(
            f"{file.path}: an end or start token is beyond the {len(tokens)} "
            f"tokens; get the model again"
        )
    named = tuple((name, tokens[place]) for name, place in numbers.items() if place >= 0)
    return {"start": start, "stop": frozenset(ends), "named": named}


def read_trims(family: str, tokens: tuple[str, ...], kinds: tuple[int, ...]) -> frozenset[int]:
    """Control tokens that swallow white space: llama.cpp also tells them by the family's name."""
    kept = FAMILIES[family].gguf_keeps_space if family in FAMILIES else None
    if kept is None:
        return frozenset()
    return frozenset(
        index for index, token in enumerate(tokens) if kinds[index] == CONTROL and token not in kept
    )


def texts(file: GgufFile, key: str) -> tuple[str, ...]:
    """A metadata list of texts."""
    found = file.value(key, list)
    if not all(isinstance(item, str) for item in found):
        raise ModelFileError(
            f"{file.path}: {key} holds something that is not text; get the model again"
        )
    return tuple(found)


@cache
def byte_of_letter() -> dict[str, int]:
    """The byte-level alphabet: 256 printable letters, one a byte.

    Source: GPT-2's `bytes_to_unicode`: printable Latin-1 stands for itself, the other bytes follow
    from U+0100 on.
    """
    plain = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    other = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {
        chr(256 + place): byte for place, byte in enumerate(other)
    }
