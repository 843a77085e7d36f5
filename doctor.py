"""What this machine lacks, and how to get it.

Knows one check for each thing a node needs; what a configuration may say is asked of the parts that
`serve` asks. Changes nothing, sends nothing.
Always: every finding that is not well says what to do; only what no node can do without is
essential.
"""

import asyncio
import errno
import importlib
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from . import __version__
from .core import parts, paths
from .core.config import Config
from .core.errors import ConfigError, QuietchoirError
from .core.hardware import discovery
from .core.hardware.power import EnergyMeter, read_state
from .core.hardware.report import FORMAT, HardwareReport, ReportedAccelerator, speakable

MEMORY_BYTES = 1 << 30  # the default model with its caches
DISK_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor's report."""

    name: str
    well: bool
    text: str
    essential: bool = False  # a node cannot run without it


def examine(config: Config) -> Iterator[Finding]:
    """Look at everything, one after another; a check that breaks is a finding too."""
    checks: dict[str, Callable[[Config], Finding]] = {
        "python": python,
        "parts": installed_parts,
        "machine": machine,
        "accelerator": accelerators,
        "power": power,
        "memory": memory,
        "home": home,
        "model": model,
        "fit": model_fit,
        "plugins": plugins,
        "sandbox": sandbox,
        "kernels": kernels,
        "token": token,
        "port": port,
    }
    for name, check in checks.items():
        try:
            yield check(config)
        except (OSError, QuietchoirError) as error:
            yield Finding(name, False, str(error), essential=isinstance(error, ConfigError))


def python(_config: Config) -> Finding:
    """The interpreter."""
    found = ".".join(map(str, sys.version_info[:3]))
    well = sys.version_info >= (3, 11)
    return Finding(
        "python", well, found if well else f"{found}; install 3.11 or newer", essential=True
    )


def installed_parts(_config: Config) -> Finding:
    """What this installation can do besides serving and chatting; tenseal is loaded, for it may
    be there and not start.
    """
    absent = [extra for extra in ("train", "federation") if parts.missing(extra)]
    if absent:
        extras = " and ".join(f"[{extra}]" for extra in absent)
        named = ",".join(absent)
        return Finding(
            "parts",
            True,
            f"serve and chat; {extras} not installed (pip install 'quietchoir[{named}]')",
        )
    try:
        tenseal = importlib.import_module("tenseal")
    except ImportError as error:
        text = (
            f"tenseal cannot be loaded ({error}); sealed mode and private search need it: "
            f"reinstall it"
        )
        return Finding("parts", False, text)
    return Finding(
        "parts", True, f"serve, chat, train and federation; tenseal {tenseal.__version__}"
    )


def machine(_config: Config) -> Finding:
    """Processor, cores and features; nothing here can be wrong."""
    device = discovery.discover(gpus=False)
    name = (
        f"{device.processor or device.machine}, {device.cores} "
        f"{'core' if device.cores == 1 else 'cores'}"
    )
    return Finding(
        "machine", True, f"{name}, {' '.join(device.features) or 'no vector features known'}"
    )


def accelerators(_config: Config) -> Finding:
    """GPUs and neural processors: what a node can use, what libraries here could, what nothing here
    can.
    """
    told, well = [], True
    for one in discovery.accelerators():
        size = f" ({one.memory >> 30} GB)" if one.memory else ""
        if one.advice:
            told.append(f"{one.name} is there, and nothing here can use it: it takes {one.advice}")
            well = False
        elif one.kind == "cuda":
            told.append(f'{one.name}{size}, with engine.device = "cuda"')
        else:
            told.append(f"{one.name}{size} ({one.kind}): told, no node computes on it yet")
    return Finding("accelerator", well, "; ".join(told) or "none; the processor computes")


def power(config: Config) -> Finding:
    """What this machine tells of battery, heat and energy, for `[power]`."""
    state, sources = read_state(), EnergyMeter().sources
    battery = {None: "no battery", True: "on battery", False: "on AC"}[state.on_battery]
    if state.battery_percent is not None:
        battery += f" ({state.battery_percent:.0f} %)"
    heat = "no sensor" if state.celsius is None else f"{state.celsius:.0f} °C"
    energy = f"joules from {' and '.join(sources)}" if sources else "joules not measurable here"
    return Finding("power", True, f"{config.power.profile}: {battery}, {heat}, {energy}")


def memory(_config: Config) -> Finding:
    """Free memory."""
    total, free = discovery.memory_sizes()
    text = f"{free / 1e9:.1f} of {total / 1e9:.1f} GB free"
    well = free >= MEMORY_BYTES or not total  # an unknown size is no reason to warn
    return Finding(
        "memory",
        well,
        text
        if well
        else f"{text}; the default model wants {MEMORY_BYTES / 1e9:.1f}, close something",
    )


def home(_config: Config) -> Finding:
    """The node's folder: writable, and with room."""
    folder = paths.home()
    there = next(place for place in (folder, *folder.parents) if place.exists())
    free = shutil.disk_usage(there).free
    if not _writable(there):
        return Finding(
            "home",
            False,
            f"{folder} cannot be written; set {paths.HOME_VARIABLE} to a folder that can",
            essential=True,
        )
    if free < DISK_BYTES:
        return Finding(
            "home",
            False,
            f"{folder}: {free / 1e9:.1f} GB free, models want "
            f"{DISK_BYTES / 1e9:.1f}; free the disk",
        )
    return Finding("home", True, f"{folder}, {free / 1e9:.0f} GB free")


def _writable(folder: Path) -> bool:
    probe = folder / ".quietchoir-doctor"
    try:
        probe.touch()
        probe.unlink()
    except OSError:
        return False
    return True


def model(config: Config) -> Finding:
    """The chosen model's file, whether it is served as [engine] says, and whether the compiled
    kernels run what is in it.
    """
    from .core.engine.backends.native import library, network
    from .core.engine.backends.select import on_processor, select, slower_by_transformers
    from .core.engine.engine import planned
    from .core.errors import UnsupportedModelError
    from .core.models import transformers_model, weights
    from .core.models.hub import catalog

    try:
        path = catalog.find(config.engine.model)
        try:
            architecture, tensors, tokenizer, sampling = weights.read_parts(path)
        except UnsupportedModelError as error:
            other = transformers_model.read(path, error)
            on_processor(other, config.engine)
            return Finding(
                "model", False, f"{config.engine.model}; {slower_by_transformers(other)}"
            )
        # without a digest: nothing here asks for it, and a large file would be read for it
        found = weights.Weights(architecture, tensors, tokenizer, "", sampling)
        choice = select(found, config.engine)
        _, context = planned(found, config.engine, choice)
    except QuietchoirError as error:
        return Finding("model", False, str(error), essential=True)
    text = (
        f"{config.engine.model}, {path.stat().st_size / 1e6:.0f} MB, {context} tokens of context "
        f"on the {config.engine.device}"
    )
    if choice.exactness:
        text += f", {choice.exactness}"
    if said := weights.widening(tensors):
        return Finding("model", True, f"{text}; {said}")
    if library.available() is None and (reason := network.unsupported(architecture, tensors)):
        slower = f"torch runs it, {library.TORCH_IS} than the compiled kernels would: {reason}"
        return Finding("model", False, f"{text}; {slower}")
    return Finding("model", True, text)


def model_fit(config: Config) -> Finding:
    """Which models would run here, from the speed of this machine's memory, measured now."""
    from .core.engine import fit

    machine = fit.measure_memory(config.engine.memory_bytes)
    engine = config.engine
    found = [fit.fit(name, needs, machine, engine) for name, needs in fit.needs_of_all().items()]
    chosen = [one for one in found if one.name == config.engine.model]
    running = [one for one in found if one.fits]
    speed = f"memory is read at {machine.read_bytes_s / 1e9:.0f} GB/s"
    told = [f"{one.name} at {one.tokens_per_s:.0f} tokens/s at most" for one in chosen]
    if running:
        largest = max(running, key=lambda one: one.weight_bytes)
        told.append(
            f"{len(running)} of {len(found)} known models fit, the largest {largest.name} "
            f"({largest.bytes / 1e9:.1f} GB); `model fit` shows all"
        )
        return Finding("fit", True, f"{speed}: {'; '.join(told)}")
    text = f"{speed}, and no known model fits into {machine.limit / 1e9:.1f} GB"
    return Finding("fit", False, f"{text}; raise engine.memory_bytes, or take more memory")


def plugins(config: Config) -> Finding:
    """The plugins that are enabled, read as a node reads them, and rules of [tools] for tools that
    none of them has.
    """
    from .core.assistant.approvals import misnamed
    from .plugins.host import PluginHost

    host = PluginHost(config.plugins)
    try:
        asyncio.run(host.start())
    except QuietchoirError as error:
        return Finding("plugins", False, str(error), essential=True)
    tools = [tool.name for plugin in host.plugins.values() for tool in plugin.manifest.tools]
    text = f"{', '.join(host.plugins) or 'none enabled'}: {len(tools)} tools"
    off = {name: plugin.disabled for name, plugin in host.plugins.items() if plugin.disabled}
    if off:
        text = f"{text}; off: {'; '.join(f'{name}: {why}' for name, why in off.items())}"
    if strange := misnamed(config.tools, tools):
        rules = f"[tools] names {', '.join(strange)}, as no tool here is called; mend these rules"
        return Finding("plugins", False, f"{text}; {rules}")
    return Finding("plugins", not off, text)


def token(_config: Config) -> Finding:
    """What opens the API; not there before the first start, which makes it."""
    from .core.server import auth

    path = paths.home() / auth.TOKEN_FILE
    if not path.exists():
        return Finding("token", True, f"{path} is made at the first start")
    try:
        auth.load_token(paths.home())
    except ConfigError as error:
        return Finding("token", False, str(error), essential=True)
    return Finding("token", True, f"{path}, readable by its owner alone")


def sandbox(_config: Config) -> Finding:
    """Whether plugins can be confined; without, they do not run and the assistant still chats."""
    from .plugins.sandbox.probe import probe

    report = probe()
    text = "; ".join(filter(None, (report.reason, report.advice)))
    if not report.available:
        text = f"{text}. Until then no plugin runs"
    return Finding("sandbox", report.available, text)


def kernels(_config: Config) -> Finding:
    """The compiled engine, and which of the processor's instructions it uses."""
    from .core.engine.backends.native import library

    reason = library.available()
    if reason is None:
        return Finding("kernels", True, f"compiled, run with {library.instruction_set()}")
    return Finding("kernels", False, reason)


def port(config: Config) -> Finding:
    """Whether the server's port is free, or held by a node, and its certificate can be used."""
    from .core.server.app import claim, encryption

    where = f"{config.server.host}:{config.server.port}"
    try:
        encryption(config.server)
        claim(config.server).close()
    except ConfigError as error:
        taken = isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EADDRINUSE
        if not taken:
            return Finding("port", False, str(error), essential=True)
        if _answers(config.server.host, config.server.port):
            return Finding(
                "port",
                True,
                f"{where} is taken, perhaps by a node that runs already; --port chooses another",
            )
        return Finding("port", False, str(error))
    return Finding("port", True, f"{where} is free")


def _answers(host: str, number: int) -> bool:
    try:
        socket.create_connection((host, number), timeout=1).close()
    except OSError:
        return False
    return True


def report(month: str) -> HardwareReport:
    """This machine for others.

    Args:
        month: in which it is made, as 2026-11.
    """
    from .core.engine.backends.native import library
    from .plugins.sandbox.probe import probe

    device, state = discovery.discover(gpus=False), read_state()
    return HardwareReport(
        format=FORMAT,
        quietchoir=__version__,
        python=".".join(map(str, sys.version_info[:2])),
        month=month,
        system=device.system,
        machine=device.machine,
        processor=speakable(device.processor),
        cores=device.cores,
        memory_gb=round(device.memory / 1e9),
        features=device.features,
        kernels="" if library.available() else library.instruction_set(),
        accelerators=tuple(
            ReportedAccelerator(
                kind=one.kind,
                name=speakable(one.name),
                memory_gb=one.memory >> 30,
                used=not one.advice,
            )
            for one in discovery.accelerators()
        ),
        sandbox=probe().available,
        battery=state.on_battery is not None,
        heat=state.celsius is not None,
        energy=EnergyMeter().sources,
    )
