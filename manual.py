"""What the system knows of the command line: completions for shells, pages for `man`.

Knows the parser that the command itself uses, roff, and what `shtab` makes of a parser. Everything
here is read from the parser, so that it says what `--help` says.
Always: text of the parser cannot become a command of roff.
"""

import argparse
from argparse import Action, ArgumentParser
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

SECTION = 1  # of the manual: programs
SHELLS = ("bash", "zsh", "fish")
FOLDERS = ("DIR", "FOLDER", "STATE", "LIBRARY")  # metavars of flags that take one
ABOUT = {
    "FILES": """
        ~/.local/share/quietchoir holds everything of one node, its token and keys too
        (QUIETCHOIR_HOME names another place); config.toml in it, its settings: see quietchoir
        config init.
    """,
    "EXIT STATUS": """
        0: done. 1: it could not be done, and a sentence on standard error says why. 2: a flag or a
        file that its owner can mend. 130: Ctrl-C.
    """,
}


def completion(parser: ArgumentParser, shell: str) -> str:
    """A script that completes the whole command line in one of SHELLS."""
    import shtab

    for action in (one for each in family(parser) for one in each._actions):
        if action.type is Path:
            kind = shtab.DIRECTORY if action.metavar in FOLDERS else shtab.FILE
            action.complete = kind  # type: ignore[attr-defined]  # what shtab looks at
    return shtab.complete(parser, shell)


def family(parser: ArgumentParser) -> Iterator[ArgumentParser]:
    """A parser and all below it."""
    yield parser
    for child in below(parser).values():
        yield from family(child)


def below(parser: ArgumentParser) -> dict[str, ArgumentParser]:
    """Its commands, by their names."""
    action = subcommands(parser)
    return {} if action is None else dict(action.choices)


def subcommands(parser: ArgumentParser) -> "argparse._SubParsersAction[ArgumentParser] | None":
    """What chooses among its commands."""
    found = (one for one in parser._actions if isinstance(one, argparse._SubParsersAction))
    return next(found, None)


def purposes(parser: ArgumentParser) -> dict[str, str]:
    """What each of its commands is for."""
    action = subcommands(parser)
    return {} if action is None else {one.dest: one.help or "" for one in action._choices_actions}


def pages(parser: ArgumentParser, version: str) -> dict[str, str]:
    """Every page by its file's name: one of the command, one of each of its verbs."""
    head = f'"quietchoir {version}" "quietchoir"'
    told = purposes(parser)
    found = {f"{parser.prog}.{SECTION}": page(parser, head, parser.description or "", told)}
    for name, verb in below(parser).items():
        about = page(verb, head, told.get(name, ""), {})
        found[f"{parser.prog}-{name}.{SECTION}"] = about
    return found


def page(parser: ArgumentParser, head: str, purpose: str, listed: dict[str, str]) -> str:
    """One page. Args: listed: commands that have pages of their own; all others are told here."""
    name = parser.prog.replace(" ", "-")
    lines = [f'.TH "{name.upper()}" "{SECTION}" "" {head}', ".SH NAME"]
    lines += [f"{text(name)} \\- {text(purpose)}", ".SH SYNOPSIS", *usage(parser)]
    if own := list(options(parser)):
        lines += [".SH OPTIONS", *own]
    if listed:
        lines.append(".SH COMMANDS")
        for command, words in listed.items():
            lines += [".TP", f"\\fB{text(name)}\\-{text(command)}\\fR({SECTION})", text(words)]
        for title, words in ABOUT.items():
            lines += [f".SH {title}", text(" ".join(dedent(words).split()))]
    else:
        lines += actions(parser)
    return "\n".join(lines) + "\n"


def actions(parser: ArgumentParser) -> Iterator[str]:
    """The commands below a verb, and those below them, each with its options."""
    told = purposes(parser)
    if told and parser.prog.count(" ") == 1:
        yield ".SH COMMANDS"
    for name, child in below(parser).items():
        yield f".SS {text(child.prog)}"
        yield text(told.get(name, ""))
        yield from usage(child)
        yield from options(child)
        yield from actions(child)


def usage(parser: ArgumentParser) -> Iterator[str]:
    """How it is called, its lines as they are."""
    yield ".nf"
    yield from map(text, parser.format_usage().removeprefix("usage: ").rstrip().splitlines())
    yield ".fi"


def options(parser: ArgumentParser) -> Iterator[str]:
    """Each flag and argument, with what it is for."""
    formatter = parser._get_formatter()
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction) or action.help == argparse.SUPPRESS:
            continue
        yield ".TP"
        yield invocation(action)
        yield text(formatter._expand_help(action)) if action.help else "\\&"


def invocation(action: Action) -> str:
    """The flags of one, and what follows them."""
    metavar = action.metavar or action.dest.upper()
    value = text(" ".join(metavar) if isinstance(metavar, tuple) else metavar)
    if action.choices is not None:
        value = text("{" + ",".join(map(str, action.choices)) + "}")
    if not action.option_strings:
        return f"\\fI{value}\\fR"
    flags = ", ".join(f"\\fB{text(flag)}\\fR" for flag in action.option_strings)
    return flags if action.nargs == 0 else f"{flags} \\fI{value}\\fR"


def text(words: str) -> str:
    """Words, none of which is a command of roff."""
    plain = words.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")
    return f"\\&{plain}" if plain.startswith((".", " ")) else plain
