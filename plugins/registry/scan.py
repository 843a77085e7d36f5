"""What a machine finds in a plugin before a person reviews it.

Knows Python's syntax and a few ways to hide. Runs nothing of what it reads.
Always: what it looks for is `SCANNED`, and stands in every review record; it finds, and decides
nothing.

Not covered: code in other languages; names that are built at run time; what a plugin does when it
runs (the sandbox's part); what its author means by it (the reviewers' part).
"""

import ast
import re
import warnings
from collections.abc import Iterator

from ..hidden import legible
from ..manifest import FILE, Manifest

SCANNED = (
    "Python files: calls that make code of text (eval, exec, compile, __import__), that start "
    "programs (os.system, os.exec*, subprocess) or load machine code and pickles (ctypes, marshal, "
    "pickle); imports of network modules without permissions.network; texts of 2,000 letters "
    "without a space; characters that a reader does not see. Tools: words that speak to a model "
    "instead of describing. Files: compiled code and archives, runs of one byte of 64 KiB"
)
MAKES_CODE = {"eval", "exec", "compile", "__import__"}
STARTS = {"os.system", "os.popen", "os.fork", "os.posix_spawn", "pty.spawn"}
LOADS = {"subprocess", "ctypes", "marshal", "pickle", "shelve", "runpy", "importlib"}
NETWORK = {"socket", "ssl", "http", "urllib", "ftplib", "smtplib", "imaplib", "poplib", "asyncio"}
NETWORK |= {"aiohttp", "httpx", "requests", "urllib3", "websockets", "telnetlib", "xmlrpc"}
COMPILED = {
    b"\x7fELF": "machine code (ELF)",
    b"MZ": "machine code (PE)",
    b"\xcf\xfa\xed\xfe": "machine code (Mach-O)",
    b"\x00asm": "machine code (WebAssembly)",
    b"PK\x03\x04": "an archive (zip)",
    b"\x1f\x8b": "an archive (gzip)",
}
OPAQUE = re.compile(r"(?<!\S)\S{2000}")  # from a word's beginning: one look at each letter
BLOCK = 32 << 10  # bytes; a run of twice as many holds a whole one
SPEAKS = re.compile(
    r"<\s*(?:important|system)\b|\b(?:ignore|forget)\b.{0,40}\b(?:instruction|previous|above)|"
    r"\bdo not (?:tell|mention|show)\b|\bwithout (?:telling|asking) the (?:user|owner)\b",
    re.IGNORECASE | re.DOTALL,
)


def scan(terms: Manifest) -> list[str]:
    """What was found, a sentence each: file, line, and what stands there."""
    found = [
        f"the tool {tool.name} speaks to the model: {SPEAKS.search(tool.description)[0]!r}"  # type: ignore[index]
        for tool in terms.tools
        if SPEAKS.search(tool.description)
    ]
    asked = terms.head.permissions
    networked = any(getattr(asked, name, ()) for name in ("network", "hosts"))
    for name, content in sorted(terms.files.items()):
        kind = next((kind for magic, kind in COMPILED.items() if content.startswith(magic)), "")
        if kind or name.endswith((".pyc", ".so")):
            found.append(f"{name}: {kind or 'machine code'}, which nobody can read")
        if padded(content):
            found.append(f"{name}: 64 KiB of one byte in a row")
        if name.endswith(".py"):
            found += [f"{name}:{said}" for said in of_source(content, networked=networked)]
        elif name != FILE and not kind and OPAQUE.search(content.decode("utf-8", "replace")):
            found.append(f"{name}: a text of 2,000 letters without a space")
    return found


def padded(content: bytes) -> bool:
    """Whether one byte fills a block."""
    blocks = (content[at : at + BLOCK] for at in range(0, len(content) - BLOCK + 1, BLOCK))
    return any(block.count(block[0]) == BLOCK for block in blocks)


def dotted(called: ast.expr) -> str:
    """`os.system`, of a name or one of a module's; anything longer is none of those we look for."""
    if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name):
        return f"{called.value.id}.{called.attr}"
    return called.id if isinstance(called, ast.Name) else ""


def of_source(content: bytes, *, networked: bool) -> Iterator[str]:
    """Line and finding, of one Python file."""
    try:
        text = content.decode().replace("\r\n", "\n")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        yield f"1: no Python that can be read ({type(error).__name__})"
        return
    if legible(text) != text:
        yield "1: characters that a reader does not see"
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Import | ast.ImportFrom):
            whole = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
            )
            for module in {name.partition(".")[0] for name in whole}:
                if module in LOADS:
                    yield f"{line}: imports {module}"
                if module in NETWORK and not networked:
                    yield f"{line}: imports {module} without permissions.network"
        elif isinstance(node, ast.Call):
            called = dotted(node.func)
            if called in MAKES_CODE or called in STARTS or called.startswith("os.exec"):
                yield f"{line}: calls {called}"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
            value = node.value if isinstance(node.value, str) else node.value.decode("latin-1")
            if OPAQUE.search(value):
                yield f"{line}: a text of 2,000 letters without a space"
