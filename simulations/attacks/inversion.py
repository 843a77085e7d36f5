"""Reading a message out of what one node sends: gradient inversion of LoRA's B.

Knows the attack, and the wire forms that it is tried on. Knows nothing of Flower or files of
examples.
Always: the attacker gets the frozen model, A, and how many tokens the message has (more than a
coordinator knows), and exactly the numbers that travel; every arm is attacked by the same code.

B's gradient in layer 0 is a sum of d_i (A x_i)^T over the tokens, and x_i is the normed embedding
of token i: each of the 49,152 possible tokens either lies in the gradient's row space or does not.
Layer 1 then tells the order.

Hazard: an attack that fails proves nothing, stronger ones exist; the plain arm must succeed for the
others to mean anything, and what protects is the protocol's argument and the accountant's epsilon.
Not covered: several local steps, larger batches.
Source: Petrov et al. 2024, "DAGER: exact gradient inversion for large language models" (the
row-space test).

    python -m quietchoir.simulations.attacks.inversion
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ...core.models.attention import packed_attention
from ...core.models.lora.layout import AdapterShape, Layout, a_name, b_name, frozen_a
from ...core.models.transformer import DecoderLayer, Transformer
from ...core.models.weights import Weights
from ...core.training.frozen_layers import dense_linear
from ...core.training.lora_layers import UpperLayers
from ...core.training.packing import TokenExample, input_tokens, plan
from ...crypto import ring
from ...crypto.he.bfv import SEED_BYTES, BfvMember, Packing
from ...crypto.identity.keys import Identity
from ...crypto.privacy.noise import Noise
from ...crypto.ring import BitRing, TokenRing
from ...crypto.secagg import SecAggClient, SecAggConfig, SecAggServer

Vector = NDArray[np.float64]

MODULES = tuple(f"model.layers.{layer}.self_attn.v_proj" for layer in (0, 1))
RANK = 32
SAME = 0.99  # cosine of two states that are taken for one
BITS = 16  # of a value under masks: fine enough that rounding is not what stops the attack
SENTENCES = (
    "my card ending 4417 was stolen in lisbon please freeze it",
    "tell doctor weber that my insulin dose is wrong",
    "how much did we pay for rent in october",
    "book a table for two near the old harbour",
    "send forty euros to my sister for the concert",
    "the alarm code of our garage is maple syrup",
    "move my lawyer meeting to friday afternoon",
    "is my mother's flight from oslo delayed",
)


@dataclass(frozen=True, slots=True)
class TargetMessage:
    """What a node wants to keep, and what training on it once makes of B."""

    tokens: tuple[int, ...]
    gradient: Vector  # [n], the whole contribution in clear

    @property
    def visible(self) -> frozenset[int]:
        """Tokens that leave a trace: the last is only a target."""
        return frozenset(self.tokens[:-1])


@dataclass(frozen=True, slots=True)
class InversionOutcome:
    """One attack on one message."""

    recall: float  # share of the visible tokens that were found
    exact: bool  # the whole message but its last token, in order
    text: str  # what the attacker reads


def shape_of(weights: Weights) -> AdapterShape:
    """LoRA on every v_proj; the attack looks at the lowest two."""
    return AdapterShape(
        rank=RANK,
        alpha=2.0 * RANK,
        upper_layers=weights.architecture.num_layers,
        targets=("v_proj",),
        seed=1,
    )


def messages(weights: Weights, sentences: Sequence[str] = SENTENCES) -> list[TargetMessage]:
    """One gradient step of each node, by the product's own layers: B = 0, loss on every next
    token.
    """
    upper = UpperLayers(weights, shape_of(weights), torch.float32)
    out = []
    for sentence in sentences:
        tokens = tuple(weights.tokenizer.encode(sentence))
        example = [TokenExample(tokens[:1], tokens[1:])]
        batch = plan(example, 0)
        upper.set(torch.zeros(upper.layout.size))
        rows = upper.answers(upper.model.embed(input_tokens(example, 0)), batch)
        loss = functional.cross_entropy(rows @ upper.head.T, batch.targets)
        loss.backward()  # type: ignore[no-untyped-call]
        out.append(TargetMessage(tokens, upper.grad.double().numpy().copy()))
    return out


class Attacker:
    """Somebody with the public model who holds numbers of one contribution."""

    def __init__(self, weights: Weights) -> None:
        shape = shape_of(weights)
        self.tokenizer = weights.tokenizer
        self.ranges = {
            name: (start, stop)
            for name, start, stop in Layout(shape, weights.architecture).ranges()
        }
        self.a = [
            frozen_a(shape, weights.architecture)[a_name(module)].double() for module in MODULES
        ]
        self.bottom = Transformer(weights, dense_linear(torch.float32), last_layer=2)
        self.layers: list[DecoderLayer] = list(self.bottom.model.layers.values())  # type: ignore[arg-type]
        with torch.no_grad():  # every token's trace in layer 0, [V, r]; by parts, for memory's sake
            parts = torch.chunk(torch.arange(weights.architecture.vocab_size), 8)
            normed = (self.layers[0].input_layernorm(self.bottom.embed(part)) for part in parts)
            self.traces = torch.cat([part.double() @ self.a[0].T for part in normed])

    def row_space(self, numbers: Vector, at: int, rank: int) -> Tensor:
        """Leading right singular vectors of B's part in layer `at`, [r, rank]."""
        start, stop = self.ranges[b_name(MODULES[at])]
        matrix = torch.from_numpy(numbers[start:stop].copy()).view(-1, RANK)
        _, _, right = torch.linalg.svd(matrix, full_matrices=False)
        out: Tensor = right[: min(rank, RANK - 1)].T
        return out

    def attack(
        self, numbers: Vector, message: TargetMessage, distinct: int | None = None
    ) -> InversionOutcome:
        """Read `message` out of `numbers` [n].

        Args:
            distinct: how many different tokens are in the numbers; by default as many as the
            message has.
        """
        count = len(message.visible)
        space = self.row_space(numbers, 0, distinct or count)
        order = residual(self.traces, space).argsort()
        recall = len(set(order[:count].tolist()) & message.visible) / count
        read = self.in_order(numbers, order[: 2 * count].tolist(), len(message.tokens) - 1)
        return InversionOutcome(
            recall, tuple(read) == message.tokens[:-1], self.tokenizer.decode(read)
        )

    @torch.no_grad()
    def in_order(self, numbers: Vector, candidates: Sequence[int], length: int) -> list[int]:
        """Extend the text by the candidate whose state in layer 1 fits that layer's row space
        best, `length` times.
        """
        space = self.row_space(numbers, 1, length)
        text: list[int] = []
        used: list[Tensor] = []
        for _ in range(length):
            states = self.states([[*text, candidate] for candidate in candidates])
            misfit = residual(states, space)
            # the same state again fits as well as it did before, but no two tokens share one
            for earlier in used:
                misfit[functional.cosine_similarity(states, earlier[None]) > SAME] = torch.inf
            best = int(misfit.argmin())
            text.append(candidates[best])
            used.append(states[best])
        return text

    def states(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """Trace in layer 1 of the last token of each of several equally long texts, [B, r]."""
        size = len(texts[0])
        x = self.bottom.embed(torch.tensor(texts).view(-1))
        turn = self.bottom.rope_tables(torch.arange(size).repeat(len(texts)), x.dtype)
        x = self.layers[0](x, turn, packed_attention([size] * len(texts)))[size - 1 :: size]
        out: Tensor = self.layers[1].input_layernorm(x).double() @ self.a[1].T
        return out


def residual(traces: Tensor, space: Tensor) -> Tensor:
    """Distance of each row of `traces` [N, r] from a space [r, k], over its length: near 0 means
    that it took part.
    """
    outside: Tensor = (traces - (traces @ space) @ space.T).norm(dim=-1)
    relative: Tensor = outside / traces.norm(dim=-1).clamp_min(1e-30)
    return relative


def bfloat16(gradient: Vector) -> Vector:
    """As it arrives in bfloat16."""
    return np.asarray(torch.from_numpy(gradient).bfloat16().double().numpy())


def int8(gradient: Vector, tensors: Sequence[tuple[str, int, int]]) -> Vector:
    """As it arrives in 8 bits, each matrix over its own range."""
    ranges = [
        ring.Range(start, stop, float(np.abs(gradient[start:stop]).max()))
        for _, start, stop in tensors
    ]
    return ring.decode_sum(ring.encode(gradient, ranges, 8), 1, ranges, 8)


def noised(gradient: Vector, parties: int) -> Vector:
    """One node's contribution with its share of the noise, unmasked: noise multiplier 1 over all
    parties.
    """
    noise = Noise(
        length=len(gradient),
        clip=float(np.linalg.norm(gradient)),
        multiplier=1.0,
        honest=parties,
        bits=BITS,
    )
    return noise.decode_sum(noise.encode(gradient, b"public"), 1, b"public")


class Masked:
    """One round of secure aggregation of all messages, really run: what the coordinator got of
    each, and the sum.
    """

    def __init__(self, gradients: Sequence[Vector]) -> None:
        largest = float(max(np.abs(gradient).max() for gradient in gradients))
        self.ranges = [ring.Range(0, len(gradients[0]), largest)]
        self.values = {
            f"node-{at}": ring.encode(gradient, self.ranges, BITS)
            for at, gradient in enumerate(gradients)
        }
        identities = {name: Identity.generate() for name in self.values}
        count = len(identities)
        self.config = SecAggConfig(
            federation=secrets.token_bytes(32),
            round=1,
            attempt=0,
            threshold=2 * count // 3 + 1,
            min_cohort=3,
            members={name: identity.public for name, identity in identities.items()},
            length=len(gradients[0]),
            bits=BITS,
        )
        self.uploads = self.run(
            {
                name: SecAggClient(self.config, name, identity)
                for name, identity in identities.items()
            }
        )

    def run(self, clients: Mapping[str, SecAggClient]) -> dict[str, bytes]:
        """All stages; returns the third one's messages and keeps the sum."""
        server = SecAggServer(self.config)
        brought: Mapping[str, bytes] = {}
        uploads: dict[str, bytes] = {}
        for stage in ("advertise", "share", "mask", "consistency", "unmask"):
            for name, client in clients.items():
                if stage == "advertise":
                    answer = client.advertise()
                elif stage == "mask":
                    answer = uploads[name] = client.mask(brought[name], self.values[name], 1)
                else:
                    answer = {
                        "share": client.share,
                        "consistency": client.consistency,
                        "unmask": client.unmask,
                    }[stage](brought[name])
                server.receive(name, answer)
            brought = server.advance() or {}
        assert server.result is not None  # everybody answered
        self.total = ring.decode_sum(server.result.total, len(clients), self.ranges, BITS)
        return uploads

    def numbers(self, at: int) -> Vector:
        """Node `at`'s upload, read as the numbers that it would be without masks."""
        ring = BitRing(length=self.config.length, bits=BITS, parties=len(self.uploads))
        upload = self.uploads[f"node-{at}"]
        # an upload ends with values, then its token count
        end = len(upload) - TokenRing(len(self.uploads)).limbs.wire_bytes
        words = ring.unpack(upload[end - ring.wire_bytes : end]).astype(np.float64)
        return words - 2.0 ** (ring.bits - 1)

    def sealed(self, at: int) -> Vector:
        """Node `at`'s masked values under BFV as well, its ciphertext's bytes read as numbers."""
        packing = Packing(length=self.config.length, bits=BITS, parties=len(self.uploads))
        slots = packing.mask(
            packing.pack(self.values[f"node-{at}"]), secrets.token_bytes(32), subtract=False
        )
        member = BfvMember(packing.parameters.name, secrets.token_bytes(SEED_BYTES))
        wire = b"".join(member.encrypt(*(row.tobytes() for row in slots)))
        words = np.frombuffer(wire, "<u2", len(wire) // 2).astype(np.float64)
        return np.resize(words, self.config.length) - 2.0**15


def arms(
    found: Sequence[TargetMessage], tensors: Sequence[tuple[str, int, int]]
) -> dict[str, list[Vector]]:
    """What the attacker holds of each message, by the way it travelled."""
    gradients = [message.gradient for message in found]
    round_ = Masked(gradients)
    everyone = range(len(found))
    return {
        "plain": [gradient.astype(np.float32).astype(np.float64) for gradient in gradients],
        "bf16": [bfloat16(gradient) for gradient in gradients],
        "int8": [int8(gradient, tensors) for gradient in gradients],
        "noised": [noised(gradient, len(found)) for gradient in gradients],
        "sum": [round_.total for _ in everyone],
        "masked": [round_.numbers(at) for at in everyone],
        "sealed": [round_.sealed(at) for at in everyone],
        # nothing at all travelled
        "chance": [np.random.default_rng(at).normal(size=len(gradients[0])) for at in everyone],
    }


def run(
    weights: Weights, sentences: Sequence[str] = SENTENCES
) -> dict[str, list[InversionOutcome]]:
    """Attack every arm; one outcome a sentence."""
    found = messages(weights, sentences)
    attacker = Attacker(weights)
    together = len(frozenset[int]().union(*(message.visible for message in found)))
    return {
        name: [
            attacker.attack(numbers, message, together if name == "sum" else None)
            for numbers, message in zip(held, found, strict=True)
        ]
        for name, held in arms(
            found, Layout(shape_of(weights), weights.architecture).ranges()
        ).items()
    }


def mean(outcomes: Sequence[InversionOutcome]) -> tuple[float, float]:
    """Mean recall, and the share of messages read exactly."""
    return sum(one.recall for one in outcomes) / len(outcomes), sum(
        one.exact for one in outcomes
    ) / len(outcomes)


def main() -> None:
    """Print one line an arm."""
    from ...core.models import weights
    from ...core.models.hub import catalog
    from .. import machine

    print(machine.line())
    print(
        f"{len(SENTENCES)} messages, one gradient step each, LoRA of rank {RANK} on v_proj, B = 0"
    )
    for name, outcomes in run(weights.load(catalog.pull("smollm2-135m-instruct"))).items():
        recall, exact = mean(outcomes)
        print(f"{name:8} recall {recall:.2f}  exact {exact:.2f}  first: {outcomes[0].text!r:.90}")


if __name__ == "__main__":
    main()
