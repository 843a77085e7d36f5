"""`make demo-loop`: from what owners correct to what all their assistants can do, by consent alone.

Four owners talk to their own assistants for some days and correct them. Three give most of their
conversations to a federation and keep the rest; the fourth gives none. Rounds run; one example is
forgotten while they do. Real processes, started with an owner's commands; every node dials through
a proxy of its own that counts what it sends.

Knows commands, routes and what they print. Knows nothing of what goes on inside.
Always: every process that was started is ended; what is claimed of a node is read from its own log,
its own `data show` and its own wire; the report is written only if everything came to its end.
"""

import argparse
import json
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from ..core import log, paths
from ..core.errors import QuietchoirError
from ..core.toolcall import parse
from ..core.training.examples import Example, read_jsonl
from . import machine, report
from .demo import END_S, ROUND_S, START_S, clear, free_port, needs
from .processes import Child, ProcessGroup
from .requests import RunningNode
from .wire_meter import WireMeter

NODES = tuple(f"household-{index}" for index in range(4))
WITHHOLDS = NODES[-1]  # this owner gives nothing
DAYS, TALKS = 4, 3  # each day so many conversations
KEPT_DAY = DAYS  # the last day's are given to nobody: there were guests
ANSWER_TOKENS = 8  # of the bare model: enough to be wrong
CONSENTED = re.compile(r"of this node's history (\d+) examples train .*digest ([0-9a-f]{64})")
WITHHELD = "nothing that was said here may train"


@dataclass(slots=True)
class Talk:
    """One conversation of an owner, with the calls that it wanted."""

    name: str
    day: int
    wanted: list[Example]

    @property
    def given(self) -> bool:
        """Does its owner give it, if it gives any?"""
        return self.day != KEPT_DAY


@dataclass(slots=True)
class HomeOwner:
    """One household: its node and what is said there."""

    name: str
    folder: Path
    node: RunningNode
    talks: list[Talk]
    examples: dict[str, str] = field(default_factory=dict)  # request → the example made of it

    def speak(self, federation: str) -> int:
        """Talk for some days, correct every wrong answer, and say what may train; returns how many
        answers were corrected.
        """
        corrected = 0
        for talk in self.talks:
            messages: list[dict[str, str]] = []
            for example in talk.wanted:
                messages.append({"role": "user", "content": example.request})
                corrected += self.turn(talk, messages, example)
            if talk.given and self.name != WITHHOLDS:
                self.node.post(f"/api/conversations/{talk.name}", {"consent": federation})
        return corrected

    def turn(self, talk: Talk, messages: list[dict[str, str]], example: Example) -> bool:
        """One request, its answer and the owner's verdict; was the answer wrong?"""
        answer = self.node.post(
            "/v1/chat/completions",
            {
                "messages": messages,
                "max_tokens": ANSWER_TOKENS,
                "tool_choice": "none",
                "metadata": {"conversation": talk.name, "source": "page"},
            },
        )
        answered = answer["choices"][0]["message"]["content"] or ""
        messages.append({"role": "assistant", "content": answered})
        call = parse(example.answer)
        assert call is not None  # the home task's
        right = parse(answered) == call
        verdict: dict[str, Any] = {"verdict": "up"} if right else {
            "verdict": "corrected",
            "call": {"name": call.name, "arguments": dict(call.arguments)},
        }  # fmt: skip
        judged = self.node.post("/api/feedback", {"conversation": talk.name} | verdict)
        self.examples[example.request] = judged["example"]
        return not right


@dataclass(slots=True)
class Loop:
    """One demonstration in one folder."""

    folder: Path
    rounds: int
    talk_requests: int  # of one conversation
    test: int
    seed: int
    console: Console
    stage: ProcessGroup
    meter: WireMeter
    report: dict[str, Any] = field(default_factory=dict)

    def run(self) -> None:
        """From talk to an adapter, and what is left of what was forgotten."""
        started = time.monotonic()
        self.make_households()
        self.found_federation()
        owners = self.start_nodes()
        self.talk(owners)
        self.show_previews(owners)
        coordinator = self.start_coordinator()
        self.learn(coordinator, owners[0])
        self.prove_withheld()
        self.prove_forgotten(owners[0])
        self.score()
        self.report["seconds_in_all"] = round(time.monotonic() - started, 1)
        self.report["machine"] = machine.line()

    def heading(self, words: str) -> None:
        """A new part of the story."""
        self.console.print(f"\n[bold]{words}[/bold]")

    def home(self, name: str) -> Path:
        """Where one node keeps its keys, conversations, adapters and logs."""
        return self.folder / "nodes" / name

    def environment(self, name: str) -> dict[str, str]:
        """One core for each node: four of them share this machine."""
        return {"QUIETCHOIR_HOME": str(self.home(name)), "OMP_NUM_THREADS": "1"}

    @property
    def file(self) -> Path:
        """The federation file."""
        return self.folder / "federation" / "federation.toml"

    def data(self, name: str) -> Path:
        """What one household will say, and what it is asked in the end."""
        return self.folder / "data" / name

    def make_households(self) -> None:
        """What each owner will want, in its own rooms and words."""
        self.heading("1  four owners, each with a home and wishes of its own")
        self.stage.run(
            "data", "build", "home", "--households", str(len(NODES)),
            "--train", str(DAYS * TALKS * self.talk_requests), "--test", str(self.test),
            "--talk", "0", "--follow-ups", "0", "--doubles", "0",
            "--seed", str(self.seed), "--out", str(self.folder / "data"),
        )  # fmt: skip

    def found_federation(self) -> None:
        """The owner founds and signs; each node's key goes into the roster; each node's settings
        name its proxy.
        """
        numbers = {"rounds": self.rounds, "lr": 1.5e-2, "threshold": 3, "min-cohort": 3, "seed": 1}
        flags = [text for name, value in numbers.items() for text in (f"--{name}", str(value))]
        address = f"127.0.0.1:{free_port()}"
        self.stage.run(
            "federation", "init", str(self.file.parent), "--name", "homes", "--address", address,
            *flags,
        )  # fmt: skip
        for name in NODES:
            card = self.stage.run("federation", "identity", **self.environment(name)).strip()
            self.stage.run("federation", "enroll", str(self.file), "--name", name, "--public", card)
            settings = f'[training]\nproxy = "{self.meter.url(name)}"\n'
            paths.write_atomically(self.home(name) / "config.toml", settings.encode())

    def start_nodes(self) -> list[HomeOwner]:
        """Four running assistants that are members and may train nothing yet."""
        self.heading("2  each runs its own assistant, a member that may train nothing yet")
        children = [
            self.stage.start(
                name, "serve", "--port", "0", "--federation", str(self.file),
                "--home-file", str(self.data(name) / "home.json"), **self.environment(name),
            )
            for name in NODES
        ]  # fmt: skip
        return [self.owner(name, child) for name, child in zip(NODES, children, strict=True)]

    def owner(self, name: str, child: Child) -> HomeOwner:
        """One of them, as soon as it answers."""
        line = child.wait_for(lambda text: text.startswith("serving on "), START_S)
        node = RunningNode(line.removeprefix("serving on ").strip(), self.data(name) / "test.jsonl")
        wanted = read_jsonl(self.data(name) / "train.jsonl")
        count = self.talk_requests
        talks = [
            Talk(
                f"day-{1 + place // TALKS}-{place % TALKS}",
                1 + place // TALKS,
                wanted[place * count : (place + 1) * count],
            )
            for place in range(DAYS * TALKS)
        ]
        return HomeOwner(name, self.home(name), node, talks)

    def talk(self, owners: list[HomeOwner]) -> None:
        """Days of conversations and corrections."""
        self.heading(f"3  {DAYS} days: each owner talks, corrects, and gives what it wants to give")
        federation = self.destination(owners[0])
        with ThreadPoolExecutor(len(owners)) as pool:
            corrected = list(pool.map(lambda owner: owner.speak(federation), owners))
        for owner, count in zip(owners, corrected, strict=True):
            words = (
                "gives none"
                if owner.name == WITHHOLDS
                else f"gives days 1 to {DAYS - 1}, keeps day {KEPT_DAY}"
            )
            self.console.print(
                f"  {owner.name}: {len(owner.talks)} conversations, {count} corrections; {words}"
            )
        self.report["corrections"] = dict(zip(NODES, corrected, strict=True))

    def destination(self, owner: HomeOwner) -> str:
        """The federation as consent names it, from the node's own list."""
        found = owner.node.get("/api/conversations")["destinations"]
        [name] = [each for each in found if each.startswith("federation:")]
        return str(name)

    def preview(self, name: str) -> str:
        """The exact bytes that would train the federation at one node, as text."""
        return self.stage.run("data", "show", "--for", str(self.file), **self.environment(name))

    def show_previews(self, owners: list[HomeOwner]) -> None:
        """What leaves a home is an update of what stands here, and of nothing else."""
        counts = {owner.name: len(self.preview(owner.name).splitlines()) for owner in owners}
        kept = [example.request for talk in owners[0].talks if not talk.given
                for example in talk.wanted]  # fmt: skip
        shown = self.preview(owners[0].name)
        self.report["kept_day_in_training"] = sum(json.dumps(text) in shown for text in kept)
        counted = ", ".join(f"{name} {count}" for name, count in counts.items())
        self.console.print(f"  examples that may train (a fifth only judges): {counted}")
        self.report["examples"] = counts

    def start_coordinator(self) -> Child:
        """Rounds begin as soon as three members are there."""
        return self.stage.start(
            "coordinator", "coordinate", str(self.file), "--state", str(self.folder / "state"),
            "--report", str(self.folder / "coordinator.json"), "--json-lines", "--grace", "2",
            **self.environment("coordinator"),
        )  # fmt: skip

    def learn(self, coordinator: Child, owner: HomeOwner) -> None:
        """The rounds; in the middle one owner forgets an example."""
        self.heading(
            f"4  {self.rounds} rounds over Flower and TLS, every update masked; "
            f"{owner.name} forgets an example after round {self.rounds // 2}"
        )
        while True:
            event = json.loads(coordinator.next_line(ROUND_S))
            if event["event"] == "round":
                entry = event
                self.console.print(
                    f"  round {entry['round']:>2}/{self.rounds}   of their held-out corrections "
                    f"right so far {report.percent(entry['accuracy']):>7}   "
                    f"{len(entry['parties'])} nodes   {entry['seconds']:.1f} s"
                )
                if entry["round"] == self.rounds // 2:
                    self.forget(owner)
            if event["event"] == "delivered":
                self.console.print(f"  the adapter is with {', '.join(event['members'])}")
                break
        coordinator.finish(END_S)

    def forget(self, owner: HomeOwner) -> None:
        """One example, by the owner's command, while its node runs."""
        before = self.preview(owner.name)
        request = json.loads(before.splitlines()[0])["messages"][-2]["content"]
        output = self.stage.run(
            "data", "forget", owner.examples[request], **self.environment(owner.name)
        )
        self.console.print(f"  {owner.name} forgets “{request}”: {output.splitlines()[0]}")
        self.report["forgotten"] = {
            "request": request,
            "examples_before": len(before.splitlines()),
            "log_lines_before": len(self.consented(owner.name)),
        }

    def consented(self, name: str) -> list[tuple[int, str]]:
        """Examples and digest of each training set that a node's own log tells."""
        text = (self.folder / "logs" / f"{name}.log").read_text("utf-8", "replace")
        return [(int(count), digest) for count, digest in CONSENTED.findall(text)]

    def prove_withheld(self) -> None:
        """Of the node that gave nothing: its log, its wire, and the coordinator's record."""
        self.heading(f"5  {WITHHOLDS} gave nothing, and sent nothing")
        outcome = json.loads((self.folder / "coordinator.json").read_text("utf-8"))
        log = (self.folder / "logs" / f"{WITHHOLDS}.log").read_text("utf-8", "replace")
        count = self.meter.counts[WITHHOLDS]
        self.report["withheld_bytes"] = count.bytes_up
        self.report["withheld"] = {
            "connections": count.connections,
            "its_log_says_so": WITHHELD in log and not self.consented(WITHHOLDS),
            "rounds_that_name_it": sum(
                WITHHOLDS in entry.get("parties", ()) for entry in outcome["history"]
            ),
        }
        self.report["bytes_up"] = {name: self.meter.counts[name].bytes_up for name in NODES}
        self.report |= {key: outcome[key] for key in ("rounds", "protection", "adapter")}
        self.report["own_held_out"] = outcome["accuracy"]
        sizes = ", ".join(
            f"{name} {report.size(size)}" for name, size in self.report["bytes_up"].items()
        )
        self.console.print(f"  sent through each node's own proxy: {sizes}")

    def prove_forgotten(self, owner: HomeOwner) -> None:
        """What trained after it was forgotten is what `data show` shows, without it."""
        self.heading("6  what was forgotten is in no training since")
        forgotten = self.report["forgotten"]
        request = json.dumps(forgotten["request"], ensure_ascii=False)
        shown = self.preview(owner.name).splitlines()
        later = self.consented(owner.name)[forgotten.pop("log_lines_before") :]
        trained = [count for count, _ in later]
        forgotten |= {
            "examples_after": len(shown),
            "next_training": trained[0] if trained else None,
        }
        # The log's digest is of the bytes that trained: what they are, the node itself shows.
        same = bool(later) and self.digest_of(owner.name) == later[-1][1]
        self.report["forgotten_in_training"] = sum(request in line for line in shown) + (not same)
        marks = self.stage.run("adapter", "list", **self.environment(owner.name))
        forgotten["adapter_is_marked"] = "that were forgotten" in marks
        self.console.print(
            f"  {owner.name} trained on {forgotten['examples_before']} examples before and "
            f"{forgotten['next_training']} after; its preview has the digest that its log names: "
            f"{'yes' if same else 'NO'}; the adapter, which had learned it, is marked: "
            f"{'yes' if forgotten['adapter_is_marked'] else 'NO'}"
        )

    def digest_of(self, name: str) -> str:
        """Of what may train at one node now, as `data show` tells it."""
        process = self.stage.run_whole(
            "data", "show", "--for", str(self.file), **self.environment(name)
        )
        return process.stderr.strip().rpartition("digest ")[2]

    def score(self) -> None:
        """Requests of all four homes, in wordings that nobody said before."""
        self.heading("7  held-out requests of all four homes, in wordings that nobody used before")
        before, after, count = accuracy(
            [self.data(name) / "test.jsonl" for name in NODES],
            self.home(NODES[0]),
            self.report["adapter"],
        )
        self.report["accuracy"] = {"before": before, "after": after, "requests": count}
        self.console.print(
            f"  right, of {count}: {report.percent(before)} before, {report.percent(after)} after"
        )


def accuracy(tests: list[Path], home: Path, name: str) -> tuple[float, float, int]:
    """Exact matches of the bare model and of an adapter that a node keeps."""
    import torch

    from ..core.models import weights
    from ..core.models.hub import catalog
    from ..core.training.trainer import Trainer
    from ..federation.adapters.registry import Registry
    from ..federation.personalization.change import shared_b

    model = weights.load(catalog.find("smollm2-135m-instruct"))
    adapter = Registry(home).load_for(name, model.digest)
    trainer = Trainer(model, adapter.shape)
    asked = trainer.prepare([example for path in tests for example in read_jsonl(path)])
    scores = [
        trainer.evaluate(flat, asked).accuracy
        for flat in (torch.zeros(trainer.size), shared_b(adapter, model))
    ]
    return scores[0], scores[1], len(asked)


def shortcomings(found: dict[str, Any]) -> list[str]:
    """Why a loop that came to its end did not show what it is for; empty if it did."""
    withheld, forgotten = found["withheld"], found["forgotten"]
    claims = {
        "the node that gave nothing sent something": found["withheld_bytes"]
        or withheld["connections"]
        or withheld["rounds_that_name_it"],
        "the log of the node that gave nothing does not say so": not withheld["its_log_says_so"],
        "a conversation that was kept is in what trains": found["kept_day_in_training"],
        "what was forgotten was trained on again": found["forgotten_in_training"],
        "the next training did not have one example less": forgotten["next_training"]
        != forgotten["examples_before"] - 1,
        "the adapter that had learned it is not marked": not forgotten["adapter_is_marked"],
        "nothing was learned": found["accuracy"]["after"] <= found["accuracy"]["before"],
        "a node that gave sent nothing, so the proxies count nothing": not all(
            size for name, size in found["bytes_up"].items() if name != WITHHOLDS
        ),
    }
    return [words for words, wrong in claims.items() if wrong]


def main() -> int:
    """Run it.

    Raises:
        QuietchoirError: this machine lacks something, said before anything starts; or a process did
        not do its part.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo"))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--talk", type=int, default=10, help="requests of one conversation")
    parser.add_argument("--test", type=int, default=40, help="held-out requests of each household")
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    log.start("warning")
    console = report.wide_console()
    folder = chosen.out.resolve() / "loop"
    if lacking := needs(folder):
        raise QuietchoirError("nothing was started: " + "; and ".join(lacking))
    clear(folder)
    console.print(machine.line())
    with (
        WireMeter(NODES) as meter,
        ProcessGroup(folder / "logs", {"QUIETCHOIR_MODELS": str(paths.models())}) as stage,
    ):
        loop = Loop(
            folder, chosen.rounds, chosen.talk, chosen.test, chosen.seed, console, stage, meter
        )
        loop.run()
    target = chosen.out.resolve() / "loop.json"
    paths.write_atomically(target, (json.dumps(loop.report, indent=2) + "\n").encode())
    console.print(
        f"\n{loop.report['seconds_in_all']:.0f} s in all; everything above as numbers: {target}"
    )
    reasons = shortcomings(loop.report)
    for reason in reasons:
        print(f"demo-loop: {reason}", file=sys.stderr)
    return 1 if reasons else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except QuietchoirError as error:
        print(f"demo-loop: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("demo-loop: interrupted; all its processes are ended", file=sys.stderr)
        sys.exit(130)
