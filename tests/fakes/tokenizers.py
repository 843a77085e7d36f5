"""Small tokenizers of each kind that published models have, trained on a few lines, saved as
their makers save them.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from tokenizers.models import BPE

from quietchoir.core.models.files.gguf import GgufFile
from quietchoir.core.models.tokenizer.pretokenizers import DEEPSEEK_V3, GPT4O, LLAMA3, QWEN2, TEKKEN
from quietchoir.core.models.tokenizer.tokenizer import Tokenizer as OwnTokenizer
from quietchoir.core.models.tokenizer.vocabulary import (
    BYTE,
    CONTROL,
    UNKNOWN,
    USER_DEFINED,
    Vocabulary,
)

CORPUS = [
    "The quiet choir sings at 10:30; it's 2026, we'll count 1234567 voices, don't they?",
    "naïve Übergröße Ωμέγα 漢字かな 한국어 עברית café e\u0301 🧑‍🚀👍🏽 x² ½ ٣",
    "def f(x):\n    return {'a': [1, 2]}\n\n\n\t\ttabs  two   three    spaces  \r\n",
    "system user assistant model hello hello hello yellow mellow hollow follow fellow [INST] "
    "<<SYS>> <s> </s>",
]


@dataclass(frozen=True)
class Kind:
    """One kind of tokenizer, and the marks and template that go with it."""

    make: Callable[[], Tokenizer]
    specials: tuple[str, ...]
    bos: str = ""
    eos: str = ""
    template: str = ""
    rstrip: tuple[str, ...] = ()
    words: tuple[str, ...] = ()  # added, but not special
    gguf: str = ""  # the name of the splitting rule in a GGUF file; "spm" for SentencePiece
    unknown: str | None = None
    starts: bool = False
    extra: dict[str, Any] = field(default_factory=dict)


def byte_level(
    *patterns: str, composed: bool = False, whole: bool = False
) -> Callable[[], Tokenizer]:
    """GPT-2's alphabet behind patterns."""

    def make() -> Tokenizer:
        tokenizer = Tokenizer(BPE(ignore_merges=whole))
        cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
        tokenizer.decoder = decoders.ByteLevel()
        if composed:
            tokenizer.normalizer = normalizers.NFC()
        return tokenizer

    return make


def falcon() -> Tokenizer:
    """Falcon's: punctuation in runs, GPT-2's cut, digits by three."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Punctuation("contiguous"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            pre_tokenizers.Digits(individual_digits=False),
            pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated"),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def gpt2(*, digits: bool = False) -> Callable[[], Tokenizer]:
    """GPT-2's own cut, or SmolLM2's."""

    def make() -> Tokenizer:
        tokenizer = Tokenizer(BPE())
        own = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        alone = pre_tokenizers.Digits(individual_digits=True)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([alone, own]) if digits else own
        tokenizer.decoder = decoders.ByteLevel()
        return tokenizer

    return make


def sentencepiece(
    *, prepend: bool = False, metaspace: bool = False, lines: bool = False
) -> Callable[[], Tokenizer]:
    """Llama 2's (prepend), Mistral's (metaspace), Gemma 4's (lines) and Gemma's (none of them)."""

    def make() -> Tokenizer:
        tokenizer = Tokenizer(BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
        replace = normalizers.Replace(" ", "▁")
        end = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        if metaspace:
            tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        elif prepend:
            tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace])
        else:
            tokenizer.normalizer = replace
            cut = (Regex(r"[^\n]+|\n+"), "isolated") if lines else (" ", "merged_with_previous")
            tokenizer.pre_tokenizer = pre_tokenizers.Split(*cut)
        tokenizer.decoder = decoders.Sequence(
            [*end, decoders.Strip(" ", 1, 0)] if prepend or metaspace else end
        )
        return tokenizer

    return make


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + "
    "'\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] "
    "+ ' [/INST]' }}"
    "{% elif m['role'] == 'system' %}{{ '<<SYS>>\\n' + m['content'] + '\\n<</SYS>>\\n\\n' }}"
    "{% else %}{{ ' ' ~ m['content'] ~ ' ' ~ eos_token }}{% endif %}{% endfor %}"
)
HEADERS = (
    "{{- bos_token }}{%- for m in messages %}{{- '<|start_header_id|>' + m['role'] + "
    "'<|end_header_id|>\\n\\n' "
    "+ m['content'] | trim + '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' "
    "}}{%- endif %}"
)
TURNS = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{% continue %}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\\n' + "
    "m['content'] | trim }}"
    "{{ '<end_of_turn>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ "
    "'<start_of_turn>model\\n' }}{% endif %}"
)
BARS = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' + m['content'] + '<|end|>\\n' }}{% "
    "endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
USERS = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '<｜User｜>' + "
    "m['content'] }}{% elif m['role'] == 'assistant' %}{{ '<｜Assistant｜>' + m['content'] + "
    "eos_token }}{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}"
)
MARKS, HEADS = (
    ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
)
BAR_MARKS = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
KINDS: dict[str, Kind] = {
    "gpt-2": Kind(gpt2(), MARKS, eos="<|im_end|>", template=CHATML, gguf="gpt-2"),
    "smollm": Kind(gpt2(digits=True), MARKS, eos="<|im_end|>", template=CHATML, gguf="smollm"),
    "llama3": Kind(
        byte_level(LLAMA3, whole=True),
        ("<|begin_of_text|>", *HEADS),
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
        template=HEADERS,
        gguf="llama-bpe",
        starts=True,
    ),
    "qwen2": Kind(
        byte_level(QWEN2, composed=True),
        MARKS,
        eos="<|im_end|>",
        template=CHATML,
        words=("<think>", "</think>"),
        gguf="qwen2",
    ),
    "tekken": Kind(
        byte_level(TEKKEN, whole=True),
        ("<s>", "</s>"),
        bos="<s>",
        eos="</s>",
        template=INST,
        gguf="tekken",
        starts=True,
    ),
    "llama2": Kind(
        sentencepiece(prepend=True),
        ("<s>", "</s>"),
        bos="<s>",
        eos="</s>",
        template=INST,
        gguf="spm",
        unknown="<unk>",
        starts=True,
    ),
    "mistral": Kind(
        sentencepiece(metaspace=True),
        ("<s>", "</s>"),
        bos="<s>",
        eos="</s>",
        template=INST,
        unknown="<unk>",
        starts=True,
    ),
    "gemma": Kind(
        sentencepiece(),
        ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
        bos="<bos>",
        eos="<eos>",
        template=TURNS,
        unknown="<unk>",
        starts=True,
    ),
    "deepseek": Kind(
        byte_level(*DEEPSEEK_V3),
        ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
        bos="<｜begin▁of▁sentence｜>",
        eos="<｜end▁of▁sentence｜>",
        template=USERS,
        words=("<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"),  # as published
        gguf="deepseek-v3",
        starts=True,
    ),
    "falcon": Kind(falcon, MARKS, eos="<|im_end|>", template=CHATML, gguf="falcon"),
    "gpt-4o": Kind(byte_level(GPT4O), MARKS, eos="<|im_end|>", template=CHATML, gguf="gpt-4o"),
    "gemma4": Kind(
        sentencepiece(lines=True),
        ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
        bos="<bos>",
        eos="<eos>",
        template=TURNS,
        unknown="<unk>",
        gguf="gemma4",
        starts=True,
    ),
    "phi3": Kind(
        sentencepiece(prepend=True),
        ("<s>", "</s>", *BAR_MARKS),
        bos="<s>",
        eos="</s>",
        template=BARS,
        rstrip=(*BAR_MARKS, "</s>"),
        unknown="<unk>",
    ),
}


@cache
def trained(name: str) -> Tokenizer:
    """The tokenizer of one kind; do not change it."""
    kind = KINDS[name]
    tokenizer = kind.make()
    pieces = kind.unknown is not None
    first = [*kind.specials, *([kind.unknown] if kind.unknown else [])]
    if pieces:
        first += [f"<0x{byte:02X}>" for byte in range(256)]
    alphabet = [] if pieces else pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=first,
        initial_alphabet=alphabet,
        show_progress=False,
        max_token_length=12,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    # Training marks bytes as special; saved models have only marks of roles and ends among them.
    described = json.loads(tokenizer.to_str())
    described["added_tokens"] = [
        one for one in described["added_tokens"] if one["content"] in (*kind.specials, kind.unknown)
    ]
    for one in described["added_tokens"]:
        one["rstrip"] = one["content"] in kind.rstrip
    found = Tokenizer.from_str(json.dumps(described))
    found.add_tokens([AddedToken(word, normalized=False, special=False) for word in kind.words])
    if kind.starts:
        pair = (kind.bos, found.token_to_id(kind.bos))
        found.post_processor = processors.TemplateProcessing(
            single=f"{kind.bos} $A", special_tokens=[pair]
        )
    return found


def save(name: str, folder: Path) -> Any:
    """Write the tokenizer's files into a folder, and return transformers' tokenizer of them."""
    from transformers import PreTrainedTokenizerFast

    kind = KINDS[name]
    marks = {"bos_token": kind.bos or None, "eos_token": kind.eos, "unk_token": kind.unknown}
    theirs = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(trained(name).to_str()),
        **{key: text for key, text in marks.items() if text},
    )
    theirs.chat_template = kind.template
    theirs.save_pretrained(folder)
    return theirs


def gguf_metadata(name: str) -> dict[str, Any]:
    """The same tokenizer as a GGUF file's metadata."""
    kind, described = KINDS[name], json.loads(trained(name).to_str())
    numbered = trained(name).get_vocab(with_added_tokens=True)
    tokens = sorted(numbered, key=lambda token: numbered[token])
    marks = dict.fromkeys(kind.specials, CONTROL) | dict.fromkeys(kind.words, USER_DEFINED)
    if kind.unknown:
        marks |= {kind.unknown: UNKNOWN} | {f"<0x{byte:02X}>": BYTE for byte in range(256)}
    found: dict[str, Any] = {
        "tokenizer.ggml.model": {"spm": "llama", "gemma4": "gemma4"}.get(kind.gguf, "gpt2"),
        "tokenizer.ggml.pre": "default" if kind.gguf == "spm" else kind.gguf,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [marks.get(token, 1) for token in tokens],
        "tokenizer.ggml.eos_token_id": numbered[kind.eos],
        "tokenizer.ggml.bos_token_id": numbered[kind.bos] if kind.bos else None,
        "tokenizer.ggml.add_bos_token": kind.starts,
        "tokenizer.ggml.merges": [" ".join(merge) for merge in described["model"]["merges"]],
        "tokenizer.chat_template": kind.template,
    }
    if kind.gguf == "spm":
        ranks = {
            "".join(merge): float(rank)
            for rank, merge in reversed(list(enumerate(described["model"]["merges"])))
        }
        found["tokenizer.ggml.scores"] = [-ranks.get(token, 1e6) for token in tokens]
        del found["tokenizer.ggml.merges"]
    return found


def from_gguf(name: str) -> OwnTokenizer:
    """Our tokenizer of that metadata."""
    metadata = {key: value for key, value in gguf_metadata(name).items() if value is not None}
    metadata["general.architecture"] = "llama"
    return OwnTokenizer(Vocabulary.read(GgufFile(Path("tiny.gguf"), metadata, {})))
