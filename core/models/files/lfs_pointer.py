"""The few lines that Git LFS leaves in the place of a file that was not fetched.

Knows what they look like. Knows nothing of models or examples.

Source: Git LFS's specification, `docs/spec.md`.
"""

from pathlib import Path

from ...errors import ModelFileError

FIRST_LINE, LONGEST = b"version https://git-lfs.github.com/spec/v", 1024  # bytes of a whole pointer


def pointer_words(content: bytes) -> str:
    """What to say of a file that is a pointer; "" if it is not.

    Args:
        content: the file, or its first `LONGEST` + 1 bytes.
    """
    if not content.startswith(FIRST_LINE) or len(content) > LONGEST:
        return ""
    return (
        f"a Git LFS pointer of {len(content)} bytes, which stands for a file that was not fetched; "
        "run `git lfs pull` in its folder, or download the file itself"
    )


def refuse_pointer(path: Path) -> None:
    """Called where a file is not what it should be: says so if it was never fetched.

    Raises:
        ModelFileError: a pointer.
    """
    try:
        with path.open("rb") as file:
            found = file.read(LONGEST + 1)
    except OSError:
        return  # the caller has its own words for that
    if words := pointer_words(found):
        raise ModelFileError(f"{path}: {words}")
