"""The calculator plugin: arithmetic that a language model gets wrong, and units.

Runs inside a sandbox, on the kit and on pint, which is read when the first unit is converted.
"""

import functools
import re
from typing import Any

from quietchoir_sdk import ToolFailure, serve, tool  # type: ignore[import-not-found]

from .arithmetic import Unanswerable, evaluate, shown

# names with small exponents, multiplied and divided: nothing that pint would have to compute
NAME = r"[A-Za-zµμΩ°Å%$_][A-Za-z0-9µμΩ°Å_]{0,40}(?:(?:\^|\*\*)-?[1-9])?"
UNIT = re.compile(rf"(?:1\s*/\s*)?{NAME}(?:\s*[*/·]\s*{NAME}|\s+{NAME}){{0,5}}")
WORDS = {
    "c": "degC",
    "celsius": "degC",
    "f": "degF",
    "fahrenheit": "degF",
    "°c": "degC",
    "°f": "degF",
    "k": "kelvin",
    "l": "liter",
    "kmh": "km/hour",
    "kph": "km/hour",
    "lbs": "pound",
}


@functools.cache
def units() -> Any:
    """All units that pint knows; about half a second, once."""
    import pint

    return pint.UnitRegistry(cache_folder=None)


@tool(read_only=True)  # type: ignore[untyped-decorator]
def calculate(expression: str) -> str:
    """Compute an arithmetic expression exactly, for example (3 + 4) * 2.5, 15% of 80, sqrt(2),
    factorial(20), 2^100.
    """
    try:
        return f"{expression.strip()[:200]} = {shown(evaluate(expression))}"
    except Unanswerable as error:
        raise ToolFailure(str(error)) from None


@tool(read_only=True)  # type: ignore[untyped-decorator]
def convert_unit(value: float, from_unit: str, to_unit: str) -> str:
    """Convert a measure, for example value 5, from_unit mile, to_unit km; degC and degF are
    temperatures, km/hour is a speed.
    """
    import pint

    names = []
    for unit in (from_unit, to_unit):
        name = WORDS.get(unit.strip().lower(), unit.strip())
        if not UNIT.fullmatch(name):
            raise ToolFailure(f"{unit[:60]!r} is no unit; expected for example km, kg or km/hour")
        names.append(name)
    try:
        measure = units().Quantity(value, units().parse_units(names[0]))
        found = measure.to(units().parse_units(names[1]))
    except pint.errors.UndefinedUnitError as error:
        raise ToolFailure(f"no unit is called {str(error)[:80]}; write its English name") from None
    except pint.errors.DimensionalityError:
        raise ToolFailure(
            f"{from_unit} and {to_unit} measure different things; nothing to convert"
        ) from None
    except (pint.errors.PintError, ValueError, TypeError, OverflowError, ArithmeticError) as error:
        raise ToolFailure(f"cannot be converted ({error})"[:300]) from None
    return f"{value:.12g} {from_unit} = {found.magnitude:.10g} {to_unit}"


if __name__ == "__main__":
    serve("quietchoir/calculator", "0.1.0")
