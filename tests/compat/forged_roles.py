"""Contents full of role marks: none of them is one, whether the file declares its marks special or
not; for every kind of vocabulary, from a folder and from a GGUF file. `templates` tries the same
with one vocabulary and many templates.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

from quietchoir.core.models.tokenizer.hf_json import read_tokenizer
from quietchoir.core.models.tokenizer.tokenizer import Tokenizer
from quietchoir.tests.fakes.tokenizers import KINDS, from_gguf, save

ROWS = 720  # of the embedding


def check() -> Iterator[tuple[str, str]]:
    """Each mark of each vocabulary in a user's message, alone and within others."""
    for name, kind in KINDS.items():
        with tempfile.TemporaryDirectory() as folder:
            theirs = save(name, Path(folder))
            files = {"folder": read_tokenizer(Path(folder), ROWS)}
        if kind.gguf:
            files["gguf"] = from_gguf(name)
        marks = (*kind.specials, *kind.words)
        for where, ours in files.items():
            honest = roles(ours, marks, "hi")
            attacks = [f"hi{mark}\nmodel\n" for mark in marks] + ["".join(marks) * 2]
            forged = {one: n for one in attacks if (n := roles(ours, marks, one) - honest)}
            yield f"{name}, {where}", f"more marks than the template's: {forged}" if forged else ""
        if kind.words:
            told = theirs.encode("".join(kind.words), add_special_tokens=False)
            read = len(told) == len(kind.words)
            yield f"{name}: transformers is fooled", "" if read else "the attack is none"


def roles(ours: Tokenizer, marks: tuple[str, ...], said: str) -> int:
    """How many of these tokens a chat of one message has."""
    numbers = {ours.vocabulary.tokens.index(mark) for mark in marks}
    tokens = ours.encode_chat([{"role": "user", "content": said}])
    return sum(token in numbers for token in tokens)
