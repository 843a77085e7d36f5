"""Texts to go on with: the start token stands where the file asks for it, once, as `transformers`
puts it; for every kind of vocabulary, from a folder and from a GGUF file.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

from quietchoir.core.models.tokenizer.hf_json import read_tokenizer
from quietchoir.tests.fakes.tokenizers import KINDS, from_gguf, save

ROWS = 720  # of the embedding: a few more than tokens, as published models have
TEXTS = ("once upon a time", "It's 1234567, we'll\n\nsay:  hello!", "naïve 漢字 ½", "")


def check() -> Iterator[tuple[str, str]]:
    """Every kind of vocabulary, and that half of them ask for a start token and half do not."""
    starts = set()
    for name, kind in KINDS.items():
        with tempfile.TemporaryDirectory() as folder:
            theirs = save(name, Path(folder))
            files = {"folder": read_tokenizer(Path(folder), ROWS)}
        if kind.gguf:
            files["gguf"] = from_gguf(name)
        starts.add(kind.starts)
        for where, ours in files.items():
            wrong = ""
            for text in TEXTS:
                if (found := ours.encode_prompt(text)) != (expected := theirs(text).input_ids):
                    wrong = f"{text!r} became {found}, for transformers {expected}"
            yield f"bos_equal, {name}, {where}", wrong
            # a text that names the start token is still a text: one start token, not two
            named = ours.encode_prompt(f"{kind.bos}hello").count(theirs.bos_token_id)
            yield (
                f"bos_once, {name}, {where}",
                "" if named == kind.starts else f"{named} start tokens",
            )
    yield "both kinds tried", "" if len(starts) == 2 else "all vocabularies start alike"
