"""Random and damaged bytes for every decoder: none raises what it does not say, none hangs, none grows."""

from __future__ import annotations

import gc
import random
import time
import tracemalloc
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.decoders import DECODERS
from tests.samples import samples

NAMES = sorted(DECODERS)


@pytest.mark.parametrize("name", NAMES)
def test_the_examples_are_valid(name: str) -> None:
    for example in DECODERS[name].examples:
        DECODERS[name].read(example)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=samples(100, many=5000), deadline=timedelta(seconds=10), suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_bytes_are_a_surprise(name: str, data: st.DataObject) -> None:
    decoder = DECODERS[name]
    decoder.survive(data.draw(st.binary(max_size=300)))
    damaged = bytearray(data.draw(st.sampled_from(decoder.examples)))
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        match data.draw(st.sampled_from(["change", "cut", "insert", "copy"])):
            case "change":
                damaged[at] = data.draw(st.integers(0, 255))
            case "cut":
                del damaged[at : at + data.draw(st.integers(1, 8))]
            case "insert":
                damaged[at:at] = data.draw(st.binary(min_size=1, max_size=8))
            case "copy":
                end = min(len(damaged), at + data.draw(st.integers(1, 40)))
                damaged[at:at] = damaged[at:end]
        if not damaged:
            break
    decoder.survive(bytes(damaged))


@pytest.mark.parametrize("name", NAMES)
def test_much_garbage_takes_no_memory_and_little_time(name: str) -> None:
    decoder, rng = DECODERS[name], random.Random(name)

    def burst() -> None:
        for _ in range(200):
            raw = bytearray(rng.choice(decoder.examples))
            raw[rng.randrange(len(raw))] = rng.randrange(256)
            decoder.survive(bytes(raw))

    burst()
    gc.collect()
    tracemalloc.start()
    try:
        before, began = tracemalloc.get_traced_memory()[0], time.process_time()
        burst()
        gc.collect()
        grown, took = tracemalloc.get_traced_memory()[0] - before, time.process_time() - began
    finally:
        tracemalloc.stop()
    assert grown < 100_000
    assert took < 10
