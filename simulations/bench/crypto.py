"""The suite `crypto`: what protecting an update costs, beside the cipher's own bound, Flower's
SecAgg+ and plain TenSEAL.

Knows which figures are promised and what they aim at; `cohort`, `sealed` and `threshold`
measure all but masks.
Always: peers are measured in the same run, and `exact` is true only if every sum was the sum in
clear. A mask is timed as a member adds masks, those of all its peers in one pass, and divided by
their number; keys are agreed before the clock starts.
"""

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...crypto.ring import CHUNK_BYTES, BitRing, stream
from . import cohort, sealed, threshold
from .figures import Figure, Keep, nobody
from .members import Setting
from .stopwatch import Arm, Sample, interleaved, put

SEED = 1
# of the figures a byte or a mask; the end-to-end cohorts have their own sizes
BITS, PARTIES = 8, 10
FLOWER_MODULUS = 1 << 32  # the default of flwr's SecAggPlusWorkflow
INNER = 40  # masks in one repeat: one takes a third of a millisecond


@dataclass(frozen=True, slots=True, kw_only=True)
class CryptoScale:
    """How much is measured."""

    length: int = 1_000_000  # values of one update
    cohorts: tuple[int, ...] = (20, 100, 1000)
    repeats: int = 15  # of masks
    sealed_repeats: int = 5  # the tutorial's arm takes seconds
    cohort_repeats: int = 5
    # parties: a thousand take minutes, and its members repeat each other
    cohort_once_above: int = 100
    # members of a joint key: each runs once, its members are the repeats
    key_groups: tuple[int, ...] = (3, 10, 20)


QUICK = CryptoScale(
    length=5_000,
    cohorts=(4, 34),
    repeats=2,
    sealed_repeats=1,
    cohort_repeats=2,
    cohort_once_above=4,
    key_groups=(3,),
)


def measure(*, quick: bool, tell: Callable[[str], None], keep: Keep = nobody) -> dict[str, Any]:
    """Run everything.

    Args:
        quick: tiny sizes, to see that it runs; the figures mean nothing then.
        tell: hears what is being measured.
        keep: gets the report after each part.

    Returns: the report: figures at their keys, `spread` (fastest and slowest repeat) and `peers`
    beside them.
    """
    size = QUICK if quick else CryptoScale()
    report: dict[str, Any] = {
        "what": f"{size.length:,} values of {BITS} bits, {PARTIES} parties unless the cohort is "
        f"named",
        "seed": SEED,
        "repeats": {"masks": size.repeats, "sealed": size.sealed_repeats},
        "clock": "processor seconds of all threads",
        "spread": {},
        "peers": {},
    }
    tell("one mask: ours, the cipher alone, Flower's")
    _masks(size, report)
    report["threshold"], report["end_to_end"] = {}, {}
    keep(report)
    tell("bytes of secure aggregation, 8 and 4 bits")
    packed = _bytes(size, report)
    tell("sums under encryption: ours and TenSEAL's tutorial setting")
    opened = _sealed(size, report)
    keep(report)
    for parties in size.key_groups:
        tell(f"a joint key of {parties} members, and a sum that more than two thirds of them open")
        _key_group(parties, size, report)
        keep(report)
    for parties in size.cohorts:
        tell(f"secure aggregation end to end, {parties} parties, 5 % dropping out")
        _cohort(parties, size, report)
        keep(report)
    runs = [*report["end_to_end"].values(), *report["threshold"].values()]
    report["exact"] = packed and opened and all(run["exact"] for run in runs)
    return report


def figures(report: dict[str, Any]) -> Iterator[Figure]:
    """Rows of the table."""
    yield Figure("mask_ms_per_peer", "ms", "one mask, made and added: a member's nine at once")
    yield Figure("mask_over_aes_bound", "×", "  over AES-256-CTR alone", at_most=1.4)
    yield Figure("flower_mask_ratio", "×", "  faster than Flower's SecAgg+", at_least=15)
    yield Figure(
        "secagg_bytes_per_param",
        "B/param",
        "secure aggregation, all a member sends, 8 bits",
        at_most=1.6,
    )
    yield Figure("secagg_bytes_per_param_4bit", "B/param", "  4 bits", at_most=1.1)
    yield Figure("sealed_bytes_per_param.up", "B/param", "sealed, up", at_most=2.8)
    yield Figure("sealed_bytes_per_param.down", "B/param", "  down: the sum")
    yield Figure("sealed_encrypt_s", "s", "  encrypt", at_most=0.15)
    yield Figure("sealed_decrypt_s", "s", "  decrypt", at_most=0.1)
    yield Figure("tenseal_default_ratio.bytes", "×", "  smaller than TenSEAL's tutorial setting")
    yield Figure("tenseal_default_ratio.time", "×", "  faster: encrypt, add two, open")
    for parties, run in report["threshold"].items():
        key = f"threshold.{parties}"
        yield Figure(
            f"{key}.ceremony_s",
            "s",
            f"joint key, {run['openers']} of {parties}: making it, one member, once an epoch",
        )
        yield Figure(f"{key}.ceremony_up_mb", "MB", "  up")
        yield Figure(f"{key}.ceremony_down_mb", "MB", "  down")
        yield Figure(f"{key}.encrypt_s", "s", "  a round: encrypt")
        yield Figure(f"{key}.part_s", "s", "  partial decryption, one of t members")
        yield Figure(f"{key}.combine_s", "s", "  combine")
        yield Figure(
            f"{key}.up_bytes_per_param", "B/param", "  up, and as much again from each of t members"
        )
        yield Figure(f"{key}.down_bytes_per_param", "B/param", "  down: the sum and t parts")
    for parties in report["end_to_end"]:
        yield Figure(
            f"end_to_end.{parties}.client_s", "s", f"{parties} parties, 5 % drop: one member"
        )
        yield Figure(f"end_to_end.{parties}.server_s", "s", "  coordinator")


class Keystream:
    """AES-256-CTR into a buffer that stays in the cache: the bound under every mask made of this
    cipher.
    """

    def __init__(self) -> None:
        self._zeros, self._buffer = memoryview(bytes(CHUNK_BYTES)), bytearray(CHUNK_BYTES + 15)

    def write(self, size: int) -> None:
        """`size` bytes, a chunk over the other."""
        cipher = stream(bytes(32))
        for start in range(0, size, CHUNK_BYTES):
            cipher.update_into(self._zeros[: min(CHUNK_BYTES, size - start)], self._buffer)


def measure_mask(
    length: int, *, bits: int, parties: int, seed: int, repeats: int
) -> dict[str, Sample]:
    """Seconds of one mask, made and added, of those that one of `parties` adds.

    Args:
        length: values.

    Returns: "own", "aes" (the stream alone, as many bytes as our words have), "flower".
    """
    from flwr.common.secure_aggregation.ndarrays_arithmetic import parameters_addition
    from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen

    values = np.random.default_rng(seed).integers(0, 1 << bits, length, dtype=np.uint32)
    ring, key = BitRing(length=length, bits=bits, parties=parties), secrets.token_bytes(32)
    streams = [(secrets.token_bytes(32), bool(peer % 2)) for peer in range(parties - 1)]
    words, theirs, bound = ring.lift(values), [values.astype(np.int64)], Keystream()
    arms = {
        "own": Arm(lambda: ring.mask(words, streams), max(1, INNER // len(streams))),
        "aes": Arm(lambda: bound.write(words.nbytes), INNER),
        "flower": Arm(
            lambda: parameters_addition(theirs, pseudo_rand_gen(key, FLOWER_MODULUS, [(length,)]))
        ),
    }
    found = interleaved(arms, repeats)
    return {
        **found,
        "own": Sample(tuple(seconds / len(streams) for seconds in found["own"].seconds)),
    }


def _masks(size: CryptoScale, report: dict[str, Any]) -> None:
    found = measure_mask(size.length, bits=BITS, parties=PARTIES, seed=SEED, repeats=size.repeats)
    put(report, "mask_ms_per_peer", found["own"], 1e3)
    put(report, "mask_over_aes_bound", found["own"].over(found["aes"]))
    put(report, "flower_mask_ratio", found["flower"].over(found["own"]))
    report["peers"]["aes_256_ctr_ms"] = found["aes"].median * 1e3
    report["peers"]["flower_mask_ms"] = found["flower"].median * 1e3


def _bytes(size: CryptoScale, report: dict[str, Any]) -> bool:
    exact = True
    for key, bits in (("secagg_bytes_per_param", BITS), ("secagg_bytes_per_param_4bit", 4)):
        setting = Setting(parties=PARTIES, length=size.length, bits=bits, drop_percent=0, seed=SEED)
        outcome = cohort.play(setting)
        report[key] = outcome.sent_bytes / size.length
        exact &= outcome.exact
    return exact


def _sealed(size: CryptoScale, report: dict[str, Any]) -> bool:
    found = sealed.measure(
        size.length, bits=BITS, parties=PARTIES, seed=SEED, repeats=size.sealed_repeats
    )
    ours, theirs = found["own"], found["tutorial"]
    report["sealed_bytes_per_param"] = {
        "up": ours.up / size.length,
        "down": ours.down / size.length,
    }
    put(report, "sealed_encrypt_s", ours.seconds["encrypt"])
    put(report, "sealed_decrypt_s", ours.seconds["decrypt"])
    report["tenseal_default_ratio"] = {"bytes": theirs.up / ours.up}
    put(report, "tenseal_default_ratio.time", theirs.total.over(ours.total))
    report["peers"]["sealed_add_s"] = ours.seconds["add"].median
    report["peers"]["tenseal_default"] = {
        "setting": "CKKSVector, N = 8192, primes [60, 40, 40, 60], scale 2^40, one thread",
        "bytes_per_param": theirs.up / size.length,
        **{f"{step}_s": sample.median for step, sample in theirs.seconds.items()},
        "largest_error": theirs.error,
    }
    return ours.error == 0


def _key_group(parties: int, size: CryptoScale, report: dict[str, Any]) -> None:
    cost, key = (
        threshold.measure(parties, size.length, bits=BITS, seed=SEED),
        f"threshold.{parties}",
    )
    report["threshold"][str(parties)] = {
        "openers": cost.openers,
        "length": size.length,
        "ceremony_up_mb": cost.ceremony_up / 1e6,
        "ceremony_down_mb": cost.ceremony_down / 1e6,
        "up_bytes_per_param": cost.up / size.length,
        "part_bytes_per_param": cost.part_bytes / size.length,
        "down_bytes_per_param": cost.down / size.length,
        "exact": cost.exact,
    }
    samples = {
        "ceremony_s": cost.ceremony,
        "encrypt_s": cost.encrypt,
        "part_s": cost.part,
        "combine_s": cost.combine,
    }
    for name, sample in samples.items():
        put(report, f"{key}.{name}", sample)
    report["repeats"][key] = parties


def _cohort(parties: int, size: CryptoScale, report: dict[str, Any]) -> None:
    setting = Setting(parties=parties, length=size.length, bits=BITS, seed=SEED)
    repeats = 1 if parties > size.cohort_once_above else size.cohort_repeats
    runs = [cohort.play(setting) for _ in range(repeats)]
    report["repeats"][f"end_to_end.{parties}"] = repeats
    report["end_to_end"][str(parties)] = {"length": size.length, "dropped": len(setting.dropped)}
    for who in ("client_s", "server_s"):
        put(report, f"end_to_end.{parties}.{who}", Sample(tuple(getattr(run, who) for run in runs)))
    typical = min(
        runs, key=lambda run: abs(run.server_s - report["end_to_end"][str(parties)]["server_s"])
    )
    report["end_to_end"][str(parties)] |= {
        "exact": all(run.exact for run in runs),
        "sent_bytes": typical.sent_bytes,
        "client_spread_s": list(typical.client_spread_s),  # fastest and slowest member of one run
        "client_stages_s": typical.client_stages_s,
        "server_stages_s": typical.server_stages_s,
    }
