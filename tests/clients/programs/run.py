"""Every case of one client's program, one JSON object a line: its name, and what was wrong.

A case is a function of the program without arguments and with a docstring or without.
"""

import importlib
import inspect
import json
import sys
import traceback


def main(name: str) -> None:
    """Run them in the order in which they stand."""
    program = importlib.import_module(name)
    for case, work in list(vars(program).items()):
        mine = inspect.isfunction(work) and work.__module__ == name
        if not mine or inspect.signature(work).parameters or case.startswith("_"):
            continue
        try:
            work()
            wrong = ""
        except Exception as error:
            at = traceback.extract_tb(error.__traceback__)
            line = next(one for one in reversed(at) if name in one.filename)
            wrong = f"line {line.lineno}: {type(error).__name__}: {error!s:.600}"
        print(json.dumps({"case": case, "wrong": wrong}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
