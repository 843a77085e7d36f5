"""How text is cut into tokens: the rules that GGUF files name, and the two kinds of vocabularies.

Knows the `tokenizers` library's parts. Knows nothing of chats, roles or files.
Always: a rule we do not know is refused; a wrong one would shift every token.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from tokenizers import AddedToken, Regex, normalizers
from tokenizers import Tokenizer as BackendTokenizer
from tokenizers.models import BPE
from tokenizers.normalizers import Normalizer
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Split
from tokenizers.pre_tokenizers import Sequence as Chain

from ...errors import ModelFileError
from .vocabulary import BYTE, SPACE, USER_DEFINED, Vocabulary

# The patterns are facts about each model's training; each stands in the model's own tokenizer.json
# as well.
ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = rf"{ENDINGS}|{WORDS}|\p{{N}}{{1,3}}|{REST}"
QWEN2 = rf"{ENDINGS}|{WORDS}|\p{{N}}|{REST}"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, slots=True)
class Rule:
    """How a byte-level vocabulary cuts text before merging."""

    pattern: str = ""  # empty: GPT-2's own
    digits_alone: bool = False
    # a stretch that is a token is taken as it is, whatever merges would make of it
    whole_words: bool = False
    composed: bool = False  # text is brought to Unicode's composed form first

    def pre_tokenizer(self) -> PreTokenizer:
        """The library's parts for it."""
        if self.pattern:
            return Chain(
                [
                    Split(Regex(self.pattern), "isolated"),
                    ByteLevel(add_prefix_space=False, use_regex=False),
                ]
            )
        byte_level = ByteLevel(add_prefix_space=False, use_regex=True)
        return (
            Chain([Digits(individual_digits=True), byte_level]) if self.digits_alone else byte_level
        )


GPT2, LLAMA3_RULE = Rule(), Rule(LLAMA3, whole_words=True)
RULES: Mapping[str, Rule] = {
    "default": GPT2,
    "gpt-2": GPT2,
    "gpt2": GPT2,
    "smollm": Rule(digits_alone=True),
    "llama-bpe": LLAMA3_RULE,
    "llama3": LLAMA3_RULE,
    "llama-v3": LLAMA3_RULE,
    "dbrx": Rule(LLAMA3),
    "smaug-bpe": Rule(LLAMA3),
    "qwen2": Rule(QWEN2, composed=True),
    "deepseek-r1-qwen": Rule(QWEN2, composed=True),
    "tekken": Rule(TEKKEN, whole_words=True),
}


def backend_encode(backend: BackendTokenizer, text: str, *, marked: bool = False) -> list[int]:
    """Tokens of a text; `marked` adds what the tokenizer puts around every text.

    Raises:
        ModelFileError: the tokenizer contradicts itself; the library panics then, which is no
        `Exception`.
    """
    try:
        tokens: list[int] = backend.encode(text, add_special_tokens=marked).ids
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise ModelFileError(
            f"the model's tokenizer cannot cut this text ({error!s:.200}); get the model again"
        ) from error
    return tokens


def build(vocabulary: Vocabulary) -> BackendTokenizer:
    """The library's tokenizer for a vocabulary from a GGUF file.

    Raises:
        ModelFileError: merges or a rule that cannot be used.

    Control tokens are not declared special to it: they are words that no merge leads to, so text
    cannot become one.
    """
    try:
        backend = (
            build_pieces(vocabulary)
            if vocabulary.spelling == "sentencepiece"
            else build_bytes(vocabulary)
        )
        defined = vocabulary.of_kind(USER_DEFINED)
        backend.add_tokens(
            [AddedToken(token, normalized=False, special=False) for token in defined]
        )
    except ModelFileError:
        raise
    except Exception as error:  # the library raises bare Exception
        raise ModelFileError(
            f"the file's merges do not fit its tokens ({error}); pull or download it again"
        ) from error
    return backend


def build_bytes(vocabulary: Vocabulary) -> BackendTokenizer:
    """A byte-level one: merges stand in the file."""
    rule = RULES.get(vocabulary.splitting)
    if rule is None:
        raise ModelFileError(
            f"text splitting rule {vocabulary.splitting!r:.40} is not supported; choose a model "
            f"with one of {', '.join(RULES)}"
        )
    numbered = {token: index for index, token in enumerate(vocabulary.tokens)}
    backend = BackendTokenizer(
        BPE(vocab=numbered, merges=list(vocabulary.merges), ignore_merges=rule.whole_words)
    )
    backend.pre_tokenizer = rule.pre_tokenizer()
    if rule.composed:
        backend.normalizer = normalizers.NFC()
    return backend


def build_pieces(vocabulary: Vocabulary) -> BackendTokenizer:
    """A SentencePiece one: any two neighbours that form a token may merge, the highest score
    first.
    """
    numbered = {token: index for index, token in enumerate(vocabulary.tokens)}
    unknown = next(
        (
            token
            for token, kind in zip(vocabulary.tokens, vocabulary.token_types, strict=True)
            if kind == 2
        ),
        None,
    )
    model = BPE(
        vocab=numbered,
        merges=merges_of_scores(vocabulary),
        unk_token=unknown,
        fuse_unk=True,
        byte_fallback=BYTE in vocabulary.token_types,
    )
    backend = BackendTokenizer(model)
    spaces: list[Normalizer] = [normalizers.Replace(" ", SPACE)]
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend(SPACE), *spaces] if vocabulary.space_first else spaces
    )
    return backend


def merges_of_scores(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """Every pair of ordinary tokens that form a third, by falling score of that one.

    Source: Kudo and Richardson 2018 (SentencePiece), whose BPE merges whatever neighbours form the
    best piece.
    """
    ordinary = {
        token
        for token, kind in zip(vocabulary.tokens, vocabulary.token_types, strict=True)
        if kind == 1
    }
    ranked: list[tuple[float, int, int, str, str]] = []
    for number, token in enumerate(vocabulary.tokens):
        if token in ordinary:
            for place in range(1, len(token)):
                left, right = token[:place], token[place:]
                if left in ordinary and right in ordinary:
                    ranked.append((-vocabulary.scores[number], number, place, left, right))
    ranked.sort()
    return [(left, right) for *_, left, right in ranked]
