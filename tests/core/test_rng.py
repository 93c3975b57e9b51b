"""Keyed randomness."""

import torch

from condense.rng import Rng, seeded


def test_streams_depend_on_every_key_and_on_nothing_drawn_before():
    a = torch.rand(3, generator=Rng(1).fold("x", 2).generator())
    Rng(1).fold("x", 3).generator()
    assert torch.equal(a, torch.rand(3, generator=Rng(1).fold("x").fold(2).generator()))
    others = [Rng(1).fold("x", 3), Rng(1).fold("y", 2), Rng(2).fold("x", 2), Rng(1).fold("x"), Rng(1).fold("x", "2")]
    assert len({r.seed for r in others} | {Rng(1).fold("x", 2).seed}) == 6


def test_every_key_of_a_long_path_counts():
    path = ("step", 3, "real", 2, "warp", 1)
    seeds = {Rng(0).fold(*path).seed} | {Rng(0).fold(*path[:i], "other", *path[i + 1 :]).seed for i in range(6)}
    assert len(seeds) == 7


def test_keys_do_not_run_into_each_other():
    assert Rng(0).fold("ab", "c").seed != Rng(0).fold("a", "bc").seed
    assert Rng(0).fold(1, 12).seed != Rng(0).fold(11, 2).seed


def test_the_stream_of_a_key_never_changes():
    """Artifacts made by earlier versions are repeatable only while this holds."""
    assert Rng(0).fold("step", 1).seed == 3286008240592085899


def test_seeded_fences_the_global_generator():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with seeded(Rng(5)):
        inside = torch.rand(2)
    assert torch.equal(before, torch.get_rng_state())
    with seeded(Rng(5)):
        assert torch.equal(inside, torch.rand(2))
