"""`ServerApp` and `ClientApp` for Flower's own engines: `flwr run` on a stock SuperLink or under
Ray, with the same objects.

Knows Flower's public API only, and what a run is told (`Settings`). Knows nothing of rounds.
Always: as `quietchoir coordinate`; started again with the same `state` it goes on from the last
whole round, under Flower's next run, which also takes a later federation file. A message that is
refused leaves this node as it was; what goes back then is the refusal's kind, never its words.

Hazard: Flower hands its nodes the program that they run. Masks keep an update from whoever reads
what the engine carries and what the ServerApp holds; against whoever may start a run on the
SuperLink nothing here helps, for that person can send another program. `quietchoir coordinate` and
`join` take no program from anybody.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, fields
from pathlib import Path

from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid, ServerApp

from ...core import config, log
from ...core.config import Config, ConsentConfig
from ...core.errors import ConfigError, MessageError, QuietchoirError
from ..aggregation.registry import check_freezable
from ..client_node import default_home
from ..events import FederationEvent
from ..membership import roster
from ..monitor.event_printer import sentence
from ..server_node import CoordinatorOptions, coordinate
from ..transport.records import answer_to, payload_of, to_record
from . import stateless_client
from .grid import HELLO_RECORD, NAME, NONCE, PROOF, GridLink
from .stateless_client import Own

logger = log.get("federation.flower")
# of what is put aside between two messages: in the SuperNode's memory, nowhere else
STATE, KEY = "quietchoir", "key"
GRACE_S = 30.0  # once the minimum is there, how long the rest of the roster is waited for


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a run is told: `app/pyproject.toml`, or `flwr run federation/transport/app --run-config
    "…"`.
    """

    federation: str = ""  # the signed file
    # the coordinator's folders and its report
    state: str = ""
    keys: str = ""
    report: str = ""
    # of a simulation: folders with one node's home, and one of examples, a member
    homes: str = ""
    data: str = ""
    rounds: int = 0  # 0: the file's
    rehearse: int = 0  # values of a pretended adapter; 0: in earnest

    @staticmethod
    def read(run_config: Mapping[str, object]) -> "Settings":
        """Raises ConfigError for a value of another type; what is missing has its default."""
        given: dict[str, object] = {}
        for one in fields(Settings):
            key = one.name.replace("_", "-")
            value = run_config.get(key, one.default)
            if type(value) is not type(one.default):
                raise ConfigError(
                    f"run config: {key} = {value!r} must be {type(one.default).__name__}"
                )
            given[one.name] = value
        return Settings(**given)  # type: ignore[arg-type]


server_app = ServerApp()
client_app = ClientApp()


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """Rounds until they are done."""
    conduct(grid, Settings.read(context.run_config))


def conduct(grid: Grid, settings: Settings) -> None:
    """Run the federation's rounds.

    Raises:
        ConfigError: no federation, no folder for the run's state, or a mode that Flower's engines
        cannot keep. RosterError, FederationError, RoundAborted: as `coordinate`.
    """
    for name in ("federation", "state"):
        if not getattr(settings, name):
            raise ConfigError(
                f"run config: {name} is empty; name the signed file, and a folder where the run "
                f"lives, so that it can go on after a kill"
            )
    file, state = Path(settings.federation), Path(settings.state)
    check_freezable(roster.load(file))
    coordinating = CoordinatorOptions(
        file=file,
        state=state,
        keys=Path(settings.keys) if settings.keys else file.parent,
        home=default_home(),
        rounds=settings.rounds or None,
        rehearse=settings.rehearse,
        grace_s=GRACE_S,
    )
    report = coordinate(
        coordinating, print_event, lambda policy: nullcontext(GridLink(grid, policy))
    )
    report.write(Path(settings.report) if settings.report else state / "report.json")


def print_event(event: FederationEvent) -> None:
    """A line for people; `flwr run --stream` shows what a ServerApp prints."""
    if (text := sentence(event)) is not None:
        print(f"quietchoir {text}", flush=True)


@client_app.query("hello")
def hello(message: Message, context: Context) -> Message:
    """Say and prove which member this node is."""
    try:
        hello_record = message.content.get(HELLO_RECORD)
        nonce = hello_record.get(NONCE) if isinstance(hello_record, ConfigRecord) else None
        if not isinstance(nonce, bytes):
            raise MessageError("a hello without a number to sign came; refused")
        name, proof = stateless_client.prove(own_of(context), nonce, message.metadata.dst_node_id)
    except QuietchoirError as error:
        return refusal(message, error)
    return answer_to(message, RecordDict({HELLO_RECORD: ConfigRecord({NAME: name, PROOF: proof})}))


@client_app.train("letter")
def task(message: Message, context: Context) -> Message:
    """Answer one message of our coordinator's as this node's member."""
    kept = context.state.get(STATE)
    key = kept.get(KEY) if isinstance(kept, ConfigRecord) else None
    try:
        content = payload_of(message)
        if content is None:
            raise MessageError("a message of Flower's without one of ours came; refused")
        reply, key = stateless_client.answer(
            own_of(context), content, key if isinstance(key, bytes) else b""
        )
    except QuietchoirError as error:
        return refusal(message, error)
    context.state[STATE] = ConfigRecord({KEY: key})
    return answer_to(message, to_record(reply))


def refusal(message: Message, error: QuietchoirError) -> Message:
    """The kind of a refusal; its words, which may hold private data, stay in this node's log."""
    logger.warning("refused: %s", error)
    return answer_to(message, Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, type(error).__name__))


def own_of(context: Context) -> Own:
    """This node's home and data: from its own `--node-config`; in a simulation, by its number, from
    the run's.

    A node that names a home takes no path from the run's configuration, which is the coordinator's
    word.

    Raises:
        ConfigError: neither, or a number without a member.
    """
    node, settings = context.node_config, Settings.read(context.run_config)
    if "home" in node:
        home = Path(str(node["home"]))
        file = Path(str(node.get("federation", home / roster.FILE)))
        settled = Path(str(node.get("config", home / "config.toml")))
        chosen = config.load(settled) if "config" in node or settled.exists() else Config()
        data = Path(str(node["data"])) if "data" in node else chosen.training.data
        return Own(file=file, home=home, data=data, rehearse=settings.rehearse, config=chosen)
    if not settings.homes or not settings.federation:
        raise ConfigError(
            'this node has no home; start its SuperNode with --node-config \'home="…" '
            'federation="…"\', or name '
            "`federation` and `homes` in the configuration of a simulation"
        )
    file, number = Path(settings.federation), int(node.get("partition-id", 0))
    names = sorted(member.name for member in roster.load(file).members)
    if number >= len(names):
        raise ConfigError(
            f"{file}: {len(names)} members, and this is node {number} of the "
            f"simulation; start as many nodes"
        )
    # all homes are one owner's
    anything = ConsentConfig(min_cohort=1, modes=("plain", "masked", "sealed"))
    return Own(
        file=file,
        home=Path(settings.homes) / names[number],
        rehearse=settings.rehearse,
        config=Config(consent=anything),
        data=Path(settings.data) / names[number] if settings.data else None,
    )
