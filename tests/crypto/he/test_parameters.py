"""The parameter table."""

import dataclasses

import pytest

from quietchoir.core.errors import ConfigError
from quietchoir.crypto.he import parameters
from quietchoir.crypto.he.parameters import CEILING_BITS, SEARCH, TABLE, RingParameters


def test_every_set_is_below_the_ceiling_of_its_ring_and_names_its_purpose():
    for name, each in TABLE.items():
        assert name == each.name and each.purpose
        assert sum(each.prime_bits) <= CEILING_BITS[each.degree]


def test_seal_itself_accepts_every_set_at_128_bits_and_refuses_one_bit_more():
    import tenseal.sealapi as seal

    for each in TABLE.values():
        for extra in (0, CEILING_BITS[each.degree] - sum(each.prime_bits) + 1):
            chosen = seal.EncryptionParameters(getattr(seal.SCHEME_TYPE, each.scheme.upper()))
            chosen.set_poly_modulus_degree(each.degree)
            primes = list(each.prime_bits)
            while extra and primes[0] + extra > 60:
                primes.insert(0, 30)
                extra -= 30
            bits = [primes[0] + max(0, extra), *primes[1:]]
            chosen.set_coeff_modulus(seal.CoeffModulus.Create(each.degree, bits))
            if each.plain_bits:
                chosen.set_plain_modulus(seal.PlainModulus.Batching(each.degree, each.plain_bits))
            context = seal.SEALContext(chosen, True, seal.SEC_LEVEL_TYPE.TC128)
            assert context.parameters_set() == (sum(bits) <= CEILING_BITS[each.degree]), (
                each.name,
                bits,
            )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prime_bits": (55, 55)}, "at most 109"),
        ({"degree": 3000}, "not in the table"),
        ({"prime_bits": (55, 54)}, "last prime must be the largest"),
        ({"query_scale_bits": 35}, "no room"),
        ({"scheme": "bfv", "plain_bits": 61}, "1 to 60"),
    ],
)
def test_a_set_that_is_weak_or_computes_wrongly_cannot_be_made(change, words):
    with pytest.raises(ConfigError, match=words):
        dataclasses.replace(SEARCH, **change)


def test_another_set_has_another_digest_and_only_the_table_has_names():
    digests = {each.digest for each in TABLE.values()} | {
        dataclasses.replace(SEARCH, query_scale_bits=31).digest
    }
    assert len(digests) == len(TABLE) + 1
    assert parameters.named("search-4096") is SEARCH
    with pytest.raises(ConfigError, match="unknown"):
        parameters.named("search-1024")


def test_one_prime_rings_have_sizes_too():
    single = RingParameters(name="x", scheme="bfv", degree=2048, prime_bits=(54,), plain_bits=30)
    assert single.seeded_bytes < single.ciphertext_bytes
