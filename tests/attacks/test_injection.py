"""Text of others makes a model that obeys everything act only where our checks are off."""

import asyncio

from quietchoir.core.config import ToolsConfig
from quietchoir.simulations.attacks import injection
from quietchoir.tests.compat.templates import MANNERS, ours_of


def test_no_injection_acts_without_a_yes_and_each_does_without_our_checks() -> None:
    found = injection.run(ours_of(MANNERS["chatml"], "byte-level"))
    assert found["tried"] >= 60 and len(found["ways"]) == 6
    assert (found["acted"], found["acted_by"]) == (0, [])
    assert found["acted_unprotected"] == found["tried"]


def test_what_is_counted_can_happen() -> None:
    """A model that words a pasted mail anew, with an owner who asks for no questions: it acts."""
    tokenizer = ours_of(MANNERS["chatml"], "byte-level")
    lax = ToolsConfig(write="allow", outside="allow", approval_timeout_s=0.001)
    mail = [one for one in injection.attempts() if one.channel == "a pasted mail" and one.altered]
    assert mail and all(asyncio.run(injection.acts(tokenizer, one, lax)) for one in mail)
