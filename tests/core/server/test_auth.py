"""Only the owner is let in."""

from pathlib import Path

import pytest

from quietchoir.core.errors import ConfigError
from quietchoir.core.server.auth import (
    TOKEN_FILE,
    AccessDenied,
    check_host,
    check_origin,
    check_token,
    load_token,
)

NAMES = {"localhost", "my-machine"}


def test_the_token_is_made_once_and_readable_by_its_owner_alone(tmp_path: Path) -> None:
    home = tmp_path / "home"
    token = load_token(home)
    assert len(token) >= 40 and load_token(home) == token
    assert (home / TOKEN_FILE).stat().st_mode & 0o777 == 0o600
    assert home.stat().st_mode & 0o777 == 0o700
    assert load_token(tmp_path / "other") != token


def test_a_token_that_others_can_read_is_refused(tmp_path: Path) -> None:
    load_token(tmp_path)
    (tmp_path / TOKEN_FILE).chmod(0o640)
    with pytest.raises(ConfigError, match="others on this machine"):
        load_token(tmp_path)


def test_an_empty_token_file_lets_nobody_in(tmp_path: Path) -> None:
    load_token(tmp_path)
    (tmp_path / TOKEN_FILE).write_text("\n")
    with pytest.raises(ConfigError, match="holds 0 characters"):
        load_token(tmp_path)


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:8765", "127.0.0.1:1", "[::1]:8765", "192.168.0.7", "my-machine:80"],
)
def test_addresses_and_own_names_are_this_node(host: str) -> None:
    check_host(host, NAMES)


@pytest.mark.parametrize(
    "host",
    [
        "",
        "evil.example",
        "evil.example:8765",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "localhost@evil",
        "a b",
        "[::1",
    ],
)
def test_a_name_pointed_at_this_machine_is_refused(host: str) -> None:
    with pytest.raises(AccessDenied) as refusal:
        check_host(host, NAMES)
    assert refusal.value.status == 403


def test_only_the_nodes_own_page_may_ask() -> None:
    check_origin(None, "localhost:1")
    check_origin("http://localhost:1", "localhost:1")
    for origin in (
        "null",
        "http://evil.example",
        "http://localhost:2",
        "http://localhost:1.evil.example",
        "",
    ):
        with pytest.raises(AccessDenied):
            check_origin(origin, "localhost:1")


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        "Bearer secreT",
        "Basic secret",
        "secret",
        "Bearer secret2",
        "Bearer é",
    ],
)
def test_any_other_token_is_refused(header: str) -> None:
    check_token("Bearer secret", "secret")
    check_token("bearer secret", "secret")
    with pytest.raises(AccessDenied) as refusal:
        check_token(header, "secret")
    assert refusal.value.status == 401 and "secret" not in str(refusal.value)
