"""Beyond this machine the node answers over TLS or not at all."""

import datetime
import ipaddress
import ssl
from pathlib import Path

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from quietchoir.core.config import ServerConfig
from quietchoir.core.errors import ConfigError
from quietchoir.core.server.app import claim, encryption
from quietchoir.tests.fakes.http import TOKEN, Served
from quietchoir.tests.fakes.server import engine_saying


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "node")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("tls")
    certificate, secret = folder / "node.pem", folder / "node.key"
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return certificate, secret


async def test_with_a_certificate_the_node_answers_over_https_alone(
    files: tuple[Path, Path],
) -> None:
    certificate, key = files
    async with Served(engine_saying(["x"])).running(certificate=certificate, key=key) as served:
        assert served.server.url.startswith("https://127.0.0.1:")
        trusted = ssl.create_default_context(cafile=str(certificate))
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with aiohttp.ClientSession(headers=headers) as session:
            async with session.get(f"{served.server.url}v1/models", ssl=trusted) as response:
                assert response.status == 200
            with pytest.raises(aiohttp.ClientError):
                await session.get(served.server.url.replace("https", "http"))


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_beyond_this_machine_there_must_be_a_certificate(
    host: str, files: tuple[Path, Path]
) -> None:
    with pytest.raises(ConfigError, match=r"reads the token.*--certificate FILE.*--plain-http"):
        claim(ServerConfig(host=host, port=0))
    for allowed in (
        ServerConfig(host=host, port=0, certificate=files[0], key=files[1]),
        ServerConfig(host=host, port=0, plain_http=True),
        ServerConfig(host="127.0.0.1", port=0),
        ServerConfig(host="localhost", port=0),
    ):
        claim(allowed).close()


def test_a_certificate_that_cannot_be_used_says_what_is_wanted(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    certificate, key = files
    for wrong in (
        {"certificate": tmp_path / "nowhere.pem"},
        {"certificate": certificate},  # without its key
        {"certificate": key, "key": key},
        {"certificate": tmp_path},
    ):
        with pytest.raises(ConfigError, match="--certificate takes a PEM file"):
            encryption(ServerConfig(**wrong))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="key is there and certificate is not"):
        ServerConfig(key=key)
    assert encryption(ServerConfig()) is None
