"""The first code that runs inside a sandbox: give up what the namespaces cannot take, then become
the plugin.

Runs alone, copied in as one file, on the standard library. It is outside of the plugin's trust: it
sets hard limits that no plugin can raise again, and only then lets the bundle's first line run.

    python -I -S -B inside.py '{"AS": …, "NPROC": …}' bundle.server
    python -I -S -B inside.py '{"DATA": …, "NPROC": …}' /usr/bin/node /plugin/files/server.js
"""

import json
import os
import resource
import runpy
import sys

VARIABLES = "/quietchoir/environment.json"  # of the owner's; not on the command line, which all see


def main(limits: str, module: str, *words: str) -> None:
    """Set the limits, hard as well as soft, and run `module`, or the program whose path it is."""
    for name, most in json.loads(limits).items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (most, most))
    if os.path.exists(VARIABLES):  # noqa: PTH110  pathlib takes 8 ms of every start
        with open(VARIABLES, encoding="utf-8") as file:  # noqa: PTH123
            os.environ.update(json.load(file))
    if module.startswith("/"):
        os.execv(module, [module, *words])
    # A bundle is a package called `bundle`, so its files may import each other relatively or by
    # bare name.
    # Packages that it asked for come as one zip file, if any.
    sys.path[:0] = ["/quietchoir", "/plugin", "/plugin/bundle", "/quietchoir/packages.zip"]
    sys.argv = [module]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
