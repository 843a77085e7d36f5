"""hansel/roman: Roman numerals, to and fro. Written as a stranger would, for the seed registry."""

from quietchoir_sdk import ToolFailure, serve, tool

VALUES = [1000, 900, 500, 400, 100, 90, 50, 40, 10, 9, 5, 4, 1]
LETTERS = ["M", "CM", "D", "CD", "C", "XC", "L", "XL", "X", "IX", "V", "IV", "I"]


@tool(read_only=True)
def to_roman(number: int) -> str:
    "Write a number from 1 to 3999 in Roman numerals."
    if not 1 <= number <= 3999:
        raise ToolFailure(f"{number} has no Roman numeral; 1 to 3999 have one")
    written = ""
    for value, letters in zip(VALUES, LETTERS, strict=True):
        count, number = divmod(number, value)
        written += letters * count
    return written


@tool(read_only=True)
def from_roman(numeral: str) -> str:
    "Read a Roman numeral."
    rest, number = numeral.strip().upper(), 0
    for value, letters in zip(VALUES, LETTERS, strict=True):
        while rest.startswith(letters):
            rest, number = rest[len(letters) :], number + value
    if rest or to_roman(number) != numeral.strip().upper():
        raise ToolFailure(f"{numeral!r} is no Roman numeral")
    return str(number)


serve("hansel/roman", "1.0.0")
