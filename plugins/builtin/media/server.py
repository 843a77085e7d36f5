"""The media plugin: what a picture, a sound or a film is, small copies of it, and words in it.

Runs inside a sandbox, on the kit and on Pillow; sound and film need the system's ffmpeg, reading
words its tesseract.
Always: a picture is opened only if the pixels that it claims fit; a small copy is a new file in a
folder that was granted for writing, never in place of another.
"""

import json
import os
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image, ImageOps
from quietchoir_sdk import DATA, ToolFailure, granted_folders, granted_path, paged, serve, tool  # type: ignore[import-not-found]

KINDS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
MAX_PIXELS, MAX_BYTES = 40_000_000, 64 << 20
# sound and film; what they are, ffprobe says
PLAYED = frozenset(
    [
        ".aac",
        ".avi",
        ".flac",
        ".m4a",
        ".m4v",
        ".mkv",
        ".mov",
        ".mp3",
        ".mp4",
        ".mpeg",
        ".mpg",
        ".oga",
        ".ogg",
        ".ogv",
        ".opus",
        ".wav",
        ".webm",
        ".wma",
        ".wmv",
    ]
)
READ_PIXELS = 4000  # of the longer side of a picture whose words are read
# Debian finds these through links in /etc, which is not seen here; ffmpeg stands on them
ALTERNATIVES = [
    found for name in ("blas", "lapack") for found in Path("/usr/lib").glob(f"*/{name}")
]
MAX_S = 8  # the node waits 10 s for a call by default
TOLD = ("Make", "Model", "DateTime", "Software", "Artist", "Copyright", "ImageDescription")
warnings.simplefilter("error", Image.DecompressionBombWarning)
Image.MAX_IMAGE_PIXELS = MAX_PIXELS


def name_of(path: Path) -> str:
    """As it is told: below the granted folders, on one line, odd bytes written out."""
    told = os.fsencode(path.relative_to(DATA)).decode("utf-8", "backslashreplace")
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in told)


def file_of(path: str) -> Path:
    """A file in a granted folder. ToolFailure: it is none."""
    found: Path = granted_path(path)
    if not found.is_file():
        raise ToolFailure(f"{name_of(found)}: no file that can be read")
    return found


def opened(found: Path) -> Image.Image:
    """A picture whose pixels are not read yet.

    Raises:
        ToolFailure: no picture, or too large.
    """
    try:
        if found.stat().st_size > MAX_BYTES:
            raise ToolFailure(f"{name_of(found)}: more than {MAX_BYTES >> 20} MB")
        return Image.open(found, formats=KINDS)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise ToolFailure(
            f"{name_of(found)}: more than {MAX_PIXELS // 1_000_000} million pixels when unpacked"
        ) from None
    except (OSError, SyntaxError, ValueError) as error:
        raise ToolFailure(
            f"{name_of(found)}: no picture that is read here ({', '.join(KINDS).lower()}), or "
            f"damaged ({type(error).__name__})"
        ) from None


def smaller(found: Path, longest: int) -> Image.Image:
    """A picture upright and at most so large. Raises: ToolFailure: damaged."""
    picture = opened(found)
    try:
        picture.draft("RGB", (longest, longest))
        picture.thumbnail((longest, longest))
        return ImageOps.exif_transpose(picture).convert("RGB")
    except (OSError, SyntaxError, ValueError, MemoryError, Image.DecompressionBombError) as error:
        raise ToolFailure(f"{name_of(found)}: damaged ({type(error).__name__})") from None


def exif(picture: Image.Image) -> list[str]:
    """What the camera wrote."""
    try:
        held = picture.getexif()
        details, place = held.get_ifd(ExifTags.IFD.Exif), held.get_ifd(ExifTags.IFD.GPSInfo)
    except Exception:
        return ["what its camera wrote is damaged"]
    names = {ExifTags.TAGS.get(number, ""): value for number, value in held.items()}
    names |= {ExifTags.TAGS.get(number, ""): value for number, value in details.items()}
    lines = [f"{name}: {str(names[name])[:200].strip()}" for name in TOLD if names.get(name)]
    if taken := names.get("DateTimeOriginal"):
        lines.append(f"taken: {str(taken)[:40]}")
    try:
        north, east = (
            sum(float(part) / 60**power for power, part in enumerate(place[number]))
            for number in (ExifTags.GPS.GPSLatitude, ExifTags.GPS.GPSLongitude)
        )
        south = place.get(ExifTags.GPS.GPSLatitudeRef) == "S"
        west = place.get(ExifTags.GPS.GPSLongitudeRef) == "W"
        lines.append(f"place: {-north if south else north:.5f}, {-east if west else east:.5f}")
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        pass
    return lines


def program(name: str, package: str) -> str:
    """A program of the system's. ToolFailure: it is not there."""
    found = shutil.which(name, path="/usr/bin:/usr/local/bin")
    if found is None:
        raise ToolFailure(
            f"{name} is not installed on this machine; its owner can: apt install {package}"
        )
    return found


def run(words: Sequence[str]) -> bytes:
    """What a program of the system's says. Raises: ToolFailure: it failed, or took too long."""
    try:
        done = subprocess.run(
            words,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=MAX_S,
            env={
                "PATH": "/usr/bin:/bin",
                "LANG": "C.UTF-8",
                "OMP_THREAD_LIMIT": "1",
                "OPENBLAS_NUM_THREADS": "1",
                "LD_LIBRARY_PATH": ":".join(map(str, ALTERNATIVES)),
            },
        )
    except subprocess.TimeoutExpired:
        raise ToolFailure(f"still at work after {MAX_S} s, and stopped") from None
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise ToolFailure(f"cannot be read: {said[-1][:300] if said else 'no reason told'}")
    return done.stdout


def probe(found: Path) -> list[str]:
    """Facts of sound and film. Raises: ToolFailure: it is neither."""
    words = [program("ffprobe", "ffmpeg"), "-v", "error", "-protocol_whitelist", "file"]
    said = run([*words, "-of", "json", "-show_format", "-show_streams", f"file:{found}"])
    facts: dict[str, Any] = json.loads(said)
    about = facts.get("format", {})
    lines = [f"{about.get('format_long_name', 'unknown')}, {float(about.get('duration', 0)):.1f} s"]
    for stream in facts.get("streams", [])[:8]:
        size = f", {stream['width']} × {stream['height']}" if "width" in stream else ""
        rate = f", {stream['sample_rate']} Hz" if "sample_rate" in stream else ""
        lines.append(f"{stream.get('codec_type')}: {stream.get('codec_name')}{size}{rate}")
    tags = about.get("tags", {})
    return lines + [f"{name}: {str(value)[:200]}" for name, value in list(tags.items())[:12]]


@tool(read_only=True)  # type: ignore[untyped-decorator]
def media_describe(path: str) -> str:
    """What a picture, sound or film is: size, kind, day and place it was taken, length."""
    found = file_of(path)
    try:
        picture = opened(found)
    except ToolFailure as no_picture:
        if found.suffix.lower() not in PLAYED:
            raise no_picture
        lines = probe(found)
    else:
        moves = ", moving" if getattr(picture, "is_animated", False) else ""
        lines = [
            f"{picture.format}, {picture.width} × {picture.height} pixels, {picture.mode}{moves}"
        ]
        lines += exif(picture)
    return str(paged([f"{name_of(found)}: {found.stat().st_size} bytes", *lines]))


@tool(read_only=True)  # type: ignore[untyped-decorator]
def media_words(path: str, language: str = "eng", page: int = 1) -> str:
    """Read the words in a picture, for example a scanned letter; language is eng, deu, fra, …"""
    if not language.replace("+", "").replace("_", "").isalpha() or len(language) > 30:
        raise ToolFailure(f"{language[:40]!r} is no language; expected for example eng or deu")
    words = program("tesseract", "tesseract-ocr")
    scratch = Path(tempfile.gettempdir(), "words.png")
    smaller(file_of(path), READ_PIXELS).save(scratch)
    try:
        said = run([words, str(scratch), "stdout", "-l", language]).decode("utf-8", "replace")
    finally:
        scratch.unlink(missing_ok=True)
    lines = [line for line in said.splitlines() if line.strip()]
    return str(paged(lines or ["No words were found."], page))


def writable(found: Path) -> Path:
    """A granted folder that may be written to: the file's own, else the first.

    Raises:
        ToolFailure: there is none.
    """
    folders: dict[str, Path] = granted_folders()
    own: Path = DATA / found.relative_to(DATA).parts[0]
    for folder in (own, *folders.values()):
        if not os.statvfs(folder).f_flag & os.ST_RDONLY and os.access(folder, os.W_OK):
            return folder
    raise ToolFailure(
        "no folder is granted for writing; its owner can: quietchoir plugin grant "
        "quietchoir/media --write thumbnails=FOLDER"
    )


def new_file(folder: Path, stem: str, content: bytes) -> Path:
    """A file that was not there before."""
    for number in ("", *(f"-{one}" for one in range(2, 100))):
        path = folder / f"{stem}{number}.jpg"
        try:
            with path.open("xb") as file:
                file.write(content)
        except FileExistsError:
            continue
        except OSError as error:
            raise ToolFailure(f"{name_of(path)}: not written ({error.strerror})") from None
        return path
    raise ToolFailure(f"{name_of(folder)} holds a hundred copies of that already")


@tool  # type: ignore[untyped-decorator]
def media_thumbnail(path: str, pixels: int = 256) -> str:
    """Write a small copy of a picture into a folder that is granted for writing."""
    if not 16 <= pixels <= 2048:
        raise ToolFailure(f"pixels is {pixels}; expected 16 to 2048")
    found = file_of(path)
    folder = writable(found)
    picture = smaller(found, pixels)
    scratch = Path(tempfile.gettempdir(), "small.jpg")
    picture.save(scratch, "JPEG", quality=85)  # without what the camera wrote
    made = new_file(folder, f"{found.stem}-{pixels}", scratch.read_bytes())
    return f"Wrote {name_of(made)}: {picture.width} × {picture.height} pixels."


@tool  # type: ignore[untyped-decorator]
def media_still(path: str, second: float = 0.0) -> str:
    """Write one picture of a film into a folder that is granted for writing."""
    found = file_of(path)
    folder = writable(found)
    scratch = Path(tempfile.gettempdir(), "still.jpg")
    scratch.unlink(missing_ok=True)
    words = [program("ffmpeg", "ffmpeg"), "-v", "error", "-protocol_whitelist", "file"]
    words += ["-threads", "1", "-ss", f"{max(0.0, second):.3f}", "-i", f"file:{found}"]
    run([*words, "-frames:v", "1", "-vf", "scale='min(1280,iw)':-2", "-y", str(scratch)])
    if not scratch.is_file():
        raise ToolFailure(f"{name_of(found)}: nothing is shown at {second:g} s")
    made = new_file(folder, f"{found.stem}-{second:g}s", scratch.read_bytes())
    return f"Wrote {name_of(made)}."


if __name__ == "__main__":
    serve("quietchoir/media", "0.1.0")
