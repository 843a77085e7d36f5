"""`python -m quietchoir.tests.compat [--json] [--kind NAME …]`: every kind, tried and wrong."""

import argparse
import json
import sys

from quietchoir.tests.compat import kinds, load, tally


def main() -> int:
    """Try the chosen kinds. Exit 1 if a case was wrong."""
    parser = argparse.ArgumentParser(prog="python -m quietchoir.tests.compat", description=__doc__)
    parser.add_argument(
        "--json", action="store_true", help="one object: kind → tried, wrong, and what was wrong"
    )
    parser.add_argument(
        "--kind", action="append", choices=kinds(), help="only this one; may be given again"
    )
    chosen = parser.parse_args()
    tallies = {}
    for kind in chosen.kind or kinds():
        tallies[kind] = result = tally(load(kind))
        if not chosen.json:
            print(f"{kind}: {result.tried} tried, {len(result.wrong)} wrong", flush=True)
            for name, wrong in result.wrong.items():
                print(f"  {name}: {wrong}")
    if chosen.json:
        told = {
            kind: {"tried": one.tried, "wrong": len(one.wrong), "cases": one.wrong}
            for kind, one in tallies.items()
        }
        print(json.dumps(told, indent=2))
    return int(any(one.wrong for one in tallies.values()))


if __name__ == "__main__":
    sys.exit(main())
