"""How latency is measured follows the arguments, for the search and for the card alike."""

import pytest

from kdnas_hf import SearchArguments


@pytest.mark.parametrize("measure", ["latency", "throughput"])
def test_a_card_times_the_calls_that_were_optimized(measure):
    args = SearchArguments(
        latency_lengths=["32:3", "128:1"],
        latency_device="cpu",
        latency_measure=measure,
        latency_batch_size=4,
        latency_threads=2,
        latency_repeats=7,
    )
    optimized, card = args.latency_benchmark, args.benchmark_of_calls()
    for name in ("sequence_length", "device", "batch_size", "threads", "repeats"):
        assert getattr(card, name) == getattr(optimized, name), name
    assert optimized.throughput == (measure == "throughput")
    assert not card.throughput  # a card says how long a call takes
