"""What was told stays counted."""

import json

import pytest

from quietchoir.core.errors import (
    AuthenticationError,
    BudgetError,
    ConfigError,
    MessageError,
    QuietchoirError,
)
from quietchoir.crypto.identity.keys import Identity
from quietchoir.private_search.budget import QueryBudget
from quietchoir.private_search.messages import RequestKind

ANN, BOB, EVE = (Identity.generate().public for _ in range(3))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "budget.json"


def test_each_kind_has_its_limit_and_a_restart_forgets_nothing(path):
    budget = QueryBudget(path, limit=2)
    budget.charge(ANN, RequestKind.QUESTION, 1)
    budget.charge(ANN, RequestKind.CHOICE, 2)
    budget = QueryBudget(path, limit=2)
    assert (budget.left(ANN, RequestKind.QUESTION), budget.left(ANN, RequestKind.KEYS)) == (1, 2)
    budget.charge(ANN, RequestKind.QUESTION, 3)
    before = path.read_bytes()
    for again in (budget, QueryBudget(path, limit=2)):
        with pytest.raises(BudgetError, match="used up"):
            again.charge(ANN, RequestKind.QUESTION, 4)
    assert path.read_bytes() == before


def test_strangers_share_one_account_so_that_new_identities_win_nothing(path):
    budget = QueryBudget(path, limit=2, listed=frozenset({ANN.raw.hex()}))
    budget.charge(BOB, RequestKind.QUESTION, 1)
    budget.charge(EVE, RequestKind.QUESTION, 1)
    with pytest.raises(BudgetError):
        budget.charge(Identity.generate().public, RequestKind.QUESTION, 1)
    budget.charge(ANN, RequestKind.QUESTION, 1)
    assert budget.left(ANN, RequestKind.QUESTION) == 1


def test_where_strangers_get_nothing_those_listed_are_answered_alone(path):
    budget = QueryBudget(path, limit=2, listed=frozenset({ANN.raw.hex()}), strangers=False)
    with pytest.raises(AuthenticationError, match="library key"):
        budget.charge(BOB, RequestKind.KEYS, 1)
    assert not path.exists()
    budget.charge(ANN, RequestKind.KEYS, 1)
    assert budget.left(ANN, RequestKind.KEYS) == 1


def test_a_replay_is_refused_also_after_a_restart_and_changes_nothing(path):
    QueryBudget(path, limit=5).charge(ANN, RequestKind.QUESTION, 7)
    before = path.read_bytes()
    for sequence in (7, 6, 0):
        with pytest.raises(MessageError, match="sent before"):
            QueryBudget(path, limit=5).charge(ANN, RequestKind.CHOICE, sequence)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{",
        b'{"spent": {"a": {"QUESTION": -1}}, "last": {}}',
        b'{"spent": {"a": {"X": 1}}, "last": {}}',
    ],
)
def test_a_damaged_budget_closes_the_library(path, content):
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="delete it"):
        QueryBudget(path, limit=5)


def test_what_cannot_be_written_is_not_granted(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("x")
    budget = QueryBudget(tmp_path / "new" / "budget.json", limit=5)
    (tmp_path / "new").write_text("a file where the folder would be")
    with pytest.raises(QuietchoirError):
        budget.charge(ANN, RequestKind.QUESTION, 1)
    assert budget.left(ANN, RequestKind.QUESTION) == 5


def test_the_file_holds_counts_and_public_keys_only(path):
    QueryBudget(path, limit=5).charge(ANN, RequestKind.QUESTION, 7)
    assert json.loads(path.read_bytes()) == {
        "spent": {"strangers": {"QUESTION": 1}},
        "last": {ANN.raw.hex(): 7},
    }
    assert path.stat().st_mode & 0o077 == 0
