"""The verbs of `quietchoir plugin registry`: of a node that trusts one, and of those who run one,
publish through it or review in it; and `plugin licence`.

Knows flags and what is printed. Knows nothing of roles or files.
"""

import argparse
import getpass
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import ConfigError
from ...core.screen import counted, one_line

if TYPE_CHECKING:
    from securesystemslib.signer import CryptoSigner

PASSPHRASE = "QUIETCHOIR_PASSPHRASE"  # as for every other key of this program
BUILTIN = Path(__file__).parent.parent / "builtin"


def register(actions: Any) -> None:
    """Add `plugin registry` and `plugin licence`."""
    registry = actions.add_parser(
        "registry", help="registries: trust one, run one, publish, review"
    )
    verbs = registry.add_subparsers(dest="what", required=True, metavar="VERB")
    _register_trust(verbs)
    _register_owner(verbs)
    _register_work(verbs)
    _register_licence(actions)


def _register_trust(verbs: Any) -> None:
    trust = verbs.add_parser("trust", help="install from this registry from now on")
    trust.add_argument("name", metavar="NAME", help="what you call it")
    trust.add_argument("url", metavar="URL|FOLDER", help="a server, or a mirror on this disk")
    trust.add_argument("--root-sha256", required=True, metavar="DIGEST", help="its owner tells it")
    trust.add_argument("--state", default="", metavar="N:DIGEST", help="it must show this at least")
    trust.set_defaults(run=trust_one)
    listing = verbs.add_parser("list", help="registries that this node trusts")
    listing.set_defaults(run=list_all)
    forget = verbs.add_parser("forget", help="trust it no longer; what is installed stays")
    forget.add_argument("name", metavar="NAME")
    forget.set_defaults(run=forget_one)


def _register_owner(verbs: Any) -> None:
    key = verbs.add_parser("key", help="make a key, and print its public half")
    key.add_argument("file", type=Path, metavar="FILE")
    key.add_argument("--no-passphrase", action="store_true", help="whoever reads the file has it")
    key.set_defaults(run=make_key)
    init = verbs.add_parser("init", help="begin a registry")
    init.add_argument("folder", type=Path, metavar="FOLDER")
    for role in ("root", "targets"):
        init.add_argument(
            f"--{role}-key", action="append", required=True, type=Path, metavar="FILE"
        )
        init.add_argument(f"--{role}-threshold", type=int, default=0, metavar="N")
    init.add_argument("--online-key", required=True, type=Path, metavar="FILE")
    init.set_defaults(run=init_one)
    admit = _verb(
        verbs, "admit", "let an author publish under a name; again: with another key", admit_one
    )
    admit.add_argument("author", metavar="AUTHOR")
    admit.add_argument("--public", required=True, metavar="HEX", help="the author's public key")
    policy = _verb(verbs, "policy", "who reviews, and how many it takes", policy_one)
    policy.add_argument("--reviewer", action="append", default=[], metavar="NAME=HEX")
    policy.add_argument("--needed", type=int, default=1, metavar="N", help="approvals (1)")
    policy.add_argument(
        "--sensitive", type=int, default=2, metavar="N", help="where it matters (2)"
    )
    policy.add_argument("--name", action="append", default=[], metavar="ID", help="may resemble")
    revoke = _verb(verbs, "revoke", "stop a plugin wherever it is installed", revoke_one)
    revoke.add_argument("id", metavar="ID")
    revoke.add_argument("--version", action="append", default=[], metavar="V", help="default: all")
    revoke.add_argument("--reason", required=True, metavar="TEXT")
    rotate = _verb(verbs, "rotate", "other keys for a role; old and new root keys sign", rotate_one)
    rotate.add_argument("role", choices=["root", "targets", "online"])
    rotate.add_argument("--public", action="append", required=True, metavar="HEX")
    rotate.add_argument("--threshold", type=int, default=0, metavar="N")
    _verb(verbs, "renew", "sign anew what a key may sign and what expires soon", renew_all)
    _verb(verbs, "sign", "sign all drafts that a key may sign", sign_all)
    _verb(verbs, "publish", "show the drafts to everybody", publish_one)
    verify = verbs.add_parser("verify", help="check a whole registry as a client would, offline")
    verify.add_argument("folder", type=Path, metavar="FOLDER")
    verify.set_defaults(run=verify_one)
    seed = verbs.add_parser("seed", help="a registry of the plugins that come with quietchoir")
    seed.add_argument("folder", type=Path, metavar="FOLDER")
    seed.add_argument("plugins", nargs="*", type=Path, metavar="PLUGIN", help="and these folders")
    seed.add_argument("--keys", required=True, type=Path, metavar="FOLDER", help="for its keys")
    seed.set_defaults(run=seed_one)


def _register_work(verbs: Any) -> None:
    add = _verb(verbs, "add", "put a release into the drafts, signed by its author", add_one)
    add.add_argument("plugin", type=Path, metavar="FOLDER|FILE")
    add.add_argument("--commit", default="", metavar="ID", help="of the source it is made from")
    review = _verb(verbs, "review", "say what you checked, and approve or reject", review_one)
    review.add_argument("release", metavar="ID@VERSION")
    review.add_argument("--verdict", required=True, choices=["approve", "reject"])
    review.add_argument(
        "--checked", action="append", default=[], metavar="WHAT", help="docs/review-checklist.md"
    )
    review.add_argument("--commit", default="", metavar="ID", help="what you compared it with")
    review.add_argument("--notes", default="", metavar="TEXT")


def _register_licence(actions: Any) -> None:
    licence = actions.add_parser("licence", help="paid plugins: this node's key, tokens")
    verbs = licence.add_subparsers(dest="what", required=True, metavar="VERB")
    node = verbs.add_parser(
        "node", help="this node's public key, for a vendor to sell a licence to"
    )
    node.set_defaults(run=node_one)
    add = verbs.add_parser("add", help="keep a licence that you bought")
    add.add_argument("file", type=Path, metavar="FILE")
    add.set_defaults(run=add_licence)
    issue = verbs.add_parser("issue", help="sign a licence, as a vendor")
    issue.add_argument("--key", required=True, type=Path, metavar="FILE")
    issue.add_argument("--plugin", required=True, metavar="ID")
    issue.add_argument("--first", required=True, metavar="V", help="version that it begins with")
    issue.add_argument("--below", required=True, metavar="V", help="version that it ends before")
    issue.add_argument("--node", required=True, metavar="HEX")
    issue.add_argument("--days", required=True, type=int, metavar="N")
    issue.add_argument("--grace-days", type=int, default=14, metavar="N")
    issue.set_defaults(run=issue_one)


def _verb(verbs: Any, name: str, words: str, run: Any) -> Any:
    """A verb on a registry's folder that takes keys."""
    parser = verbs.add_parser(name, help=words)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the registry")
    parser.add_argument("--key", action="append", required=True, type=Path, metavar="FILE")
    parser.set_defaults(run=run)
    return parser


# keys


def passphrase(path: Path, words: str = "passphrase") -> str:
    """From the environment, or whoever sits there. Raises: ConfigError: nobody does."""
    if given := os.environ.get(PASSPHRASE):
        return given
    if not sys.stdin.isatty():
        raise ConfigError(
            f"{path}: a passphrase is needed; start at a terminal, or set {PASSPHRASE}"
        )
    return getpass.getpass(f"{words} of {path}: ")


def signers(files: list[Path]) -> "list[CryptoSigner]":
    """The keys in these files."""
    from . import keys

    return [keys.load(path, passphrase) for path in files]


def make_key(chosen: argparse.Namespace) -> int:
    """A key file."""
    from . import keys

    words = None if chosen.no_passphrase else passphrase(chosen.file, "new passphrase")
    typed = words is not None and PASSPHRASE not in os.environ
    if typed and words != passphrase(chosen.file, "the same again"):
        raise ConfigError("the two passphrases differ; nothing was written, try again")
    made = keys.make(chosen.file, words)
    print(f"{chosen.file}: keep it, and a copy elsewhere; its public half:")
    print(keys.shown(made.public_key))
    return 0


# a node that trusts


def trust_one(chosen: argparse.Namespace) -> int:
    """Trust a registry."""
    from . import client

    client.trust(chosen.name, chosen.url, chosen.root_sha256, chosen.state)
    print(f"{chosen.name} is trusted; try: quietchoir plugin search WORD")
    return 0


def list_all(_chosen: argparse.Namespace) -> int:
    """Print the trusted ones."""
    from . import client

    for name in client.trusted():
        with client.opened(name) as registry:
            about = registry.about
        print(f"{name}  {one_line(about.url)}  root {about.root_sha256}")
    return 0


def forget_one(chosen: argparse.Namespace) -> int:
    """Trust no longer."""
    from . import client

    client.forget(chosen.name)
    print(f"{chosen.name} is trusted no longer; its revocations are not looked up any more")
    return 0


# who runs one


def tell(folder: Path) -> None:
    """What a draft still waits for."""
    from .repository import PluginRepository

    if waiting := PluginRepository(folder).waiting():
        print(
            f"drafted; {'; '.join(waiting)}. Other holders: plugin registry sign {folder} --key …"
        )
    else:
        print(f"drafted; then: quietchoir plugin registry publish {folder} --key ONLINE")


def init_one(chosen: argparse.Namespace) -> int:
    """Begin one."""
    from .repository import PluginRepository

    PluginRepository.init(
        chosen.folder,
        root=signers(chosen.root_key),
        targets=signers(chosen.targets_key),
        online=signers([chosen.online_key])[0],
        thresholds=(chosen.root_threshold, chosen.targets_threshold),
    )
    tell(chosen.folder)
    return 0


def admit_one(chosen: argparse.Namespace) -> int:
    """An author, or an author's next key."""
    from . import keys
    from .repository import PluginRepository

    PluginRepository(chosen.folder).admit(
        chosen.author, keys.public(chosen.public), signers(chosen.key)
    )
    tell(chosen.folder)
    return 0


def policy_one(chosen: argparse.Namespace) -> int:
    """The rules."""
    from .repository import PluginRepository
    from .review import ReviewPolicy

    pairs = [one.partition("=") for one in chosen.reviewer]
    try:
        rules = ReviewPolicy(
            reviewers={name: holder for name, _, holder in pairs},
            needed=chosen.needed,
            sensitive=chosen.sensitive,
            names=tuple(chosen.name),
        )
    except ValueError as error:
        raise ConfigError(str(error)) from None
    PluginRepository(chosen.folder).set_policy(rules, signers(chosen.key))
    tell(chosen.folder)
    return 0


def revoke_one(chosen: argparse.Namespace) -> int:
    """Stop a plugin."""
    from .repository import PluginRepository

    held = PluginRepository(chosen.folder)
    held.revoke(chosen.id, chosen.version, chosen.reason, signers(chosen.key))
    tell(chosen.folder)
    return 0


def rotate_one(chosen: argparse.Namespace) -> int:
    """Other keys."""
    from . import keys
    from .repository import PluginRepository

    fresh = [keys.public(one) for one in chosen.public]
    held = PluginRepository(chosen.folder)
    held.rotate(chosen.role, fresh, signers(chosen.key), chosen.threshold)
    tell(chosen.folder)
    return 0


def sign_all(chosen: argparse.Namespace) -> int:
    """A holder's part."""
    from .repository import PluginRepository

    PluginRepository(chosen.folder).sign(signers(chosen.key))
    tell(chosen.folder)
    return 0


def renew_all(chosen: argparse.Namespace) -> int:
    """What would expire."""
    from .repository import PluginRepository

    mine = PluginRepository(chosen.folder).renew(signers(chosen.key))
    print(f"signed anew: {', '.join(mine) or 'nothing is in the second half of its time'}")
    tell(chosen.folder)
    return 0


def publish_one(chosen: argparse.Namespace) -> int:
    """Show the drafts."""
    from .client import root_digest
    from .repository import PluginRepository

    held = PluginRepository(chosen.folder)
    held.publish(signers(chosen.key)[0])
    if held.ends_soon("targets"):
        ends = held.role("targets").signed.expires
        print(f"targets ends on {ends:%Y-%m-%d}; its holders: plugin registry renew, then publish")
    trusted = f"--root-sha256 {root_digest(chosen.folder)} --state {held.state()}"
    print(f"published; new nodes trust it with: {trusted}")
    return 0


def verify_one(chosen: argparse.Namespace) -> int:
    """All that can be checked without anybody's help."""
    from . import audit

    report = audit.audit(chosen.folder)
    for wrong in report.wrong:
        print(f"wrong: {one_line(wrong)}")
    print(
        f"{counted(report.releases, 'release')} of {counted(report.authors, 'author')}, "
        f"{counted(report.head.count, 'log entry').replace('entrys', 'entries')}, head "
        f"{report.head.digest}"
    )
    for holder, points in report.credit.most_common():
        print(f"credit {points:4}  {one_line(report.names.get(holder, holder[:16]))}")
    return 1 if report.wrong else 0


def seed_one(chosen: argparse.Namespace) -> int:
    """A registry to try, with keys of its own."""
    from . import seed
    from .repository import PluginRepository

    digest = seed.build(chosen.folder, chosen.keys, chosen.plugins, BUILTIN)
    trusted = f"--root-sha256 {digest} --state {PluginRepository(chosen.folder).state()}"
    print(f"quietchoir plugin registry trust seed {chosen.folder} {trusted}")
    return 0


# who publishes and reviews


def add_one(chosen: argparse.Namespace) -> int:
    """A release."""
    import tempfile

    from .. import installing
    from . import scan
    from .repository import PluginRepository

    with tempfile.TemporaryDirectory() as folder:
        terms = installing.open_bundle(chosen.plugin, Path(folder))
    said = PluginRepository(chosen.folder).add(terms, signers(chosen.key)[0], chosen.commit)
    print(f"{said.id} {said.version} is drafted; may use: {'; '.join(said.asks)}")
    print("it was not started here; whether it has these tools: quietchoir plugin test FOLDER")
    for finding in scan.scan(terms):
        print(f"a reviewer will see: {one_line(finding)}")
    if said.sensitive:
        print(f"takes a second reviewer, as it asks for {', '.join(said.sensitive)}")
    return 0


def review_one(chosen: argparse.Namespace) -> int:
    """A review."""
    from .repository import PluginRepository

    plugin_id, _, version = chosen.release.partition("@")
    made = PluginRepository(chosen.folder).review(
        plugin_id,
        version,
        signers(chosen.key)[0],
        verdict=chosen.verdict,
        checked=tuple(chosen.checked),
        commit=chosen.commit,
        notes=chosen.notes,
    )
    for finding in made.found:
        print(f"the scan found: {one_line(finding)}")
    print(f"{made.verdict}: {made.id} {made.version}, sha256 {made.sha256}")
    return 0


# licences


def node_one(_chosen: argparse.Namespace) -> int:
    """This node's key."""
    from . import licences

    print(licences.node_key(make=True))
    return 0


def add_licence(chosen: argparse.Namespace) -> int:
    """Keep one."""
    from . import licences

    try:
        token = licences.place(chosen.file.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{chosen.file}: cannot be read ({error})") from None
    ends = time.strftime("%Y-%m-%d", time.gmtime(token.ends))
    print(f"{token.plugin} {token.first} to below {token.below}, until {ends}")
    return 0


def issue_one(chosen: argparse.Namespace) -> int:
    """Sign one."""
    from . import licences

    now = int(time.time())
    token = licences.issue(
        signers([chosen.key])[0],
        plugin=chosen.plugin,
        first=chosen.first,
        below=chosen.below,
        node=chosen.node,
        begins=now,
        ends=now + chosen.days * licences.DAY_S,
        grace_days=chosen.grace_days,
    )
    licences.decode(token)  # what a vendor mistyped is told here, not at the buyer's
    print(token)
    return 0
