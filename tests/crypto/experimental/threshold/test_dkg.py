"""Making a joint key, and messages that are not what they should be."""

import numpy as np
import pytest

from quietchoir.core.errors import AuthenticationError, ProtocolError
from quietchoir.crypto.experimental.threshold import Ceremony, Gathering
from quietchoir.tests.fakes.threshold import Circle, letters


def test_a_ceremony_needs_everybody_and_runs_in_order():
    circle = Circle(3, 2)
    ceremonies = circle.begin(attempt=1)
    me = ceremonies[circle.names[0]]
    with pytest.raises(RuntimeError):
        me.open({})
    cards = {name: each.commit() for name, each in ceremonies.items()}
    with pytest.raises(RuntimeError):
        me.commit()
    # of another attempt
    old = {name: card for name, card in circle.cards.items() if name != circle.names[0]}
    bent = bytes([cards[circle.names[1]][0] ^ 1]) + cards[circle.names[1]][1:]
    for bad, error in (
        (dict(list(cards.items())[:2]), ProtocolError),
        ({**cards, "stranger": cards[circle.names[1]]}, ProtocolError),
        ({**cards, circle.names[1]: b"short"}, ProtocolError),
        ({**cards, circle.names[0]: cards[circle.names[1]]}, ProtocolError),
        ({**cards, **old}, AuthenticationError),
        ({**cards, circle.names[1]: bent}, AuthenticationError),
    ):
        with pytest.raises(error):
            me.open(bad)
        with pytest.raises(RuntimeError):
            me.finish({})
    openings = {name: each.open(cards) for name, each in ceremonies.items()}
    mine = letters(me, openings)
    true = mine[circle.names[1]]
    size = len(true)
    changed = [
        true[:at] + bytes([true[at] ^ 1]) + true[at + 1 :] for at in (5, 5000, size - 70, size - 1)
    ]
    # its box is for another
    theirs = letters(ceremonies[circle.names[2]], openings)[circle.names[1]]
    for wrong, refusal in (
        (dict(list(mine.items())[:2]), ProtocolError),
        ({**mine, circle.names[0]: true}, ProtocolError),
        ({**mine, circle.names[1]: true + b"\0"}, ProtocolError),
        *(({**mine, circle.names[1]: each}, AuthenticationError) for each in (*changed, theirs)),
        (
            {**mine, circle.names[1]: letters(me, circle.openings)[circle.names[1]]},
            AuthenticationError,
        ),
    ):
        with pytest.raises(refusal):
            me.finish(wrong)
    with pytest.raises(ProtocolError, match="opening of 5 bytes"):
        letters(me, {circle.names[1]: b"short"})
    holdings = [each.finish(letters(each, openings)) for each in ceremonies.values()]
    assert (
        len({key_share.key_id for key_share in holdings}) == 1
        and holdings[0].key_id != circle.any.key_id
    )
    assert len({key_share.readers for key_share in holdings}) == 1
    with pytest.raises(RuntimeError):
        me.finish(mine)
    with pytest.raises(ProtocolError, match="another identity"):
        Ceremony(circle.plan, circle.names[0], circle.identities[circle.names[1]])


@pytest.mark.parametrize("kind", ["part", "contribution", "opening"])
def test_changed_messages_are_refused_with_typed_errors_and_change_nothing(kind, fuzzed):
    circle, gathering, parts, ceremonies, openings = fuzzed
    rng, names = np.random.default_rng(len(kind)), circle.names
    fresh, reading = (
        Gathering(circle.plan, circle.any.key_id, 5),
        circle.reader(gathering, names[:2]),
    )
    if kind == "part":
        true, take = parts[names[0]], lambda message: reading.receive(names[0], message)
    elif kind == "contribution":
        true, take = (
            circle.contribute(names[0], 5),
            lambda message: fresh.receive(names[0], message),
        )
    else:
        true, take = (
            openings[names[0]],
            lambda message: ceremonies[names[1]].finish({**openings, names[0]: message}),
        )
    before = reading.missing, fresh.total, fresh.contributors
    for _ in range(40):
        bad = bytearray(true)
        for at in rng.integers(0, len(bad) if rng.integers(2) else 120, rng.integers(1, 4)):
            bad[at] ^= 1 << int(rng.integers(8))
        if rng.integers(4) == 0:
            bad = (
                bad[: rng.integers(len(bad))]
                if rng.integers(2)
                else bad + bytes(rng.integers(1, 90))
            )
        if bytes(bad) != true:
            with pytest.raises((ProtocolError, AuthenticationError)):
                take(bytes(bad))
    assert (reading.missing, fresh.total, fresh.contributors) == before
    take(true)


@pytest.fixture(scope="module")
def fuzzed():
    circle = Circle(3, 2)
    gathering = circle.gather(4)
    asked = gathering.request(circle.names[:2])
    parts = {name: circle.holders[name].respond(asked) for name in circle.names[:2]}
    ceremonies = circle.begin(attempt=2)
    cards = {name: each.commit() for name, each in ceremonies.items()}
    openings = {name: each.open(cards) for name, each in ceremonies.items()}
    return circle, gathering, parts, ceremonies, letters(ceremonies[circle.names[1]], openings)
