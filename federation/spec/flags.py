"""Command-line flags for the tables of a federation file, one for each field that can be set.

Knows the tables' dataclasses; a field that is added there is a flag here. Knows nothing of files.
Always: a flag that is not given is not in the answer, so that defaults stay where they are defined;
one that is given and would do nothing is refused.
"""

import dataclasses
import typing
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping
from typing import Any

from ...core.errors import ConfigError
from ...core.prompt import HOUSEHOLD, PromptFormat
from ...core.tables import bounded
from .policy import (
    AdapterTable,
    AggregationTable,
    GuardTable,
    PrivacyTable,
    ProtectionTable,
    Recipe,
    ScheduleTable,
)

TABLES: dict[str, type] = {
    "protection": ProtectionTable,
    "adapter": AdapterTable,
    "recipe": Recipe,
    "privacy": PrivacyTable,
    "guard": GuardTable,
    "aggregation": AggregationTable,
    "schedule": ScheduleTable,
    "prompt": PromptFormat,
}
BARE = ("protection", "adapter", "recipe")  # their flags have no prefix
NAMES = {("protection", "mode"): "protection"}  # flags that are called otherwise
KINDS = (int, float, str)
# What a field is, for `--help`; every field that is a flag stands here.
HELP: dict[str, dict[str, str]] = {
    "protection": {
        "mode": "who may see an update: nobody but its sums (masked), the sums members only "
        "(sealed), or the coordinator each (plain)",
        "key": "sealed: every member has the key, or a share of it",
        "open_with": "sealed with a threshold key: members that open a sum together; 0: more than "
        "two thirds of those who made the key",
        "bits": "of one value of an update, 2 to 16",
        "threshold": "members whose shares open a sum, 1 to --min-cohort",
        "min_cohort": "a sum of fewer members is never opened",
        "min_tokens": "answer tokens that must stand behind a sum; 0: any number",
    },
    "adapter": {
        "rank": "columns of each of the adapter's matrices (LoRA's r)",
        "alpha": "the adapter's change is scaled by alpha / rank",
        "upper_layers": "how many of the model's last layers carry LoRA",
        "seed": "public seed of the half of the adapter that nobody trains",
    },
    "recipe": {
        "rounds": "until the adapter is finished",
        "lr": "learning rate of a member's own steps",
        "lr_last": "the last round's learning rate as a share of the first's, above 0 to 1; it "
        "falls in a line",
        "tuning": "the learning rate as it is written, or (auto) from --lr on by members' votes "
        "after each round",
        "batch": "examples of one step of a member",
        "epochs": "how often a member goes through its examples in one round",
        "local_steps": "a member's steps of one round, at most; who has more examples trains on "
        "others of them each time; 0: all",
        "server_lr": "how far the adapter goes along the mean of the changes",
        "server_momentum": "of fedavgm, how much of the last round's step goes on; 0 to 1",
        "server_optimizer": "what makes the next adapter of the mean",
        "server_memory": "of fedadam and fedyogi, beta 2; 0 to 1",
        "server_floor": "of fedadam and fedyogi, tau, which keeps a step finite",
        "proximal": "FedProx's mu: pulls a member's training back to the round's adapter; 0: none",
        "agreed_steps": "FedNova: a member's change counts as if it had made so many steps; 0: as "
        "it is",
        "update_range": "a value that moved further in one round is cut to this",
        "ranges": "one range for all values, or each tensor's own from its last steps",
        "evaluate_every": "rounds between two scores on held-out examples; 0: only at the end",
        "cohort": "members asked in a round; 0: all that are there",
        "download": "what members are told: the adapter, or the changes since the one they hold; "
        "auto: changes under masks",
        "attempts": "of one round before the coordinator gives up",
        "work_timeout_s": "seconds that training may take",
        "stage_timeout_s": "seconds for any other stage",
    },
    "privacy": {
        "mechanism": "noise that members add before masking; none: no differential privacy",
        "clip": "largest length (L2) of a member's update; a longer one is shortened",
        "clipping": "the clip stays as it is, or (quantile) follows the median of members' lengths",
        "noise_multiplier": "a sum's noise over a member's largest share of it; --epsilon finds it",
        "epsilon": "the budget: training stops before it is passed",
        "delta": "chance with which epsilon may be passed; below one over the number of members",
        "colluders": "members of a sum that may be in league with its reader; 0 counts as 1",
        "counters": "send scores and losses without noise (exact), or not at all (none)",
    },
    "guard": {
        "rule": "members score each new adapter and undo a worse one (vote), or also choose the "
        "best of the buckets' own (choose)",
        "margin": "loss of accuracy, 0 to 1, from which on an adapter is undone",
        "ballots": "what counts in a vote: sums of scores, where one liar decides its sum; or each "
        "member's own rise or fall, read by the coordinator, of which a quarter may lie (open)",
    },
    "aggregation": {
        "rule": "how contributions become one change; but for the mean each bucket of members is "
        "a sum of its own",
        "buckets": "sums of their own, at most; 1 for the mean, else 3 or more",
        "trim": "of trimmed-mean: buckets left out at each end",
        "lengths": "of the buckets' changes: as they are, or all as the middle one's",
    },
    "schedule": {
        "rounds": "wait for a round's members, or sum whoever is ready (buffered)",
        "buffer": "buffered: contributions of one step; 0: --min-cohort",
        "max_staleness": "buffered: contributions from more steps ago are trained anew",
        "patience_s": "buffered: seconds without a contribution after which the run gives up",
    },
    "prompt": {
        "system": "in front of conversations without a system message; by default the sentence of "
        "tool calls where those are the answers, else nothing",
        "answers": "what members' examples answer with, and the adapter is asked for",
        "turns": "the whole conversation is shown, or the last request alone",
    },
}


def flag(table: str, field: str) -> str:
    """The name of a flag without its dashes: `min-cohort`, `privacy-epsilon`."""
    name = NAMES.get((table, field)) or (field if table in BARE else f"{table}_{field}")
    return name.replace("_", "-")


def fields(*tables: str) -> list[tuple[str, str, Any]]:
    """(table, field, type) of everything that has a flag."""
    found = []
    for table in tables or tuple(TABLES):
        hints = typing.get_type_hints(TABLES[table])
        found += [
            (table, field.name, hints[field.name]) for field in dataclasses.fields(TABLES[table])
        ]
    return [one for one in found if one[2] in KINDS or typing.get_origin(one[2]) is typing.Literal]


def add(parser: ArgumentParser, *tables: str, left_out: str = "") -> None:
    """A flag for every field of these tables; all tables if none is named.

    Args:
        left_out: what a flag that is not given means; by default the field's own default.
    """
    for table, field, hint in fields(*tables):
        chosen = typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else None
        parser.add_argument(
            f"--{flag(table, field)}",
            dest=f"{table}.{field}",
            type=str if chosen else hint,
            choices=chosen,
            default=None,
            metavar=None if chosen else "X" if hint is float else "N" if hint is int else "TEXT",
            help=f"{HELP[table][field]} ({left_out or default_sentence(table, field)})",
        )


def default_sentence(table: str, field: str) -> str:
    """The value that a field has if nobody says otherwise, for people."""
    value = next(one for one in dataclasses.fields(TABLES[table]) if one.name == field).default
    if table == "prompt":
        value = getattr(HOUSEHOLD, field)
    return "default: " + (repr(value) if isinstance(value, str) and " " in value else f"{value}")


def given(arguments: Namespace, *tables: str) -> dict[str, dict[str, Any]]:
    """{table: {field: value}} of the flags that were given.

    Raises:
        ConfigError: a number that no file can hold.
    """
    found: dict[str, dict[str, Any]] = {}
    for table, field, _ in fields(*tables):
        value = getattr(arguments, f"{table}.{field}", None)
        if value is not None:
            found.setdefault(table, {})[field] = bounded(value, f"--{flag(table, field)}")
    return found


def idle(tables: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, ...], str]]:
    """(table, fields, what would switch them on) of everything that does nothing in these
    tables.
    """

    def others(table: str, switch: str) -> tuple[str, ...]:
        return tuple(
            field.name for field in dataclasses.fields(TABLES[table]) if field.name != switch
        )

    optimizer, rule = tables["recipe"].server_optimizer, tables["aggregation"].rule
    if not tables["privacy"].on:
        yield (
            # colluders count without noise too: for buckets, and for sums from one adapter
            "privacy",
            tuple(field for field in others("privacy", "mechanism") if field != "colluders"),
            'privacy.mechanism = "discrete-gaussian" (or --epsilon, which finds the noise)',
        )
    if not tables["guard"].on:
        yield "guard", others("guard", "rule"), 'guard.rule = "vote"'
    if rule == "mean":
        yield "aggregation", ("lengths",), 'aggregation.rule = "median" (or "trimmed-mean")'
    if rule != "trimmed-mean":
        yield "aggregation", ("trim",), 'aggregation.rule = "trimmed-mean"'
    if not tables["schedule"].buffered:
        yield "schedule", others("schedule", "rounds"), 'schedule.rounds = "buffered"'
    if optimizer not in ("fedadam", "fedyogi"):
        yield "recipe", ("server_memory", "server_floor"), 'recipe.server_optimizer = "fedadam"'
    if optimizer == "fedavg":
        yield "recipe", ("server_momentum",), 'recipe.server_optimizer = "fedavgm"'


def check_used(asked: Mapping[str, Any], tables: Mapping[str, Any]) -> None:
    """Require that everything that was asked for has an effect in the tables that come of it.

    Args:
        asked: {table: {field: value}}, whatever else is in it.
        tables: all of `TABLES`, as they will be; a scenario has no `prompt`, which has no idle
        field.

    Raises:
        ConfigError: names the first field that would be written down and do nothing.
    """
    for table, names, switch in idle(tables):
        for field in names:
            if field in asked.get(table, ()):
                raise ConfigError(
                    f"{table}.{field} (--{flag(table, field)}) does nothing without {switch}; add "
                    f"that, or leave it out"
                )
