"""The verbs of one node: `serve`, `chat`, `data`, `doctor`, `config`, `service`, `backup`,
`restore`.

Knows flags and what is printed. What the verbs do stands in `node.py`, `doctor.py`, `service.py`,
`backup.py` and `core/assistant/terminal.py`.
"""

import dataclasses
import secrets
from argparse import ArgumentParser, Namespace, _SubParsersAction
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from . import __version__
from .core.commands import register_data
from .federation.cli import history

if TYPE_CHECKING:
    from .core.assistant.context import Message
    from .core.assistant.elicitation import ElicitResult
    from .core.assistant.events import Event
    from .core.config import Config
    from .core.history.recorder import KeptChat
    from .core.server.client import RemoteAssistant
    from .node import Node


def register(verbs: "_SubParsersAction[ArgumentParser]") -> None:
    """Add `serve`, `chat`, `data`, `doctor`, and what looks after a node."""
    serving = verbs.add_parser("serve", help="run the assistant: HTTP API and web page")
    serving.add_argument("--host", help="address to listen on (default: this machine only)")
    serving.add_argument("--port", type=int, help="port to listen on; 0 takes a free one")
    serving.add_argument(
        "--certificate",
        type=Path,
        metavar="FILE",
        help="answer over HTTPS with this certificate and its chain (PEM); beyond this machine "
        "there must be one",
    )
    serving.add_argument(
        "--key", type=Path, metavar="FILE", help="the certificate's key, if it is in another file"
    )
    serving.add_argument(
        "--plain-http",
        action="store_const",
        const=True,
        help="beyond this machine without a certificate, since a proxy in front has it",
    )
    serving.add_argument(
        "--power",
        choices=["quiet", "balanced", "full"],
        help="what to take of this machine, on AC and on battery (default: power.profile)",
    )
    serving.add_argument(
        "--federation", type=Path, metavar="FED", help="also be a member of this federation"
    )
    serving.add_argument(
        "--data",
        type=Path,
        metavar="FOLDER",
        help="examples that you consent to train on, for --federation; by default the "
        "conversations that you consented to (quietchoir data consent)",
    )
    serving.add_argument(
        "--reranker",
        metavar="PATH",
        help="folder or GGUF file of a model behind /v1/rerank (default: embedding.reranker)",
    )
    serving.add_argument(
        "--trace",
        type=Path,
        metavar="FILE",
        help="write where the time goes, for Perfetto or Chrome's tracing page: steps of the "
        "engine, part by part, and calls of tools; no word of what is said",
    )
    serving.set_defaults(run=serve)

    chatting = verbs.add_parser("chat", help="talk to the assistant in this terminal")
    chatting.add_argument(
        "--url", help="talk to a node that runs already, for example http://127.0.0.1:8765"
    )
    chatting.add_argument(
        "--token-file", type=Path, metavar="FILE", help="its token (default: this node's own)"
    )
    chatting.set_defaults(run=chat)
    chatting.add_argument(
        "--collection",
        action="append",
        default=[],
        metavar="NAME",
        help="documents whose passages answers may cite, or library:NAME for a private library "
        "that `library add` named; may be given again",
    )
    for verb in (serving, chatting):
        verb.add_argument("--model", help="a name that `model list` shows, or a file")
        verb.add_argument(
            "--precision",
            choices=("fast", "balanced", "exact"),
            help="of the compiled kernels (default: engine.precision)",
        )
        verb.add_argument(
            "--draft-model",
            metavar="NAME",
            help="a smaller model of the same vocabulary, which guesses ahead (default: "
            "engine.draft_model)",
        )
        verb.add_argument(
            "--home-file",
            type=Path,
            metavar="FILE",
            help="home.json of the household that the assistant acts in",
        )

    data = verbs.add_parser("data", help="examples to train on, and what was said here")
    history.register(register_data(data))

    calibrating = verbs.add_parser(
        "calibrate", help="measure from when on an adapter's calls may be carried out unasked"
    )
    calibrating.add_argument(
        "--data", type=Path, required=True, metavar="FILE", help="held-out examples, chat-format"
    )
    calibrating.add_argument("--adapter", help="its id or name (default: the active one)")
    calibrating.add_argument("--model", help="a name that `model list` shows, or a file")
    calibrating.set_defaults(run=calibrate)

    examining = verbs.add_parser("doctor", help="what this machine lacks, and how to get it")
    examining.add_argument(
        "--report",
        type=Path,
        metavar="FILE",
        help="also write what this machine is, for docs/hardware.md: processor, cores, memory, "
        "accelerators, versions; no name, host, path, address or serial number",
    )
    examining.add_argument(
        "--plan",
        action="store_true",
        help="instead: measure which device is fastest here for the configured model's prompts (a "
        "minute), and show it",
    )
    examining.set_defaults(run=doctor)
    register_upkeep(verbs)


def register_upkeep(verbs: "_SubParsersAction[ArgumentParser]") -> None:
    """Add `config`, `service`, `backup` and `restore`."""
    settings = verbs.add_parser("config", help="the file of this node's settings")
    actions = settings.add_subparsers(dest="action", required=True, metavar="ACTION")
    init = actions.add_parser("init", help="write one in which every key stands, explained")
    init.add_argument(
        "--out", type=Path, metavar="FILE", help="default: config.toml in the node's home"
    )
    init.set_defaults(run=init_config)

    service = verbs.add_parser("service", help="a node that starts with your session")
    actions = service.add_subparsers(dest="action", required=True, metavar="ACTION")
    install = actions.add_parser(
        "install", help="as a systemd user unit, or a launchd agent; starts it"
    )
    install.add_argument(
        "--federation", type=Path, metavar="FED", help="also be a member of this federation"
    )
    install.add_argument("--print", action="store_true", help="show the file, install nothing")
    actions.add_parser("status", help="does it run? exit 1 if not")
    actions.add_parser("remove", help="stop it and take it away; the node's home stays")
    service.set_defaults(run=run_service, federation=None, print=False)

    backing = verbs.add_parser("backup", help="this node's home as one file, also while it runs")
    backing.add_argument("file", type=Path, metavar="FILE", help="a new .tar.gz; not encrypted")
    backing.set_defaults(run=back_up)
    restoring = verbs.add_parser("restore", help="a backup, where no node is yet")
    restoring.add_argument("file", type=Path, metavar="FILE")
    restoring.set_defaults(run=restore)


def init_config(arguments: Namespace) -> None:
    """Write a file that says nothing yet, with every key in a comment.

    Raises:
        ConfigError: there is one already.
    """
    from .core import config, paths, tables
    from .core.errors import ConfigError

    path = arguments.out or paths.private_folder(paths.home()) / config.FILE
    if path.exists():
        raise ConfigError(f"{path}: is there already and is kept; name another with --out")
    head = (
        "# This node's settings. What stands here in a comment is the default; take the # away to "
        "change\n# it. A key without a value is unset.\n\n"
    )
    paths.write_atomically(path, f"{head}{tables.template(config.Config)}\n".encode(), mode=0o600)
    print(path)


def run_service(arguments: Namespace) -> int:
    """Install, remove, or tell how it stands; 1 if it does not run.

    Raises:
        ConfigError, QuietchoirError: each says what is in the way.
    """
    from .core import config
    from .core.errors import ConfigError
    from .service import Service

    if arguments.federation is not None and not arguments.federation.exists():
        raise ConfigError(f"--federation {arguments.federation}: not there; give a path that is")
    service = Service(
        config.load(arguments.config), config_file=arguments.config, federation=arguments.federation
    )
    if arguments.print:
        print(service.text().decode(), end="")
    elif arguments.action == "install":
        service.install()
        print(f"{service.file}: installed, and started")
    elif arguments.action == "remove":
        service.remove()
        print(f"{service.file}: removed; what is in {service.home} stays")
    else:
        runs, words = service.status()
        print(words)
        return 0 if runs else 1
    return 0


def back_up(arguments: Namespace) -> None:
    """Write it. Raises: ConfigError: see `backup.back_up`."""
    from . import backup
    from .core import paths

    count = backup.back_up(paths.home(), arguments.file)
    print(
        f"{arguments.file}: {count} files. Keys, token and conversations lie in it in clear unless "
        f"they were locked: encrypt it before it leaves this machine. Models are not in it"
    )


def restore(arguments: Namespace) -> None:
    """Put it in place. Raises: ConfigError, DataError: see `backup.restore`."""
    from . import backup
    from .core import paths
    from .federation.membership.keys import why_restored
    from .private_search import budget

    count = backup.restore(arguments.file, paths.home())
    print(f"{paths.home()}: {count} files restored; models are pulled again: quietchoir model pull")
    if why := why_restored(paths.home()):
        print(f"Not in a federation any more: {why}")
    if (room := paths.home() / budget.FOLDER).joinpath("host.key").exists():
        print(f"No library is served: {budget.why_restored(room)}")


def configured(arguments: Namespace) -> "Config":
    """The owner's file, with this call's flags over it.

    Raises:
        ConfigError: the file, or a flag, cannot be used.
    """
    from .core import config
    from .core.errors import ConfigError

    chosen = config.load(arguments.config)
    server = {
        key: value
        for key in ("host", "port", "certificate", "key", "plain_http")
        if (value := getattr(arguments, key, None)) is not None
    }
    engine = {
        key: value
        for key in ("model", "precision", "draft_model")
        if (value := getattr(arguments, key, None))
    }
    embedding = {"reranker": said} if (said := getattr(arguments, "reranker", None)) else {}
    power = {"profile": profile} if (profile := getattr(arguments, "power", None)) else {}
    training = {"data": data} if (data := getattr(arguments, "data", None)) else {}
    for flag in ("home_file", "federation", "data", "certificate", "key"):
        path = getattr(arguments, flag, None)
        if path is not None and not path.exists():
            raise ConfigError(f"--{flag.replace('_', '-')} {path}: not there; give a path that is")
    return dataclasses.replace(
        chosen,
        server=dataclasses.replace(chosen.server, **server),
        engine=dataclasses.replace(chosen.engine, **engine),
        embedding=dataclasses.replace(chosen.embedding, **embedding),
        power=dataclasses.replace(chosen.power, **power),
        training=dataclasses.replace(chosen.training, **training),
    )


def serve(arguments: Namespace) -> None:
    """Run a node until Ctrl-C or SIGTERM."""
    import asyncio

    chosen = configured(arguments)
    from . import node
    from .core import log, parts

    if arguments.federation is not None:
        parts.require("federation", "quietchoir serve --federation")  # before a model is loaded

    log.say(f"quietchoir {__version__}: loading {chosen.engine.model} …")
    asyncio.run(
        node.serve(
            chosen,
            announce,
            home_file=arguments.home_file,
            federation=arguments.federation,
            trace=arguments.trace,
        )
    )
    log.say("quietchoir: stopped")


def announce(node: "Node") -> None:
    """Say where the node answers. The first line is for programs too: `serving on URL`."""
    tools = len(node.assistant.tools.tools())
    print(f"serving on {node.page}", flush=True)
    print(
        f"  API      {node.server.url}v1 (Authorization: Bearer TOKEN; the token is in "
        f"{node.home / 'token'})"
    )
    print(
        f"  model    {node.adapters.model}, adapter {node.adapters.active or 'none'}, {tools} tools"
    )
    if node.engine.exactness:
        print(f"  exact    {node.engine.exactness}")
    if node.engine.slower:
        print(f"  slow     {node.engine.slower}")
    print("  Ctrl-C ends it", flush=True)


def chat(arguments: Namespace) -> None:
    """Talk in the terminal, to a node in this very program or to a running one."""
    import asyncio

    from .core import screen
    from .core.assistant.terminal import converse

    with asyncio.Runner() as runner:
        if arguments.url:
            far = remote(arguments)
            converse(far, runner, screen.typed, write, far)
            return
        from .core.history.recorder import KeptChat
        from .node import Node

        node = Node(configured(arguments), home_file=arguments.home_file)
        try:
            runner.run(node.start_assistant())
            node.open_history()
            kept = None if node.history is None else KeptChat(node.history, "chat")
            converse(
                LocalReplier(node, kept, arguments.collection), runner, screen.typed, write, kept
            )
        finally:
            runner.run(node.stop())


def calibrate(arguments: Namespace) -> int:
    """Ask an adapter its held-out examples, and keep what it may be sure of; 1 if of nothing."""
    import asyncio

    from .core.assistant.calibration import PRECISION
    from .core.errors import ConfigError
    from .node import Node

    async def measured() -> int:
        async with Node(configured(arguments)) as node:
            await node.start_assistant()
            chosen = arguments.adapter or node.adapters.active
            if chosen is None:
                raise ConfigError(
                    "no adapter is active; name one with --adapter (`quietchoir adapter list`)"
                )
            adapter = await node.adapters.hold(chosen)
            found = await node.calibrate(adapter, arguments.data)
        if found.threshold is None:
            print(
                f"{adapter[:12]}: of {found.examples} examples no threshold leaves calls that are "
                f"{100 * PRECISION:.0f} % right; every call is asked before (it takes some hundred "
                f"held-out examples to be sure of any)"
            )
            return 1
        print(
            f"{adapter[:12]}: calls of a probability of {found.threshold:.3f} and more are carried "
            f"out unasked: {100 * found.precision:.1f} % of them right, {100 * found.coverage:.0f} "
            f"% of {found.examples} examples"
        )
        return 0

    return asyncio.run(measured())


class LocalReplier:
    """The assistant of a node in this program; its conversations are kept, if their owner wants
    that.
    """

    def __init__(self, node: "Node", kept: "KeptChat | None", collections: "Sequence[str]") -> None:
        """`collections`: of documents, whose passages answers may cite."""
        self.node, self.kept, self.collections = node, kept, tuple(collections)
        self.renew()

    def renew(self) -> None:
        """Another conversation begins."""
        if self.kept is not None:
            self.kept.renew()
        self.conversation = self.kept.conversation if self.kept else secrets.token_hex(8)

    def reply(self, messages: "Sequence[Message]") -> "AsyncGenerator[Event, None]":
        """Its answer, with the active adapter."""
        from .core.assistant.events import ChatRequest
        from .core.engine.sampling.params import SamplingParams
        from .core.history.recorder import recorded

        ask = ChatRequest(
            messages=tuple(messages),
            talk=SamplingParams(**self.node.sampling.given()),  # type: ignore[arg-type]  # fields by their names
            adapter=self.node.adapters.active,
            collections=self.collections,
            use_memory=True,
            conversation=self.conversation,
        )
        answer = self.node.assistant.reply(ask)
        if self.kept is None:
            return answer
        return recorded(self.kept.store, ask, self.kept.source, answer)

    async def answer(self, id: str, approved: bool, remember: bool) -> None:
        """The owner's word."""
        self.node.assistant.approvals.answer(id, approved, remember=remember)

    async def respond(self, id: str, result: "ElicitResult") -> None:
        """What became of a form of a tool's."""
        self.node.assistant.approvals.respond(id, result)


def remote(arguments: Namespace) -> "RemoteAssistant":
    """Somebody who replies, elsewhere."""
    from .core import paths
    from .core.server.auth import TOKEN_FILE, read_token
    from .core.server.client import RemoteAssistant

    token = read_token(arguments.token_file or paths.home() / TOKEN_FILE)
    return RemoteAssistant(arguments.url, token, arguments.collection)


def write(text: str) -> None:
    """To the terminal, at once."""
    print(text, end="", flush=True)


def doctor(arguments: Namespace) -> int:
    """Print one line for each thing; exit 1 if something essential is missing.

    Raises:
        ConfigError: the report's file is there already.
    """
    from datetime import date

    from .core import config, paths
    from .core.errors import ConfigError
    from .doctor import examine, report

    if arguments.plan:
        return show_plan(config.load(arguments.config))
    if arguments.report is not None and arguments.report.exists():
        raise ConfigError(f"{arguments.report}: is there already and is kept; choose another name")
    missing = 0
    for finding in examine(config.load(arguments.config)):
        word = "ok" if finding.well else "missing" if finding.essential else "note"
        print(f"{word:8} {finding.name:11} {finding.text}", flush=True)
        missing += finding.essential and not finding.well
    if arguments.report is not None:
        text = report(f"{date.today():%Y-%m}").text()
        paths.write_atomically(arguments.report, text.encode())
        print(f"{arguments.report}: written; look at it before you send it")
    return 1 if missing else 0


def show_plan(settings: "Config") -> int:
    """Measure the devices of this machine and print who does what."""
    from .core import log, parts, screen

    with parts.wanted("quietchoir doctor --plan"):
        from .core.engine.backends.openvino.plan import measured
    from .core.models import weights
    from .core.models.hub import catalog

    model = weights.load(catalog.find(settings.engine.model))
    planner = measured(model, settings.engine, lambda words: log.say(f"measuring: {words}"))
    table = screen.table("job", "size", "goes to", "ms", "others, ms", box=None)
    for one in planner.plan():
        others = ", ".join(f"{name} {1000 * s:.1f}" for name, s in sorted(one.others.items()))
        table.add_row(one.job, str(one.size), one.device, f"{1000 * one.seconds:.1f}", others)
    screen.show(table)
    for name, why in planner.lost.items():
        print(f"{name} is not used: {why}")
    now = planner.conditions
    power = {None: "no battery", True: "on battery", False: "on AC"}[now.on_battery]
    heat = ", hot" if now.hot else ""
    free = f"{now.free_bytes / 1e9:.1f} of {now.total_bytes / 1e9:.1f} GB free"
    print(f"measured under: {power}{heat}, {free}; a change of these makes a new plan")
    print(
        "a node's prompts follow such a plan"
        if settings.engine.prefill == "planned"
        else 'a node\'s prompts do not follow it: set [engine] prefill = "planned"'
    )
    return 0
