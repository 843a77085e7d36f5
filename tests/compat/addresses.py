"""Addresses as people write them: where a federation is founded, and where a coordinator
listens.
"""

import ipaddress
import tempfile
from collections.abc import Iterator
from pathlib import Path

from cryptography import x509

from quietchoir import cli
from quietchoir.core.errors import ConfigError
from quietchoir.federation.membership import roster
from quietchoir.federation.transport.superlink import parse

TAKEN = {  # → host and port
    "127.0.0.1:8790": ("127.0.0.1", 8790),
    "192.0.2.7:1": ("192.0.2.7", 1),
    "255.255.255.254:65535": ("255.255.255.254", 65535),
    "localhost:8790": ("localhost", 8790),
    "choir.example.org:443": ("choir.example.org", 443),
    "CHOIR.Example.ORG:443": ("CHOIR.Example.ORG", 443),
    "my-nas.local:8790": ("my-nas.local", 8790),
    "a_b:8790": ("a_b", 8790),
    "xn--bcher-kva.example:8790": ("xn--bcher-kva.example", 8790),
    "3com.example:8790": ("3com.example", 8790),
    "[::1]:8790": ("::1", 8790),
    "[2001:db8::7]:8790": ("2001:db8::7", 8790),
    "[::ffff:192.0.2.7]:8790": ("::ffff:192.0.2.7", 8790),
    f"{'a' * 63}.example:8790": (f"{'a' * 63}.example", 8790),
}
REFUSED = {  # → words of the reason
    "http://192.0.2.7:8790": "without http://",
    "https://choir.example.org:8790/": "without https://",
    "tcp://choir.example.org:8790": "without tcp://",
    "choir.example.org:8790/path": "without /",
    "user@choir.example.org:8790": "without @",
    "choir.example.org:8790?x": "without ?",
    "choir.example.org:8790#x": "without #",
    "a.example:8790,b.example:8790": "without ,",
    "C:\\choir:8790": "without \\",
    " 127.0.0.1:8790": "without blanks",
    "127.0.0.1:8790 ": "without blanks",
    "127.0.0.1 :8790": "without blanks",
    "127.0.0.1:8790\n": "without blanks",
    "127.0.0.1\t:8790": "without blanks",
    "127.0.0.1\u00a0:8790": "without blanks",
    "choir\u200b.example:8790": "without blanks",
    "choir\x1b[2J.example:8790": "without blanks",
    "": "has no port",
    "127.0.0.1": "has no port",
    "choir.example.org": "has no port",
    "[::1]": "has no port",
    "127.0.0.1:": "has port ''",
    ":8790": "has no host",
    "127.0.0.1:0": "has port '0'",
    "127.0.0.1:65536": "has port '65536'",
    "127.0.0.1:-1": "has port '-1'",
    "127.0.0.1:+80": "has port '+80'",
    "127.0.0.1:8_790": "has port '8_790'",
    "127.0.0.1:http": "has port 'http'",
    "127.0.0.1:０８": "has port",
    "127.0.0.1:²": "has port",
    f"127.0.0.1:{'9' * 5000}": "has port",
    "::1:8790": "stands in brackets",
    "2001:db8::7:8790": "stands in brackets",
    "[::1:8790": "stands in brackets",
    "::1]:8790": "stands in brackets",
    "127.0.0.1:80:90": "stands in brackets",
    "[127.0.0.1]:8790": "no IPv6 number",
    "[localhost]:8790": "no IPv6 number",
    "[]:8790": "no IPv6 number",
    "[::g]:8790": "no IPv6 number",
    "[fe80::1%eth0]:8790": "what follows %",
    "0.0.0.0:8790": "coordinate --listen",
    "[::]:8790": "coordinate --listen",
    "[::ffff:0.0.0.0]:8790": "coordinate --listen",
    "256.1.1.1:8790": "no IPv4 number",
    "192.0.2:8790": "no IPv4 number",
    "192.0.2.7.1:8790": "no IPv4 number",
    "127.1:8790": "no IPv4 number",
    "2130706433:8790": "no IPv4 number",
    "0x7f000001:8790": "no IPv4 number",
    "0x7f.0.0.1:8790": "no IPv4 number",
    "010.0.0.1:8790": "no IPv4 number",
    "192.0.2.-7:8790": "no name of a machine",
    "224.0.0.1:8790": "no single machine",
    "255.255.255.255:8790": "no single machine",
    "[ff02::1]:8790": "no single machine",
    "[::ffff:224.0.0.1]:8790": "no single machine",
    "[::ffff:255.255.255.255]:8790": "no single machine",
    "choir.example.org.:8790": "leave out the dot",
    "bücher.example:8790": "in ASCII",
    "-choir.example:8790": "no name of a machine",
    "choir-.example:8790": "no name of a machine",
    "choir..example:8790": "no name of a machine",
    ".example:8790": "no name of a machine",
    "*.example:8790": "no name of a machine",
    "$HOST:8790": "no name of a machine",
    "HOST:PORT": "has port 'PORT'",
    f"{'a' * 64}.example:8790": "no name of a machine",
    f"{'a.' * 130}example:8790": "no name of a machine",
}
LISTENING = {  # only there
    "0.0.0.0:8790": ("0.0.0.0", 8790),
    "[::]:8790": ("::", 8790),
    "[::ffff:0.0.0.0]:8790": ("::ffff:0.0.0.0", 8790),
}


def check() -> Iterator[tuple[str, str]]:
    """Each address: founded with, or refused with its reason and nothing written; and listened
    on.
    """
    with tempfile.TemporaryDirectory() as scratch:
        for number, (text, expected) in enumerate(TAKEN.items()):
            yield f"found at {text:.60}", founded(text, Path(scratch) / str(number), expected)
        for text, words in REFUSED.items():
            yield f"do not found at {text!r:.60}", refused(text, Path(scratch) / "none", words)
    for text, expected in (TAKEN | LISTENING).items():
        yield f"listen on {text:.60}", "" if parse(text) == expected else f"read as {parse(text)}"
    for text, words in REFUSED.items():
        if text not in LISTENING:
            yield f"do not listen on {text!r:.60}", not_listened(text, words)


def said_by(*words: str) -> tuple[int, str]:
    """Exit code and standard error of one command."""
    import contextlib
    import io

    with (
        contextlib.redirect_stderr(io.StringIO()) as said,
        contextlib.redirect_stdout(io.StringIO()),
    ):
        code = cli.main(list(words))
    return code, said.getvalue()


def init(text: str, folder: Path) -> tuple[int, str]:
    """`federation init` with an address."""
    model = ("--model", "none", "--model-digest", "ab" * 32)
    return said_by(
        "federation", "init", str(folder), "--name", "choir", f"--address={text}", *model
    )


def founded(text: str, folder: Path, expected: tuple[str, int]) -> str:
    """What is wrong with a federation that was founded at this address."""
    code, said = init(text, folder)
    if code:
        return said
    table = roster.load(folder / roster.FILE).coordinator
    certificate = x509.load_pem_x509_certificate(table.certificate.encode("ascii"))
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    written = [str(name.value) for name in names]
    if ":" in expected[0]:  # one number, several spellings
        return (
            ""
            if [ipaddress.ip_address(name) for name in written]
            == [ipaddress.ip_address(expected[0])]
            else str(written)
        )
    if (table.host, table.port) != expected:
        return f"read as {table.host} and {table.port}"
    return (
        ""
        if written in ([expected[0]], [expected[0].lower()])
        else (f"the certificate is for {written}")
    )


def refused(text: str, folder: Path, words: str) -> str:
    """What is wrong with the refusal of this address."""
    code, said = init(text, folder)
    if code != 2 or words not in said or "Traceback" in said:
        return f"exit {code}: {said}"
    return "something was written" if folder.exists() else ""


def not_listened(text: str, words: str) -> str:
    """What is wrong with the refusal to listen there."""
    try:
        found = parse(text)
    except ConfigError as error:
        return "" if words in str(error) else str(error)
    return f"read as {found}"
