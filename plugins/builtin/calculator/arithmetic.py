"""What an expression comes to, exactly where that is possible.

Knows numbers and Python's expressions, which `ast` reads. Runs none of them: what is not a number,
an operator or a function of the list is refused.
Always: whole numbers, decimals and fractions are computed exactly; nothing is computed whose result
would have more than `MAX_BITS` bits, so an answer takes milliseconds.
"""

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

MAX_CHARACTERS, MAX_NODES, MAX_BITS = 500, 200, 8000
PLAIN_DIGITS = 60  # of a whole number that is shown whole
TOO_LONG = f"a number of more than {MAX_BITS * 3 // 10} digits; ask for less"
Number = int | Fraction | float

# as people write it → as Python reads it
SPELLED = ((r"[×·]", "*"), (r"[÷:]", "/"), (r"[−–]", "-"), (r"\^", "**"), (r"√", "sqrt"))
THOUSANDS = re.compile(r"(?<![\d.])\d{1,3}(?:,\d{3})+(?![\d,])")
CALL = re.compile(r"[A-Za-z]\s*\(")
PERCENT_OF = re.compile(r"(\d+(?:\.\d+)?)\s*%\s*of\b", re.IGNORECASE)
PERCENT = re.compile(r"(\d+(?:\.\d+)?)\s*%(?!\s*[\w(.])")


class Unanswerable(Exception):
    """An expression that cannot be computed; the sentence is for whoever asked."""


def bits(value: Number) -> int:
    """Size of an exact number; a float has its own bound."""
    if isinstance(value, float):
        return 0
    exact = Fraction(value)
    return max(exact.numerator.bit_length(), exact.denominator.bit_length())


def bounded(value: Any) -> Number:
    """Raises: Unanswerable: too large, or no real number."""
    if isinstance(value, complex):
        raise Unanswerable("the result is no real number")
    if isinstance(value, float) and not math.isfinite(value):
        raise Unanswerable("the result is too large, or is no number")
    if bits(value) > MAX_BITS:
        raise Unanswerable(TOO_LONG)
    if isinstance(value, Fraction) and value.denominator == 1:
        return value.numerator
    result: Number = value
    return result


def power(left: Number, right: Number) -> Any:
    """Exact for whole exponents."""
    if isinstance(right, int) and not isinstance(left, float):
        if left in (1, -1):
            return left ** (right % 2)
        if left and bits(left) * abs(right) > MAX_BITS:
            raise Unanswerable(TOO_LONG)
        return Fraction(left) ** right
    return float(left) ** float(right)


def root(value: Number) -> Number:
    """A square root, exact where it is a fraction."""
    if value < 0:
        raise Unanswerable("the square root of a number below zero is no real number")
    if not isinstance(value, float):
        exact = Fraction(value)
        above, below = math.isqrt(exact.numerator), math.isqrt(exact.denominator)
        if above**2 == exact.numerator and below**2 == exact.denominator:
            return Fraction(above, below)
    return math.sqrt(value)


def whole(function: Callable[..., int], most: int) -> Callable[..., int]:
    """`function` of whole numbers up to `most`."""

    def run(*values: Number) -> int:
        for value in values:
            if not isinstance(value, int) or not 0 <= value <= most:
                raise Unanswerable(f"expected whole numbers from 0 to {most}")
        return function(*values)

    return run


def rounded(value: Number, digits: Number = 0) -> Number:
    """To the nearest; a half goes up, as people are taught."""
    if not isinstance(digits, int) or abs(digits) > 50:
        raise Unanswerable("digits must be a whole number of at most 50")
    scale = Fraction(10) ** digits
    return Fraction(math.floor(Fraction(value) * scale + Fraction(1, 2))) / scale


def divided(left: Number, right: Number) -> Number:
    """Exact where both are."""
    if isinstance(left, float) or isinstance(right, float):
        return float(left) / float(right)
    return Fraction(left) / Fraction(right)


BINARY: Mapping[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: divided,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: power,
}
UNARY: Mapping[type, Callable[[Any], Any]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}
FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "abs": abs,
    "acos": math.acos,
    "asin": math.asin,
    "atan": math.atan,
    "average": lambda *values: divided(sum(values), len(values)),
    "ceil": math.ceil,
    "comb": whole(math.comb, 5000),
    "cos": math.cos,
    "degrees": math.degrees,
    "exp": math.exp,
    "factorial": whole(math.factorial, 900),
    "floor": math.floor,
    "gcd": whole(math.gcd, 10**18),
    "lcm": whole(math.lcm, 10**18),
    "ln": math.log,
    "log": math.log10,
    "log10": math.log10,
    "log2": math.log2,
    "max": max,
    "min": min,
    "radians": math.radians,
    "round": rounded,
    "sin": math.sin,
    "sqrt": root,
    "sum": lambda *values: sum(values),
    "tan": math.tan,
}
CONSTANTS: Mapping[str, float] = {"pi": math.pi, "e": math.e, "tau": math.tau}


def read(expression: str) -> str:
    """As Python reads it. Raises: Unanswerable: too long."""
    if len(expression) > MAX_CHARACTERS:
        raise Unanswerable(
            f"an expression of {len(expression)} characters; at most {MAX_CHARACTERS} are read"
        )
    text = expression.strip().rstrip("=?").strip()
    for spelled, meant in SPELLED:
        text = re.sub(spelled, meant, text)
    if not CALL.search(text):  # where a comma stands between arguments
        text = THOUSANDS.sub(lambda found: found[0].replace(",", ""), text)
    text = PERCENT_OF.sub(r"(\1/100)*", text)
    return PERCENT.sub(r"(\1/100)", text)


def evaluate(expression: str) -> Number:
    """The value of an expression.

    Raises:
        Unanswerable: what is no expression of numbers, or too large; says what is expected.
    """
    text = read(expression)
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise Unanswerable(
            f"{expression[:80]!r} is no expression; expected for example (3 + 4) * 2.5"
        ) from None
    if sum(1 for _ in ast.walk(tree)) > MAX_NODES:
        raise Unanswerable(f"more than {MAX_NODES} parts; ask for it in smaller steps")
    try:
        return value_of(tree.body, text)
    except ZeroDivisionError:
        raise Unanswerable("a division by zero") from None
    except OverflowError:
        raise Unanswerable("a number that is too large") from None
    except (TypeError, ValueError) as error:
        raise Unanswerable(f"not defined there ({error})"[:200]) from None


def value_of(node: ast.expr, text: str) -> Number:
    """The value of a part."""
    match node:
        case ast.Constant(value=int() | float()) if not isinstance(node.value, bool):
            # a decimal as it is written, not as a machine rounds it
            return bounded(literal(ast.get_source_segment(text, node) or ""))
        case ast.BinOp() if type(node.op) in BINARY:
            left, right = value_of(node.left, text), value_of(node.right, text)
            return bounded(BINARY[type(node.op)](left, right))
        case ast.UnaryOp() if type(node.op) in UNARY:
            return bounded(UNARY[type(node.op)](value_of(node.operand, text)))
        case ast.Name() if node.id.lower() in CONSTANTS:
            return CONSTANTS[node.id.lower()]
        case ast.Call(func=ast.Name(id=name), keywords=[]) if name.lower() in FUNCTIONS:
            return bounded(FUNCTIONS[name.lower()](*values_of(node.args, text)))
    raise Unanswerable(
        f"{(ast.get_source_segment(text, node) or text)[:60]!r} is not computed here; there are "
        f"+ - * / // % ^, {', '.join(FUNCTIONS)}, {', '.join(CONSTANTS)}"
    )


def values_of(nodes: Sequence[ast.expr], text: str) -> list[Number]:
    """The values of a function's arguments."""
    return [value_of(node, text) for node in nodes]


def literal(written: str) -> Number:
    """A number as it is written."""
    if written[:2].lower() in ("0x", "0o", "0b"):
        return int(written, 0)
    mantissa, _, exponent = written.lower().partition("e")
    if exponent and abs(int(exponent)) > MAX_BITS // 4:
        raise Unanswerable(f"{written[:40]} is too large or too small")
    return Fraction(mantissa.replace("_", "")) * Fraction(10) ** int(exponent or 0)


def shown(value: Number) -> str:
    """A value in words: exact where it is, and about how much where that helps."""
    if isinstance(value, float):
        return f"about {value:.12g}"
    exact = Fraction(value)
    if exact.denominator == 1:
        text = str(exact.numerator)
        if len(text) <= PLAIN_DIGITS:
            return text
        return f"{text} (about {scientific(exact)}, {len(text.lstrip('-'))} digits)"
    if decimal := terminating(exact):
        return decimal
    return f"{exact.numerator}/{exact.denominator} (about {scientific(exact)})"


def scientific(value: Fraction) -> str:
    """Twelve digits, also of what no float holds."""
    if value and not 1e-300 < abs(value) < 1e300:
        exponent = len(str(abs(value.numerator))) - len(str(value.denominator))
        return f"{float(value / Fraction(10) ** exponent):.12g}e{exponent:+d}"
    return f"{float(value):.12g}"


def terminating(value: Fraction) -> str:
    """A decimal of at most 30 places, or nothing where it never ends."""
    for places in range(1, 31):
        scaled = value * 10**places
        if scaled.denominator == 1:
            sign, digits = "-" if scaled < 0 else "", str(abs(scaled.numerator)).zfill(places + 1)
            return f"{sign}{digits[:-places]}.{digits[-places:]}"
    return ""
