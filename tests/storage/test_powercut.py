"""A bounded run of the power-cut fuzzer; longer ones are started by hand (see `powercut`)."""

import powercut

SEEDS = 2_000


def test_power_cuts_and_kills() -> None:
    """Lives of a store that are killed and cut off at random lose and invent nothing."""
    lives, failed = powercut.run(first=0, seeds=SEEDS, progress=False)
    assert not failed, "each failed seed printed the command that repeats it"
    assert lives > SEEDS
