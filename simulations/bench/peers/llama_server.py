"""llama.cpp's own HTTP server, from the package `xllamacpp`, which carries it compiled.

    python -m quietchoir.simulations.bench.peers.llama_server MODEL --port P --slots N --threads T

Knows that package's settings. Always: a slot for each client over one unified cache, and nothing of
a conversation is kept behind it: for fresh ones both measured fastest.
Not covered: the package's build for Linux stops at AVX2. A `llama-server` on PATH, which its owner
compiled for the machine, goes before it.
"""

import argparse
import signal
from pathlib import Path

SLOT_TOKENS = 512  # of one conversation


def main() -> None:
    """Serve until SIGTERM; the first line says where, the second what it was compiled for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    for name in ("port", "slots", "threads"):
        parser.add_argument(f"--{name}", type=int, required=True)
    chosen = parser.parse_args()

    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = str(chosen.model)
    settings.port = chosen.port
    settings.n_parallel, settings.kv_unified = chosen.slots, True
    settings.n_ctx = chosen.slots * SLOT_TOKENS
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = chosen.threads
    settings.use_jinja = True
    settings.cache_ram_mib, settings.cache_idle_slots = 0, False
    settings.verbosity = 0
    server = xllamacpp.Server(settings)
    print(server.listening_address, flush=True)
    print(f"llama.cpp of xllamacpp {xllamacpp.__version__}: {compiled_for()}", flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})


def compiled_for() -> str:
    """The instruction sets that llama.cpp says it uses."""
    import xllamacpp

    told = str(xllamacpp.get_system_info())
    return " ".join(part.split("=")[0].split(":")[-1].strip()
                    for part in told.split("|") if "= 1" in part)  # fmt: skip


if __name__ == "__main__":
    main()
