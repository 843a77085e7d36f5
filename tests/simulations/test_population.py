"""A pool becomes parties as the scenario says, every example at one of them; whatever file it
came from.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quietchoir.core.errors import ConfigError, DataError
from quietchoir.simulations.population import PartyData, data_digest, label_of, populate
from quietchoir.simulations.scenario import Population, Scenario

LABELS = ("buy", "sell", "hold", "ask")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four hundred texts of four classes, by twenty people."""
    path = tmp_path_factory.mktemp("pool") / "texts.csv"
    rows = [f'"number {n}, please {LABELS[n % 4]}",{LABELS[n % 4]},{n % 20}' for n in range(400)]
    path.write_text("\n".join(["text,label,who", *rows]) + "\n")
    return path


def people_of(file: Path, **population: Any) -> list[PartyData]:
    return populate(
        Scenario(name="own", population=Population(kind="file", file=file, **population))
    )


def labels(person: PartyData) -> Counter[str]:
    return Counter(label_of(one) for one in (*person.train, *person.test))


def requests(people: list[PartyData]) -> list[str]:
    return sorted(one.request for person in people for one in (*person.train, *person.test))


@pytest.mark.parametrize(
    "how",
    [
        {"partition": "iid", "parties": 7},
        {"partition": "dirichlet", "parties": 7, "alpha": 0.1},
        {"partition": "quantity", "parties": 7, "alpha": 0.3},
        {"partition": "labels", "parties": 4},
        {"partition": "key", "key": "who"},
    ],
    ids=lambda how: str(how["partition"]),
)
def test_every_example_is_at_one_party_and_every_party_has_some(
    how: dict[str, Any], table: Path
) -> None:
    people = people_of(table, **how)
    assert requests(people) == sorted(f"number {n}, please {LABELS[n % 4]}" for n in range(400))
    assert all(person.train for person in people)
    assert people == people_of(table, **how)  # the same scenario, the same parties
    assert sum(len(person.test) for person in people) == 80


def test_partitions_differ_in_what_their_names_say(table: Path) -> None:
    even = people_of(table, partition="iid", parties=10)
    assert {len(person.train) for person in even} == {32}
    skewed = people_of(table, partition="dirichlet", parties=10, alpha=0.1)
    most = [max(labels(one).values()) / sum(labels(one).values()) for one in (*even, *skewed)]
    assert np.mean(most[10:]) > np.mean(most[:10]) + 0.2
    uneven = [
        len(one.train) for one in people_of(table, partition="quantity", parties=10, alpha=0.3)
    ]
    assert max(uneven) > 4 * (min(uneven) + 1)
    alone = people_of(table, partition="labels", parties=4)
    assert sorted(tuple(labels(one)) for one in alone) == sorted((name,) for name in LABELS)
    keyed = people_of(table, partition="key", key="who")
    assert len(keyed) == 20 and all(sum(labels(one).values()) == 20 for one in keyed)


def test_a_chat_file_is_a_pool_too_and_a_call_is_labelled_by_its_tool(tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    calls = ['{"name": "on", "arguments": {}}', '{"name": "off", "arguments": {"at": 7}}']
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"please {number}"},
                {"role": "assistant", "content": calls[number % 2]},
            ],
            "owner": number % 3,
        }
        for number in range(60)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert [dict(labels(one)) for one in people_of(path, partition="key", key="owner")] == [
        {"on": 10, "off": 10}
    ] * 3
    with pytest.raises(
        DataError, match=r"60 rows have no text or whole number under 'who' \(lines"
    ):
        people_of(path, partition="key", key="who")


@pytest.mark.parametrize(
    ("content", "how", "found"),
    [
        ("a,b\n1,2\n", {}, "no column 'text', 'label'; there are a, b: name them by"),
        ("text,label\nx,\ny,z\n", {}, r"1 rows have an empty cell .* \(lines 2\)"),
        ("text,label\nx,y\n", {}, "1 examples; at least two are needed"),
        ('text,label\n"x,y\n', {}, "line 1 is no CSV: unexpected end"),
        ("text,label\na,x\nb,y\nc,x\nd,y\n", {"partition": "labels", "parties": 3}, "2 labels"),
        ("text,label\na,x\nb,y\nc,x\n", {"parties": 9}, "2 examples to train on for 9 parties"),
        (b"text,label\n\xff,x\n", {}, "not UTF-8 at byte 11"),
    ],
)
def test_a_table_that_cannot_be_dealt_is_refused_with_its_place(
    tmp_path: Path, content: str | bytes, how: dict[str, Any], found: str
) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises((ConfigError, DataError), match=found):
        people_of(path, **{"partition": "iid", "parties": 2, **how})


def test_a_table_as_excel_writes_it_where_numbers_have_commas_is_read(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    rows = [f'"say {n}, please; now";class{n % 2}' for n in range(10)]
    path.write_bytes("\r\n".join(["text;label", *rows]).encode("utf-8-sig"))
    found = requests(people_of(path, partition="iid", parties=2))
    assert found == [f"say {n}, please; now" for n in range(10)]


def test_other_columns_can_be_named_and_another_content_is_another_digest(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    path.write_text("utterance\tintent\n" + "".join(f"say {n}\tclass{n % 2}\n" for n in range(10)))
    population = Population(
        kind="file", file=path, text="utterance", label="intent", partition="iid", parties=2
    )
    assert len(requests(populate(Scenario(name="own", population=population)))) == 10
    before = data_digest(population)
    path.write_text(path.read_text() + "say more\tclass1\n")
    assert data_digest(population) != before and before
