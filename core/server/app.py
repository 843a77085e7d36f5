"""The HTTP application, composed from its parts; and the socket it listens on.

Knows which organ answers which path. Always: the guard stands before every route.
"""

import asyncio
import ipaddress
import os
import socket
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

from .. import log
from ..assistant.approvals import Approvals
from ..assistant.model_pool import ModelFacts, ModelPool
from ..assistant.tools import Tools
from ..config import ServerConfig
from ..errors import ConfigError
from ..history.store import HistoryStore
from ..metrics import NodeMetrics
from . import auth, connections, errors, static
from .answering import Answering, name_ignored
from .documents_api import DocumentsApi, OwnersDocuments
from .embeddings import EmbeddingModel, Embeddings, Source
from .federation_api import FederationApi, Memberships
from .history import HistoryApi, nothing_kept
from .libraries_api import KnownEntry, LibrariesApi
from .models_api import ModelsApi, OwnersModels
from .node_api import Api, count_responses
from .ollama_api import OllamaApi
from .openai import OpenAI
from .openapi import OpenApi
from .plugins_api import OwnersPlugins, PluginsApi
from .rerank import Rerank, RerankModel
from .responses_api import ResponsesApi

logger = log.get("server")
LOOK_S = 0.05  # how soon is seen that the last answer ended
SHUTDOWN_S = 2.0  # answers still running at Ctrl-C get this long


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the server stands on."""

    pool: ModelPool
    tools: Tools
    approvals: Approvals
    token: str
    stats: Callable[[], Mapping[str, Any]] = dict
    metrics: NodeMetrics = field(default_factory=NodeMetrics)
    embedding: Source[EmbeddingModel] | None = None  # the model behind /v1/embeddings
    reranker: Source[RerankModel] | None = None  # and behind /v1/rerank
    history: HistoryStore | None = None  # None: nothing is kept
    documents: OwnersDocuments | None = None  # collections and memory
    models: OwnersModels | None = None  # what is on this disk, and how more comes
    libraries: Callable[[], Sequence[KnownEntry]] = tuple  # on other machines, that may be asked
    plugins: OwnersPlugins | None = None  # installed ones, and registries that have more
    # what conversations may train here: "personal" or "federation:ID", each with its name
    destinations: Callable[[], Mapping[str, str]] = dict
    # takes away what else holds a forgotten conversation; returns adapters that it deleted
    forgotten: Callable[[str], Sequence[str]] = lambda _: ()
    memberships: Memberships | None = None  # of federations
    # what is told of a model that was not loaded yet; raises ModelError
    describe: Callable[[str], ModelFacts] = lambda _: ModelFacts()


def application(parts: Parts, config: ServerConfig) -> web.Application:
    """All routes behind the guard."""
    guard = auth.guard(parts.token, config.host, config.hosts)
    around = [
        connections.occupy,
        count_responses(parts.metrics),
        errors.answer_errors,
        guard,
        connections.limit_rate(config.max_requests_per_s),
        connections.read_bodies(config.body_timeout_s),
    ]
    app = web.Application(middlewares=around, client_max_size=config.max_body_bytes)
    app.on_response_prepare.extend([static.add_headers, name_ignored])
    embeddings = Embeddings(parts.embedding)
    answering = Answering(parts.pool, parts.history)
    app.add_routes(OllamaApi(answering, embeddings, parts.describe).routes())
    app.add_routes(ResponsesApi(answering).routes())
    app.add_routes(OpenAI(answering, embeddings, int(time.time())).routes())
    app.add_routes(embeddings.routes())
    app.add_routes(Rerank(parts.reranker).routes())
    api = Api(
        answering.adapters,
        parts.tools,
        parts.approvals,
        parts.stats,
        parts.metrics,
        documents=parts.documents is not None,
    )
    app.add_routes(api.routes())
    app.add_routes(FederationApi(parts.memberships).routes())
    if parts.history is None:
        app.add_routes([web.get("/api/conversations{end:/*}", nothing_kept)])
    else:
        app.add_routes(HistoryApi(parts.history, parts.destinations, parts.forgotten).routes())
    if parts.documents is not None:
        app.add_routes(DocumentsApi(parts.documents).routes())
    app.add_routes(LibrariesApi(parts.libraries).routes())
    if parts.models is not None:
        models = ModelsApi(parts.models)
        app.on_shutdown.append(models.stop)
        app.add_routes(models.routes())
    if parts.plugins is not None:
        app.add_routes(PluginsApi(parts.plugins).routes())
    app.add_routes(OpenApi().routes())
    app.add_routes(static.Pages().routes())
    return app


def encryption(config: ServerConfig) -> ssl.SSLContext | None:
    """TLS with the owner's certificate; None: there is none.

    Raises:
        ConfigError: it cannot be read, or its key is another's.
    """
    if config.certificate is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        # no passphrase is asked for: nobody may be there to answer
        context.load_cert_chain(config.certificate, config.key, password=lambda: b"")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{config.certificate}: no certificate with its key can be read there ({error}); "
            f"--certificate takes a PEM file, --key that of its key, without a passphrase"
        ) from error
    return context


def status_application(
    token: str, host: str, files: static.Pages, status: Handler, scrape: Handler
) -> web.Application:
    """A page that only shows something, behind the same guard: `status` as JSON, `scrape` as
    Prometheus reads it.
    """
    app = web.Application(
        middlewares=[connections.occupy, errors.answer_errors, auth.guard(token, host)]
    )
    app.on_response_prepare.append(static.add_headers)
    told = [web.get("/api/status", status), web.get("/metrics", scrape)]
    app.add_routes([*told, *files.routes()])
    return app


def claim(config: ServerConfig) -> socket.socket:
    """Take the port before anything slow begins.

    Raises:
        ConfigError: the port is taken or may not be used, or lies beyond this machine, where the
        token must not be readable on the way; the sentence says which flag changes it.
    """
    where = f"{config.host}:{config.port}"
    if not 0 <= config.port <= 65535:
        raise ConfigError(
            f"cannot listen on {where}: --port and server.port take 0 (a free one) to 65535"
        )
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM
        )[0]
        reachable = not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback
        claimed = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {where} ({error}); give an address of this machine with --host"
        ) from error
    if reachable and config.certificate is None and not config.plain_http:
        claimed.close()
        raise ConfigError(
            f"{where} can be reached from other machines, and without TLS whoever is on the way "
            "reads the token and every word; give --certificate FILE (and --key FILE), or "
            "--plain-http where a proxy in front has the certificate"
        )
    try:
        if os.name == "posix":
            # a port just left may be taken again
            claimed.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        claimed.bind(address)
        claimed.listen()
    except OSError as error:
        claimed.close()
        raise ConfigError(
            f"cannot listen on {where} ({error.strerror}); choose another port with --port (0 "
            f"takes a free one) or server.port"
        ) from error
    return claimed


class NodeServer:
    """An application on a claimed socket."""

    def __init__(
        self,
        parts: Parts,
        config: ServerConfig,
        claimed: socket.socket,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.socket = claimed
        self.tls = tls
        self.host, self.port = claimed.getsockname()[:2]
        self.config = config
        # Cancelling the handler is how a client that goes away frees its request.
        self.runner = web.AppRunner(
            application(parts, config),
            handler_cancellation=True,
            access_log=None,
            shutdown_timeout=SHUTDOWN_S,
        )
        self.listening: asyncio.Server | None = None
        self.crowd: connections.Connections

    async def start(self) -> None:
        """Begin to answer."""
        self.listening, self.crowd = await connections.listen(
            self.runner, self.config, self.socket, self.tls
        )

    @property
    def url(self) -> str:
        """Where the page is, without the token."""
        # "everywhere" is no address to open
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        scheme = "http" if self.tls is None else "https"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.port}/"

    async def drain(self, seconds: float) -> None:
        """Let nobody else in, and wait until every answer that runs has ended, so long at most."""
        if self.listening is None:
            return
        self.listening.close()
        self.crowd.draining = True
        if answering := sum(one.answering for one in self.crowd.open):
            logger.warning("ending: %d answer(s) that run get %g s", answering, seconds)
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while any(one.answering for one in self.crowd.open):
                    await asyncio.sleep(LOOK_S)

    async def stop(self) -> None:
        """End what still runs, then close the socket."""
        if self.listening is not None:
            self.listening.close()
        await self.runner.cleanup()
        self.socket.close()
