"""`ServerApp` and `ClientApp` for Flower's own engines: `flwr run` on a stock SuperLink or under
Ray, with the same objects.

Knows Flower's public API only, and which of two ways a run goes: with a federation file, our
coordinator and our members with all their protection (`conduct`, `visit`); without one, plain
averaging (`unprotected`).
Always: a message that is refused leaves this node as it was; what goes back then is the refusal's
kind, never its words.

Hazard: Flower hands its nodes the program that they run. Masks keep an update from whoever reads
what the engine carries and what the ServerApp holds; against whoever may start a run on the
SuperLink nothing here helps, for that person can send another program. `quietchoir coordinate` and
`join` take no program from anybody.
"""

from pathlib import Path

from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid, ServerApp

from ...core import config, log
from ...core.config import Config, ConsentConfig
from ...core.errors import ConfigError, MessageError, QuietchoirError
from .. import stateless_client
from ..membership import roster
from ..stateless_client import Own
from . import conduct, unprotected
from .grid import GREETING, NAME, NONCE, PROOF
from .records import answer_to, open_letter, seal_letter
from .settings import Settings

logger = log.get("federation.flower")
# of what is put aside between two letters: in the SuperNode's memory, nowhere else
STATE, KEY = "quietchoir", "key"

server_app = ServerApp()
client_app = ClientApp()


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """Rounds until they are done."""
    settings = Settings.read(context.run_config)
    if settings.federation:
        conduct.conduct(grid, settings)
    else:
        unprotected.average(grid, settings)


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Without a federation file: score, train, return the change."""
    settings = Settings.read(context.run_config)
    if settings.federation or "home" in context.node_config:
        return refusal(
            message,
            ConfigError(
                "this node belongs to a federation, and was asked to train without one; refused"
            ),
        )
    return unprotected.train(message, settings, int(context.node_config.get("partition-id", 0)))


@client_app.query("hello")
def hello(message: Message, context: Context) -> Message:
    """Say and prove which member this node is."""
    try:
        greeting = message.content.get(GREETING)
        nonce = greeting.get(NONCE) if isinstance(greeting, ConfigRecord) else None
        if not isinstance(nonce, bytes):
            raise MessageError("a greeting without a number to sign came; refused")
        name, proof = stateless_client.greet(own_of(context), nonce, message.metadata.dst_node_id)
    except QuietchoirError as error:
        return refusal(message, error)
    return answer_to(message, RecordDict({GREETING: ConfigRecord({NAME: name, PROOF: proof})}))


@client_app.train("letter")
def letter(message: Message, context: Context) -> Message:
    """Answer one letter of our coordinator's as this node's member."""
    kept = context.state.get(STATE)
    key = kept.get(KEY) if isinstance(kept, ConfigRecord) else None
    try:
        content = open_letter(message)
        if content is None:
            raise MessageError("a message without a letter came; refused")
        reply, key = stateless_client.answer(
            own_of(context), content, key if isinstance(key, bytes) else b""
        )
    except QuietchoirError as error:
        return refusal(message, error)
    context.state[STATE] = ConfigRecord({KEY: key})
    return answer_to(message, seal_letter(reply))


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
