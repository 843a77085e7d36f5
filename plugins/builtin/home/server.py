"""The home plugin: a real house, through Home Assistant's REST interface.

Runs inside a sandbox whose only way out is the node's broker, which connects to the one address
that its owner named. The token is a variable that the owner fills in; no model sees it. The
simulated house is the plugin quietchoir/household.
Always: what is switched is named by its identifier or by its whole name, and only if one thing has
that name; an answer says what changed.

Source: developers.home-assistant.io, REST API.
"""

import json
import os
import re
from typing import Any

from quietchoir_sdk import ToolFailure, fetch, hosts, paged, serve, tool  # type: ignore[import-not-found]

ADDRESS = "HOME_ASSISTANT_URL"
TOKEN = "HOME_ASSISTANT_TOKEN"
MAX_S = 8.0  # the node waits 10 s for a call by default
SERVICE = re.compile(r"[a-z0-9_]{1,60}\.[a-z0-9_]{1,60}")
# Areas are not in the REST interface but in its templates.
AREAS = (
    "[{% for area in areas() %}{{ {'area': area_name(area), 'entities': area_entities(area)}"
    " | to_json }}{% if not loop.last %},{% endif %}{% endfor %}]"
)
# what a state is told with, beside itself
TOLD = (
    "brightness",
    "current_position",
    "current_temperature",
    "temperature",
    "humidity",
    "media_title",
    "volume_level",
    "battery_level",
)


def house() -> str:
    """Where Home Assistant answers: as its owner wrote it, else at the host that he named."""
    if named := os.environ.get(ADDRESS, "").rstrip("/"):
        return named
    host = next(iter(hosts("house")), "")
    return f"https://{host}" if host.endswith(":443") else f"http://{host}"


def ask(path: str, body: Any = None) -> Any:
    """What Home Assistant answers.

    Raises:
        ToolFailure: it cannot be reached, refuses, or answers what is no JSON.
    """
    answer = fetch(
        f"{house()}/api/{path}",
        headers={
            "Authorization": f"Bearer {os.environ.get(TOKEN, '')}",
            "Content-Type": "application/json",
        },
        data=None if body is None else json.dumps(body).encode(),
        timeout_s=MAX_S,
    )
    if answer.status == 401:
        raise ToolFailure("Home Assistant does not know the token; its owner must renew it")
    if answer.status >= 300:
        raise ToolFailure(f"Home Assistant refused ({answer.status}): {answer.text()[:300]}")
    return answer.json()


def things() -> list[dict[str, Any]]:
    """All entities with their states, as Home Assistant lists them."""
    found = ask("states")
    if not isinstance(found, list):
        raise ToolFailure("Home Assistant listed no states")
    return [one for one in found if isinstance(one, dict) and isinstance(one.get("entity_id"), str)]


def called(thing: dict[str, Any]) -> str:
    """Its name for people."""
    attributes = thing.get("attributes")
    name = attributes.get("friendly_name") if isinstance(attributes, dict) else None
    return " ".join(str(name or thing["entity_id"]).split())[:100]


def told(thing: dict[str, Any]) -> str:
    """One entity on one line."""
    attributes = thing.get("attributes")
    held: dict[str, Any] = attributes if isinstance(attributes, dict) else {}
    unit = f" {held['unit_of_measurement']}" if held.get("unit_of_measurement") else ""
    more = "".join(
        f", {name.replace('_', ' ')} {str(held[name])[:60]}"
        for name in TOLD
        if held.get(name) is not None
    )
    return f"{called(thing)} ({thing['entity_id']}): {str(thing.get('state'))[:60]}{unit}{more}"


def areas() -> dict[str, list[str]]:
    """Area → identifiers of what is in it."""
    rows = ask("template", {"template": AREAS})
    try:
        return {str(row["area"]): list(map(str, row["entities"])) for row in rows}
    except (KeyError, TypeError):
        raise ToolFailure("Home Assistant listed no areas") from None


@tool(read_only=True)  # type: ignore[untyped-decorator]
def home_areas(page: int = 1) -> str:
    """The areas of the house, with how much is in each."""
    lines = [f"{name}: {len(held)} things" for name, held in areas().items()]
    return str(paged(lines or ["The house has no areas."], page))


@tool(read_only=True)  # type: ignore[untyped-decorator]
def home_states(text: str = "", area: str = "", page: int = 1) -> str:
    """How things in the house are: all of them, or those whose name has a text in it, or of one
    area.
    """
    wanted, held = text.strip().casefold(), None
    if area.strip():
        known = {name.casefold(): held for name, held in areas().items()}
        held = known.get(area.strip().casefold())
        if held is None:
            raise ToolFailure(
                f"there is no area {area[:60]!r}; there are: {', '.join(known)[:400]}"
            )
    lines = [
        told(one)
        for one in things()
        if wanted in f"{called(one)} {one['entity_id']}".casefold()
        and (held is None or one["entity_id"] in held)
    ]
    return str(paged(lines or ["Nothing of that name is in the house."], page))


@tool(read_only=True)  # type: ignore[untyped-decorator]
def home_services(domain: str = "", page: int = 1) -> str:
    """What can be done with the things of a kind, for example domain light. Without a kind: the
    kinds.
    """
    found = ask("services")
    rows = found if isinstance(found, list) else []
    known = {
        str(one["domain"]): one["services"]
        for one in rows
        if isinstance(one, dict) and "domain" in one and isinstance(one.get("services"), dict)
    }
    if not domain.strip():
        return str(paged([", ".join(sorted(known))], page))
    if (offered := known.get(domain.strip().lower())) is None:
        raise ToolFailure(f"nothing is of the kind {domain[:60]!r}; home_services lists the kinds")
    kind = domain.strip().lower()
    lines = []
    for name, about in sorted(offered.items()):
        fields = ", ".join(about.get("fields", {})) if isinstance(about, dict) else ""
        lines.append(f"{kind}.{name}" + (f" (data: {fields[:200]})" if fields else ""))
    return str(paged(lines, page))


@tool  # type: ignore[untyped-decorator]
def home_call(service: str, thing: str, data: dict | None = None) -> str:  # type: ignore[type-arg]
    """Do something with a thing of the house, for example service light.turn_on, thing Kitchen
    lamp, data {"brightness": 120}.
    """
    if not SERVICE.fullmatch(service):
        raise ToolFailure(f"{service[:80]!r} is no service; expected for example light.turn_on")
    wanted = thing.strip().casefold()
    known = things()
    meant = [
        one for one in known if wanted in (one["entity_id"].casefold(), called(one).casefold())
    ]
    if len(meant) != 1:
        near = [
            f"{called(one)} ({one['entity_id']})"
            for one in (meant or known)
            if wanted and wanted in f"{called(one)} {one['entity_id']}".casefold()
        ]
        how = "more than one thing is called" if meant else "nothing is called"
        hint = f"; near: {', '.join(near[:5])}" if near else "; home_states lists what there is"
        raise ToolFailure(f"{how} {thing[:80]!r}{hint}")
    identifier = meant[0]["entity_id"]
    more = {name: value for name, value in (data or {}).items() if name != "entity_id"}
    changed = ask(f"services/{service.replace('.', '/')}", {**more, "entity_id": identifier})
    rows = (
        [one for one in changed if isinstance(one, dict) and "entity_id" in one]
        if isinstance(changed, list)
        else []
    )
    after = "; ".join(told(one) for one in rows[:5])
    return f"Done: {service} of {identifier}. " + (f"Now: {after}" if after else "Nothing changed.")


if __name__ == "__main__":
    serve("quietchoir/home", "0.1.0")
