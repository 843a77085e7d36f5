"""The coordinator's side of the ceremony that makes a joint key: it brings cards, openings and
parts from each to all.

Knows who must be asked for what. Knows no secret: what passes here is public, or sealed for one
member.
Always: what can be checked without a key is checked before it is passed on, so that one bad message
costs its sender its place and not everybody's ceremony; whoever falls silent is left out of the
next try; every try starts from fresh keys.
"""

from collections.abc import Callable, Iterator, Mapping

from ....core import log
from ....core.errors import CryptoError, MessageError, RoundAborted
from ....crypto.experimental.threshold import (
    REHEARSAL,
    ThresholdPlan,
    check_card,
    check_opening,
    letter,
    request,
)
from ...spec.policy import Policy
from ...wire.messages import Reply, RoundId
from .. import parts
from .dkg_client import CARD, COMMIT, FINISH, LETTER, NAMES, NUMBER, PART, REQUEST, REVEAL, SETTLE
from .key_group import KeyGroup, needed

logger = log.get("federation.dkg")
Ask = Callable[[str, Mapping[str, bytes], RoundId, float], Iterator[Reply]]
Check = Callable[[str, bytes], None]
# ceremonies in one attempt of a round, each without those who fell silent in the one before
TRIES = 3


class _SilenceError(Exception):
    """Not everybody answered as they should; these did."""

    def __init__(self, stage: str, answered: Mapping[str, bytes]) -> None:
        super().__init__(stage)
        self.stage, self.answered = stage, tuple(sorted(answered))


class DkgServer:
    """One attempt's ceremony. Args: ask: as `KeyAndStateSetup`; size: values of the adapter."""

    def __init__(self, policy: Policy, round_id: RoundId, ask: Ask, size: int) -> None:
        self.policy, self.round_id, self.ask, self.size = policy, round_id, ask, size

    def form(self, names: tuple[str, ...]) -> dict[str, bytes]:
        """Let `names` make a joint key; what they greet with afterwards, by name.

        Raises:
            RoundAborted: too few of them stayed to the end.
        """
        for number in range(TRIES):
            if len(names) < needed(self.policy, len(names)):
                break
            key_group = KeyGroup.at(self.round_id, number, names)
            try:
                plan = key_group.plan(self.policy, self.size)
            except MessageError as error:
                raise RoundAborted(str(error)) from error
            try:
                return self.hold(key_group, plan, number)
            except _SilenceError as silence:
                missing = sorted(set(names) - set(silence.answered))
                logger.warning(
                    "no joint key: %s did not answer stage %s", ", ".join(missing), silence.stage
                )
                names = silence.answered
        raise RoundAborted(
            f"{len(names)} members are left to make a joint key, need "
            f"{needed(self.policy, len(names))}; start the others"
        )

    def hold(self, key_group: KeyGroup, plan: ThresholdPlan, number: int) -> dict[str, bytes]:
        """One ceremony; raises _SilenceError unless everybody answers until the rehearsal."""
        asked = parts.join({NUMBER: bytes([number]), NAMES: key_group.encode()})
        cards = self.bring(
            COMMIT,
            dict.fromkeys(key_group.names, asked),
            lambda name, card: check_card(plan, name, card),
        )
        shown = parts.join({CARD + name: card for name, card in cards.items()})
        openings = self.bring(
            REVEAL,
            dict.fromkeys(key_group.names, shown),
            lambda name, opening: check_opening(plan, cards, name, opening),
        )
        # other responders, should these not do
        start = (self.round_id.attempt + number) % len(key_group.names)
        responders = tuple(
            sorted((*key_group.names, *key_group.names)[start : start + plan.threshold])
        )
        rehearsal = request(plan, REHEARSAL, responders, key_group.names)
        letters = {}
        for name in key_group.names:
            mine = {
                LETTER + sender: letter(plan, opening, name) for sender, opening in openings.items()
            }
            letters[name] = parts.join({REQUEST: rehearsal, **mine})
        answers = self.bring(FINISH, letters, lambda name, part: None)
        heard = parts.join({PART + name: answers[name] for name in responders})
        return self.collect(SETTLE, dict.fromkeys(key_group.names, heard), lambda name, hello: None)

    def bring(self, stage: str, payloads: Mapping[str, bytes], check: Check) -> dict[str, bytes]:
        """Everybody's answers. Raises _SilenceError if one is missing or does not pass `check`."""
        answers = self.collect(stage, payloads, check)
        if set(answers) != set(payloads):
            raise _SilenceError(stage, answers)
        return answers

    def collect(self, stage: str, payloads: Mapping[str, bytes], check: Check) -> dict[str, bytes]:
        """The answers that come and pass `check`."""
        answers = {}
        for reply in self.ask(stage, payloads, self.round_id, self.policy.recipe.stage_timeout_s):
            try:
                check(reply.sender, reply.payload)
            except CryptoError as error:
                logger.warning("%s in stage %s: %s", reply.sender, stage, error)
            else:
                answers[reply.sender] = reply.payload
        return answers
