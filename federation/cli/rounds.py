"""The verbs `coordinate` and `join`.

Knows flags and words for people. Always: heavy imports happen inside the function that runs a verb.
"""

from argparse import ArgumentParser, Namespace, _SubParsersAction
from pathlib import Path

from ..monitor.event_printer import percent, printer

MODEL_HELP = (
    "name or path of the federation's model on this disk; by default it is found by its digest"
)


def register(verbs: "_SubParsersAction[ArgumentParser]") -> None:
    """Add `coordinate` and `join`."""
    register_coordinate(verbs.add_parser("coordinate", help="run a federation's rounds"))
    register_join(verbs.add_parser("join", help="take part in a federation with this node's data"))


def register_coordinate(parser: ArgumentParser) -> None:
    """`coordinate FED`."""
    parser.add_argument("file", type=Path, metavar="FED")
    parser.add_argument(
        "--state",
        type=Path,
        required=True,
        metavar="DIR",
        help="the run lives here; start again to go on",
    )
    parser.add_argument("--rounds", type=int, metavar="N", help="default: the federation's")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write what happened as JSON")
    parser.add_argument(
        "--keys", type=Path, metavar="DIR", help="coordinator.key and tls.key; default: beside FED"
    )
    parser.add_argument(
        "--home",
        type=Path,
        metavar="DIR",
        help="the finished adapter is kept here; default: the node's home",
    )
    parser.add_argument(
        "--listen",
        default="",
        metavar="HOST:PORT",
        help="behind a router: where to listen; default: the federation's address",
    )
    parser.add_argument("--model", default="", metavar="NAME", help=MODEL_HELP)
    parser.add_argument(
        "--wait", type=float, default=600.0, metavar="S",
        help="at the start, seconds until the minimum must be there; members that go away later "
             "are waited for without end",
    )  # fmt: skip
    parser.add_argument(
        "--stay", type=float, metavar="S",
        help="at the end, seconds to stay for members that do not have the adapter yet; by default "
             "0, and 3600 if the run "
        "had ended before this start, which then hands its adapter out and ends when all have it",
    )  # fmt: skip
    parser.add_argument(
        "--grace",
        type=float,
        default=30.0,
        metavar="S",
        help="seconds to wait for the rest once the minimum is there",
    )
    parser.add_argument(
        "--page",
        type=int,
        metavar="PORT",
        help="show the rounds on this machine: a page, and /metrics for Prometheus; 0: a free port",
    )
    parser.add_argument(
        "--keep-every",
        type=int,
        default=0,
        metavar="N",
        help="also keep the adapter as it stands after every N rounds",
    )
    parser.add_argument(
        "--rehearse",
        type=int,
        default=0,
        metavar="N",
        help="N pretended values, no model: try keys and network",
    )
    parser.add_argument(
        "--json-lines", action="store_true", help="progress as JSON lines on standard output"
    )
    parser.set_defaults(run=run_coordinator, needs="federation")


def register_join(parser: ArgumentParser) -> None:
    """`join FED`."""
    parser.add_argument("file", type=Path, metavar="FED")
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FOLDER",
        help="train.jsonl and test.jsonl that you consent to train on; by default the "
        "conversations here that you consented to (quietchoir data consent)",
    )
    parser.add_argument("--home", type=Path, metavar="DIR", help="default: the node's home")
    parser.add_argument("--model", default="", metavar="NAME", help=MODEL_HELP)
    parser.add_argument(
        "--public",
        type=Path,
        metavar="FILE",
        help="where members' models differ: the federation's public set; --model is your own",
    )
    parser.add_argument(
        "--once", action="store_true", help="leave after the first finished adapter"
    )
    parser.add_argument(
        "--wait",
        type=float,
        default=0.0,
        metavar="S",
        help="give up if the coordinator is away so long; 0: never",
    )
    parser.add_argument(
        "--proxy",
        default="",
        metavar="URL",
        help="dial through http://HOST:PORT; by default `proxy` under [training], or directly, "
        "past the environment's",
    )
    parser.add_argument(
        "--rehearse", type=int, default=0, metavar="N", help="N pretended values, no model, no data"
    )
    parser.add_argument(
        "--json-lines", action="store_true", help="progress as JSON lines on standard output"
    )
    parser.set_defaults(run=run_member, needs="federation")


def run_coordinator(arguments: Namespace) -> None:
    """Rounds until they are done."""
    from ..client_node import default_home
    from ..server_node import CoordinatorOptions, coordinate

    report = coordinate(
        CoordinatorOptions(
            file=arguments.file,
            state=arguments.state,
            keys=arguments.keys or arguments.file.parent,
            home=arguments.home or default_home(),
            rounds=arguments.rounds,
            rehearse=arguments.rehearse,
            wait_s=arguments.wait,
            grace_s=arguments.grace,
            stay_s=arguments.stay,
            listen=arguments.listen,
            page=arguments.page,
            keep_every=arguments.keep_every,
            model=arguments.model,
        ),
        printer(arguments.json_lines, rehearsal=arguments.rehearse > 0),
    )
    if arguments.report:
        report.write(arguments.report)
    if not arguments.json_lines:
        before, after = (percent(report.accuracy[key]) for key in ("before", "after"))
        print(
            f"{report.rounds} rounds, {report.protection}; accuracy {before} before, {after} "
            f"after; {report.seconds:.1f} s"
        )
        if report.privacy is not None:
            from ..rounds.report import privacy_sentence

            print("privacy: " + privacy_sentence(report.privacy))
        if report.adapter:
            print(
                f"adapter {report.adapter[:12]} is kept here and by "
                f"{', '.join(report.delivered) or 'nobody else'}"
            )
        if missing := sorted(set(report.members) - set(report.delivered)):
            what = "was not told of the end" if arguments.rehearse else "did not get it"
            print(
                f"{', '.join(missing)} {what}; start this command again to "
                f"{'tell them' if arguments.rehearse else 'hand it to them'} (--stay S)"
            )


def run_member(arguments: Namespace) -> None:
    """Serve messages until stopped."""
    from ...core import config
    from ..client_node import ClientOptions, default_home, join

    settings = config.load(arguments.config)
    options = ClientOptions(
        file=arguments.file,
        data=arguments.data or settings.training.data,
        home=arguments.home or default_home(),
        once=arguments.once,
        rehearse=arguments.rehearse,
        wait_s=arguments.wait,
        proxy=arguments.proxy or settings.training.proxy,
        model=arguments.model,
        public=arguments.public,
    )
    join(options, settings, printer(arguments.json_lines))
