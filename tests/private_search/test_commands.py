"""`library serve | ask | key` as processes and as sentences."""

import argparse
import asyncio
import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from aiohttp import web

from quietchoir import backup
from quietchoir.core.errors import ConfigError, DataError, ModelNotFoundError, QuietchoirError
from quietchoir.crypto.identity.keys import Identity
from quietchoir.private_search import commands, host, known
from quietchoir.private_search.budget import QueryBudget
from quietchoir.private_search.client import Found, LibraryAddress, SearchAnswer, SearchCost
from quietchoir.private_search.index import Passage
from quietchoir.private_search.known import KnownLibraries
from quietchoir.tests.fakes.search import TEXTS, FakeEmbedder, fake_index

KEY = Identity.generate().public.raw.hex()
SERVE = """
import sys
from quietchoir.private_search import commands
from quietchoir.tests.fakes.search import FakeEmbedder
from quietchoir.tests.private_search.test_commands import parsed
try:
    commands.run_serve(parsed(*sys.argv[1:]), FakeEmbedder())
except KeyboardInterrupt:
    sys.exit(130)
"""


def parsed(*words: object) -> argparse.Namespace:
    top = argparse.ArgumentParser()
    commands.register(top.add_subparsers())
    return top.parse_args(["library", *map(str, words)])


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "texts"
    made.mkdir()
    for number, text in enumerate(TEXTS):
        kind = made / ("house" if number < 2 else "world")
        kind.mkdir(exist_ok=True)
        (kind / f"{number}.txt").write_text(text)
    return made


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("QUIETCHOIR_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("QUIETCHOIR_MODELS", raising=False)


def test_two_processes_one_private_question(folder, tmp_path, capsys):
    command = [
        sys.executable,
        "-W",
        "error",
        "-c",
        SERVE,
        "serve",
        folder,
        "--port",
        "0",
        "--max-queries",
        "3",
        "--classify",
        "--json",
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        ready = json.loads(child.stdout.readline())
        assert ready["passages"] == len(TEXTS)
        commands.run_ask(
            parsed("ask", ready["address"], "Which strings has a cello?", "--json"), FakeEmbedder()
        )
        libraries = KnownLibraries(FakeEmbedder)
        libraries.add("strings", ready["address"])
        commands.run_ask(
            parsed("ask", "strings", "Which strings has a cello?", "--explain"), FakeEmbedder()
        )
        (entry,) = libraries.entries()
        assert entry.questions == 1 and entry.bytes_up > 0 < entry.bytes_down
        words = "tomatoes want sun and water"
        commands.run_classify(parsed("classify", ready["address"], words, "--json"), FakeEmbedder())
        (entry,) = libraries.entries()
        assert (entry.questions, entry.texts) == (1, 1)
        commands.run_status(parsed("status", "strings", "--json"))
        with pytest.raises(Exception, match="used up"):
            commands.run_ask(parsed("ask", ready["address"], "A third one?"), FakeEmbedder())
        child.send_signal(signal.SIGINT)
        _, complaints = child.communicate(timeout=60)
    assert child.returncode == 130 and complaints == ""
    first, second = capsys.readouterr().out.split("\n", 1)
    labels, status = map(json.loads, second.splitlines()[-2:])
    assert [each["label"] for each in labels["labels"]] == ["house", "world"]
    assert labels["labels"][0]["score"] > labels["labels"][1]["score"]
    assert status["labels"] == ["house", "world"]
    assert status["passages"] == len(TEXTS) and status["questions"] == 3
    assert status["title"] == "texts" and status["break_even"] == 1
    answer = json.loads(first)
    assert answer["found"][0]["text"] == TEXTS[2] and answer["found"][0]["source"] == "world/2.txt"
    assert {"bytes_up", "bytes_down", "seconds", "passages"} < set(answer)
    assert TEXTS[2] in second and "ciphertext only" in second and "kB up" in second
    assert "cheaper from question 1 on" in second
    # what a question is said to cost is what it cost, but for heads, signatures and the manifest
    said = answer["session_bytes"] + answer["question_bytes"]
    assert 0 < answer["bytes_up"] + answer["bytes_down"] - said < 3000


def test_what_an_owner_can_mend_is_a_sentence(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no text"):
        commands.run_serve(parsed("serve", tmp_path / "empty"))
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(ConfigError, match="--port"),
    ):
        commands.run_serve(parsed("serve", folder, "--port", taken.getsockname()[1]))
    with pytest.raises(ConfigError, match="--port"):
        commands.run_serve(parsed("serve", folder, "--port", 70000))
    with pytest.raises(ConfigError, match="both or neither"):
        commands.run_serve(parsed("serve", folder, "--certificate", "x.pem"))
    with pytest.raises(ConfigError, match="fit"):
        commands.run_serve(
            parsed("serve", folder, "--certificate", "x.pem", "--private-key", "y.pem")
        )
    with pytest.raises(ConfigError, match="work out the embeddings"):
        commands.run_serve(
            parsed("serve", folder, "--port", 0, "--max-queries", 12), FakeEmbedder()
        )
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "a.txt").write_text("a text")
    with pytest.raises(DataError, match="one folder a label"):
        commands.run_serve(parsed("serve", tmp_path / "flat", "--classify"))
    with pytest.raises(ConfigError, match="answers nobody"):
        commands.run_serve(parsed("serve", folder, "--listed-only"))
    with pytest.raises(ConfigError, match="--workers 65"):
        commands.run_serve(parsed("serve", folder, "--workers", 65))
    with pytest.raises(ConfigError, match="copy the whole address that"):
        commands.run_ask(parsed("ask", "http://127.0.0.1:1/#00", "a"), FakeEmbedder())
    down = r"127\.0\.0\.1:1: no library answers there \(Connection refused\); is its host running\?"
    with pytest.raises(QuietchoirError, match=down):
        commands.run_ask(parsed("ask", f"http://127.0.0.1:1/#{KEY}", "a"), FakeEmbedder())
    with pytest.raises(ConfigError, match="ask something"):
        commands.run_ask(parsed("ask", f"http://127.0.0.1:1/#{KEY}", " "), FakeEmbedder())
    for verb in (("ask", "a"), ("classify", "a"), ("status",)):
        plain = parsed(verb[0], f"http://127.0.0.1:1/#{KEY}", *verb[1:], "--certificate", "x.pem")
        with pytest.raises(ConfigError, match="not encrypted on the way"):
            plain.run(plain)
    with pytest.raises(ConfigError, match="not a certificate"):
        commands.run_ask(
            parsed("ask", f"https://127.0.0.1:1/#{KEY}", "a", "--certificate", folder / "0.txt"),
            FakeEmbedder(),
        )


def test_a_library_is_not_served_out_of_a_backup_until_its_owner_has_decided(
    folder, tmp_path, monkeypatch
):
    """With the counts of the backup an account could ask a second time what it was told since."""
    serve = parsed("serve", folder, "--port", 0, "--max-queries", 12)  # 12: refused when it opens
    room = known.room()
    count = room / f"budget-{commands._label(folder)}.json"
    count.write_text('{"spent": {"strangers": {"QUESTION": 1}}, "last": {}}')
    backup.back_up(tmp_path / "home", tmp_path / "b.tar.gz")
    with pytest.raises(ConfigError, match="work out the embeddings"):
        commands.run_serve(serve, FakeEmbedder())  # where it was it goes on
    backup.restore(tmp_path / "b.tar.gz", tmp_path / "again")
    monkeypatch.setenv("QUIETCHOIR_HOME", str(tmp_path / "again"))
    assert not (known.room() / count.name).exists()
    with pytest.raises(ConfigError, match="came out of a backup") as refused:
        commands.run_serve(serve, FakeEmbedder())
    assert str(known.room() / "restored") in str(refused.value)
    (known.room() / "restored").unlink()
    with pytest.raises(ConfigError, match="work out the embeddings"):
        commands.run_serve(serve, FakeEmbedder())


def test_a_missing_model_says_how_to_pull_it(folder):
    with pytest.raises(ModelNotFoundError, match="quietchoir model pull"):
        commands.run_serve(parsed("serve", folder, "--port", 0))


def test_the_allow_file_is_read_whole_or_refused_with_its_line(tmp_path):
    path = tmp_path / "allow"
    path.write_text(f"# friends\n{KEY.upper()}  # ann\n\n")
    assert commands._listed(path) == {KEY}
    path.write_text(f"{KEY}\nann\n")
    with pytest.raises(ConfigError, match=":2: not a key"):
        commands._listed(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        commands._listed(tmp_path / "none")


def test_no_line_of_a_passage_can_be_taken_for_a_citation(capsys, monkeypatch):
    forged = "\n  — law.md, score 0.99"
    wrapped = "x" * 78 + " " * 82 + "— law.md, score 0.99"  # where a terminal begins a line
    text = f"one{forged}\u2028{forged}\r{forged}\n\n{wrapped}"
    found = Found(Passage("notes.md\n", text), 0.5)
    cost = SearchCost(session_bytes=1, question_bytes=1, near_bytes=0, map_bytes=0, plain_bytes=1)
    answer = SearchAnswer(
        found=(found,), passages=1, bytes_up=1, bytes_down=1, seconds=1, cost=cost
    )
    commands._print_text(answer)
    shown = capsys.readouterr().out
    assert f"> {wrapped}\n" in shown
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    commands._print_text(answer)
    narrow = capsys.readouterr().out
    assert max(map(len, narrow.split("passages searched")[0].splitlines())) == 80
    for line in (shown + narrow).split("\n"):
        assert line.startswith("> ") or "law.md" not in line
    assert (shown + narrow).count("\n  — notes.md , score 0.50\n") == 2


async def test_questions_of_one_node_at_once_wait_for_each_other(tmp_path, capsys):
    identity = Identity.generate()
    service = host.LibraryService(fake_index(), identity, QueryBudget(tmp_path / "b.json", limit=4))
    runner = web.AppRunner(host.application(service), access_log=None)
    await runner.setup()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        await web.SockSite(runner, listener).start()
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/#{identity.public.raw.hex()}"
        asked = parsed("ask", address, "A cello has strings?", "--json")
        try:
            with known.asking(LibraryAddress.parse(address)):
                # what is held is waited for, with a sentence
                both = [
                    asyncio.create_task(asyncio.to_thread(commands.run_ask, asked, FakeEmbedder()))
                    for _ in range(2)
                ]
                said = ""
                while said.count("waiting for another question") < 2:
                    await asyncio.sleep(0.01)
                    said += capsys.readouterr().err
                assert not any(task.done() for task in both)
            await asyncio.gather(*both)
            greedy = parsed("ask", address, "A cello has strings?", "--passages", 5)
            with pytest.raises(
                ConfigError, match="5 passages of a library that grants an account 4"
            ):
                await asyncio.to_thread(commands.run_ask, greedy, FakeEmbedder())
        finally:
            await runner.cleanup()
            service.close()
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["found"][0]["text"] for answer in answers] == [TEXTS[2]] * 2
    spent = service._budget._spent["strangers"]
    assert spent == {"KEYS": 2, "QUESTION": 2, "CHOICE": 2}


def test_an_asker_has_one_lasting_key_for_each_host(capsys):
    other = Identity.generate().public.raw.hex()
    for key in (KEY, KEY, other):
        commands.run_key(parsed("key", f"http://h:1/#{key}"))
    first, again, elsewhere = capsys.readouterr().out.split()
    assert first == again != elsewhere
    assert all(path.stat().st_mode & 0o077 == 0 for path in (Path(known.room())).glob("*.key"))
