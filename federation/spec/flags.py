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
from ...core.prompt import PromptFormat
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


def add(parser: ArgumentParser, *tables: str) -> None:
    """A flag for every field of these tables; all tables if none is named."""
    for table, field, hint in fields(*tables):
        chosen = typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else None
        parser.add_argument(
            f"--{flag(table, field)}",
            dest=f"{table}.{field}",
            type=str if chosen else hint,
            choices=chosen,
            default=None,
            metavar=None if chosen else "X" if hint is float else "N" if hint is int else "TEXT",
            help=f"{table}.{field}",
        )


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
