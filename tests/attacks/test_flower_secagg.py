"""Why not Flower's own SecAgg+: the same two attacks that our members refuse succeed on its client
functions.

These are the unprotected arms; they also tell us if a later Flower mends them.
"""

import importlib
import warnings
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest

PARTIES, THRESHOLD, LENGTH = 5, 3, 200
CLIP, LEVELS, MODULUS, WEIGHT = 8.0, 1 << 22, 1 << 32, 100.0


@pytest.fixture(scope="module")
def flower() -> ModuleType:
    """The installed mod's stage functions; imported here only, because it is heavy."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside Flower's own imports
        return importlib.import_module("flwr.client.mod.secure_aggregation.secaggplus_mod")


class FlowerRound:
    """Five of Flower's clients, driven by a coordinator of our own."""

    def __init__(self, mod: ModuleType) -> None:
        from flwr.app import ConfigRecord

        self.mod, self.record = mod, ConfigRecord
        rng = np.random.default_rng(0)
        self.updates = {
            i: (rng.standard_normal(LENGTH) * 0.01).astype(np.float32)
            for i in range(1, PARTIES + 1)
        }
        self.states: dict[int, Any] = {}
        self.keys: dict[int, tuple[bytes, bytes]] = {}
        key, stage = mod.Key, mod.Stage
        for i in self.updates:
            self.states[i] = mod.SecAggPlusState()
            self.states[i].nid = i
            settings = {
                key.STAGE: stage.SETUP,
                key.SAMPLE_NUMBER: PARTIES,
                key.SHARE_NUMBER: PARTIES,
                key.THRESHOLD: THRESHOLD,
                key.CLIPPING_RANGE: CLIP,
                key.TARGET_RANGE: LEVELS,
                key.MOD_RANGE: MODULUS,
                key.MAX_WEIGHT: WEIGHT,
            }
            answer = mod._setup(self.states[i], ConfigRecord(settings))
            self.keys[i] = (answer[key.PUBLIC_KEY_1], answer[key.PUBLIC_KEY_2])

    def share(
        self, shown: Callable[[int], dict[int, tuple[bytes, bytes]]]
    ) -> Iterator[tuple[int, int, bytes]]:
        """Each client shares with the key list `shown(client)`; yields sender, receiver, box."""
        key = self.mod.Key
        for i, state in self.states.items():
            answer = self.mod._share_keys(
                state, self.record({str(j): list(pair) for j, pair in shown(i).items()})
            )
            yield from (
                (i, *pair)
                for pair in zip(
                    answer[key.DESTINATION_LIST], answer[key.CIPHERTEXT_LIST], strict=True
                )
            )

    def collect(self, boxes: dict[int, list[tuple[int, bytes]]]) -> dict[int, list[Any]]:
        from flwr.common import bytes_to_ndarray, ndarrays_to_parameters

        key, masked = self.mod.Key, {}
        for i, state in self.states.items():
            got = self.record(
                {
                    key.SOURCE_LIST: [s for s, _ in boxes[i]],
                    key.CIPHERTEXT_LIST: [box for _, box in boxes[i]],
                }
            )
            answer = self.mod._collect_masked_vectors(
                state, got, 10, ndarrays_to_parameters([self.updates[i]])
            )
            masked[i] = [bytes_to_ndarray(part) for part in answer[key.MASKED_PARAMETERS]]
        return masked

    def read(
        self, victim: int, masked: dict[int, list[Any]], self_seed: bytes, mask_key: bytes
    ) -> Any:
        """Take every mask of one client off its upload."""
        from flwr.common.secure_aggregation.crypto.symmetric_encryption import generate_shared_key
        from flwr.common.secure_aggregation.ndarrays_arithmetic import (
            factor_extract,
            parameters_addition,
            parameters_mod,
            parameters_subtraction,
        )
        from flwr.common.secure_aggregation.quantization import dequantize
        from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
        from flwr.supercore.primitives.asymmetric import bytes_to_private_key, bytes_to_public_key

        shapes = [part.shape for part in masked[victim]]
        out = parameters_subtraction(masked[victim], pseudo_rand_gen(self_seed, MODULUS, shapes))
        for j, pair in self.keys.items():
            if j != victim:
                secret = generate_shared_key(
                    bytes_to_private_key(mask_key), bytes_to_public_key(pair[0])
                )
                undo = parameters_subtraction if victim > j else parameters_addition
                out = undo(out, pseudo_rand_gen(secret, MODULUS, shapes))
        ratio, values = factor_extract(parameters_mod(out, MODULUS))
        return dequantize(values, CLIP, LEVELS)[0] / (ratio / LEVELS)


def heard(found: Any, update: Any) -> bool:
    return bool(np.abs(found - update).max() < 1e-4 and np.corrcoef(found, update)[0, 1] > 0.999)


def test_flowers_client_reveals_both_shares_for_overlapping_lists(flower: ModuleType) -> None:
    from flwr.common.secure_aggregation.crypto.shamir import combine_shares

    game = FlowerRound(flower)
    boxes: dict[int, list[tuple[int, bytes]]] = {i: [] for i in game.updates}
    for sender, receiver, box in game.share(lambda i: game.keys):
        boxes[receiver].append((sender, box))
    masked, everybody, key = game.collect(boxes), list(game.updates), flower.Key
    seeds: dict[int, list[bytes]] = {}
    masks: dict[int, list[bytes]] = {}
    for state in game.states.values():
        asked = game.record({key.ACTIVE_NODE_ID_LIST: everybody, key.DEAD_NODE_ID_LIST: everybody})
        answer = flower._unmask(state, asked)
        pairs = list(zip(answer[key.NODE_ID_LIST], answer[key.SHARE_LIST], strict=True))
        for table, part in ((seeds, pairs[:PARTIES]), (masks, pairs[PARTIES:])):
            for owner, share in part:
                table.setdefault(owner, []).append(share)
    victim = 3
    found = game.read(
        victim,
        masked,
        combine_shares(seeds[victim][:THRESHOLD]),
        combine_shares(masks[victim][:THRESHOLD]),
    )
    assert heard(found, game.updates[victim])


def test_flowers_client_seals_its_shares_for_whatever_key_it_is_shown(flower: ModuleType) -> None:
    from flwr.common.secure_aggregation.crypto.shamir import combine_shares
    from flwr.common.secure_aggregation.crypto.symmetric_encryption import (
        decrypt,
        encrypt,
        generate_shared_key,
    )
    from flwr.common.secure_aggregation.secaggplus_utils import share_keys_plaintext_separate
    from flwr.supercore.primitives.asymmetric import (
        bytes_to_public_key,
        generate_key_pairs,
        public_key_to_bytes,
    )

    game = FlowerRound(flower)
    fake = {i: generate_key_pairs() for i in game.keys}

    def shown(i: int) -> dict[int, tuple[bytes, bytes]]:
        return {
            j: (pair[0], pair[1] if j == i else public_key_to_bytes(fake[j][1]))
            for j, pair in game.keys.items()
        }

    boxes: dict[int, list[tuple[int, bytes]]] = {i: [] for i in game.updates}
    seeds: dict[int, list[bytes]] = {}
    masks: dict[int, list[bytes]] = {}
    for sender, receiver, box in game.share(shown):
        plain = decrypt(
            generate_shared_key(fake[receiver][0], bytes_to_public_key(game.keys[sender][1])), box
        )
        _, _, seed, mask = share_keys_plaintext_separate(plain)
        seeds.setdefault(sender, []).append(seed)
        masks.setdefault(sender, []).append(mask)
        again = generate_shared_key(fake[sender][0], bytes_to_public_key(game.keys[receiver][1]))
        boxes[receiver].append((sender, encrypt(again, plain)))
    masked, victim = game.collect(boxes), 2
    found = game.read(
        victim,
        masked,
        combine_shares(seeds[victim][:THRESHOLD]),
        combine_shares(masks[victim][:THRESHOLD]),
    )
    assert heard(found, game.updates[victim])
