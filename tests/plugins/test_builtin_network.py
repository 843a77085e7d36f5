"""The built-in plugins that reach out, through the real sandbox and the real broker: pages of one
granted host, and a house that plays Home Assistant.
"""

import asyncio
import json
import socket
from collections.abc import Callable, Iterator
from typing import Any

import jinja2
import pytest
from aiohttp import web

from quietchoir.plugins import installing, manifest
from quietchoir.plugins.grants import PluginSettings
from quietchoir.plugins.host import BUILTIN
from quietchoir.plugins.running import Plugin
from quietchoir.plugins.sandbox.probe import SandboxReport

TOKEN = "long-lived-token"
ARTICLE = "".join(
    f"<p>Paragraph {number} says at some length that the river rose again in the night.</p>"
    for number in range(60)
)
PAGE = (
    "<html><head><title>The river</title><script>steal()</script></head><body><nav><ul><li><a "
    "href='/a'>Subscribe now</a></li></ul></nav><article><h1>The river</h1>"
    f"{ARTICLE}</article><footer>Cookie settings</footer></body></html>"
)
Ask = Callable[..., tuple[str, bool]]


class House:
    """Home Assistant, as far as its REST interface is used."""

    def __init__(self) -> None:
        self.states = {
            "light.kitchen": {"friendly_name": "Kitchen lamp", "brightness": 200},
            "light.hall": {"friendly_name": "Lamp"},
            "switch.pump": {"friendly_name": "Lamp"},
            "sensor.bath": {"friendly_name": "Bath", "unit_of_measurement": "°C"},
        }
        self.on = dict.fromkeys(self.states, "off") | {"sensor.bath": "21.5"}
        self.token = TOKEN
        self.asked: list[tuple[str, Any]] = []

    def rows(self, *names: str) -> list[dict[str, Any]]:
        """States as they are listed."""
        return [
            {"entity_id": name, "state": self.on[name], "attributes": self.states[name]}
            for name in names or self.states
        ]

    async def answer(self, request: web.Request) -> web.Response:
        """One request."""
        if request.headers.get("Authorization") != f"Bearer {self.token}":
            return web.Response(status=401, text="401: Unauthorized")
        body: Any = await request.json() if request.can_read_body else None
        self.asked.append((request.path, body))
        match request.path.removeprefix("/api/").split("/"):
            case ["states"]:
                return web.json_response(self.rows())
            case ["template"]:
                rooms = {
                    "kitchen": ("Kitchen", ["light.kitchen"]),
                    "hall": ("Hall", ["light.hall"]),
                }
                environment = jinja2.Environment()
                environment.filters["to_json"] = json.dumps
                return web.Response(
                    text=environment.from_string(body["template"]).render(
                        areas=lambda: list(rooms),
                        area_name=lambda area: rooms[area][0],
                        area_entities=lambda area: rooms[area][1],
                    )
                )
            case ["services"]:
                fields: dict[str, Any] = {"turn_on": {"fields": {"brightness": {}}}, "turn_off": {}}
                return web.json_response([{"domain": "light", "services": fields}])
            case ["services", "light", service]:
                self.on[body["entity_id"]] = service.removeprefix("turn_")
                return web.json_response(self.rows(body["entity_id"]))
        return web.Response(status=400, text="Bad request")


async def pages(request: web.Request) -> web.StreamResponse:
    """A small site, and what a hostile one does."""
    match request.path:
        case "/river":
            return web.Response(text=PAGE, content_type="text/html")
        case "/away":
            raise web.HTTPFound(request.query["to"])
        case "/large":
            return web.Response(body=b"x" * (4 << 20), content_type="text/plain")
        case "/picture":
            return web.Response(body=b"\x89PNG", content_type="image/png")
    return web.Response(status=404, text="not here")


@pytest.fixture(scope="module")
def ask(sandbox: SandboxReport, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """Calls a tool of `web` or `home`; the sites that they reach run in the same loop."""
    private, house = tmp_path_factory.mktemp("private"), House()
    started = dict[str, Plugin]()
    with asyncio.Runner() as runner:

        async def site(answer: Any) -> tuple[web.AppRunner, int]:
            app = web.Application(client_max_size=1 << 20)
            app.router.add_route("*", "/{rest:.*}", answer)
            serving = web.AppRunner(app)
            await serving.setup()
            listening = socket.create_server(("127.0.0.1", 0))
            await web.SockSite(serving, listening).start()
            return serving, int(listening.getsockname()[1])

        sites = {name: runner.run(site(answer)) for name, answer in
                 (("pages", pages), ("house", house.answer), ("other", pages))}  # fmt: skip
        hosts = {name: f"127.0.0.1:{port}" for name, (_, port) in sites.items()}
        settings = {
            "web": PluginSettings(hosts={"pages": (hosts["pages"],)}),
            "home": PluginSettings(
                hosts={"house": (hosts["house"],)}, environment={"HOME_ASSISTANT_TOKEN": TOKEN}
            ),
        }
        for name, filled in settings.items():
            installing.fill_in(private / name, filled)
            started[name] = Plugin(manifest.read(BUILTIN / name), private / name, {})

        def call(name: str, tool: str, **arguments: object) -> tuple[str, bool]:
            return runner.run(started[name].call(tool, arguments, 30))

        call.hosts, call.house, call.private = hosts, house, private  # type: ignore[attr-defined]
        yield call
        for plugin in started.values():
            runner.run(plugin.stop())
        for serving, _ in sites.values():
            runner.run(serving.cleanup())


def test_a_page_of_the_granted_host_is_read_as_text_and_in_pages(ask: Any):
    url = f"http://{ask.hosts['pages']}/river"
    first, ok = ask("web", "web_read", url=url)
    assert ok and first.startswith("# The river") and "Paragraph 1 says" in first
    assert "steal" not in first and "Subscribe" not in first and "(page 1 of 2" in first
    second, ok = ask("web", "web_read", url=url, page=2)
    assert ok and "Paragraph 59 says" in second and len(second) < 3200
    assert ask("web", "web_hosts") == (ask.hosts["pages"], True)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("http://{other}/river", "is not granted to quietchoir/web"),
        ("http://{pages}/away?to=http://{other}/river", "leads to another host: http://{other}"),
        ("http://{pages}/away?to=file:///etc/passwd", "leads to another host: file:///etc"),
        ("http://169.254.169.254/latest/meta-data/", "it is never granted"),
        ("http://localhost:22/", "is not granted"),
        ("http://2130706433/", "2130706433"),
        ("https://example.org/", "is not granted"),
        ("file:///etc/passwd", "is no address of a web page"),
        ("ftp://{pages}/x", "is no address of a web page"),
        ("http://user:word@{pages}/river", "is no address of a web page"),
        ("http://{pages}/large", "more than 3145728 bytes"),
        ("http://{pages}/picture", "is image/png, no page of text"),
        ("http://{pages}/gone\r\nX: y", "the host answers 404"),
        ("", "is no address of a web page"),
    ],
)
def test_what_was_not_granted_or_is_no_page_is_refused_with_the_reason(ask: Any, url, told):
    said, ok = ask("web", "web_read", url=url.format(**ask.hosts))
    assert not ok and told.format(**ask.hosts) in said
    assert "root:" not in said


def test_a_house_is_asked_and_switched_by_name(ask: Any):
    assert ask("home", "home_areas") == ("Kitchen: 1 things\nHall: 1 things", True)
    assert ask("home", "home_states", area="kitchen") == (
        "Kitchen lamp (light.kitchen): off, brightness 200",
        True,
    )
    assert ask("home", "home_states", text="bath") == ("Bath (sensor.bath): 21.5 °C", True)
    assert "light.turn_on (data: brightness)" in ask("home", "home_services", domain="light")[0]
    said = ask(
        "home", "home_call", service="light.turn_on", thing="kitchen lamp", data={"brightness": 9}
    )
    assert said[1] and "Now: Kitchen lamp (light.kitchen): on" in said[0]
    assert ask.house.asked[-1] == (
        "/api/services/light/turn_on",
        {"brightness": 9, "entity_id": "light.kitchen"},
    )
    before = len([path for path, _ in ask.house.asked if "/services/" in path])
    for arguments, told in (
        ({"service": "light.turn_on", "thing": "Lamp"}, "more than one thing is called 'Lamp'"),
        ({"service": "light.turn_on", "thing": "Toaster"}, "nothing is called 'Toaster'"),
        ({"service": "../config", "thing": "Kitchen lamp"}, "is no service"),
        ({"service": "light/turn_on", "thing": "Kitchen lamp"}, "is no service"),
    ):
        said, ok = ask("home", "home_call", **arguments)
        assert not ok and told in said
    assert len([path for path, _ in ask.house.asked if "/services/" in path]) == before
    said, ok = ask("home", "home_call", service="vacuum.start", thing="Kitchen lamp")
    assert not ok and "refused (400)" in said


def test_the_token_is_in_no_answer_and_a_wrong_one_is_told(ask: Any):
    answers = [ask("home", tool)[0] for tool in ("home_areas", "home_states", "home_services")]
    assert TOKEN not in "".join(answers)
    ask.house.token = "renewed"
    said, ok = ask("home", "home_states")
    assert not ok and said == "Home Assistant does not know the token; its owner must renew it"
    ask.house.token = TOKEN
