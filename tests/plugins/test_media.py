"""The media plugin in its sandbox: what pictures are, small copies, and pictures that are traps."""

import asyncio
import io
import shutil
import struct
import tempfile
import wave
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from quietchoir.plugins import installing, manifest
from quietchoir.plugins.grants import PluginSettings
from quietchoir.plugins.host import BUILTIN
from quietchoir.plugins.running import Plugin
from quietchoir.plugins.sandbox import landlock
from quietchoir.plugins.sandbox.probe import SandboxReport

Ask = Callable[..., tuple[str, bool]]


def photograph() -> bytes:
    """With what a camera writes."""
    packed, exif = io.BytesIO(), Image.Exif()
    exif[0x010F], exif[0x0110], exif[0x0112] = "Maker", "Model 7", 6  # on its side
    exif.get_ifd(0x8769)[0x9003] = "2026:07:04 12:30:00"
    exif.get_ifd(0x8825).update({1: "S", 2: (33.0, 51.0, 36.0), 3: "E", 4: (151.0, 12.0, 0.0)})
    Image.new("RGB", (800, 400), "red").save(packed, "JPEG", exif=exif)
    return packed.getvalue()


def claims(width: int, height: int) -> bytes:
    """A PNG of a hundred bytes that claims so many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"x") + chunk(b"IEND", b"")


def tone() -> bytes:
    """Half a second of silence."""
    packed = io.BytesIO()
    with wave.open(packed, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(b"\0\0" * 4000)
    return packed.getvalue()


@pytest.fixture(scope="module")
def shown() -> Iterator[Path]:
    """Granted folders, which the plugin's user can reach; pytest's own are root's alone."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        for name in ("pictures", "thumbnails"):
            (Path(folder) / name).mkdir()
        (Path(folder) / "thumbnails").chmod(0o777)
        yield Path(folder)


@pytest.fixture(scope="module")
def ask(
    sandbox: SandboxReport, shown: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Ask]:
    """Calls a tool."""
    private = tmp_path_factory.mktemp("private")
    folders = {name: shown / name for name in ("pictures", "thumbnails")}
    installing.fill_in(private, PluginSettings(folders=folders))
    plugin = Plugin(manifest.read(BUILTIN / "media"), private, {})
    with asyncio.Runner() as runner:
        yield lambda tool, **arguments: runner.run(plugin.call(tool, arguments, 30))
        runner.run(plugin.stop())


def test_a_picture_is_described_and_copied_small_without_its_place(ask: Ask, shown: Path):
    (shown / "pictures" / "beach.jpg").write_bytes(photograph())
    said, ok = ask("media_describe", path="pictures/beach.jpg")
    assert ok
    for told in ("JPEG, 800 × 400 pixels", "Model: Model 7", "taken: 2026:07:04 12:30:00",
                 "place: -33.86000, 151.20000"):  # fmt: skip
        assert told in said
    assert ask("media_thumbnail", path="pictures/beach.jpg", pixels=100) == (
        "Wrote thumbnails/beach-100.jpg: 50 × 100 pixels.",  # upright
        True,
    )
    assert "beach-100-2.jpg" in ask("media_thumbnail", path="pictures/beach.jpg", pixels=100)[0]
    with Image.open(shown / "thumbnails" / "beach-100.jpg") as copy:
        assert copy.size == (50, 100) and not copy.getexif()
    assert [path.name for path in (shown / "pictures").iterdir()] == ["beach.jpg"]


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("bomb.png", claims(60_000, 60_000), "more than 40 million pixels"),
        ("wide.png", claims(2**31 - 1, 1), "more than 40 million pixels"),
        ("cut.jpg", photograph()[:-4000], "damaged"),
        ("text.jpg", b"no picture at all", "no picture that is read here"),
        ("empty.png", b"", "no picture that is read here"),
        ("page.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no picture"),
    ],
)
def test_a_picture_that_is_a_trap_or_none_is_refused(ask: Ask, shown: Path, name, data, told):
    (shown / "pictures" / name).write_bytes(data)
    said, ok = ask("media_thumbnail", path=f"pictures/{name}")
    assert not ok and told in said
    (shown / "pictures" / name).unlink()


def test_sound_and_words_are_read_without_namespaces_too(
    shared: SandboxReport, shown: Path, tmp_path: Path
) -> None:
    if not landlock.begins_programs(landlock.abi()):
        pytest.skip(f"Landlock has version {landlock.abi()} here")
    if not all(shutil.which(name, path="/usr/bin") for name in ("ffprobe", "tesseract")):
        pytest.skip("no ffprobe or no tesseract; make system-packages brings them")
    (shown / "pictures" / "tone.wav").write_bytes(tone())
    (shown / "pictures" / "words.png").write_bytes(photograph())
    installing.fill_in(tmp_path, PluginSettings(folders={"pictures": shown / "pictures"}))
    plugin = Plugin(manifest.read(BUILTIN / "media"), tmp_path, {}, sandbox="landlock")

    async def asked() -> list[tuple[str, bool]]:
        calls = ("media_describe", "tone.wav"), ("media_words", "words.png")
        try:
            return [
                await plugin.call(tool, {"path": f"pictures/{name}"}, 60) for tool, name in calls
            ]
        finally:
            await plugin.stop()

    (described, heard), words = asyncio.run(asked())
    assert heard and "audio: pcm_s16le, 8000 Hz" in described
    assert words == ("No words were found.", True)


def test_sound_is_described_where_ffmpeg_is_and_a_sentence_elsewhere(ask: Ask, shown: Path):
    (shown / "pictures" / "tone.wav").write_bytes(tone())
    said, ok = ask("media_describe", path="pictures/tone.wav")
    if shutil.which("ffprobe", path="/usr/bin"):
        assert ok and "audio: pcm_s16le, 8000 Hz" in said and "0.5 s" in said
    else:
        assert not ok and "ffprobe is not installed on this machine; its owner can: apt" in said
    (shown / "pictures" / "words.png").write_bytes(photograph())
    said, ok = ask("media_words", path="pictures/words.png")
    if shutil.which("tesseract", path="/usr/bin"):
        assert ok and said == "No words were found."
    else:
        assert not ok and "tesseract is not installed on this machine" in said
