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
from tokenizers.pre_tokenizers import ByteLevel, PreTokenizer, Split
from tokenizers.pre_tokenizers import Sequence as Chain

from ...errors import ModelFileError
from .vocabulary import BYTE, SPACE, USER_DEFINED, Vocabulary, is_mark

# The patterns are facts about each model's training; each stands in the model's own tokenizer.json
# as well, and llama.cpp's `llama-vocab.cpp` tells which name stands for which.
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = rf"{ENDINGS}|{WORDS}|\p{{N}}{{1,3}}|{REST}"
QWEN2 = rf"{ENDINGS}|{WORDS}|\p{{N}}|{REST}"
QWEN35 = (
    rf"{ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SEED = rf"{ENDINGS}|{WORDS}|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
CAPITALS = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{{0}}|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{{0}}"
)
SLASHES = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEKKEN = rf"{CAPITALS.replace('{0}', '')}|\p{{N}}|{SLASHES}"
GPT4O = rf"{CAPITALS.replace('{0}', ENDINGS + '?')}|\p{{N}}{{1,3}}|{SLASHES}"
DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
# the letters that DeepSeek's first models know as such
DEEPSEEK_LETTERS = (
    r"A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕ"
    r"ἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳ"
    r"Ꙁ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)
IDEOGRAMS = r"[一-龥ࠀ-一가-퟿]+"
DEEPSEEK_LLM = (
    *(r"[\r\n]", rf"\s?[{DEEPSEEK_LETTERS}]+", r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$"),
    *(IDEOGRAMS, r"\p{N}+"),
)
DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", IDEOGRAMS, r"\p{N}")
FALCON = (r"[\p{P}\$\+<=>\^~\|`]+", GPT2, r"[0-9][0-9][0-9]")
BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"


@dataclass(frozen=True, slots=True)
class Rule:
    """How a byte-level vocabulary cuts text before merging."""

    cuts: tuple[str, ...] = (GPT2,)  # one after another, each within what the last one left
    # a stretch that is a token is taken as it is, whatever merges would make of it
    whole_words: bool = False
    composed: bool = False  # text is brought to Unicode's composed form first

    def pre_tokenizer(self) -> PreTokenizer:
        """The library's parts for it."""
        return Chain(
            [
                *(Split(Regex(pattern), "isolated") for pattern in self.cuts),
                ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )


DIGIT = r"\p{N}"
GPT2_RULE, LLAMA3_RULE, DIGITS_ALONE = (
    Rule(),
    Rule((LLAMA3,), whole_words=True),
    Rule((DIGIT, GPT2)),
)
QWEN2_RULE, DEEPSEEK_V3_RULE = Rule((QWEN2,), composed=True), Rule(DEEPSEEK_V3)
NAMES: Mapping[Rule, tuple[str, ...]] = {
    # the name under which a rule is written stands first
    GPT2_RULE: (
        *("gpt-2", "gpt2", "default", "phi-2", "mpt", "olmo", "jais", "trillion", "exaone4"),
        *("granite-docling", "gigachat", "a.x-4.0", "mellum"),
    ),
    DIGITS_ALONE: (
        "smollm",
        "starcoder",
        "refact",
        "command-r",
        "codeshell",
        "exaone",
        "minerva-7b",
    ),
    LLAMA3_RULE: (
        *("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
    ),
    Rule((LLAMA3,)): ("dbrx", "smaug-bpe", "glm4", "chatglm-bpe"),
    QWEN2_RULE: ("qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez"),
    Rule((QWEN2,)): ("stablelm2", "hunyuan", "solar-open", "grok-2"),
    Rule((QWEN35,), composed=True): ("qwen35",),
    Rule((SEED,)): ("seed-coder",),
    Rule((TEKKEN,), whole_words=True): ("tekken",),
    Rule((GPT4O,)): ("gpt-4o", "llama4", "kanana2", "minimax-m2"),
    DEEPSEEK_V3_RULE: ("deepseek-v3", "hunyuan-dense", "joyai-llm"),
    Rule(DEEPSEEK_LLM): ("deepseek-llm",),
    Rule(DEEPSEEK_CODER): ("deepseek-coder",),
    Rule(FALCON): ("falcon",),
    Rule((BLOOM,)): ("bloom", "poro-chat", "gpt3-finnish"),
    Rule((BLOOM, DIGIT)): ("viking",),
}
RULES: Mapping[str, Rule] = {name: rule for rule, names in NAMES.items() for name in names}


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
        # marks are told to it nowhere: the template's are found by us, and no text has one
        defined = [
            token
            for token in vocabulary.of_kind(USER_DEFINED)
            if not is_mark(token, vocabulary.template)
        ]
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
    """One of pieces: merges stand in the file (Gemma 4), or else any two neighbours that form a
    token may merge, the highest score first.
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
        merges=list(vocabulary.merges) or merges_of_scores(vocabulary),
        unk_token=unknown,
        fuse_unk=True,
        byte_fallback=BYTE in vocabulary.token_types,
    )
    backend = BackendTokenizer(model)
    if vocabulary.merges:  # which lead to no run of line ends: those are tokens as they stand
        backend.pre_tokenizer = Split(Regex(r"[^\n]+|\n+"), "isolated")
        lines = [token for token in vocabulary.tokens if len(token) > 1 and not token.strip("\n")]
        backend.add_tokens([AddedToken(token, normalized=False, special=False) for token in lines])
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
