"""What every client is asked to do."""

import os

BASE, TOKEN = os.environ["NODE_URL"].rstrip("/"), os.environ["NODE_TOKEN"]
QUESTION = "What is the weather?"
WEATHER = "Tells the weather of a city"
CITY = "Bern"
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "degrees": {"type": "integer"}},
    "required": ["city", "degrees"],
    "additionalProperties": False,
}


def weather(city: str) -> str:
    """What the tool brings."""
    return f"seven degrees in {city}"
