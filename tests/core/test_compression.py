"""Compressed messages alone: what they keep, what a receiver makes of them, and what a loss costs."""

import numpy as np
import pytest

from goco_mpi.core.compression import BITS, Compression, QuantizingCodec, SparseCodec
from goco_mpi.core.compression.quantize import SLICES
from goco_mpi.core.rng import Purpose, stream

COMPRESSIONS = {
    "top_k": Compression("top_k", ratio=0.1),
    "random_k": Compression("random_k", ratio=0.1),
    "most at random": Compression("random_k", ratio=0.75),
    **{f"{bits} bits": Compression("quantize", bits=bits) for bits in BITS},
}
SIZES = [1, 2, 7, 64, 300, 1000]


def vectors(n):
    """Differences of several shapes: spread, equal, one coordinate, heavy tails, half-way between levels."""
    rng = np.random.default_rng(5)
    halves = (rng.integers(0, 127, n) + 0.5) / 127
    halves[0] = 1.0
    return {
        "normal": rng.standard_normal(n),
        "equal": np.full(n, -0.3),
        "one": np.eye(1, n, n // 2)[0],
        "tails": rng.standard_normal(n) / rng.random(n) ** 2,
        "halves": halves,
        "small": 1e-30 * rng.standard_normal(n),
        "large": 1e30 * rng.standard_normal(n),
    }


def first_message(compression, n, seed, vector):
    """Return the codec, the public copy after one message from zero, and the message."""
    codec = Compression(compression.kind, compression.ratio, compression.bits, seed).codec(n)
    copy, message = codec.copy(np.zeros(n)), np.full(codec.size, np.nan)
    codec.encode(vector, copy, 3, message)
    return codec, copy, message


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("name", COMPRESSIONS)
def test_a_message_brings_the_copy_nearer_by_the_contraction(name, n):
    for vector in vectors(n).values():
        drawn = [first_message(COMPRESSIONS[name], n, seed, vector) for seed in range(100)]
        errors = np.array([((copy.value - vector) / np.abs(vector).max()) ** 2 for _, copy, _ in drawn]).sum(axis=1)
        square = ((vector / np.abs(vector).max()) ** 2).sum()
        sampling = 4 * errors.std(ddof=1) / np.sqrt(len(errors)) + 1e-12 * square
        assert errors.mean() <= (1 - drawn[0][0].contraction) * square + sampling


@pytest.mark.parametrize("name", ["random_k", "top_k", "most at random"])
def test_the_contraction_of_equal_coordinates_is_what_is_left_out(name):
    codec, copy, _ = first_message(COMPRESSIONS[name], 200, 0, np.full(200, 2.0))
    assert ((copy.value - 2.0) ** 2).sum() == pytest.approx((1 - codec.contraction) * 800)
    assert codec.contraction == codec.k / 200


@pytest.mark.parametrize("bits", BITS)
def test_rounding_is_unbiased_but_for_the_contraction(bits):
    vector, seeds = vectors(300)["normal"], range(400)
    found = [first_message(Compression("quantize", bits=bits), 300, seed, vector) for seed in seeds]
    codec = found[0][0]
    rest = slice(codec.bounds[1], None)  # the first slice is as it is
    values = np.array([copy.value[rest] for _, copy, _ in found]) / codec.contraction
    # A rounding deviates by half a level at most, a level being the bucket's largest difference over L.
    error = np.abs(vector).max() / codec.levels / 2 / np.sqrt(len(values))
    assert np.abs(values.mean(axis=0) - vector[rest]).max() <= 5 * error + 1e-6
    assert np.median(values.std(axis=0)) > 0.0
    # Its variance is within the bound that the contraction is made of.
    assert values.var(axis=0).sum() <= codec.omega * (vector**2).sum()


def test_largest_coordinates_are_chosen_of_what_changed_most_and_the_first_of_equals():
    codec = SparseCodec(40, seed=0, ratio=0.2, largest=True)
    assert (codec.k, codec.n_drawn, codec.n_largest) == (8, 2, 6)
    drawn = set(stream(0, Purpose.COMPRESSION, 3, 0).choice(40, 2, replace=False, shuffle=False).tolist())
    copy = codec.copy(np.ones(40))
    vector = np.ones(40)
    rest = [place for place in range(40) if place not in drawn]
    vector[rest[30:33]] = [-5.0, 7.0, 6.0]
    # Equal but for rounding: which come is for their places to say, not for the rounding.
    vector[rest[5:25]] = 2.0 + 1e-14 * np.random.default_rng(1).standard_normal(20)
    codec.encode(vector, copy, 3, np.empty(codec.size))
    changed = np.flatnonzero(copy.value != 1.0).tolist()
    assert sorted(set(changed) - drawn) == rest[5:8] + rest[30:33]


@pytest.mark.parametrize("name", COMPRESSIONS)
def test_who_hears_every_message_has_the_public_copy_and_it_settles_where_the_vector_does(name):
    n = 70
    codec = COMPRESSIONS[name].codec(n)
    rng = np.random.default_rng(0)
    public, heard = codec.copy(np.zeros(n)), codec.copy(np.zeros(n))
    vector = np.zeros(n)
    for step in range(400):
        if step < 100:
            vector = rng.standard_normal(n)
        message = np.full(codec.size, np.nan)
        codec.encode(vector, public, 1, message)
        for _ in range(1 + step % 2):  # one that is used again changes nothing
            codec.decode(message, heard, 1, max_age=0)
        np.testing.assert_array_equal(heard.value, public.value)
        assert heard.number == public.number == step
    assert heard.known.all()
    # A reference in single precision leaves its rounding, of which most is in the differences.
    np.testing.assert_allclose(heard.value, vector, rtol=0, atol=1e-6 if name.endswith("bits") else 0)


@pytest.mark.parametrize("name", COMPRESSIONS)
def test_a_copy_that_missed_messages_is_the_public_one_again_after_a_while(name):
    n = 70
    codec = COMPRESSIONS[name].codec(n)
    rng = np.random.default_rng(1)
    public, heard = codec.copy(np.zeros(n)), codec.copy(np.zeros(n))
    apart, known = [], np.zeros(n)
    for _ in range(1000):
        vector = np.ones(n) + 0.01 * rng.standard_normal(n)
        message = np.empty(codec.size)
        codec.encode(vector, public, 1, message)
        if rng.random() < 0.4:
            codec.decode(message, heard, 1, max_age=10**6)
            apart.append(np.abs((heard.value - public.value)[heard.known]).max())
            known += heard.known
    # Increments would be lost for good: 60 % of the way from 0 to 1.
    assert max(apart[150:]) < 0.2
    assert known.min() > 50


@pytest.mark.parametrize("name", ["top_k", "random_k"])
def test_after_too_many_missed_messages_only_what_has_come_since_counts(name):
    n = 70
    codec = COMPRESSIONS[name].codec(n)
    public, ends = codec.copy(np.zeros(n)), {}
    messages = []
    for step in range(300):
        message = np.empty(codec.size)
        codec.encode(np.full(n, 1.0 + step), public, 1, message)
        messages.append(message)
    for missed in (5, 6):
        heard = codec.copy(np.zeros(n))
        for message in messages[:100] + messages[100 + missed :][:1]:
            codec.decode(message, heard, 1, max_age=5)
        ends[missed] = heard
        if missed == 6:
            assert 0 < heard.known.sum() < n
            assert (heard.value[heard.known] == 107.0).all()
            for message in messages[107:]:
                codec.decode(message, heard, 1, max_age=5)
            assert heard.known.all()
    assert ends[5].known.all()


def test_a_slice_whose_reference_was_lost_is_left_out_until_the_next():
    codec = QuantizingCodec(10 * SLICES, seed=0, bits=8)
    public, heard = codec.copy(np.zeros(10 * SLICES)), codec.copy(np.zeros(10 * SLICES))
    lost = 3
    for number in range(lost + SLICES + 2):
        message = np.empty(codec.size)
        codec.encode(np.full(10 * SLICES, 1.0 + number), public, 1, message)
        if number == lost:
            continue
        codec.decode(message, heard, 1, max_age=20)
        missing = np.arange(10 * SLICES) // 10 == lost if lost < number < lost + SLICES else np.zeros(10 * SLICES, bool)
        np.testing.assert_array_equal(heard.known, ~missing)
        np.testing.assert_array_equal(heard.value[~missing], public.value[~missing])


@pytest.mark.parametrize("every", [2, 3, 5])
@pytest.mark.parametrize("name", COMPRESSIONS)
def test_who_hears_only_every_so_many_messages_comes_to_know_all(name, every):
    codec = COMPRESSIONS[name].codec(70)
    public, heard = codec.copy(np.zeros(70)), codec.copy(np.zeros(70))
    known = np.zeros(70, dtype=bool)
    for number in range(4000):
        message = np.empty(codec.size)
        codec.encode(np.full(70, 1.0), public, 1, message)
        if number % every == 0:
            codec.decode(message, heard, 1, max_age=0)
            known |= heard.known & (np.abs(heard.value - 1.0) < 1e-6)
    assert known.all()


@pytest.mark.parametrize(
    ("compression", "words"),
    [
        # The number, k values, and the places of three quarters of them, two to a word.
        (Compression("top_k", ratio=0.01), 1 + 1000 + 375),
        (Compression("random_k", ratio=0.01), 1 + 1000),
        # The number; a seventh of the coordinates and a scale for every 256, two to a word; the codes.
        (Compression("quantize", bits=2), 1 + 7143 + 196 + 3125),
        (Compression("quantize", bits=4), 1 + 7143 + 196 + 6250),
        (Compression("quantize", bits=8), 1 + 7143 + 196 + 12500),
        (Compression("quantize", bits=16), 1 + 7143 + 196 + 25000),
    ],
    ids=str,
)
def test_messages_are_as_short_as_they_should_be(compression, words):
    assert compression.codec(100_000).size == words


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("bits", BITS)
def test_every_code_is_read_as_it_was_written(bits, seed):
    for n in (1, 3, 63, 64, 65, 257, 600):
        codec = QuantizingCodec(n, seed, bits)
        codes = np.random.default_rng(seed).integers(0, 2**bits - 1, n).astype(np.uint16)
        out = np.zeros(codec.size)
        codec._pack(codes, out)
        np.testing.assert_array_equal(codec._unpack(out), codes)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, 1e200, -1e300])
@pytest.mark.parametrize("name", COMPRESSIONS)
def test_vectors_of_a_run_that_diverges_raise_nothing(name, wrong):
    codec = COMPRESSIONS[name].codec(50)
    public = codec.copy(np.zeros(50))
    for places in (slice(7, 9), slice(None), slice(None)):
        vector = np.ones(50)
        vector[places] = wrong
        codec.encode(vector, public, 0, np.empty(codec.size))


def test_the_consensus_step_follows_from_the_compression_and_the_graph_unless_given():
    lossless = Compression("random_k", ratio=1.0)
    assert lossless.step(30, 1.9) == pytest.approx(1.6 / 1.9, rel=1e-5)
    assert lossless.step(30, 0.5) == lossless.step(30, 0.0) == 1.0
    steps = [Compression("random_k", ratio=ratio).step(1000, 1.2) for ratio in (0.01, 0.1, 0.5, 1.0)]
    assert steps == sorted(steps) and steps[0] < 0.01 < 0.5 < steps[-1]
    assert Compression("random_k", ratio=0.01, consensus_step=0.7).step(1000, 1.2) == 0.7
