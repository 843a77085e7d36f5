"""The first code that runs inside a sandbox: give up what the namespaces cannot take, then become
the plugin.

Runs alone, copied in as one file, on the standard library. It is outside of the plugin's trust: it
sets hard limits that no plugin can raise again, and only then lets the bundle's first line run.

    python -I -S -B inside.py '{"AS": …, "NPROC": …}' bundle.server
"""

import json
import resource
import runpy
import sys


def main(limits: str, module: str) -> None:
    """Set the limits, hard as well as soft, and run `module` as the program."""
    for name, most in json.loads(limits).items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (most, most))
    # A bundle is a package called `bundle`, so its files may import each other relatively or by
    # bare name.
    # Packages that it asked for come as one zip file, if any.
    sys.path[:0] = ["/quietchoir", "/plugin", "/plugin/bundle", "/quietchoir/packages.zip"]
    sys.argv = [module]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
