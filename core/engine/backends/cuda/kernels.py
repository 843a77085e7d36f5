"""The Triton kernels of `fused`.

Knows pointers, strides and tiles. Knows nothing of tensors' owners.
Always: what a name in capitals means to a kernel (M rows, N columns of the result, K columns of x)
is the same in all of them; masked lanes read 0 and write nothing; float32 is multiplied as float32
(`ieee`), not in the tensor cores' ten bits.
"""

import triton
import triton.language as tl


@triton.jit
def product_4(
    x, words, scales, zeros, out, M, N, K, chunks, each,
    HAS_ZEROS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    part = tl.program_id(1)
    m = tl.program_id(2) * BM + tl.arange(0, BM)
    i = tl.arange(0, 16)
    sums = tl.zeros((BM, BN), tl.float32)
    for chunk in range(part * each, tl.minimum((part + 1) * each, chunks)):
        # 64 bits: the largest heads have more than 2^31 weights.
        word = tl.load(
            words + (tl.cast(chunk, tl.int64) * N + n)[:, None] * 16 + i[None, :],
            mask=(n < N)[:, None],
            other=0,
        )
        for group in tl.static_range(4):
            column = chunk * 128 + group * 32 + i
            low = tl.load(
                x + m[:, None] * K + column[None, :],
                mask=(m < M)[:, None] & (column < K)[None, :],
                other=0.0,
            )
            high = tl.load(
                x + m[:, None] * K + (column + 16)[None, :],
                mask=(m < M)[:, None] & (column + 16 < K)[None, :],
                other=0.0,
            )
            # Integers are exact in any type of the dot; their scale comes after it.
            left = (((word >> (8 * group)) & 15) - 8).to(DOT)
            right = (((word >> (8 * group + 4)) & 15) - 8).to(DOT)
            dot = tl.dot(low.to(DOT), tl.trans(left), input_precision="ieee")
            dot += tl.dot(high.to(DOT), tl.trans(right), input_precision="ieee")
            place = (chunk * 4 + group) * N + n
            sums += dot * tl.load(scales + place, mask=n < N, other=0.0).to(tl.float32)[None, :]
            if HAS_ZEROS:
                total = tl.sum(low.to(tl.float32), 1) + tl.sum(high.to(tl.float32), 1)
                sums += total[:, None] * tl.load(zeros + place, mask=n < N, other=0.0)[None, :]
    tl.store(
        out + (part * M + m)[:, None] * N + n[None, :],
        sums,
        mask=(m < M)[:, None] & (n < N)[None, :],
    )


@triton.jit
def product_8(
    x,
    words,
    scales,
    out,
    M,
    N,
    K,
    chunks,
    each,
    BM: tl.constexpr,
    BN: tl.constexpr,
    DOT: tl.constexpr,
):
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    part = tl.program_id(1)
    m = tl.program_id(2) * BM + tl.arange(0, BM)
    i = tl.arange(0, 32)
    sums = tl.zeros((BM, BN), tl.float32)
    for chunk in range(part * each, tl.minimum((part + 1) * each, chunks)):
        for group in tl.static_range(4):
            column = chunk * 128 + group * 32 + i
            rows = tl.load(
                x + m[:, None] * K + column[None, :],
                mask=(m < M)[:, None] & (column < K)[None, :],
                other=0.0,
            )
            place = (
                words
                + (tl.cast(chunk, tl.int64) * N + n)[:, None] * 128
                + (group * 32 + i)[None, :]
            )
            weight = tl.load(place, mask=(n < N)[:, None], other=0).to(DOT)
            scale = tl.load(scales + (chunk * 4 + group) * N + n, mask=n < N, other=0.0).to(
                tl.float32
            )
            sums += tl.dot(rows.to(DOT), tl.trans(weight), input_precision="ieee") * scale[None, :]
    tl.store(
        out + (part * M + m)[:, None] * N + n[None, :],
        sums,
        mask=(m < M)[:, None] & (n < N)[None, :],
    )


@triton.jit
def unpack_4(
    words,
    scales,
    zeros,
    out,
    N,
    K,
    start,
    stop,
    HAS_ZEROS: tl.constexpr,
    BN: tl.constexpr,
    OUT: tl.constexpr,
):
    n = start + tl.program_id(0) * BN + tl.arange(0, BN)
    chunk = tl.program_id(1)
    i = tl.arange(0, 16)
    mine = n < stop
    word = tl.load(
        words + (chunk.to(tl.int64) * N + n)[:, None] * 16 + i[None, :], mask=mine[:, None], other=0
    )
    row = out + (n - start).to(tl.int64)[:, None] * K
    for group in tl.static_range(4):
        place = (chunk * 4 + group) * N + n
        scale = tl.load(scales + place, mask=mine, other=0.0).to(tl.float32)[:, None]
        low = (((word >> (8 * group)) & 15) - 8).to(tl.float32) * scale
        high = (((word >> (8 * group + 4)) & 15) - 8).to(tl.float32) * scale
        if HAS_ZEROS:
            zero = tl.load(zeros + place, mask=mine, other=0.0)[:, None]
            low += zero
            high += zero
        column = chunk * 128 + group * 32 + i
        tl.store(row + column[None, :], low.to(OUT), mask=mine[:, None] & (column < K)[None, :])
        tl.store(
            row + (column + 16)[None, :],
            high.to(OUT),
            mask=mine[:, None] & (column + 16 < K)[None, :],
        )


@triton.jit
def unpack_8(words, scales, out, N, K, start, stop, BN: tl.constexpr, OUT: tl.constexpr):
    n = start + tl.program_id(0) * BN + tl.arange(0, BN)
    chunk = tl.program_id(1)
    i = tl.arange(0, 32)
    mine = n < stop
    row = out + (n - start).to(tl.int64)[:, None] * K
    for group in tl.static_range(4):
        place = words + (chunk.to(tl.int64) * N + n)[:, None] * 128 + (group * 32 + i)[None, :]
        weight = tl.load(place, mask=mine[:, None], other=0).to(tl.float32)
        scale = tl.load(scales + (chunk * 4 + group) * N + n, mask=mine, other=0.0).to(tl.float32)
        column = chunk * 128 + group * 32 + i
        tl.store(
            row + column[None, :],
            (weight * scale[:, None]).to(OUT),
            mask=mine[:, None] & (column < K)[None, :],
        )


@triton.jit
def add_norm_row(
    residual, partial, post_norm, weight, out, M, D, eps, post_eps,
    PARTS: tl.constexpr, BEHIND: tl.constexpr, BD: tl.constexpr, OUT: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0)
    d = tl.arange(0, BD)
    there = d < D
    x = tl.load(residual + m * D + d, mask=there, other=0.0)
    if PARTS:
        more = tl.zeros((BD,), tl.float32)
        for part in tl.static_range(PARTS):
            more += tl.load(partial + (part * M + m) * D + d, mask=there, other=0.0)
        if BEHIND:
            more *= (
                1.0
                / tl.sqrt(tl.sum(more * more, 0) / D + post_eps)
                * tl.load(post_norm + d, mask=there, other=0.0)
            )
        x += more
        tl.store(residual + m * D + d, x, mask=there)
    scale = 1.0 / tl.sqrt(tl.sum(x * x, 0) / D + eps)
    tl.store(
        out + m * D + d,
        (x * scale * tl.load(weight + d, mask=there, other=0.0)).to(OUT),
        mask=there,
    )


@triton.jit
def gate_row(
    partial, out, M, F, PARTS: tl.constexpr, GELU: tl.constexpr, BF: tl.constexpr, OUT: tl.constexpr
):  # fmt: skip
    m = tl.program_id(0)
    f = tl.program_id(1) * BF + tl.arange(0, BF)
    gate = tl.zeros((BF,), tl.float32)
    up = tl.zeros((BF,), tl.float32)
    for part in tl.static_range(PARTS):
        row = partial + (part * M + m) * 2 * F
        gate += tl.load(row + f, mask=f < F, other=0.0)
        up += tl.load(row + F + f, mask=f < F, other=0.0)
    if GELU:  # tanh(z) = 1 - 2 / (exp(2z) + 1)
        # exp stays finite
        inner = tl.minimum(0.7978845608028654 * (gate + 0.044715 * gate * gate * gate), 40.0)
        roped = 0.5 * gate * (2.0 - 2.0 / (tl.exp(2.0 * inner) + 1.0))
    else:
        roped = gate / (1.0 + tl.exp(tl.minimum(-gate, 80.0)))
    tl.store(out + m * F + f, (roped * up).to(OUT), mask=f < F)


@triton.jit
def rope_head(
    partial,
    bias,
    q_norm,
    k_norm,
    cosines,
    sines,
    positions,
    places,
    q,
    integers,
    scales,
    M,
    eps,
    largest,
    value_side,
    value_scales,
    H: tl.constexpr,
    KV: tl.constexpr,
    HALF: tl.constexpr,
    BHALF: tl.constexpr,
    BLOCK: tl.constexpr,
    PARTS: tl.constexpr,
    BIAS: tl.constexpr,
    NORMS: tl.constexpr,
    TURN: tl.constexpr,
    OUT: tl.constexpr,
):
    m = tl.program_id(0)
    h = tl.program_id(1)  # queries, then keys, then values
    i = tl.arange(0, BHALF)
    there = i < HALF
    width = (H + 2 * KV) * 2 * HALF
    first = tl.zeros((BHALF,), tl.float32)
    second = tl.zeros((BHALF,), tl.float32)
    for part in tl.static_range(PARTS):
        row = partial + (part * M + m) * width + h * 2 * HALF
        first += tl.load(row + i, mask=there, other=0.0)
        second += tl.load(row + HALF + i, mask=there, other=0.0)
    if BIAS:
        first += tl.load(bias + h * 2 * HALF + i, mask=there, other=0.0)
        second += tl.load(bias + h * 2 * HALF + HALF + i, mask=there, other=0.0)
    if h < H + KV:
        if NORMS:
            scale = 1.0 / tl.sqrt(
                (tl.sum(first * first, 0) + tl.sum(second * second, 0)) / (2 * HALF) + eps
            )
            # The compiler takes no pointer by a condition, so each side reads nothing where the
            # other one counts.
            query, key = i < tl.where(h < H, HALF, 0), i < tl.where(h < H, 0, HALF)
            first *= scale * (
                tl.load(q_norm + i, mask=query, other=0.0)
                + tl.load(k_norm + i, mask=key, other=0.0)
            )
            second *= scale * (
                tl.load(q_norm + HALF + i, mask=query, other=0.0)
                + tl.load(k_norm + HALF + i, mask=key, other=0.0)
            )
        if TURN:
            position = tl.load(positions + m)
            cosine = tl.load(cosines + position * HALF + i, mask=there, other=0.0)
            sine = tl.load(sines + position * HALF + i, mask=there, other=0.0)
            roped = first * cosine - second * sine
            second = second * cosine + first * sine
            first = roped
    # A name keeps its type on both sides of a branch, or the compiler refuses it: so no two rows
    # are called the same.
    if h < H:
        query_row = q + (m * H + h) * 2 * HALF
        tl.store(query_row + i, first.to(OUT), mask=there)
        tl.store(query_row + HALF + i, second.to(OUT), mask=there)
    else:
        place = tl.load(places + m)
        head = (h - H) % KV
        side = (h - H) // KV  # 0 keys, 1 values
        spot = ((place // BLOCK) * KV + head) * BLOCK + place % BLOCK
        amax = tl.maximum(tl.max(tl.abs(first), 0), tl.max(tl.abs(second), 0))
        step_of_integers = (amax / largest).to(tl.float16)
        tl.store(scales + side * value_scales + spot, step_of_integers)
        by = 1.0 / tl.maximum(step_of_integers.to(tl.float32), 1e-12)
        cache_row = integers + side * value_side + spot * 2 * HALF
        tl.store(cache_row + i, rounded(first * by, largest), mask=there)
        tl.store(cache_row + HALF + i, rounded(second * by, largest), mask=there)


@triton.jit
def rounded(x, largest):
    whole = tl.where(x >= 0, tl.floor(x + 0.5), tl.ceil(x - 0.5))
    return tl.minimum(tl.maximum(whole, -largest), largest).to(tl.int8)


@triton.jit
def attend_part(
    q,
    keys,
    key_scales,
    values,
    value_scales,
    tables,
    lengths,
    mixed,
    tops,
    sums,
    table_width,
    window,
    scale,
    H: tl.constexpr,
    KV: tl.constexpr,
    SHARE: tl.constexpr,
    BSHARE: tl.constexpr,
    SIZE: tl.constexpr,
    BSIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    T: tl.constexpr,
    PARTS: tl.constexpr,
    DOT: tl.constexpr,
):
    m, kv, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(lengths + m)
    start = tl.where(window > 0, tl.maximum(length - window, 0), 0)
    each = ((length - start + PARTS - 1) // PARTS + T - 1) // T * T
    begin = start + part * each
    end = tl.minimum(begin + each, length)
    r, d = tl.arange(0, BSHARE), tl.arange(0, BSIZE)
    head = kv * SHARE + r
    mine = (r < SHARE)[:, None] & (d < SIZE)[None, :]
    query = tl.load(q + (m * H + head)[:, None] * SIZE + d[None, :], mask=mine, other=0.0).to(DOT)
    top = tl.full((BSHARE,), -1e30, tl.float32)
    total = tl.zeros((BSHARE,), tl.float32)
    out = tl.zeros((BSHARE, BSIZE), tl.float32)
    for at in range(begin, end, T):
        t = at + tl.arange(0, T)
        seen = t < end
        block = tl.load(tables + m * table_width + t // BLOCK, mask=seen, other=0)
        spot = (block.to(tl.int64) * KV + kv) * BLOCK + t % BLOCK
        there = seen[:, None] & (d < SIZE)[None, :]
        key = tl.load(keys + spot[:, None] * SIZE + d[None, :], mask=there, other=0).to(DOT)
        by = tl.load(key_scales + spot, mask=seen, other=0.0).to(tl.float32)
        score = tl.dot(query, tl.trans(key), input_precision="ieee") * by[None, :] * scale
        score = tl.where(seen[None, :], score, -1e30)
        higher = tl.maximum(top, tl.max(score, 1))
        share = tl.where(seen[None, :], tl.exp(score - higher[:, None]), 0.0)
        keep = tl.exp(top - higher)
        value = tl.load(values + spot[:, None] * SIZE + d[None, :], mask=there, other=0).to(DOT)
        by = tl.load(value_scales + spot, mask=seen, other=0.0).to(tl.float32)
        out = out * keep[:, None] + tl.dot(
            (share * by[None, :]).to(DOT), value, input_precision="ieee"
        )
        total = total * keep + tl.sum(share, 1)
        top = higher
    place = (m * H + head) * PARTS + part
    tl.store(mixed + place[:, None] * SIZE + d[None, :], out, mask=mine)
    tl.store(tops + place, top, mask=r < SHARE)
    tl.store(sums + place, total, mask=r < SHARE)


@triton.jit
def attend_whole(
    mixed,
    tops,
    sums,
    out,
    SIZE: tl.constexpr,
    BSIZE: tl.constexpr,
    PARTS: tl.constexpr,
    OUT: tl.constexpr,
):
    row = tl.program_id(0)
    p, d = tl.arange(0, PARTS), tl.arange(0, BSIZE)
    top = tl.load(tops + row * PARTS + p)
    weight = tl.exp(top - tl.max(top, 0))
    whole = tl.sum(tl.load(sums + row * PARTS + p) * weight, 0)
    place = mixed + (row * PARTS + p)[:, None] * SIZE + d[None, :]
    each = tl.load(place, mask=(d < SIZE)[None, :], other=0.0)
    tl.store(
        out + row * SIZE + d, (tl.sum(each * weight[:, None], 0) / whole).to(OUT), mask=d < SIZE
    )
