"""A folder's tokenizer.json and its neighbours as our vocabulary, with the library's own tokenizer
to cut text.

Knows the layout of these files. Knows nothing of tensors.
Always: text cannot become a control token (the library is told so); nothing is cut short or padded,
whatever the file asks for.
Not covered: how long the file's own pattern takes to cut a text that was written against it; take
models from people you trust that far.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as BackendTokenizer

from ...errors import ModelFileError
from ..files.hf_folder import (
    CONFIG,
    GENERATION,
    TEMPLATE,
    TOKENIZER,
    TOKENIZER_CONFIG,
    optional_json,
    read_json,
)
from .pretokenizers import DIGIT, GPT2, NAMES, Rule, backend_encode
from .template_sandbox import LONGEST_SOURCE
from .tokenizer import Tokenizer
from .vocabulary import (
    BYTE,
    CONTROL,
    ENDS,
    LONGEST,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Spelling,
    Vocabulary,
    byte_of_piece,
    is_mark,
)

NORMALIZERS = frozenset(
    {
        "NFC",
        "NFD",
        "NFKC",
        "NFKD",
        "Lowercase",
        "Strip",
        "StripAccents",
        "Nmt",
        "Prepend",
        "Replace",
    }
)
CUTS = frozenset(
    {"ByteLevel", "Split", "Digits", "Metaspace", "Punctuation", "Whitespace", "WhitespaceSplit"}
)
MOST_GROWTH = 16  # as many as two parts that see a letter as its four bytes


def read_tokenizer(folder: Path, count: int) -> Tokenizer:
    """The tokenizer of a model folder.

    Args:
        count: rows of the embedding; the vocabulary is filled up to it.

    Raises:
        ModelNotFoundError: no tokenizer.json.
        ModelFileError: a kind of tokenizer we do not know, damaged, or with more tokens than rows.
    """
    path = folder / TOKENIZER
    described, config = read_json(path), optional_json(folder / TOKENIZER_CONFIG)
    template = template_of(folder, config)
    marked = with_marks(described, template)
    backend = load_backend(path, marked)
    try:
        check_growth(described)
        spelling = spelling_of(described)
        tokens, kinds = tokens_of(backend, described, spelling, count)
        vocabulary = Vocabulary(
            tokens=tokens,
            token_types=kinds,
            merges=merges_of(described),
            splitting=rule_name(described),
            scores=scores_of(described, tokens) if spelling == "sentencepiece" else (),
            spelling=spelling,
            template=template,
            space_first=puts_space_first(described),
            trims_after=frozenset(trimming(described, tokens, kinds)),
            named=tuple(named_tokens(config)),
            start=start_of(backend, config, tokens, kinds),
            stop=stop_of(folder, config, tokens, kinds),
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelFileError(
            f"{path}: {error!s:.200}; get the model again or choose another"
        ) from error
    return Tokenizer(vocabulary, backend, backend_after_control(path, marked))


def with_marks(described: dict[str, Any], template: str) -> dict[str, Any]:
    """The file with every mark among its added tokens called special: the library then reads none
    of them in text, whatever the file says of it. What is no list of objects stays for the library
    to refuse.
    """
    listed = described.get("added_tokens")
    if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
        return described
    added = [
        {**one, "special": True} if is_mark(str(one.get("content")), template) else one
        for one in listed
    ]
    return {**described, "added_tokens": added}


def check_growth(described: dict[str, Any]) -> None:
    """Refuse what would make a short text a long one: each part may double what the one before it
    made.

    Raises:
        ValueError: a part that is not on our lists, or a text that could become more than
        `MOST_GROWTH` times as long.
    """
    for key, inner, known in (
        ("normalizer", "normalizers", NORMALIZERS),
        ("pre_tokenizer", "pretokenizers", CUTS),
    ):
        whole, *within = list(parts(described, key, inner)) or [{}]
        steps = within if whole.get("type") == "Sequence" else [whole] if whole else []
        unknown = sorted({str(step.get("type")) for step in steps} - known)
        if unknown:
            raise ValueError(f"a {key} of the type {unknown[0]:.40} is not supported")
        growth = math.prod(map(growth_of, steps))
        if growth > MOST_GROWTH:
            raise ValueError(
                f"its {key} makes a text up to {growth:.0f} times as long, at most "
                f"{MOST_GROWTH} are taken"
            )


def growth_of(step: dict[str, Any]) -> float:
    """How many times as long a text can become by one step."""
    pattern, content = step.get("pattern"), str(step.get("content", step.get("prepend", "")))
    match step.get("type"):
        case "Prepend":
            return 1.0 + len(content)
        case "Replace":
            told = pattern.get("String") if isinstance(pattern, dict) else None
            # an expression may match nothing, between any two letters
            return (
                max(1.0, len(content) / len(told))
                if isinstance(told, str) and told
                else 1.0 + len(content)
            )
        case "ByteLevel" | "Metaspace":  # a letter has up to four bytes; a space before each piece
            return 4.0
    return 1.0


def load_backend(path: Path, described: dict[str, Any]) -> BackendTokenizer:
    """The library's tokenizer.

    Raises:
        ModelFileError: the library cannot make one of it.
    """
    try:
        backend: BackendTokenizer = BackendTokenizer.from_str(
            json.dumps(described, ensure_ascii=False)
        )
        backend.encode_special_tokens = True
        backend.no_truncation()
        backend.no_padding()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library panics, which is no `Exception`
        raise ModelFileError(
            f"{path}: not a tokenizer ({error!s:.200}); get the model again"
        ) from error
    return backend


def backend_after_control(path: Path, described: dict[str, Any]) -> BackendTokenizer | None:
    """The backend for text behind a control token, where a space is put only before the very
    first text.
    """
    firsts = [
        part
        for part in parts(described, "pre_tokenizer", "pretokenizers")
        if part.get("prepend_scheme") == "first"
    ]
    for part in firsts:
        part["prepend_scheme"] = "never"
    return load_backend(path, described) if firsts else None


def parts(described: dict[str, Any], key: str, inner: str) -> Iterator[dict[str, Any]]:
    """A part of the file, and what it is a sequence of."""
    part = described.get(key)
    if isinstance(part, dict):
        yield part
        yield from (one for one in part.get(inner) or () if isinstance(one, dict))


def merges_of(described: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """The file's merges, in either way of writing them."""
    pairs = [
        tuple(one.split(" ")) if isinstance(one, str) else tuple(one)
        for one in described["model"].get("merges") or ()
    ]
    return tuple((left, right) for left, right in pairs)


def scores_of(described: dict[str, Any], tokens: tuple[str, ...]) -> tuple[float, ...]:
    """Scores with which SentencePiece would merge in the same order: a token's is the rank of
    the merge that makes it.
    """
    ranks = {
        left + right: rank
        for rank, (left, right) in reversed(list(enumerate(merges_of(described))))
    }
    return tuple(-float(ranks.get(token, 1 << 20)) for token in tokens)


def rule_name(described: dict[str, Any]) -> str:
    """GGUF's name of the rule by which the file cuts text; empty where it has none."""
    found = list(parts(described, "pre_tokenizer", "pretokenizers"))
    cuts = [cut_of(part) for part in found if part.get("type") != "Sequence"]
    patterns = [cut for cut in cuts if cut]
    # what cuts behind the letters of bytes would see those
    if None in cuts or not found or found[-1].get("type") != "ByteLevel":
        return ""
    composed = any(
        part.get("type") == "NFC" for part in parts(described, "normalizer", "normalizers")
    )
    rule = Rule(
        cuts=tuple(cut for cut in patterns if cut),
        whole_words=bool(described["model"].get("ignore_merges")),
        composed=composed,
    )
    return NAMES.get(rule, ("",))[0]


def cut_of(part: dict[str, Any]) -> str | None:
    """The pattern by which a part cuts; empty where it cuts nothing, None where no pattern says
    what it does.
    """
    pattern = part.get("pattern") or {}
    match part.get("type"):
        case "Split" if part.get("behavior") == "Isolated" and not part.get("invert"):
            return pattern.get("Regex")
        case "Digits" if part.get("individual_digits"):
            return DIGIT
        case "ByteLevel" if not part.get("add_prefix_space"):
            return GPT2 if part.get("use_regex", True) else ""
    return None


def spelling_of(described: dict[str, Any]) -> Spelling:
    """How tokens stand for bytes; the decoder tells."""
    model = described.get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE":
        raise ValueError("only tokenizers of the type BPE are supported")
    decoders = {part.get("type") for part in parts(described, "decoder", "decoders")}
    if "ByteLevel" in decoders:
        return "bytes"
    if decoders & {"ByteFallback", "Metaspace", "Replace"}:
        return "sentencepiece"
    raise ValueError(f"a decoder of {sorted(map(str, decoders))} is not supported")


def puts_space_first(described: dict[str, Any]) -> bool:
    """Whether a space is put before every text."""
    prepends = any(
        part.get("type") == "Prepend" for part in parts(described, "normalizer", "normalizers")
    )
    before = list(parts(described, "pre_tokenizer", "pretokenizers"))
    schemes = any(
        part.get("type") == "Metaspace" and part.get("prepend_scheme", "always") != "never"
        for part in before
    )
    return (
        prepends
        or schemes
        or any(part.get("type") == "ByteLevel" and part.get("add_prefix_space") for part in before)
    )


def tokens_of(
    backend: BackendTokenizer, described: dict[str, Any], spelling: Spelling, count: int
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Texts and types by id, `count` of them; ids that the file leaves out are unused tokens."""
    added = {
        one["content"]: CONTROL if one.get("special") else USER_DEFINED
        for one in described.get("added_tokens") or ()
    }
    unknown = described["model"].get("unk_token")
    fallback = spelling == "sentencepiece" and bool(described["model"].get("byte_fallback"))
    tokens, kinds = [f"[unused {number}]" for number in range(count)], [UNUSED] * count
    for token, number in backend.get_vocab(with_added_tokens=True).items():
        if number >= count:
            # Gemma has one control token more than rows; text could never reach it
            if added.get(token) != CONTROL:
                raise ValueError(f"token {number} is beyond the {count} rows of the embedding")
            continue
        if len(token) > LONGEST:
            raise ValueError(f"a token of {len(token)} letters, at most {LONGEST} are read")
        tokens[number], kinds[number] = token, added.get(token, 1)
        if token == unknown and spelling == "sentencepiece":
            kinds[number] = UNKNOWN
        elif fallback and token not in added and token.startswith("<0x"):
            byte_of_piece(token)
            kinds[number] = BYTE
    return tuple(tokens), tuple(kinds)


def trimming(
    described: dict[str, Any], tokens: tuple[str, ...], kinds: tuple[int, ...]
) -> Iterator[int]:
    """Marks that swallow the white space behind them."""
    swallowing = {
        one["content"] for one in described.get("added_tokens") or () if one.get("rstrip")
    }
    return (
        number
        for number, token in enumerate(tokens)
        if kinds[number] in (CONTROL, USER_DEFINED) and token in swallowing
    )


def text_of(entry: object) -> str:
    """A token that is written as a text or as an object with one; empty where there is none."""
    found = entry.get("content") if isinstance(entry, dict) else entry
    return found if isinstance(found, str) else ""


def template_of(folder: Path, config: dict[str, Any]) -> str:
    """The chat template: a file of its own, or an entry of tokenizer_config.json, alone or by name.

    One that cannot be used comes as it is: it is refused when a chat is asked for.
    """
    path = folder / TEMPLATE
    if path.exists():
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(LONGEST_SOURCE + 1)
    found = config.get("chat_template")
    if isinstance(found, list):
        named = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else ""


def named_tokens(config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Tokens that a chat template may ask for by name: "bos_token" and all of that form."""
    extra = config.get("extra_special_tokens")
    for name, found in {**config, **(extra if isinstance(extra, dict) else {})}.items():
        if name.endswith("_token") and (text := text_of(found)):
            yield name, text


def start_of(
    backend: BackendTokenizer,
    config: dict[str, Any],
    tokens: tuple[str, ...],
    kinds: tuple[int, ...],
) -> tuple[int, ...]:
    """Tokens before a plain text: what the configuration says, else what the file's own rule
    adds to nothing.
    """
    says, bos = config.get("add_bos_token"), text_of(config.get("bos_token"))
    if isinstance(says, bool):
        return (tokens.index(bos),) if says and bos in tokens else ()
    found = backend_encode(backend, "", marked=True)
    eos = text_of(config.get("eos_token"))
    return tuple(
        token
        for token in found
        if token < len(kinds) and kinds[token] == CONTROL and tokens[token] != eos
    )[:1]


def stop_of(
    folder: Path, config: dict[str, Any], tokens: tuple[str, ...], kinds: tuple[int, ...]
) -> frozenset[int]:
    """Tokens that end an answer, by number or by name."""
    model = read_json(folder / CONFIG) if (folder / CONFIG).exists() else {}
    inner = model.get("text_config")
    sources = (optional_json(folder / GENERATION), model, inner if isinstance(inner, dict) else {})
    numbers: set[int] = set()
    for source in sources:
        found = source.get("eos_token_id")
        numbers |= {
            one for one in (found if isinstance(found, list) else [found]) if isinstance(one, int)
        }
    named = {*ENDS, text_of(config.get("eos_token"))}
    numbers |= {
        number for number, token in enumerate(tokens) if kinds[number] == CONTROL and token in named
    }
    if any(not 0 <= number < len(tokens) for number in numbers):
        raise ValueError(f"an end token is beyond the {len(tokens)} tokens")
    return frozenset(numbers)
