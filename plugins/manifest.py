"""What a plugin says about itself, and what it asks for.

Knows the manifest's fields and their limits. Knows nothing of processes or sandboxes.
Always: what is not granted here is denied; an unknown field, or one this version cannot grant,
refuses the whole plugin.
"""

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from ..core import tables
from ..core.assistant.approvals import OWN_TOOLS
from ..core.assistant.tools import Effect
from ..core.errors import ConfigError, ManifestError
from . import endpoints
from .hidden import legible

SCHEMA = 1
FILE = "manifest.json"
MAX_MANIFEST_BYTES = 1 << 20
MAX_DEPTH = 128  # lists and objects in each other; what is done with them is recursive
# each file is one descriptor on its way into the sandbox
MAX_FILES, MAX_BUNDLE_BYTES = 200, 32 << 20
# a private folder is called after its id, so no id begins with what lies beside those folders
ID = re.compile(r"(?!(?:installed|store)/)[a-z0-9][a-z0-9-]{0,38}/[a-z0-9][a-z0-9-]{0,38}")
VERSION = re.compile(r"[0-9]{1,9}\.[0-9]{1,9}\.[0-9]{1,9}")  # three that can be compared
TOOL_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
DIGEST = re.compile(r"[0-9a-f]{64}")
OTHER_TOOL = re.compile(rf"{ID.pattern}:{TOOL_NAME.pattern}")
MAX_OTHER_TOOLS = 100  # that a plugin may call
FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
# What a server may offer besides tools. The host makes one reading tool of each, in words of its
# own; what comes is the server's, and not pinned.
OFFERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "resources": (
        "Lists what {} has to read, or reads one of it whose uri is given.",
        {
            "uri": {"type": "string", "description": "as it is listed; without it all are listed"},
            "page": {"type": "integer", "minimum": 1, "description": "of the list"},
        },
    ),
    "prompts": (
        "Lists the prompts that {} has, or gives one whose name is given.",
        {
            "name": {"type": "string", "description": "as it is listed; without it all are listed"},
            "arguments": {"type": "object", "additionalProperties": {"type": "string"}},
            "page": {"type": "integer", "minimum": 1, "description": "of the list"},
        },
    ),
}
DATES = ("python-dateutil", "six", "tzdata")
# Packages of this installation that a plugin may run on, each with what it stands on, by the extra
# that brings them.
EXTRAS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "documents": {
        "mammoth": ("mammoth", "cobble"),
        "markdown-it-py": ("markdown-it-py", "mdurl"),
        "openpyxl": ("openpyxl", "et-xmlfile"),
        "pypdf": ("pypdf",),
    },
    "plugins": {
        "icalendar": ("icalendar", *DATES, "typing_extensions"),
        "numpy": ("numpy",),
        "pillow": ("pillow",),
        "pint": ("pint", "flexcache", "flexparser", "platformdirs", "typing_extensions"),
        "pytest": ("pytest", "iniconfig", "packaging", "pluggy", "pygments"),
        "recurring-ical-events": ("recurring-ical-events", "x-wr-timezone", "click"),
        "ruff": ("ruff",),
        "trafilatura": (
            *("trafilatura", "courlan", "babel", "tld", "htmldate", "dateparser", *DATES, "pytz"),
            *(
                "tzlocal",
                "regex",
                "justext",
                "lxml",
                "lxml-html-clean",
                "charset-normalizer",
                "urllib3",
                "certifi",
            ),
        ),
    },
}
PACKAGES = {name: needs for packages in EXTRAS.values() for name, needs in packages.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Permissions:
    """All that a plugin can be granted; each default is "nothing"."""

    config: tuple[str, ...] = ()  # names of JSON files its owner hands to it, read-only
    storage_bytes: int = 0  # one private file of at most this size
    folders: tuple[str, ...] = ()  # names of folders that its owner shows to it, read-only
    write_folders: tuple[str, ...] = ()  # names of folders that its owner lets it change
    environment: tuple[str, ...] = ()  # variables, secrets too, that its owner fills in
    network: tuple[str, ...] = ()  # public hosts that it connects to: HOST or HOST:PORT
    hosts: tuple[str, ...] = ()  # names of hosts that its owner fills in, of the own network too
    # that this node's model writes for it in an hour, prompts included
    model_tokens: int = 0
    tools: tuple[str, ...] = ()  # of other plugins: PUBLISHER/NAME:TOOL
    optional: tuple[str, ...] = ()  # of the names above, those that its owner may leave unfilled
    # sees the arguments of its own calls, never the conversation
    private_data: Literal["none", "args"] = "args"

    def __post_init__(self) -> None:
        for text in self.network:
            try:
                endpoints.parse(text, private=False)
            except ValueError as error:
                raise ValueError(f"permissions.network: {error}") from None
        if len(self.network) + len(self.hosts) > endpoints.MAX_HOSTS:
            raise ValueError(
                f"permissions.network and hosts name {len(self.network) + len(self.hosts)}; at "
                f"most {endpoints.MAX_HOSTS} are granted"
            )
        if not 0 <= self.storage_bytes <= 64 << 20:
            raise ValueError(
                f"permissions.storage_bytes is {self.storage_bytes}; it must be 0 to {64 << 20}"
            )
        if not 0 <= self.model_tokens <= 10_000_000:
            raise ValueError(
                f"permissions.model_tokens is {self.model_tokens}; it must be 0 to 10000000"
            )
        if unknown := [one for one in self.tools if not OTHER_TOOL.fullmatch(one)]:
            raise ValueError(
                f"permissions.tools names {unknown[0]!r}; expected publisher/name:tool"
            )
        if len(self.tools) > MAX_OTHER_TOOLS:
            raise ValueError(
                f"permissions.tools names {len(self.tools)}; at most {MAX_OTHER_TOOLS} are granted"
            )
        if len(set(self.tools)) < len(self.tools):
            twice = next(one for one in self.tools if self.tools.count(one) > 1)
            raise ValueError(f"permissions.tools names {twice!r} twice; name each tool once")
        if both := set(self.folders) & set(self.write_folders):
            raise ValueError(
                f"permissions name the folder {min(both)} to read and to write; write includes read"
            )
        asked = {
            "config": self.config,
            "folders": self.folders,
            "write_folders": self.write_folders,
            "environment": self.environment,
            "hosts": self.hosts,
        }
        named = (*self.folders, *self.write_folders, *self.environment, *self.hosts)
        if unknown := [name for name in self.optional if name not in named]:
            raise ValueError(
                f"permissions.optional names {unknown[0]!r}, which is no folder, variable or host "
                f"that it asks for"
            )
        for kind, names in asked.items():
            for name in names:
                if not FILE_NAME.fullmatch(name):
                    raise ValueError(
                        f"permissions.{kind} names {name!r}; a plain file name is expected"
                    )

    def filled(self, names: Collection[str]) -> "Permissions":
        """What is asked once its owner has filled in `names`: without what may be left out and
        was.
        """

        def kept(asked: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(one for one in asked if one in names or one not in self.optional)

        return replace(
            self,
            folders=kept(self.folders),
            write_folders=kept(self.write_folders),
            environment=kept(self.environment),
            hosts=kept(self.hosts),
            optional=(),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginLimits:
    """What one running plugin may use up."""

    # of all its processes together, and of each one's address space above the interpreter's
    memory_mb: int = 128
    # of one process's life; past it the process dies, and the next call starts anew
    cpu_s: int = 60
    processes: int = 8  # threads count
    scratch_mb: int = 16  # of /tmp, and as much again of /dev/shm
    folder_mb: int = 64  # that each folder it writes to may grow by
    network_mb: int = 64  # that it sends and receives in an hour

    def __post_init__(self) -> None:
        bounds = {
            "memory_mb": (32, 2048),
            "cpu_s": (1, 3600),
            "processes": (1, 64),
            "scratch_mb": (1, 512),
            "folder_mb": (1, 65536),
            "network_mb": (1, 65536),
        }
        for name, (least, most) in bounds.items():
            if not least <= getattr(self, name) <= most:
                raise ValueError(
                    f"limits.{name} is {getattr(self, name)}; it must be {least} to {most}"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """What it runs on."""

    python: str = ">=3.11"
    packages: tuple[str, ...] = ()  # of PACKAGES
    fresh: bool = False  # ended after each call: one call leaves nothing to the next

    def __post_init__(self) -> None:
        if unknown := [name for name in self.packages if name not in PACKAGES]:
            raise ValueError(
                f"runtime.packages names {unknown[0]!r}; this version offers {', '.join(PACKAGES)}"
            )
        if self.python != ">=3.11":
            raise ValueError(
                f"runtime.python is {self.python!r}; this version offers only '>=3.11'"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Licence:
    """Under what terms it comes."""

    spdx: str
    kind: Literal["free", "paid"] = "free"
    price: str = ""  # in words, of a paid one: "12 EUR a year"
    shop: str = ""  # where its licence is sold
    vendor_key: str = ""  # Ed25519, 64 hexadecimal digits: who signs licences

    def __post_init__(self) -> None:
        for text in (self.spdx, self.price, self.shop):
            if len(text) > 200 or "\n" in text or legible(text) != text:
                raise ValueError(
                    "license: spdx, price and shop are a line that a reader sees whole"
                )
        sold = bool(self.price) and bool(DIGEST.fullmatch(self.vendor_key))
        if (self.kind == "paid") != sold or (self.kind == "free" and self.price + self.vendor_key):
            raise ValueError(
                f"license is {self.kind}; a paid plugin has a price and a vendor_key of 64 "
                f"hexadecimal digits, a free one has neither"
            )


@dataclass(frozen=True, slots=True)
class ToolEntry:
    """One tool as the manifest promises it."""

    name: str
    description: str
    schema: Mapping[str, Any] = field(default_factory=dict)
    effect: Effect = "write"
    offers: str = ""  # it is the host's own, for this one of OFFERS


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The manifest without its tools."""

    schema: int
    id: str  # "publisher/name"
    version: str
    kind: Literal["mcp", "skill"]
    description: str
    license: Licence
    tools_digest: str  # SHA-256 of the tools, as `digest` computes it
    author_key: str = ""  # Ed25519, 64 hexadecimal digits; a registry wants it to be the author's
    entry: str = ""  # a Python file of the bundle; or else:
    # a wrapped server (`plugin wrap`): what runs inside, and the folder that it runs on
    command: tuple[str, ...] = ()
    content: str = ""  # of `sandbox.store`; empty: the system's programs suffice
    offers: tuple[str, ...] = ()  # of OFFERS
    runtime: Runtime = field(default_factory=Runtime)
    permissions: Permissions = field(default_factory=Permissions)
    limits: PluginLimits = field(default_factory=PluginLimits)

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise ValueError(f"schema is {self.schema}; this version reads {SCHEMA}")
        if not ID.fullmatch(self.id):
            raise ValueError(
                f"id is {self.id!r}; expected publisher/name in small letters, digits and hyphens; "
                f"installed and store are no publishers"
            )
        if not VERSION.fullmatch(self.version):
            raise ValueError(
                f"version is {self.version!r}; expected three numbers, for example 1.0.0"
            )
        if unknown := [one for one in self.offers if one not in OFFERS]:
            raise ValueError(f"offers names {unknown[0]!r}; expected {' or '.join(OFFERS)}")
        if own := [one for one in self.permissions.tools if one.startswith(f"{self.id}:")]:
            raise ValueError(f"permissions.tools names {own[0]!r}, which is its own")
        if self.author_key and not DIGEST.fullmatch(self.author_key):
            raise ValueError(f"author_key is {self.author_key!r}; expected 64 hexadecimal digits")
        if self.command:
            if self.entry or not all(self.command[:1]):
                raise ValueError("a manifest has an entry or a command, not both and not neither")
            if any("\0" in word for word in self.command):
                raise ValueError(f"command is {self.command!r}; no word of a command holds a NUL")
            if self.content and not DIGEST.fullmatch(self.content):
                raise ValueError(f"content is {self.content!r}; expected a SHA-256")
            return
        path = PurePosixPath(self.entry)
        if (
            path.suffix != ".py"
            or path.is_absolute()
            or not all(part.isidentifier() for part in path.with_suffix("").parts)
        ):
            raise ValueError(
                f"entry is {self.entry!r}; expected a Python file inside the bundle, "
                f"for example server.py"
            )

    def asks(self) -> list[str]:
        """All that it may use, and use up, in words for its owner."""
        asked, limits = self.permissions, self.limits
        found = [f"files {', '.join(asked.config)}"] if asked.config else []
        found += [f"storage {asked.storage_bytes >> 10} KB"] if asked.storage_bytes else []
        found += [f"read in the folders {', '.join(asked.folders)}"] if asked.folders else []
        if asked.write_folders:
            found.append(
                f"read, change and delete in the folders {', '.join(asked.write_folders)}, which "
                f"may grow by {limits.folder_mb} MB each"
            )
        variables = ", ".join(asked.environment)
        found += [f"the variables {variables}"] if variables else []
        if asked.network:
            found.append(f"send to and receive from {', '.join(asked.network)}")
        if asked.hosts:
            found.append(f"send to and receive from what you name as {', '.join(asked.hosts)}")
        if asked.model_tokens:
            found.append(f"have the model write, up to {asked.model_tokens} tokens an hour")
        if asked.tools:
            found.append(
                f"call {', '.join(asked.tools)} of other plugins, and by that do what those may"
            )
        if asked.optional:
            found.append(f"of these only if you name it: {', '.join(asked.optional)}")
        online = asked.network or asked.hosts
        return [
            *found,
            f"{limits.network_mb} MB of network an hour" if online else "no network",
            f"{limits.memory_mb} MB of memory",
            f"{limits.processes} processes of {limits.cpu_s} s of a processor each",
            f"{2 * limits.scratch_mb} MB of scratch space in memory",
        ]


@dataclass(frozen=True, slots=True)
class Manifest:
    """A plugin that may be started under these terms."""

    head: Head
    tools: tuple[ToolEntry, ...]
    # the bundle: path inside it → content, exactly what will run
    files: Mapping[str, bytes] = field(repr=False)

    @property
    def id(self) -> str:
        """`publisher/name`."""
        return self.head.id


SAID = frozenset({"title", "outputSchema", "execution", "icons", "_meta"})


def digest(tools: Iterable[Mapping[str, Any]]) -> str:
    """SHA-256 over names, descriptions and schemas, and what else a tool says that may reach a
    model or its owner, in order of names; annotations are the manifest's word alone.
    """
    rows = []
    for tool in tools:
        said = {name: tool[name] for name in SAID if name in tool}
        row = [tool.get("name"), tool.get("description"), tool.get("inputSchema")]
        rows.append([*row, said] if said else row)
    canonical = json.dumps(
        sorted(rows, key=lambda row: str(row[0])),
        sort_keys=True,
        ensure_ascii=True,
        separators=(",", ":"),
    )
    return hashlib.sha256(canonical.encode()).hexdigest()


def read(folder: Path) -> Manifest:
    """Read and check the bundle in `folder`; its bytes are kept, so that what was checked is what
    runs.

    Raises:
        ManifestError: file, field, what was found and what is expected.
    """
    return parse(bundle(folder), folder)


def parse(files: Mapping[str, bytes], folder: Path) -> Manifest:
    """Check a bundle that was read from `folder`. Raises: ManifestError: as `read`."""
    path = folder / FILE
    if FILE not in files:
        raise ManifestError(f"{path}: no such file; a plugin is a folder with a {FILE}")
    if len(files[FILE]) > MAX_MANIFEST_BYTES:
        raise ManifestError(
            f"{path}: {len(files[FILE])} bytes; at most {MAX_MANIFEST_BYTES} are read"
        )
    try:
        table = json.loads(files[FILE])
    except (ValueError, RecursionError) as error:
        raise ManifestError(
            f"{path}: not JSON: {error}; mend the file or remove the plugin"
        ) from None
    if deeper(table, MAX_DEPTH):
        raise ManifestError(f"{path}: nested deeper than {MAX_DEPTH}; make it flat")
    if not isinstance(table, dict) or not isinstance(table.get("tools"), list):
        raise ManifestError(f"{path}: expected an object with a list called tools")
    listed = table.pop("tools")
    try:
        head = tables.fill(Head, table, f"{path}: ")
    except ConfigError as error:
        raise ManifestError(f"{error}; the plugin is not loaded") from None
    own = (tool_entry(item, f"{path}: tools[{index}]") for index, item in enumerate(listed))
    tools = (*own, *(offered(head, kind) for kind in head.offers))
    if len({tool.name for tool in tools}) < len(tools):
        raise ManifestError(f"{path}: two tools share a name; each must have its own")
    if (found := digest(listed)) != head.tools_digest:
        raise ManifestError(
            f"{path}: tools_digest is {head.tools_digest!r}, but its tools hash to {found!r}; "
            f"rebuild the manifest"
        )
    if head.entry and head.entry not in files:
        raise ManifestError(f"{path}: entry {head.entry!r} is not in the bundle")
    return Manifest(head, tools, files)


def offered(head: Head, kind: str) -> ToolEntry:
    """The host's own tool for one of OFFERS. What a server does meanwhile nobody said, so where it
    may change a folder, or something on the owner's network, he is asked as before a change.
    """
    description, takes = OFFERS[kind]
    schema = {
        "type": "object",
        "properties": dict(takes),
        "required": [],
        "additionalProperties": False,
    }
    name = head.id.partition("/")[2].replace("-", "_")
    asked = head.permissions
    effect: Effect = "write" if asked.write_folders or asked.hosts else "read"
    return ToolEntry(f"{name}_{kind}", description.format(head.id), schema, effect, kind)


def tool_entry(item: Any, where: str) -> ToolEntry:
    """Check one promised tool.

    Raises:
        ManifestError: unknown field, bad name or one of the node's own tools, hidden characters,
        or a schema that is not an object's.
    """
    known = {"name", "description", "inputSchema", "annotations", "effect"} | SAID
    if not isinstance(item, dict) or set(item) - known:
        raise ManifestError(
            f"{where}: expected name, description, inputSchema and perhaps annotations, effect, "
            f"{', '.join(sorted(SAID))}"
        )
    name, schema = item.get("name"), item.get("inputSchema")
    description = item.get("description", "")  # MCP lets a tool go without
    if not isinstance(name, str) or not TOOL_NAME.fullmatch(name):
        raise ManifestError(f"{where}.name = {name!r}; expected 1 to 64 letters, digits, _ . or -")
    if name.casefold() in {own.name for own in OWN_TOOLS}:
        raise ManifestError(
            f"{where}.name = {name!r}, which is the node's own tool; give it another name"
        )
    if not isinstance(description, str) or legible(description) != description:
        raise ManifestError(
            f"{where}.description: expected a text without hidden characters, which could instruct "
            f"a model unseen"
        )
    if not isinstance(schema, dict) or schema.get("type") != "object":
        raise ManifestError(f'{where}.inputSchema: expected a JSON Schema with "type": "object"')
    if any(legible(text) != text for text in texts(schema)):
        raise ManifestError(f"{where}.inputSchema: expected texts without hidden characters")
    annotations = item.get("annotations", {})
    if not isinstance(annotations, dict):
        raise ManifestError(f"{where}.annotations: expected an object")
    return ToolEntry(name, description, schema, effect_of(item.get("effect"), annotations, where))


def effect_of(said: Any, annotations: Mapping[str, Any], where: str) -> Effect:
    """What a tool's calls do: the manifest's own word, else MCP's annotations, else "write".

    Where the two differ, the weightier holds: the owner is rather asked once too often.

    Raises:
        ManifestError: a word that is none of the three.
    """
    weights: tuple[Effect, ...] = ("read", "write", "outside")
    if said is not None and said not in weights:
        raise ManifestError(f"{where}.effect = {said!r}; expected one of {', '.join(weights)}")
    hinted: Effect = "read" if annotations.get("readOnlyHint") is True else "write"
    if annotations.get("openWorldHint") is True:
        hinted = "outside"
    if said is None:
        return hinted
    # an annotation that is absent says nothing, so it cannot outweigh the manifest's own word
    spoken = annotations.keys() & {"readOnlyHint", "openWorldHint"}
    return max(said, hinted, key=weights.index) if spoken else said


def texts(value: Any) -> Iterator[str]:
    """Every text inside a JSON value, names of fields too."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            waiting += [*value, *value.values()]
        elif isinstance(value, list):
            waiting += value


def deeper(message: Any, most: int) -> bool:
    """Whether lists and objects lie in each other more than `most` times."""
    level = [message]
    for _ in range(most + 1):
        level = [
            inner
            for value in level
            if isinstance(value, dict | list)
            for inner in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return False
    return True


def bundle(folder: Path) -> dict[str, bytes]:
    """All files of a plugin's folder: path inside it → content.

    Raises:
        ManifestError: no folder, a link, a special file, an odd name, or more than the limits.
    """
    if not folder.is_dir():
        raise ManifestError(f"{folder}: no such folder; a plugin is a folder with a {FILE}")
    files: dict[str, bytes] = {}
    size = 0
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if "__pycache__" in inside.parts or (path.is_dir() and not path.is_symlink()):
            continue
        if (
            path.is_symlink()
            or not path.is_file()
            or not all(FILE_NAME.fullmatch(part) for part in inside.parts)
        ):
            raise ManifestError(
                f"{path}: a bundle holds plain files with plain names only; remove it"
            )
        size += path.stat().st_size
        if size > MAX_BUNDLE_BYTES or len(files) >= MAX_FILES:
            raise ManifestError(
                f"{folder}: more than {MAX_FILES} files or {MAX_BUNDLE_BYTES} "
                f"bytes; make the bundle smaller"
            )
        files[inside.as_posix()] = path.read_bytes()
    return files
