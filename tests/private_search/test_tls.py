"""Over TLS with the host's own certificate pinned."""

import datetime
import socket

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from quietchoir.core.errors import QuietchoirError
from quietchoir.crypto.identity.keys import Identity
from quietchoir.private_search import commands, host, known
from quietchoir.private_search.budget import QueryBudget
from quietchoir.private_search.client import LibraryAddress, ask
from quietchoir.tests.fakes.search import TEXTS, FakeEmbedder, fake_index


def certificate(folder, name):
    """A self-signed certificate and its key, as PEM files."""
    key, subject = (
        ec.generate_private_key(ec.SECP256R1()),
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]),
    )
    start = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    made = x509.CertificateBuilder(
        subject,
        subject,
        key.public_key(),
        x509.random_serial_number(),
        start,
        start.replace(year=2120),
    )
    made = made.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    public, private = folder / f"{name}.pem", folder / f"{name}.key"
    public.write_bytes(made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    pkcs8, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, pkcs8, plain))
    return public, private


async def test_the_pinned_certificate_is_believed_and_another_is_not(tmp_path):
    identity, (public, private), (other, _) = (
        Identity.generate(),
        certificate(tmp_path, "host"),
        certificate(tmp_path, "other"),
    )
    service = host.LibraryService(fake_index(), identity, QueryBudget(tmp_path / "b.json", limit=3))
    runner = web.AppRunner(host.application(service), access_log=None)
    await runner.setup()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        await web.SockSite(
            runner, listener, ssl_context=commands._host_tls(public, private)
        ).start()
        address = LibraryAddress.parse(
            f"https://127.0.0.1:{listener.getsockname()[1]}/#{identity.public.raw.hex()}"
        )
        try:
            found = await ask(
                address,
                "cello strings tuned in fifths",
                FakeEmbedder(),
                Identity.generate(),
                tls=known.asker_tls(address, public),
            )
            assert found.found[0].passage.text == TEXTS[2]
            for tls in (known.asker_tls(address, other), None):
                with pytest.raises(QuietchoirError, match="is its host running"):
                    await ask(
                        address,
                        "cello strings tuned in fifths",
                        FakeEmbedder(),
                        Identity.generate(),
                        tls=tls,
                    )
        finally:
            await runner.cleanup()
            service.close()
