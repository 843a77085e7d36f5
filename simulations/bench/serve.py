"""The suite `serve`: whole nodes answering 1, 8 and 32 streaming clients, beside llama.cpp's server
on the same file.

Knows the servers' command lines and what a client sees of an answer. Knows nothing of engines; the
suite `engine` measures those.
Always: both servers are asked the same fresh conversations over the same route, in turn within each
repeat; an answer that fails, or ends without its usage, ends the run. The peer is `llama-server`,
where its owner compiled one, else that of the package `xllamacpp`, whose kernels stop at AVX2: then
a second node that is held to AVX2 is compared as well. Without either its row says so, and nothing
is compared.
Not covered: Q4_0 files, for which llama.cpp has its fastest kernels; the suite `engine` gives it
one.
"""

import asyncio
import dataclasses
import importlib.util
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import psutil

from ...core.config import EngineConfig
from ...core.engine.backends.native import library
from ...core.engine.engine import Engine
from ...core.engine.request import GenerationRequest
from ...core.engine.sampling.params import SamplingParams
from ...core.errors import QuietchoirError
from ...core.hardware.power import EnergyMeter
from ...core.models import weights
from ...core.models.hub import catalog
from ...core.paths import HOME_VARIABLE, MODELS_VARIABLE, models, private_folder
from ..cluster import HOST, free_port
from ..processes import ProcessGroup
from .figures import Figure, Keep, nobody
from .stopwatch import Sample, put

MODEL = "smollm2-135m-instruct"
CLIENTS = (1, 8, 32)
MOST = max(CLIENTS)
SEED = 1
START_S = 300.0  # for a model to load on a busy machine
AVX2, HELD = "avx2", "ours_avx2"  # a node that is held to it
PEER, PACKAGE = "llama-server", "xllamacpp"
NO_PEER = (
    f"neither {PEER} on PATH nor the package {PACKAGE} (`make bench` installs it): nothing is "
    f"compared"
)
NOT_MEASURABLE = "not measurable here: neither RAPL nor NVML nor a battery tells"
WORDS = (
    "a", "garden", "wall", "river", "clock", "engine", "letter", "winter", "baker", "sailor",
    "harbour", "lantern", "bridge", "forest", "teacher", "violin", "mountain", "kitchen",
    "printer", "market", "railway", "island", "doctor", "thunder", "copper", "window",
)  # fmt: skip
NOTHING_ASKED_S = 2.0  # after loading, before a server counts as idle


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeScale:
    """How much is measured."""

    tokens: int = 96  # of an answer, at most
    answers: int = 2  # that each client asks for, one after another
    repeats: int = 3
    idle_s: float = 20.0


QUICK = ServeScale(tokens=4, answers=1, repeats=1, idle_s=1.0)


@dataclass(slots=True)
class Crowd:
    """What one crowd of clients saw, all asking at the same moment."""

    seconds: float = 0.0  # from the first question to the last answer's end
    processor_s: float = 0.0  # of the server's processes meanwhile
    loop_s: float = 0.0  # of its main thread alone, which for ours is the event loop's
    joules: float | None = None  # of the machine meanwhile; None: not measurable here
    tokens: int = 0  # of all answers, as the server counted them
    first_s: list[float] = field(default_factory=list)  # from a question to its first text


@dataclass(slots=True)
class ServerUnderTest:
    """One server that answers, and its process."""

    name: str
    url: str
    token: str
    beside: dict[str, Any]  # of the body, for this server alone
    process: psutil.Process

    def processor_s(self) -> float:
        """Of it and the processes that it started, until now."""
        family = [self.process, *self.process.children(recursive=True)]
        return sum(sum(one.cpu_times()[:2]) for one in family)

    def loop_s(self) -> float:
        """Of its main thread."""
        threads = self.process.threads()
        own = (one for one in threads if one.id == self.process.pid)
        return float(sum(one.user_time + one.system_time for one in own))


def measure(*, quick: bool, tell: Callable[[str], None], keep: Keep = nobody) -> dict[str, Any]:
    """Run everything.

    Args:
        quick: one short answer a client, to see that it runs. tell: hears what is being measured.
        keep: gets the report after each part, and after each repeat.

    Raises:
        QuietchoirError: a server did not start, or an answer did not come whole.
    """
    scale, meter = QUICK if quick else ServeScale(), EnergyMeter()
    report: dict[str, Any] = {
        "what": f"answers of up to {scale.tokens} tokens to fresh conversations, streamed over "
        f"/v1/chat/completions, {scale.answers} for each client",
        "seed": SEED,
        "repeats": {"crowds": scale.repeats},
        "clock": "seconds on the wall for speeds and first tokens, clients on the same machine; "
        "processor seconds of the server for overhead and idleness",
        "spread": {},
    }
    if not meter.sources:
        report["joules_per_token"] = {"missing": NOT_MEASURABLE}
    with tempfile.TemporaryDirectory(prefix="quietchoir-bench-") as folder:
        scratch, model = Path(folder), catalog.find(MODEL)
        with ProcessGroup(scratch / "logs") as group:
            tell("loading a node")
            servers = [start_node(group, new_home(scratch / "ours"), "--model", str(model))]
            tell(f"a node that nobody asks, for {scale.idle_s:g} s")
            report["idle"] = idle(servers[0], scale.idle_s)
            keep(report)
            tell("loading llama.cpp's server")
            servers += start_peers(group, scratch, model, report)
            ask_in_turn(servers, scale, report, meter, tell, keep)
        tell("the engine alone, in this process")
        spent = alone(model, scale)
    report |= {f"{part}_ms_per_token": 1000 * seconds for part, seconds in spent.items()}
    report["overhead"] = (
        report["loop_ms_per_token"][str(MOST)]["ours"]
        + report["prompt_text_ms_per_token"]
        + report["answer_text_ms_per_token"]
    ) / report["engine_ms_per_token"]
    report["exact"] = True  # every answer came whole, or the run would have ended
    return report


def new_home(folder: Path) -> Path:
    """A node's, which answers as many at once as there are clients at most."""
    home = private_folder(folder)
    (home / "config.toml").write_text(f"[engine]\nmax_running = {MOST}\n", "utf-8")
    return home


def start_node(
    group: ProcessGroup, home: Path, *flags: str, **environment: str
) -> ServerUnderTest:  # fmt: skip
    """A node in this home, with this machine's models."""
    child = group.start(
        home.name, "serve", "--port", "0", *flags,
        **{HOME_VARIABLE: str(home), MODELS_VARIABLE: str(models())}, **environment,
    )  # fmt: skip
    line = child.wait_for(lambda text: text.startswith("serving on "), START_S)
    url, _, token = line.removeprefix("serving on ").partition("#token=")
    # the loop guard would end what the peer goes on with
    return ServerUnderTest(
        "ours", url, token, {"loop_guard": False}, psutil.Process(child.process.pid)
    )


def start_peers(
    group: ProcessGroup, scratch: Path, model: Path, report: dict[str, Any]
) -> list[ServerUnderTest]:  # fmt: skip
    """llama.cpp's server, and where its package stops at AVX2 a node that is held to it; what is
    told of the peer goes into the report. Nobody: it cannot be had here.
    """
    peer, report["llamacpp"] = start_peer(group, model)
    if peer is None:
        return []
    build = report["llamacpp"]["build"]
    if PACKAGE not in build or "AVX512" in build or not wider_than_avx2():
        return [peer]
    home, held_to = new_home(scratch / HELD), {library.VARIABLE: AVX2}
    held = start_node(group, home, "--model", str(model), **held_to)
    return [dataclasses.replace(held, name=HELD), peer]


def wider_than_avx2() -> bool:
    """Do the compiled kernels use more of this processor than llama.cpp's package does?"""
    return library.available() is None and library.instruction_set().startswith("avx512")


def start_peer(
    group: ProcessGroup, model: Path
) -> tuple[ServerUnderTest | None, dict[str, str]]:  # fmt: skip
    """llama.cpp's server, and what is told of it: a slot a client over one cache that holds all of
    them, all cores. None: it cannot be had here.
    """
    port, cores = free_port(), str(len(os.sched_getaffinity(0)))
    compiled = shutil.which(PEER)
    if compiled:
        command = [
            compiled, "--model", str(model), "--host", HOST, "--port", str(port), "--jinja",
            "--threads", cores, "--parallel", str(MOST), "--kv-unified", "--cache-ram", "0",
            "--ctx-size", str(512 * MOST),
        ]  # fmt: skip
    elif importlib.util.find_spec(PACKAGE):
        command = [
            sys.executable, "-m", "quietchoir.simulations.bench.peers.llama_server", str(model),
            "--port", str(port), "--slots", str(MOST), "--threads", cores,
        ]  # fmt: skip
    else:
        return None, {"missing": NO_PEER}
    child = group.start_other("llamacpp", command)
    server = ServerUnderTest(
        "llamacpp", f"http://{HOST}:{port}/", "", {}, psutil.Process(child.process.pid)
    )
    asyncio.run(until_healthy(server))
    if compiled:
        return server, {"build": f"{PEER} of this machine"}
    return server, {"build": child.wait_for(lambda text: text.startswith("llama.cpp "), START_S)}


async def until_healthy(server: ServerUnderTest) -> None:
    """Wait until it says that its model is loaded. Raises: QuietchoirError: not in time."""
    deadline = time.monotonic() + START_S
    async with aiohttp.ClientSession() as session:
        while time.monotonic() < deadline and server.process.status() != psutil.STATUS_ZOMBIE:
            try:
                async with session.get(f"{server.url}health") as answer:
                    if answer.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.1)
    raise QuietchoirError(f"llama.cpp's server was not ready within {START_S:g} s")


def idle(server: ServerUnderTest, seconds: float) -> dict[str, float]:
    """What a loaded server takes that nobody asks: percent of a core, and resident megabytes."""
    time.sleep(NOTHING_ASKED_S)
    spent, before = server.processor_s(), time.monotonic()
    time.sleep(seconds)
    percent = 100 * (server.processor_s() - spent) / (time.monotonic() - before)
    return {"cpu_percent": percent, "rss_mb": server.process.memory_info().rss / 1e6}


def ask_in_turn(
    servers: Sequence[ServerUnderTest],
    scale: ServeScale,
    report: dict[str, Any],
    meter: EnergyMeter,
    tell: Callable[[str], None],
    keep: Keep,
) -> None:
    """Every crowd to every server, a round for warmth and then the repeats; medians into the
    report, percentiles over the first tokens of all repeats.
    """
    draws = random.Random(SEED)
    found: dict[tuple[int, str], list[Crowd]] = {}
    for repeat in range(scale.repeats + 1):
        tell(f"repeat {repeat} of {scale.repeats}: {', '.join(map(str, CLIENTS))} clients")
        for count in CLIENTS:
            # one client alone asks more often: a percentile of two would be a word
            answers = scale.answers * (4 if count == 1 else 1)
            questions = [[question(draws) for _ in range(answers)] for _ in range(count)]
            for server in servers:
                before = meter.joules()
                crowd = asyncio.run(ask(server, questions, scale.tokens))
                if before is not None:
                    crowd.joules = (meter.joules() or before) - before
                if repeat:
                    found.setdefault((count, server.name), []).append(crowd)
        if repeat:
            tabulate(found, report)
            keep(report)


def tabulate(found: dict[tuple[int, str], list[Crowd]], report: dict[str, Any]) -> None:
    """What the crowds saw until now."""
    speeds = {
        key: Sample(tuple(crowd.tokens / crowd.seconds for crowd in crowds))
        for key, crowds in found.items()
    }
    for (count, name), crowds in found.items():
        put(report, f"tokens_per_s.{count}.{name}", speeds[count, name])
        spent = Sample(tuple(1000 * crowd.processor_s / crowd.tokens for crowd in crowds))
        put(report, f"processor_ms_per_token.{count}.{name}", spent)
        loop = Sample(tuple(1000 * crowd.loop_s / crowd.tokens for crowd in crowds))
        put(report, f"loop_ms_per_token.{count}.{name}", loop)
        if all(crowd.joules is not None for crowd in crowds):
            energy = Sample(tuple((crowd.joules or 0.0) / crowd.tokens for crowd in crowds))
            put(report, f"joules_per_token.{count}.{name}", energy)
        first = [1000 * seconds for crowd in crowds for seconds in crowd.first_s]
        place = report.setdefault("ttft_ms", {}).setdefault(str(count), {})
        place[name] = {f"p{share}": float(np.percentile(first, share)) for share in (50, 99)}
        if name == "llamacpp":
            put(report, f"ratio.{count}", speeds[count, "ours"].over(speeds[count, name]))
            if (count, HELD) in speeds:
                put(report, f"ratio_avx2.{count}", speeds[count, HELD].over(speeds[count, name]))


def question(draws: random.Random) -> str:
    """One that nobody asked before: nothing of it is in a cache."""
    words = " ".join(draws.choices(WORDS, k=24))
    return f"{words.capitalize()}. Write a long story in which all of these words occur."


async def ask(server: ServerUnderTest, questions: Sequence[Sequence[str]], tokens: int) -> Crowd:
    """One client for each list of questions, all at once. Raises: QuietchoirError: a bad answer."""
    crowd = Crowd()
    # llama.cpp's server ends connections that were used a few times, also as the next body comes
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    headers = {"Authorization": f"Bearer {server.token}"} if server.token else {}
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:

        async def client(mine: Sequence[str]) -> None:
            for words in mine:
                await stream(session, server, words, tokens, crowd)

        before, spent, loop = time.perf_counter(), server.processor_s(), server.loop_s()
        await asyncio.gather(*(client(mine) for mine in questions))
        crowd.seconds = time.perf_counter() - before
        crowd.processor_s, crowd.loop_s = server.processor_s() - spent, server.loop_s() - loop
    return crowd


async def stream(
    session: aiohttp.ClientSession, server: ServerUnderTest, words: str, tokens: int, crowd: Crowd
) -> None:
    """One answer, read as it comes. Events are taken apart only where they tell something: a client
    that computes would be measured too.

    Raises:
        QuietchoirError: it was refused, or did not end with its usage.
    """
    body = {
        "messages": [{"role": "user", "content": words}],
        "max_tokens": tokens,
        "temperature": 0,
        "tool_choice": "none",
        "stream": True,
        "stream_options": {"include_usage": True},
        **server.beside,
    }
    asked, first, usage = time.perf_counter(), None, b""
    async with session.post(f"{server.url}v1/chat/completions", json=body) as answer:
        if answer.status != 200:
            raise QuietchoirError(f"{server.name}: {answer.status} {await answer.text():.300}")
        async for line in answer.content:
            if first is None and line.startswith(b"data: {"):
                choices = json.loads(line[6:]).get("choices") or [{}]
                if choices[0].get("delta", {}).get("content"):
                    first = time.perf_counter()
            if b'"usage":{' in line:
                usage = line
    if first is None or not usage:
        raise QuietchoirError(f"{server.name}: an answer without text, or without its usage")
    crowd.first_s.append(first - asked)
    crowd.tokens += json.loads(usage[6:])["usage"]["completion_tokens"]


def alone(model: Path, scale: ServeScale) -> dict[str, float]:
    """Processor seconds a token of an answer, without a server: of the same engine, tokens in and
    tokens out; of making tokens of its prompt; of making text of it.
    """
    loaded, draws = weights.load(model), random.Random(SEED + 1)
    stream, spent = loaded.tokenizer.stream(), dict[str, list[float]]()
    loaded.tokenizer.stream = TextlessStream  # type: ignore[assignment,method-assign]
    engine = Engine(loaded, EngineConfig(max_running=MOST))
    engine.start()
    try:
        for repeat in range(scale.repeats + 1):
            clock = [time.process_time()]
            prompts = [
                tuple(loaded.tokenizer.encode_chat([{"role": "user", "content": question(draws)}]))
                for _ in range(MOST * scale.answers)
            ]
            clock.append(time.process_time())
            # as many waves as a client asks: no more than a batch at once
            tokens = sum(
                answered(engine, prompts[start : start + MOST], scale.tokens)
                for start in range(0, len(prompts), MOST)
            )
            clock.append(time.process_time())
            for token in (prompts[0] * (tokens // len(prompts[0]) + 1))[:tokens]:
                stream.push(token)
            clock.append(time.process_time())
            for part, from_s, to_s in zip(
                ("prompt_text", "engine", "answer_text"), clock, clock[1:], strict=False
            ):
                if repeat:
                    spent.setdefault(part, []).append((to_s - from_s) / tokens)
    finally:
        engine.stop()
    return {part: float(np.median(seconds)) for part, seconds in spent.items()}


class TextlessStream:
    """Stands where text is made of tokens, and makes none."""

    def push(self, _token: int) -> str:
        """No text."""
        return ""

    def finish(self) -> str:
        """None either."""
        return ""


def answered(engine: Engine, prompts: Sequence[tuple[int, ...]], tokens: int) -> int:
    """Tokens of the answers to all of them."""
    params = SamplingParams(max_tokens=tokens, loop_guard=False)
    waiting = [
        engine.submit(GenerationRequest(prompt=prompt, sampling_params=params))
        for prompt in prompts
    ]
    for generation in waiting:
        generation.text()
    return sum(generation.completion_tokens for generation in waiting)


def figures(report: dict[str, Any]) -> Iterator[Figure]:
    """Rows of the table."""
    names = [name for name in ("ours", HELD, "llamacpp") if name in report["tokens_per_s"]["1"]]
    for count in CLIENTS:
        for name in names:
            yield Figure(f"tokens_per_s.{count}.{name}", "tokens/s", f"{count} clients: {name}")
        if "llamacpp" in names:
            aim = 2.0 if count > 1 else None
            yield Figure(f"ratio.{count}", "×", f"{count} clients: ours over", at_least=aim)
            if HELD in names:
                yield Figure(f"ratio_avx2.{count}", "×", f"{count} clients: ours in AVX2 over")
        for share in ("p50", "p99"):
            for name in names:
                theirs = report["ttft_ms"][str(count)].get("llamacpp", {}).get(share)
                yield Figure(
                    f"ttft_ms.{count}.{name}.{share}",
                    "ms",
                    f"first text, {share}, {count} clients: {name}",
                    at_most=theirs if name == "ours" and share == "p99" else None,
                )
    eight = report["tokens_per_s"]["8"]["ours"]
    yield Figure(
        f"tokens_per_s.{MOST}.ours", "tokens/s", "32 clients in total, beside 8", at_least=eight
    )
    yield Figure(f"processor_ms_per_token.{MOST}.ours", "ms", "processor time a token: the node")
    yield Figure("engine_ms_per_token", "ms", "  the engine alone")
    yield Figure(f"loop_ms_per_token.{MOST}.ours", "ms", "  the node's event loop")
    yield Figure("prompt_text_ms_per_token", "ms", "  making tokens of prompts")
    yield Figure("answer_text_ms_per_token", "ms", "  making text of tokens")
    yield Figure("overhead", "", "  these three, over the engine alone", at_most=0.05)
    yield Figure("idle.cpu_percent", "%", "a core, when nobody asks", at_most=0.5)
    yield Figure("idle.rss_mb", "MB", "resident then")
    if "missing" in report["joules_per_token"]:
        yield Figure("joules_per_token.missing", "", "joules a token")
    else:
        for count in CLIENTS:
            for name in names:
                yield Figure(
                    f"joules_per_token.{count}.{name}",
                    "J",
                    f"of the whole machine a token, {count} clients: {name}",
                )
    yield Figure(f"llamacpp.{next(iter(report['llamacpp']))}", "", "llama.cpp's server")
