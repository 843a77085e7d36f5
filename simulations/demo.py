"""`make demo`: four households learn one adapter together, over the network, and none is heard
alone.

Real processes on loopback, each started with the same commands that an owner would type: a
coordinator, four nodes, a running assistant, a library host. Knows commands and what they print.
Knows nothing of what goes on inside.
Always: every process that was started is ended; the report is written only if everything came to
its end.
"""

import argparse
import json
import shutil
import socket
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from ..core import log, parts, paths
from ..core.errors import ModelNotFoundError, QuietchoirError
from ..core.models.hub import catalog
from ..plugins.sandbox.probe import probe
from . import machine, report
from .processes import Child, ProcessGroup
from .requests import RequestOutcome, RunningNode
from .scenario import SHIPPED

OWN_FILES = "the next demo removes what this one wrote"
PARTS = ("data", "federation", "nodes", "state", "logs", "coordinator.json", "report.json")
SCORE_EVERY = 3  # rounds: a score takes a sixth of a member's round
START_S, ROUND_S, END_S = 300.0, 1200.0, 120.0  # generous: a slow machine is not a broken one
MODELS = ("smollm2-135m-instruct", "minilm-l6-v2")
DISK_BYTES = 256 << 20  # what a demonstration writes, generously
QUESTION = "Which tablets must not be taken together with grapefruit?"
RIGHT_PASSAGE = "blood pressure tablets"  # the one passage of the library that answers it


@dataclass(slots=True)
class Demo:
    """One demonstration in one folder."""

    folder: Path
    nodes: int
    rounds: int
    train: int
    test: int
    seed: int
    console: Console
    stage: ProcessGroup
    report: dict[str, Any] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """The households."""
        return [f"household-{index}" for index in range(self.nodes)]

    def run(self) -> None:
        """From nothing to an answered request."""
        started = time.monotonic()
        with ThreadPoolExecutor() as beside:  # nodes make their keys meanwhile
            cards = beside.map(self.identify, self.names)
            self.make_households()
        self.found_federation(list(cards))
        # first: they prepare their examples while the assistant loads and is asked
        others = self.start_others()
        assistant = self.start_assistant()
        before = self.ask(assistant, "before: the bare model")
        self.learn_together(*others)
        self.switch(assistant)
        after = self.ask(assistant, "after: the shared adapter, taken over without a restart")
        self.tell_requests(before, after)
        self.ask_privately()
        self.report["seconds_in_all"] = round(time.monotonic() - started, 1)
        self.report["machine"] = machine.line()

    def home(self, name: str) -> Path:
        """Where one node keeps its keys, adapters and logs."""
        return self.folder / "nodes" / name

    def environment(self, name: str) -> dict[str, str]:
        """One core for each node: four of them share this machine."""
        return {"QUIETCHOIR_HOME": str(self.home(name)), "OMP_NUM_THREADS": "1"}

    def heading(self, words: str) -> None:
        """A new part of the story."""
        self.console.print(f"\n[bold]{words}[/bold]")

    def make_households(self) -> None:
        """Everybody's own rooms, devices, habits and requests."""
        self.heading("1  four households, each with its own rooms, devices and habits")
        counts = [
            "--households",
            str(self.nodes),
            "--train",
            str(self.train),
            "--test",
            str(self.test),
            "--seed",
            str(self.seed),
            # Commands alone, as `compare` learns them: talk takes minutes more and is not scored.
            *("--talk", "0", "--follow-ups", "0", "--doubles", "0"),
        ]
        self.stage.run("data", "build", "home", *counts, "--out", str(self.folder / "data"))
        for name in self.names:
            home = json.loads((self.folder / "data" / name / "home.json").read_text("utf-8"))
            rooms = ", ".join(area["name"] for area in home["areas"][:4])
            self.console.print(f"  {name}: {len(home['devices'])} devices; {rooms}, …")

    def identify(self, name: str) -> str:
        """A node's public card; its keys are made and stay there."""
        return self.stage.run("federation", "identity", **self.environment(name)).strip()

    def found_federation(self, cards: Sequence[str]) -> None:
        """The owner founds and signs; each node's key goes into the roster."""
        self.heading("2  one federation file, signed by its owner; every node brings its own key")
        place = self.folder / "federation"
        numbers = {
            **{"rounds": self.rounds, "lr": 1.5e-2, "evaluate-every": SCORE_EVERY},
            **{"threshold": 3, "min-cohort": 3, "seed": 1},
        }
        flags = [text for name, value in numbers.items() for text in (f"--{name}", str(value))]
        address = f"127.0.0.1:{free_port()}"
        self.stage.run(
            "federation",
            "init",
            str(place),
            "--name",
            "four-households",
            "--address",
            address,
            *flags,
        )
        for name, card in zip(self.names, cards, strict=True):
            self.stage.run("federation", "enroll", str(self.file), "--name", name, "--public", card)
        for line in self.stage.run("federation", "show", str(self.file)).splitlines()[
            : 7 + self.nodes
        ]:
            self.console.print(f"  {line}")

    @property
    def file(self) -> Path:
        """The federation file."""
        return self.folder / "federation" / "federation.toml"

    @property
    def outcome(self) -> Path:
        """Where the coordinator writes its report."""
        return self.folder / "coordinator.json"

    def start_assistant(self) -> RunningNode:
        """The first household's assistant, with its household plugin in a sandbox."""
        self.heading(
            f"3  {self.names[0]}'s assistant runs, and is a member too: one set of "
            f"weights serves and trains"
        )
        data = self.folder / "data" / self.names[0]
        # nobody sits here to say yes, and the household is a made-up one
        settings = '[tools]\nwrite = "allow"\n'
        paths.write_atomically(self.home(self.names[0]) / "config.toml", settings.encode())
        child = self.stage.start(
            self.names[0], "serve", "--port", "0", "--home-file", str(data / "home.json"),
            "--federation", str(self.file), "--data", str(data), **self.environment(self.names[0]),
        )  # fmt: skip
        line = child.wait_for(lambda text: text.startswith("serving on "), START_S)
        return RunningNode(line.removeprefix("serving on ").strip(), data / "test.jsonl")

    def ask(self, node: RunningNode, words: str) -> list[RequestOutcome]:
        """The same held-out requests, over HTTP."""
        self.console.print(f"  {words}")
        asked = node.ask_all()
        for one in asked[:2]:
            self.console.print(f"    “{one.request}”  →  {one.shown}")
        return asked

    def start_others(self) -> tuple[Child, list[Child]]:
        """The coordinator and every node but the first household's, each its own process."""
        coordinator = self.stage.start(
            "coordinator", "coordinate", str(self.file), "--state", str(self.folder / "state"),
            "--report", str(self.outcome), "--json-lines", **self.environment("coordinator"),
        )  # fmt: skip
        nodes = [
            self.stage.start(
                name,
                "join",
                str(self.file),
                "--data",
                str(self.folder / "data" / name),
                "--once",
                "--json-lines",
                **self.environment(name),
            )
            for name in self.names[1:]
        ]
        return coordinator, nodes

    def learn_together(self, coordinator: Child, nodes: list[Child]) -> None:
        """The rounds, over TLS."""
        self.heading(
            f"4  {self.nodes} nodes and a coordinator, {self.rounds} rounds over Flower "
            f"and TLS, every update masked"
        )
        self.watch(coordinator)
        for child in (coordinator, *nodes):
            child.finish(END_S)
        outcome = json.loads(self.outcome.read_text("utf-8"))
        self.console.print()
        report.show_run(self.console, outcome)
        copied = (
            "accuracy",
            "rounds",
            "seconds",
            "bytes_per_node_round",
            "nodes",
            "protection",
            "held",
            "adapter",
        )
        self.report |= {key: outcome[key] for key in copied}

    def watch(self, coordinator: Child) -> None:
        """A line for each thing that happens, until the adapter is delivered."""
        while True:
            event = json.loads(coordinator.next_line(ROUND_S))
            if (text := report.line_of(event, self.rounds)) is not None:
                self.console.print(text)
            if event["event"] == "delivered":
                self.console.print(f"  the adapter is with {', '.join(event['members'])}")
                return

    def switch(self, assistant: RunningNode) -> None:
        """The running assistant takes the new adapter."""
        self.heading("5  the running assistant takes the new adapter, and acts")
        assistant.activate(self.report["adapter"])

    def tell_requests(self, before: list[RequestOutcome], after: list[RequestOutcome]) -> None:
        """How many requests became the right call, and what the sandboxed plugin did."""
        done = [one for one in after if one.right and one.result]
        for one in done[:2]:
            self.console.print(f"  the sandboxed household plugin did it: {one.result}")
        counts = [sum(one.right for one in several) for several in (before, after)]
        self.console.print(
            f"  right calls: {counts[0]} of {len(before)} before, {counts[1]} of {len(after)} after"
        )
        self.report["requests"] = {
            "asked": len(after),
            "right_before": counts[0],
            "right_after": counts[1],
        }
        self.report["tool_call_ok"] = bool(done)

    def ask_privately(self) -> None:
        """One question to a library whose host sees only ciphertext."""
        self.heading("6  one private question to a library host, which sees only ciphertext")
        host = self.stage.start(
            "library",
            "library",
            "serve",
            str(SHIPPED / "library"),
            "--port",
            "0",
            "--json",
            **self.environment("library"),
        )
        address = json.loads(host.next_line(START_S))["address"]
        answer = json.loads(
            self.stage.run(
                "library", "ask", address, QUESTION, "--json", **self.environment(self.names[0])
            )
        )
        best = answer["found"][0]
        self.console.print(f"  asked, encrypted: {QUESTION}")
        self.console.print(f"  read: {best['text'].splitlines()[-1]}")
        self.console.print(
            f"  {answer['passages']} passages scored without being asked in clear; "
            f"{report.size(answer['bytes_up'])} up, "
            f"{report.size(answer['bytes_down'])} down, {answer['seconds']:.1f} s"
        )
        self.report["private_question_ok"] = RIGHT_PASSAGE in best["text"].lower()
        self.report["private_question"] = {
            key: answer[key] for key in ("passages", "bytes_up", "bytes_down", "seconds")
        }


def free_port() -> int:
    """A port of loopback that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def clear(folder: Path) -> None:
    """Remove what an earlier demo wrote into `folder`, and nothing else.

    Raises:
        QuietchoirError: something of the same name is there that no demo wrote.
    """
    marker = folder / ".demo"
    there = [folder / name for name in PARTS if (folder / name).exists()]
    if there and not marker.exists():
        raise QuietchoirError(
            f"{there[0]} was not written by a demo; name another folder with --out"
        )
    for path in there:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    marker.write_text(OWN_FILES + "\n")


def needs(folder: Path) -> list[str]:
    """What this machine lacks for a demonstration, each with what to do; looked at in the first
    second.
    """
    lacking = []
    if absent := parts.missing("federation"):
        lacking.append(parts.sentence("the demonstration", absent[0], "federation"))
    sandbox = probe()
    if not sandbox.available:
        lacking.append(
            f"plugins cannot be confined here, and one of them acts at the end: "
            f"{sandbox.reason}; {sandbox.advice}"
        )
    for name in MODELS:
        try:
            catalog.find(name)
        except ModelNotFoundError as error:
            lacking.append(str(error))
    there = next(place for place in (folder, *folder.parents) if place.exists())
    if (free := shutil.disk_usage(there).free) < DISK_BYTES:
        lacking.append(
            f"{there}: {free >> 20} MB free, it writes up to {DISK_BYTES >> 20}; free the disk, or "
            f"name another --out"
        )
    return lacking


def shortcomings(found: dict[str, Any]) -> list[str]:
    """Why a demonstration that came to its end did not show what it is for; empty if it did."""
    reasons = []
    if not found["tool_call_ok"]:
        asked, right = found["requests"]["asked"], found["requests"]["right_after"]
        reasons.append(
            f"no request was carried out by the sandboxed plugin ({right} of {asked} became the "
            f"right call; "
            "the first household's log says more)"
        )
    if not found["private_question_ok"]:
        reasons.append("the private question was not answered with the passage that answers it")
    return reasons


def main() -> int:
    """Run the demonstration.

    Raises:
        QuietchoirError: this machine lacks something, said before anything starts; or a process did
        not do its part.
    """
    parser = argparse.ArgumentParser(
        description="four households learn one adapter together, over the network"
    )
    parser.add_argument("--out", type=Path, default=Path("demo"))
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--train", type=int, default=150, help="requests of each household")
    parser.add_argument("--test", type=int, default=60, help="held-out requests of each household")
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    log.start("warning")
    console = report.wide_console()
    folder = chosen.out.resolve()
    if lacking := needs(folder):
        raise QuietchoirError("nothing was started: " + "; and ".join(lacking))
    clear(folder)
    console.print(machine.line())
    with ProcessGroup(folder / "logs", {"QUIETCHOIR_MODELS": str(paths.models())}) as stage:
        demo = Demo(
            folder, 4, chosen.rounds, chosen.train, chosen.test, chosen.seed, console, stage
        )
        demo.run()
    target = folder / "report.json"
    paths.write_atomically(target, (json.dumps(demo.report, indent=2) + "\n").encode())
    console.print(
        f"\n{demo.report['seconds_in_all']:.0f} s in all; everything above as numbers: {target}"
    )
    reasons = shortcomings(demo.report)
    for reason in reasons:
        print(f"demo: {reason}", file=sys.stderr)
    return 1 if reasons else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except QuietchoirError as error:
        print(f"demo: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("demo: interrupted; all its processes are ended", file=sys.stderr)
        sys.exit(130)
