"""The few lines that Git LFS leaves in the place of a file that was not fetched.

Knows what they look like. Knows nothing of models.

Source: Git LFS's specification, `docs/spec.md`.
"""

from pathlib import Path

from ..errors import ModelFileError

FIRST_LINE, LONGEST = b"version https://git-lfs.github.com/spec/v", 1024  # bytes of a whole pointer


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
    if found.startswith(FIRST_LINE) and len(found) <= LONGEST:
        raise ModelFileError(
            f"{path}: a Git LFS pointer of {len(found)} bytes, which stands for a file that was not fetched; "
            "run `git lfs pull` in its folder, or download the file itself"
        )
