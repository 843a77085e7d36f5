"""An adapter is sure only as far as it was right on held-out examples."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quietchoir.core.assistant.assistant import Assistant
from quietchoir.core.assistant.calibration import (
    FEWEST,
    FILE,
    MEASURED,
    Calibration,
    Calibrations,
    WeighedCall,
    Wording,
    calibrate,
    fingerprint,
    lower_bound,
    weigh,
)
from quietchoir.core.assistant.context import Message
from quietchoir.core.assistant.tools import ToolInfo
from quietchoir.core.errors import DataError
from quietchoir.core.prompt import HOUSEHOLD
from quietchoir.core.toolcall import ToolCall, render
from quietchoir.tests.fakes.server import FakeTools, WordTokenizer, engine_saying

LIGHT = ToolCall("HassTurnOn", {"name": "lamp"})
NEAR = ToolCall("HassTurnOn", {"name": "Lamp"})  # nearly right is wrong
ASKED = [Message("user", "lamp on")]


TOOL = ToolInfo("HassTurnOn", "Turns a device on", {"type": "object"})
TOOLS = {TOOL.name: TOOL}


def rows(*groups: tuple[float, int, int]) -> list[WeighedCall]:
    """Groups of (probability, right ones, wrong ones); no word is left out or put in."""
    return [
        WeighedCall(("lamp",), (LIGHT if right else NEAR,), (LIGHT,), probability)
        for probability, good, bad in groups
        for right in [True] * good + [False] * bad
    ]


def test_the_lowest_threshold_above_which_calls_are_right_is_found() -> None:
    found = calibrate(rows((0.99, 60, 0), (0.9, 40, 1), (0.5, 20, 30)), TOOLS, model="m")
    assert (found.threshold, found.examples, found.model) == (0.9, 151, "m")
    assert found.precision == pytest.approx(100 / 101)
    assert found.coverage == pytest.approx(101 / 151)
    assert found.tools == (fingerprint(TOOL),)


def test_too_few_or_too_many_wrong_calls_make_nobody_sure() -> None:
    for weighed in ([], rows((0.9, FEWEST, 0)), rows((0.9, 50, 50)), rows((0.9, 100, 6))):
        assert calibrate(weighed, TOOLS).threshold is None
    silent = WeighedCall(("lamp",), (), (), 0.0)
    assert calibrate([silent] * 100, TOOLS).threshold is None
    assert calibrate(rows((0.9, 40, 0)), TOOLS).threshold == 0.9


def test_equal_probabilities_are_never_told_apart() -> None:
    assert calibrate(rows((0.9, 100, 0), (0.9, 0, 100)), TOOLS).threshold is None


@given(st.lists(st.tuples(st.sampled_from([0.1, 0.5, 0.9]), st.booleans())))
def test_what_is_promised_holds_on_the_examples_themselves(seen: list[tuple[float, bool]]) -> None:
    weighed = rows(*((probability, int(right), int(not right)) for probability, right in seen))
    found = calibrate(weighed, TOOLS)
    if found.threshold is not None:
        sure = [one for one in weighed if one.probability >= found.threshold]
        assert len(sure) >= FEWEST and sum(one.right for one in sure) / len(sure) >= 0.95


def home(text: str, **arguments: str) -> tuple[str, ToolCall]:
    return text, ToolCall("HassTurnOn", arguments)


def learned() -> Calibration:
    """From requests of which each word and each unsaid argument is told by two at least."""
    said = [home(f"turn on the {room} light", area=room, domain="light") for room in ROOMS]
    said += [home(f"turn on the {room}", area=room, domain="light") for room in ROOMS]
    weighed = [WeighedCall((text,), (call,), (call,), 0.9) for text, call in said]
    return calibrate(weighed, TOOLS)


ROOMS = [f"room{number}" for number in range(40)]


@pytest.mark.parametrize(
    ("text", "arguments", "sure"),
    [
        ("turn on the attic light", {"area": "attic", "domain": "light"}, True),
        ("turn on the attic", {"area": "attic", "domain": "light"}, True),
        ("Turn ON the attic light!", {"area": "Attic", "domain": "light"}, True),
        # the room was dropped: the whole house would be lit
        ("turn on the attic light", {"domain": "light"}, False),
        # a word that no right call left out
        ("turn on the attic light tomorrow", {"area": "attic", "domain": "light"}, False),
        # what nobody said, and what is never left unsaid so
        ("turn on the attic light", {"area": "attic", "domain": "siren"}, False),
        ("turn on the attic light", {"area": "cellar", "domain": "light"}, False),
        # what no right call of the tool has
        ("turn on the attic light", {"name": "attic", "domain": "light"}, False),
    ],
)
def test_a_likely_call_that_drops_or_invents_a_word_is_not_sure(
    text: str, arguments: dict[str, str], sure: bool
) -> None:
    call = ToolCall("HassTurnOn", arguments)
    assert learned().sure(0.95, [text], [call], TOOL) is sure
    assert not learned().sure(0.85, [text], [call], TOOL)
    assert not learned().sure(float("nan"), [text], [call], TOOL)


def test_a_second_request_may_leave_to_the_first_what_it_means() -> None:
    told = Wording(unsaid=("and", "the"), arguments=("area", "brightness"))
    known = replace(learned(), wordings={"HassTurnOn": told})
    call = ToolCall("HassTurnOn", {"area": "cellar", "brightness": 40.0})
    before = "turn on the attic light at 40"
    assert known.sure(0.95, [before, "and the cellar"], [call], TOOL)
    assert not known.sure(0.95, ["and the cellar"], [call], TOOL)


def test_what_is_left_unsaid_beside_one_tool_is_not_beside_another() -> None:
    up = ToolCall("VolumeUp", {"step": 35})
    to = [ToolCall("Volume", {"level": number}) for number in range(40)]
    said = [f"turn it up to {number}" for number in range(40)]
    weighed = [
        WeighedCall((text,), (call,), (call,), 0.9) for text, call in zip(said, to, strict=True)
    ]
    steps = [ToolCall("VolumeUp", {"step": number}) for number in range(40)]
    weighed += [
        WeighedCall((f"turn it up by {number}",), (call,), (call,), 0.9)
        for number, call in enumerate(steps)
    ]
    tools = {name: ToolInfo(name, "") for name in ("Volume", "VolumeUp")}
    known = calibrate(weighed, tools)
    assert known.sure(0.9, ["turn it up by 35"], [up], tools["VolumeUp"])
    assert not known.sure(0.9, ["turn it up to 35"], [up], tools["VolumeUp"])
    # two calls in one answer were never right
    assert not known.sure(0.9, ["turn it up by 35"], [up, up], tools["VolumeUp"])


def test_the_bound_of_a_share_is_wilsons() -> None:
    assert lower_bound(95, 100) == pytest.approx(0.9128, abs=2e-3)
    assert lower_bound(20, 20) == pytest.approx(20 / (20 + 1.28**2))


def test_only_tools_that_were_measured_are_sure_and_another_of_the_name_is_another() -> None:
    said = ["turn on the attic light"]
    call = ToolCall("HassTurnOn", {"area": "attic", "domain": "light"})
    assert learned().sure(0.95, said, [call], TOOL)
    for other in (
        replace(TOOL, name="format_disk"),
        replace(TOOL, effect="outside"),
        replace(TOOL, schema={"type": "object", "properties": {"area": {"type": "string"}}}),
    ):
        assert not learned().sure(0.95, said, [call], other)


def test_an_example_does_not_vouch_for_itself() -> None:
    """Each drops a word of its own: by the others' words none of them is whole."""
    weighed = [
        WeighedCall((f"lamp word{number}",), (LIGHT,), (LIGHT,), 0.9) for number in range(60)
    ]
    assert calibrate(weighed, TOOLS).threshold is None
    assert calibrate(weighed * 2, TOOLS).threshold == 0.9


async def test_calls_are_weighed_and_not_carried_out() -> None:
    tools = FakeTools(effect="write")
    engine = engine_saying([render(LIGHT)], ["no call"], [render(ToolCall("HassTurnOn"))])
    engine.logprob = math.log(0.5)
    assistant = Assistant(
        engine,
        WordTokenizer(),
        tools,
        context=1000,
        prompt_of=lambda _: HOUSEHOLD,
        calibration_of=lambda _: Calibration(),
        config=MEASURED,
    )
    found = await weigh(assistant, [(ASKED, [LIGHT])] * 3, "home")
    assert [(bool(one.calls), one.right) for one in found] == [
        (True, True),
        (False, False),
        (True, False),
    ]
    assert found[0].probability == pytest.approx(0.5) and found[1].probability == 0
    assert tools.calls == []


async def test_a_second_request_is_measured_behind_the_call_that_it_leans_on() -> None:
    """As the adapter serves it; a text that is no call is not shown to it."""
    engine, tokenizer = engine_saying([render(LIGHT)]), WordTokenizer()
    engine.logprob = math.log(0.5)
    assistant = Assistant(
        engine,
        tokenizer,
        FakeTools(effect="write"),
        context=1000,
        prompt_of=lambda _: HOUSEHOLD,
        calibration_of=lambda _: Calibration(),
        config=MEASURED,
    )
    shown = {}
    for before in (render(ToolCall("HassTurnOn", {"name": "fan"})), "Hello."):
        said = [
            Message("user", "fan on"),
            Message("assistant", before),
            Message("user", "lamp too"),
        ]
        [found] = await weigh(assistant, [(said, [LIGHT])], "home")
        assert found.right and found.said == ("fan on", "lamp too")
        shown[before] = [one["content"] for one in tokenizer.last_messages[1:]]
    assert [len(texts) for texts in shown.values()] == [3, 1]


def test_a_calibration_is_found_again_by_its_adapter_on_its_model_alone(tmp_path: Path) -> None:
    known = Calibrations(tmp_path, "m")
    assert known.find("a") is None and known.find(None) is None
    for adapter in "ab":
        (tmp_path / adapter).mkdir()
    found = replace(learned(), model="m", precision=0.96, coverage=0.5)
    known.put("a", found)
    known.put("b", Calibration(threshold=None, examples=50, model="m"))
    for again in (known, Calibrations(tmp_path, "m")):
        assert (again.find("a"), again.find("b"), again.find("c")) == (found, None, None)
        assert again.find(None) is None
    assert Calibrations(tmp_path, "another file of the model").find("a") is None
    assert (tmp_path / "a" / FILE).stat().st_mode & 0o777 == 0o600  # words of held-out examples
    otherwise = Calibrations(tmp_path, "m", lambda _: HOUSEHOLD)  # asked in another way
    assert otherwise.find("a") is None
    otherwise.put("a", replace(found, prompt=HOUSEHOLD))
    assert otherwise.find("a") is not None and Calibrations(tmp_path, "m").find("a") is None
    shutil.rmtree(tmp_path / "a")
    assert known.find("a") is None
    with pytest.raises(DataError, match="not here any more"):
        known.put("a", found)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    "damaged",
    [b"{", b"[1]", b'{"threshold": "low"}', b'{"threshold": NaN}', b"1", b"\xff", b'{"bar": 1}'],
)
def test_a_damaged_calibration_makes_nobody_sure(tmp_path: Path, damaged: bytes) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / FILE).write_bytes(damaged)
    known = Calibrations(tmp_path, "m")
    assert known.find("a") is None
    known.put("a", replace(learned(), model="m"))
    assert known.find("a") is not None  # and is mended by measuring again
