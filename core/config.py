"""What the owner of a node decides: one TOML file, one dataclass a table.

Knows names, units, defaults and limits. Knows nothing of the organs that read them.
Always: a file with a key that is not here is refused whole.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import time
from pathlib import Path
from typing import Literal

from . import paths, tables
from .tables import above, at_least

FILE = "config.toml"  # in the node's home


def require_least(table: object, least: Mapping[str, float]) -> None:
    """Raises ValueError: a field is below the least value that it can have."""
    for name, bound in least.items():
        if (found := getattr(table, name)) < bound:
            raise ValueError(f"{name} = {found} must be at least {bound}")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Limits of one engine."""

    model: str = "smollm2-135m-instruct"  # a catalog name or a path
    # where it computes; core/engine/backends/cuda/README.md says what of "cuda" was never run
    device: Literal["cpu", "cuda"] = "cpu"
    # of the model's uppermost layers on the GPU; -1: as many as fit; the others stay on the
    # processor
    gpu_layers: int = -1
    gpu_bytes: int = 0  # of the GPU's memory that may be taken; 0: what is free there
    max_running: int = 16  # requests in one batch
    max_waiting: int = 64  # requests in the queue; one more is refused
    # bytes of all models that are loaded at once, counted by their files and caches (what
    # transformers computes takes more: 4 bytes a weight); 0: three quarters of the machine's memory
    memory_bytes: int = 0
    # a model that nobody asked for so long is let go, until the next request for it; 0: never
    keep_loaded_s: float = 1800.0
    context: int = 2048  # tokens of one conversation
    kv_bytes: int = 512 << 20  # memory for keys and values
    # of it, filled before what nobody uses is forgotten; at least one full context
    kept_bytes: int = 64 << 20
    # what they are kept as: 16, 8.25 or 4.5 bits a number (core/engine README says at what loss)
    kv_type: Literal["bf16", "q8", "q4"] = "bf16"
    # of activations beside quantised weights: 8 bits; more where they decide; as exact as float32
    precision: Literal["fast", "balanced", "exact"] = "fast"
    threads: int = 0  # 0: as many as this machine's cores
    # "planned": whole prompts go to OpenVINO's processor where that measured faster here, which
    # takes 4 bytes a weight besides; `doctor --plan` shows what would be chosen
    prefill: Literal["own", "planned"] = "own"
    queue_timeout_s: float = 30.0  # a waiting request fails after this
    # so many stay computed on disk while the node is down; they lie there in clear
    keep_conversations: int = 0
    # tokens guessed, from what was said before or by draft_model, and checked in one step, at most;
    # 0: none
    drafts: int = 8
    # a smaller model of the same vocabulary, a name or a path, that guesses further tokens where
    # that pays; "": none. Texts stay the same
    draft_model: str = ""
    # requests that begin alike share the cache; who shares the node can time that (engine README)
    share_prefixes: bool = True

    def __post_init__(self) -> None:
        require_least(self, {"context": 16, "max_running": 1, "max_waiting": 0, "kv_bytes": 1})
        require_least(
            self,
            {"memory_bytes": 0, "gpu_layers": -1, "gpu_bytes": 0, "kept_bytes": 0, "threads": 0},
        )
        require_least(self, {"queue_timeout_s": 0, "keep_conversations": 0, "drafts": 0})
        require_least(self, {"keep_loaded_s": 0})


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelsConfig:
    """Where models come from."""

    # asked by `model search --hub` and by pulls from it alone; any that answers as Hugging Face's
    hub: str = "https://huggingface.co"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"https?://[^\s/?#]+(/[^\s?#]*)?", self.hub):
            raise ValueError(f"hub = {self.hub!r} must be an address: https://NAME")


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingConfig:
    """How talk is drawn where a client leaves it open; None: as the model's makers recommend.

    Answers in a demanded form, tool calls among them, are greedy unless the client says otherwise.
    """

    temperature: float | None = None  # 0: greedy
    top_p: float | None = None  # of the likeliest tokens that together have so much probability
    top_k: int | None = None  # of so many of the likeliest; 0: of all
    min_p: float | None = None  # of those at least so likely, beside the likeliest
    repetition_penalty: float | None = None  # above 1: what was said already is less likely
    # an answer that only repeats itself is ended
    loop_guard: bool = True

    def __post_init__(self) -> None:
        for name, (low, high) in SAMPLING_RANGES.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ValueError(f"{name} = {value} must lie between {low:g} and {high:g}")

    def given(self) -> dict[str, float | int | bool]:
        """What is said, by name."""
        fields = {name: getattr(self, name) for name in SAMPLING_RANGES}
        given = {name: value for name, value in fields.items() if value is not None}
        return given | {"loop_guard": self.loop_guard}

    def over(self, other: "SamplingConfig") -> "SamplingConfig":
        """This one, and `other` for what it leaves open."""
        return SamplingConfig(**other.given() | self.given())  # type: ignore[arg-type]  # fields by their names


# As the API takes them.
SAMPLING_RANGES = {
    "temperature": (0.0, 2.0),
    "top_p": (1e-6, 1.0),
    "top_k": (0, 1 << 20),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.01, 10.0),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingConfig:
    """The model behind meanings: documents, long conversations, /v1/embeddings, the router."""

    # a catalog name, a folder or a GGUF file; another one makes collections embed anew at their
    # next update
    model: str = "minilm-l6-v2"
    # the model behind /v1/rerank, which reads a question and a text together: a folder or a GGUF
    # file; "": none
    reranker: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextConfig:
    """What is done with a conversation that is longer than the model reads."""

    # its turns are found by meaning too, once the embedding model was pulled; the first quiet
    # moment after such a conversation loads it
    embeddings: bool = True
    # the model takes notes of turns that find no room, when nobody waits, and reads a text that is
    # too long piece by piece; only if it was seen to take good notes, which is tried once
    condense: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Where the assistant answers. Never beyond this machine unless the owner says so."""

    host: str = "127.0.0.1"  # the address to listen on
    port: int = 8765  # 0: a free one
    # further names that this node answers to, as a proxy in front of it is called
    hosts: tuple[str, ...] = ()
    max_body_bytes: int = 4 << 20  # of one request
    max_connections: int = 128  # at once; beyond them the longest idle one is closed
    head_timeout_s: float = 10.0  # a connection that has not said by then what it wants is closed
    body_timeout_s: float = 60.0  # a body that has not come by then is refused
    write_timeout_s: float = 30.0  # a client that takes nothing of its answer for so long is let go
    # of all clients together, as many more in a burst; beyond them requests are refused with 429;
    # 0: no limit
    max_requests_per_s: float = 0.0
    drain_s: float = 30.0  # answers that run at SIGTERM get so long; Ctrl-C ends at once
    # PEM, with its chain: HTTPS. Beyond this machine there must be one
    certificate: Path | None = None
    key: Path | None = None  # PEM, of the certificate, where it is not in the same file
    # beyond this machine without one: a proxy in front has it
    plain_http: bool = False

    def __post_init__(self) -> None:
        wrong = [name for name in self.hosts if not re.fullmatch(r"[A-Za-z0-9._-]+", name)]
        if wrong:
            raise ValueError(
                f"hosts holds {wrong[0]!r}; give names without port or scheme, addresses need none"
            )
        at_least(1, max_body_bytes=self.max_body_bytes, max_connections=self.max_connections)
        above(0, head_timeout_s=self.head_timeout_s, body_timeout_s=self.body_timeout_s)
        above(0, write_timeout_s=self.write_timeout_s)
        at_least(0, drain_s=self.drain_s, max_requests_per_s=self.max_requests_per_s)
        if self.key is not None and self.certificate is None:
            raise ValueError("key is there and certificate is not; give both, or neither")


@dataclass(frozen=True, slots=True)
class Hours:
    """A part of the day; one that ends before it begins goes over midnight."""

    start: time
    end: time

    @classmethod
    def read(cls, text: str) -> "Hours":
        """Raises ValueError: not HH:MM-HH:MM."""
        try:
            start, end = map(time.fromisoformat, text.split("-"))
        except ValueError:
            raise ValueError(f"{text!r} are no hours; write them as 02:00-06:00") from None
        if start.tzinfo or end.tzinfo:
            raise ValueError(
                f"{text!r} names a time zone, but these hours are by this machine's clock; write "
                f"them as 02:00-06:00"
            )
        if start == end:
            raise ValueError(f"{text!r} begins where it ends; leave it empty for the whole day")
        return cls(start, end)

    def hold(self, now: time) -> bool:
        """Is it that part of the day?"""
        if self.start < self.end:
            return self.start <= now < self.end
        return now >= self.start or now < self.end


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerConfig:
    """What this node takes of its machine, on AC, on battery and when it is hot."""

    # "full": all cores, half of them when hot; "balanced": half on battery too; "quiet": half
    # always, a quarter on battery or hot. The batch shrinks alike, and work ahead of need waits
    profile: Literal["quiet", "balanced", "full"] = "balanced"
    max_celsius: float = 90.0  # of the processor's warmest sensor; from there on it counts as hot
    train_on_battery: bool = False  # training never runs while hot
    # only while nobody is answered here and others use less than a quarter of the machine
    train_when_idle: bool = False
    train_hours: str = ""  # such as "02:00-06:00", by this machine's clock; "": at any time

    def __post_init__(self) -> None:
        above(0, max_celsius=self.max_celsius)
        if self.train_hours:
            Hours.read(self.train_hours)

    @property
    def hours(self) -> Hours | None:
        """`train_hours`, read."""
        return Hours.read(self.train_hours) if self.train_hours else None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """How this node trains when a federation's file leaves the choice to it."""

    data: Path | None = None  # chat-format JSONL folder the owner consents to train on
    # "auto": bfloat16 where the processor multiplies it
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    threads: int = 0  # of torch; 0: as it chooses
    # columns of an adapter that this node trains at most; a federation that asks for more is
    # refused; 0: any
    max_rank: int = 0
    # of an adapter it trains in part: the rest takes part meanwhile (exact); false: left out
    whole_adapter: bool = True
    # after each finished adapter, this node's own change on top of it; it never leaves this machine
    personal: bool = False
    personal_epochs: int = 2  # over this node's examples, for that change
    personal_lr: float = 5e-3  # its learning rate
    personal_proximal: float = 0.0  # pull towards the shared adapter; 0: none
    # http://HOST:PORT to a federation's coordinator; empty: directly, past the environment's
    proxy: str = ""

    def __post_init__(self) -> None:
        require_least(self, {"threads": 0, "max_rank": 0, "personal_epochs": 1})
        require_least(self, {"personal_lr": 0, "personal_proximal": 0})


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsentConfig:
    """This node's own floor; a federation below it is refused."""

    min_cohort: int = 3  # a sum over fewer members is never taken part in
    # protections that this node takes part in
    modes: tuple[Literal["plain", "masked", "sealed"], ...] = ("masked", "sealed")
    max_epsilon: float = 0.0  # largest privacy budget; 0: any, also no differential privacy at all
    # largest chance with which a federation's epsilon may say nothing; where there is an epsilon
    max_delta: float = 1e-5
    max_upload_bytes: int = 0  # of one round; 0: any
    # an update cut in a larger share of its coordinates is not sent; 1: any (norms are no cuts)
    max_clipped: float = 0.25
    # in a federation with guard.ballots = "open" the coordinator reads how much this node's own
    # held-out score rises or falls with each new adapter; false: such a federation is refused
    open_ballots: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.max_delta < 1:
            raise ValueError(f"max_delta = {self.max_delta} must lie between 0 and 1")
        at_least(1, min_cohort=self.min_cohort)
        at_least(0, max_epsilon=self.max_epsilon, max_upload_bytes=self.max_upload_bytes)
        if not self.modes:
            raise ValueError("modes = [] must name at least one of plain, masked and sealed")
        if not 0 <= self.max_clipped <= 1:
            raise ValueError(f"max_clipped = {self.max_clipped} must lie between 0 and 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptersConfig:
    """Which adapter answers."""

    # the active one answers requests that are for it, the plain model others; false: all of them.
    # A request that names a model is answered by that one in either case
    route: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryConfig:
    """What this node keeps of conversations; what of it trains is said by each (`data consent`)."""

    keep: bool = True  # of the page, `chat`, and clients that name their conversation
    # never trained, in any case: names, places, projects; beside what the redactor finds
    words: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginsConfig:
    """Which plugins may answer, and how long they may take."""

    enabled: tuple[str, ...] = ("quietchoir/household",)  # by their names
    # of other people's plugins, a manifest in each; only those that are enabled run
    folders: tuple[Path, ...] = ()
    call_timeout_s: float = 10.0  # a call that takes longer is ended


Rule = Literal["allow", "confident", "ask", "never"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolsConfig:
    """What the assistant may do with tools, and when it asks its owner first.

    "confident": unasked where the adapter's calibration says that such calls are right, else asked.
    """

    # by what a call does; a conversation in which foreign text was read asks before it changes
    # something, whatever stands here (core/assistant/README.md)
    read: Rule = "allow"  # tells something of this machine
    write: Rule = "confident"  # changes something
    outside: Rule = "ask"  # reaches beyond this machine
    # by a tool's name, before the three above
    allow: tuple[str, ...] = ()
    ask: tuple[str, ...] = ()  # always
    never: tuple[str, ...] = ()  # refused without a question
    approval_timeout_s: float = 120.0  # a question that nobody answered by then is a refusal
    steps: int = 8  # generations for one answer; the last one must do without calls
    # of the context, for the list of tools; the likeliest ones are listed
    prompt_share: float = 0.3
    # tools that a prompt tells of at most; 0: 3 for models below a billion weights, which choose
    # better among few, else as many as find room
    listed: int = 0

    def __post_init__(self) -> None:
        twice = {*self.allow} & {*self.ask} | {*self.ask} & {*self.never}
        if twice := twice | ({*self.allow} & {*self.never}):
            raise ValueError(f"allow, ask and never both name {min(twice)}; name each tool once")
        if self.approval_timeout_s <= 0 or self.steps < 1 or not 0 < self.prompt_share < 1:
            raise ValueError(
                "approval_timeout_s must be above 0, steps at least 1 and prompt_share between 0 "
                "and 1"
            )
        if self.listed < 0:
            raise ValueError(f"listed is {self.listed}, expected 0 or how many tools at most")


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything the owner decides."""

    engine: EngineConfig = field(default_factory=EngineConfig)
    models: ModelsConfig = field(default_factory=ModelsConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    embedding: EmbeddingConfig = field(default_factory=EmbeddingConfig)
    context: ContextConfig = field(default_factory=ContextConfig)
    server: ServerConfig = field(default_factory=ServerConfig)
    power: PowerConfig = field(default_factory=PowerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    consent: ConsentConfig = field(default_factory=ConsentConfig)
    plugins: PluginsConfig = field(default_factory=PluginsConfig)
    adapters: AdaptersConfig = field(default_factory=AdaptersConfig)
    history: HistoryConfig = field(default_factory=HistoryConfig)
    tools: ToolsConfig = field(default_factory=ToolsConfig)


def load(path: Path | None = None) -> Config:
    """Read `path`, or `config.toml` in the node's home if it is there, or take the defaults.

    Raises:
        ConfigError: the file is missing though named, or holds an unknown or ill-typed key.
    """
    if path is None:
        path = paths.home() / FILE
        if not path.exists():
            return Config()
    return tables.fill(Config, tables.read_toml(path), f"{path}: ")
