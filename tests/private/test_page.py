"""Which recipes run on private data: the list that docs/privacy.md is made of, pinned."""

from __future__ import annotations

from condense_private.page import page_of_privacy, verdicts
from condense_private.refusals import LEAKS

ACCEPTED = {"dc", "dp-dm", "dp-merf", "dp-random", "ldpdc", "psg", "psg-prior"}
FROM_NOISE = {"dm", "dsa"}  # refused as published, and accepted once they start from noise


def test_the_recipes_that_are_accepted_are_these_and_no_others():
    found = verdicts()
    assert {name for _, name, verdict, _ in found if verdict == "accepted"} == ACCEPTED
    assert {verdict for _, _, verdict, _ in found} == {"accepted", "refused"}
    for form, name, verdict, why in found:
        if verdict == "refused":
            assert why, (form, name)
            leaks = any(leak in why and remedy in why for leak, remedy in LEAKS.values())
            assert form == "nodes" or leaks, (form, name)


def test_the_published_starts_are_refused_by_the_sentence_that_names_noise():
    said = {name: why for form, name, _, why in verdicts() if form == "tensors"}
    assert all("--set init=noise" in said[name] for name in FROM_NOISE)


def test_the_page_holds_every_recipe():
    text = page_of_privacy()
    for form, name, verdict, _ in verdicts():
        assert f"| {form} | {name} | {verdict} |" in text
