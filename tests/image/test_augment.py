"""DSA and DC's augmentation against slow versions, one image and one pixel at a time; `none` and chains.

The slow versions write the published constants out: a changed default fails here.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from condense.axes import Augment
from condense.component import checked, named
from condense.errors import BadValue
from condense.parts.augment import NoAugment, Then
from condense.rng import Rng
from condense.task import Batch, Task
from condense_image.augment import DC_FAMILIES, DSA, FAMILIES, DCAugment, DCWarp, DSAWarp, components

N, C, H, W = 4, 3, 8, 11  # rows and columns differ, one of them odd: a swap of the two is seen


def images(device, n=N, shape=(C, H, W), dtype=torch.float32) -> torch.Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(3)).to(device, dtype)


def batch(x: torch.Tensor) -> Batch:
    return Batch(x, torch.zeros(len(x), dtype=torch.int64, device=x.device))


def apply(warp, x: torch.Tensor) -> torch.Tensor:
    return warp(batch(x)).x


# -- slow versions of DSA's families: one image (C, H, W), numbers of [0, 1), the published constants ------------------


def slow_color(x, u):
    x = x + (u[0] - 0.5) * 1.0
    mean = sum(x[c] for c in range(len(x))) / len(x)
    x = np.stack([(x[c] - mean) * (u[1] * 2.0) + mean for c in range(len(x))])
    return (x - x.mean()) * (u[2] + 0.5) + x.mean()


def slow_shift(x, by_row, by_col, fill):
    out = np.empty_like(x)
    for c, i, j in np.ndindex(*x.shape):
        r, s = i + by_row, j + by_col
        out[c, i, j] = x[c, r, s] if 0 <= r < x.shape[1] and 0 <= s < x.shape[2] else fill[c]
    return out


def slow_crop(x, u):
    reach = [int(side * 0.125 + 0.5) for side in x.shape[1:]]
    by = [int(u[i] * (2 * reach[i] + 1)) - reach[i] for i in range(2)]
    return slow_shift(x, by[0], by[1], np.zeros(len(x)))


def slow_cutout(x, u):
    size = [int(side * 0.5 + 0.5) for side in x.shape[1:]]
    middle = [int(u[i] * (x.shape[1 + i] + (1 - size[i] % 2))) for i in range(2)]
    out = x.copy()
    for a in range(size[0]):
        for b in range(size[1]):
            i = min(max(a + middle[0] - size[0] // 2, 0), x.shape[1] - 1)
            j = min(max(b + middle[1] - size[1] // 2, 0), x.shape[2] - 1)
            out[:, i, j] = 0
    return out


def slow_flip(x, u):
    return x[:, :, ::-1] if u[0] < 0.5 else x


def slow_linear(x, m):
    """Bilinear, zero outside; pixel j of w has its middle at (2 j + 1) / w - 1."""
    _, h, w = x.shape
    out = np.zeros_like(x)
    for i in range(h):
        for j in range(w):
            place = m @ np.array([(2 * j + 1) / w - 1, (2 * i + 1) / h - 1])
            col, row = ((place[0] + 1) * w - 1) / 2, ((place[1] + 1) * h - 1) / 2
            for r in (math.floor(row), math.floor(row) + 1):
                for s in (math.floor(col), math.floor(col) + 1):
                    if 0 <= r < h and 0 <= s < w:
                        out[:, i, j] += (1 - abs(row - r)) * (1 - abs(col - s)) * x[:, r, s]
    return out


def slow_scale(x, u):
    sx, sy = (1 / 1.2 + u[i] * (1.2 - 1 / 1.2) for i in range(2))
    return slow_linear(x, np.array([[sx, 0], [0, sy]]))


def slow_rotate(x, u):
    a = (u[0] - 0.5) * 2 * 15 / 180 * math.pi
    return slow_linear(x, np.array([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]]))


SLOW = {
    "color": slow_color,
    "crop": slow_crop,
    "cutout": slow_cutout,
    "flip": slow_flip,
    "scale": slow_scale,
    "rotate": slow_rotate,
}


def slow(x: torch.Tensor, state: dict[str, torch.Tensor]) -> torch.Tensor:
    out = []
    for i, image in enumerate(x.double().cpu().numpy()):
        for family, u in state.items():
            image = SLOW[family](image, u[min(i, len(u) - 1)].double().numpy())
        out.append(image.copy())
    return torch.from_numpy(np.stack(out))


# -- DSA ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [None, N])
@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_is_the_slow_version(family, n, device):
    x = images(device)
    for seed in range(6):
        warp = DSA(strategy=family).sample(Rng(seed), n)
        torch.testing.assert_close(apply(warp, x).double().cpu(), slow(x, warp.state()), atol=2e-5, rtol=0)


@pytest.mark.parametrize("strategy", ["color_crop_cutout_flip_scale_rotate", "rotate_scale_flip_cutout_crop_color"])
def test_mode_m_applies_all_families_in_their_order(strategy, device):
    x = images(device)
    warp = DSA(strategy=strategy, mode="M").sample(Rng(5), N)
    assert list(warp.state()) == strategy.split("_")
    torch.testing.assert_close(apply(warp, x).double().cpu(), slow(x, warp.state()), atol=5e-5, rtol=0)


def test_mode_s_applies_one_family_for_all_and_each_as_often():
    drawn = [list(DSA().sample(Rng(seed), 7).state()) for seed in range(600)]
    assert all(len(families) == 1 for families in drawn)
    counts = {family: sum(families == [family] for families in drawn) for family in FAMILIES}
    assert all(65 <= count <= 140 for count in counts.values()), counts


def test_published_defaults():
    assert DSA().dump() == {
        "name": "dsa",
        "strategy": "color_crop_cutout_flip_scale_rotate",
        "mode": "S",
        "ratio_scale": 1.2,
        "ratio_rotate": 15.0,
        "ratio_crop_pad": 0.125,
        "ratio_cutout": 0.5,
        "brightness": 1.0,
        "saturation": 2.0,
        "contrast": 0.5,
        "prob_flip": 0.5,
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_siamese_treats_all_alike_and_per_image_does_not(family, device):
    x = images(device)[:1].expand(16, -1, -1, -1)
    together = apply(DSA(strategy=family).sample(Rng(1)), x)
    apart = apply(DSA(strategy=family).sample(Rng(1), 16), x)
    assert all(torch.equal(row, together[0]) for row in together)
    assert not all(torch.equal(row, apart[0]) for row in apart)


def test_a_siamese_warp_does_the_same_to_two_batches(device):
    x = images(device)
    warp = DSA(mode="M", strategy="crop_cutout_flip_scale_rotate").sample(Rng(2))
    torch.testing.assert_close(apply(warp, x)[1:3], apply(warp, x[1:3]))


@pytest.mark.parametrize("family", ["scale", "rotate"])
def test_siamese_makes_one_grid(family, device, monkeypatch):
    made, real = [], F.affine_grid
    monkeypatch.setattr(F, "affine_grid", lambda theta, *a, **k: made.append(len(theta)) or real(theta, *a, **k))
    apply(DSA(strategy=family).sample(Rng(0)), images(device))
    assert made == [1]


def test_ranges_of_crop(device):
    """At 32 x 32, rows and columns shift by -4..4, each by its own."""
    place = (100 * torch.arange(32.0)[:, None] + torch.arange(32.0)).expand(2000, 1, 32, 32).to(device)
    middle = apply(DSA(strategy="crop").sample(Rng(0), 2000), place)[:, 0, 16, 16].long().cpu()
    shifts = {(int(m) // 100 - 16, int(m) % 100 - 16) for m in middle}
    assert shifts == {(a, b) for a in range(-4, 5) for b in range(-4, 5)}


def test_ranges_of_cutout(device):
    """At 32 x 32 the box is 16 x 16 with its middle on 0..32: 8 to 16 rows of it are seen, at either edge."""
    x = apply(DSA(strategy="cutout").sample(Rng(0), 2000), torch.ones(2000, 1, 32, 32, device=device)).cpu()
    for dim in (2, 3):
        gone = (x == 0).any(dim).squeeze(1)
        seen = {(int(row.nonzero()[0]), int(row.sum())) for row in gone}
        assert seen == {(max(0, m - 8), min(32, m + 8) - max(0, m - 8)) for m in range(33)}


def test_range_of_flip(device):
    x = torch.tensor([0.0, 1.0], device=device).expand(4000, 1, 1, 2)
    assert 0.47 < float(apply(DSA(strategy="flip").sample(Rng(0), 4000), x)[:, 0, 0, 0].mean()) < 0.53


def test_ranges_of_color(device):
    """brightness +-0.5; saturation 0..2; contrast 0.5..1.5: read off an image of two halves and two hues."""
    halves = torch.tensor([1.0, -1.0]).expand(1, 2, 2) + torch.tensor([1.0, 0.0, -1.0])[:, None, None]
    x = apply(DSA(strategy="color").sample(Rng(0), 4000), halves.expand(4000, 3, 2, 2).to(device)).cpu()
    contrast = (x[..., 0] - x[..., 1]).mean((1, 2)) / 2
    saturation = (x[:, 0] - x[:, 2]).mean((1, 2)) / 2 / contrast
    for values, low, high in ((x.mean((1, 2, 3)), -0.5, 0.5), (saturation, 0, 2), (contrast, 0.5, 1.5)):
        margin = 0.01 * (high - low)
        assert low - 1e-5 <= float(values.min()) < low + margin
        assert high - margin < float(values.max()) <= high + 1e-5


def slopes(warp, device) -> tuple[torch.Tensor, torch.Tensor]:
    """How fast the place that is read moves along a row and along a column, from ramps of 33 x 33: (k, 2) each."""
    ramp = torch.arange(33.0).expand(33, 33)
    x = torch.stack([ramp, ramp.T]).expand(len(next(iter(warp.state().values()))), 2, 33, 33).to(device)
    y = apply(warp, x).cpu()[:, :, 14:19, 14:19]
    return (y[..., 2, 4] - y[..., 2, 0]) / 4, (y[..., 4, 2] - y[..., 0, 2]) / 4


def test_ranges_of_scale(device):
    along, down = slopes(DSA(strategy="scale").sample(Rng(0), 2000), device)
    for values in (along[:, 0], down[:, 1]):
        assert 1 / 1.2 - 1e-4 <= float(values.min()) < 0.84
        assert 1.19 < float(values.max()) <= 1.2 + 1e-4
    assert abs(float(torch.corrcoef(torch.stack([along[:, 0], down[:, 1]]))[0, 1])) < 0.1


def test_range_and_sense_of_rotate(device):
    along, _ = slopes(DSA(strategy="rotate").sample(Rng(0), 2000), device)
    degrees = torch.atan2(along[:, 1], along[:, 0]) * 180 / math.pi
    assert -15 - 1e-2 <= float(degrees.min()) < -14.8
    assert 14.8 < float(degrees.max()) <= 15 + 1e-2
    corner = torch.zeros(1, 1, 33, 33, device=device)
    corner[..., 16, 30] = 1  # at the right; a positive angle is anticlockwise: it goes up
    quarter = DSA(strategy="rotate", ratio_rotate=90).replay({"rotate": torch.ones(1, 1)})
    assert (apply(quarter, corner)[0, 0] == apply(quarter, corner).max()).nonzero().tolist() == [[2, 16]]


@pytest.mark.parametrize(
    ("family", "still"),
    [
        ("crop", {"ratio_crop_pad": 0}),
        ("cutout", {"ratio_cutout": 0}),
        ("flip", {"prob_flip": 0}),
        ("scale", {"ratio_scale": 1}),
        ("rotate", {"ratio_rotate": 0}),
    ],
)
@pytest.mark.parametrize("n", [None, N])
def test_a_range_of_nothing_changes_nothing(family, still, n, device):
    x = images(device)
    torch.testing.assert_close(apply(DSA(strategy=family, **still).sample(Rng(4), n), x), x, atol=1e-5, rtol=0)


def test_saturation_leaves_grey_images(device):
    x = images(device, shape=(1, H, W))
    warp = DSA(strategy="color")
    u = torch.tensor([[0.5, 0.9, 0.5]])
    torch.testing.assert_close(apply(warp.replay({"color": u}), x), x)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("n", [None, 2])
def test_gradient_flows(family, n, device):
    x = images(device, 2, (2, 5, 6), torch.float64).requires_grad_()
    warp = DSA(strategy=family).sample(Rng(1), n)
    assert torch.autograd.gradcheck(lambda x: apply(warp, x), (x,))
    y = images(device, N).requires_grad_()
    apply(DSA(strategy=family).sample(Rng(1), n and N), y).square().sum().backward()
    assert float(y.grad.abs().sum()) > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_stays_and_agrees(family, device):
    x = images(device)
    warp = DSA(strategy=family).sample(Rng(8), N)
    y = apply(warp, x.bfloat16())
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), apply(warp, x.bfloat16().float()), atol=0.05, rtol=0.02)


@pytest.mark.parametrize("augment", [DSA(mode="M"), DSA(), DCAugment(strategy="crop_scale_rotate_noise"), NoAugment()])
@pytest.mark.parametrize("n", [None, N])
def test_equal_keys_give_equal_bits_and_replay_repeats(augment, n, device):
    x = images(device)
    warp = augment.sample(Rng(0).fold("a"), n)
    assert torch.equal(apply(warp, x), apply(augment.sample(Rng(0).fold("a"), n), x))
    assert torch.equal(apply(warp, x), apply(augment.replay(warp.state()), x))
    others = [apply(augment.sample(Rng(0).fold("b", i), n), x) for i in range(8)]
    assert isinstance(augment, NoAugment) or any(not torch.equal(apply(warp, x), other) for other in others)


def test_labels_and_index_are_kept(device):
    given = Batch(images(device), torch.arange(N, device=device), torch.arange(N, device=device))
    for augment in (DSA(mode="M"), DCAugment(), NoAugment()):
        made = augment.sample(Rng(0), N)(given)
        assert torch.equal(made.y, given.y)
        assert torch.equal(made.index, given.index)


def test_the_input_is_not_changed(device):
    x = images(device)
    kept = x.clone()
    for augment in (DSA(mode="M"), DCAugment(strategy="crop_scale_rotate_noise")):
        for n in (None, N):
            apply(augment.sample(Rng(0), n), x)
    assert torch.equal(x, kept)


def test_no_flip_without_flip():
    augment = DSA(strategy="color_crop_cutout_scale_rotate")
    assert not any("flip" in augment.sample(Rng(seed)).state() for seed in range(200))
    assert any("flip" in DSA().sample(Rng(seed)).state() for seed in range(200))


@pytest.mark.parametrize("name", ["dsa", "dc-augment"])
@pytest.mark.parametrize(("strategy", "said"), [("crop_zoom", "zoom"), ("", "''"), ("crop_crop", "twice")])
def test_a_bad_strategy_is_refused_by_name(name, strategy, said):
    with pytest.raises(BadValue) as caught:
        checked(lambda: (DSA if name == "dsa" else DCAugment)(strategy=strategy), "augment")
    assert caught.value.field == "augment.strategy"
    assert said in caught.value.problem
    assert all(family in caught.value.problem for family in (FAMILIES if name == "dsa" else DC_FAMILIES))


@pytest.mark.parametrize("bad", [{"ratio_scale": 0.9}, {"prob_flip": 1.1}, {"mode": "X"}, {"contrast": float("nan")}])
def test_bad_ranges_are_refused(bad):
    with pytest.raises(BadValue, match=next(iter(bad))):
        checked(lambda: DSA(**bad), "augment")


def test_examples_that_are_no_images_are_refused():
    for augment in (DSA(), DCAugment()):
        augment.check(None, Task(classes=("a", "b"), shape=(1, 8, 8)))
        with pytest.raises(BadValue, match="none") as caught:
            augment.check(None, Task(classes=("a", "b"), shape=(8,)))
        assert caught.value.value == (8,)


def test_a_foreign_state_is_refused():
    with pytest.raises(BadValue, match="flip"):
        DSA(strategy="crop").replay({"flip": torch.zeros(1, 1)})


def test_components_are_found_by_name_and_shorthand():
    assert {part.name for part in components()} == {"dsa", "dc-augment", "frepo-augment"}
    assert (
        named(Augment, "dsa", strategy="crop_flip") == DSA(strategy="crop_flip") == DSA.model_validate("dsa:crop_flip")
    )
    assert DSA.model_validate(DSA(mode="M").dump()) == DSA(mode="M")


# -- DC's augmentation ----------------------------------------------------------------------------------------------


def drawn(warp: DCWarp, i: int) -> np.ndarray:
    return warp.u[min(i, len(warp.u) - 1)].double().numpy()


def slow_dc_scale(x, u):
    side = x.shape[1]
    h, w = (int((0.8 + 0.4 * u[i]) * side) for i in range(2))
    small = F.interpolate(torch.from_numpy(x.copy())[None], [h, w])[0].numpy()
    m = max(h, w, side)
    canvas = np.zeros((len(x), m, m))
    canvas[:, (m - h) // 2 : (m - h) // 2 + h, (m - w) // 2 : (m - w) // 2 + w] = small
    at = (m - side) // 2
    return canvas[:, at : at + side, at : at + side]


def slow_dc_rotate(x, u, fill):
    a = (int(u[0] * 90) - 45) / 180 * math.pi
    m = np.array([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]])
    return slow_linear(x - fill, m) + fill


@pytest.mark.parametrize("n", [None, 5])
@pytest.mark.parametrize("family", ["crop", "scale", "rotate"])
def test_dc_family_is_the_slow_version(family, n, device):
    x = images(device, 5, (2, 12, 12))
    rows = x.double().cpu().numpy()
    mean = rows.mean((0, 2, 3))
    for seed in range(6):
        warp = DCAugment(strategy=family).sample(Rng(seed), n)
        expected = []
        for i, row in enumerate(rows):
            u = drawn(warp, i)
            if family == "crop":
                expected.append(slow_shift(row, int(u[0] * 8) - 4, int(u[1] * 8) - 4, mean))
            elif family == "scale":
                expected.append(slow_dc_scale(row.astype(np.float32), u))
            else:
                expected.append(slow_dc_rotate(row, u, mean.mean()))
        made = apply(warp, x).double().cpu()
        torch.testing.assert_close(made, torch.from_numpy(np.stack(expected)).double(), atol=2e-5, rtol=0)


def test_dc_turns_as_scipy_does(device):
    """On a smooth picture, splines and lines agree except where the picture ends (scipy: no blend)."""
    ndimage = pytest.importorskip("scipy.ndimage")
    i, j = np.mgrid[:28, :28]
    picture = np.exp(-((i - 10) ** 2 + (j - 16) ** 2) / 60.0)[None]
    angle = 20
    big = ndimage.rotate(picture, angle=angle, axes=(-2, -1), cval=picture.mean())
    at = (big.shape[-1] - 28) // 2
    assert (big.shape[-1] - 28) % 2 == 0  # else the released code is half a pixel off the centre
    warp = DCAugment().replay(
        {"choice": torch.tensor([2]), "u": torch.tensor([[(angle + 45.5) / 90, 0.0]]), "seed": torch.tensor(0)}
    )
    made = apply(warp, torch.from_numpy(picture)[None].to(device)).cpu().numpy()[0]
    released, radius = big[:, at : at + 28, at : at + 28], np.hypot(i - 13.5, j - 13.5)
    assert np.abs(made - released)[:, radius < 13].max() < 0.015
    assert np.abs(made - released)[:, radius > 19].max() < 1e-6
    assert np.abs(made - picture)[:, radius < 13].max() > 0.1


def test_dc_noise_is_normal_and_small(device):
    x = torch.zeros(64, 1, 28, 28, device=device)
    y = apply(DCAugment(strategy="noise").sample(Rng(0), 64), x)
    assert float(y.std()) == pytest.approx(0.001, rel=0.02)
    assert abs(float(y.mean())) < 2e-5
    assert not torch.equal(y[0], y[1])
    shared = apply(DCAugment(strategy="noise").sample(Rng(0)), x)
    assert torch.equal(shared[0], shared[1])


def test_dc_ranges(device):
    place = (100 * torch.arange(28.0)[:, None] + torch.arange(28.0)).expand(2000, 1, 28, 28).to(device)
    middle = apply(DCAugment(strategy="crop").sample(Rng(0), 2000), place)[:, 0, 14, 14].long().cpu()
    assert {int(m) // 100 - 14 for m in middle} == {int(m) % 100 - 14 for m in middle} == set(range(-4, 4))
    ones = torch.ones(2000, 1, 28, 28, device=device)
    rows = apply(DCAugment(strategy="scale").sample(Rng(0), 2000), ones)[:, 0, :, 14].sum(1).long().cpu()
    assert set(rows.tolist()) == set(range(22, 29))  # 22..33 pixels, of which 28 are seen
    u = DCAugment(strategy="rotate").sample(Rng(0), 2000).u[:, 0]
    assert {int(v) for v in (u * 90).floor() - 45} == set(range(-45, 45))


def test_dc_chooses_for_each_image(device):
    """Every image goes through the one family that was chosen for it, and lands in its own place."""
    x = images(device, 60, (1, 12, 12))
    augment = DCAugment()
    warp = augment.sample(Rng(1), 60)
    y = apply(warp, x)
    assert sorted(set(warp.choice.tolist())) == [0, 1, 2]
    assert all(10 <= int((warp.choice == c).sum()) <= 30 for c in range(3))
    for family in range(3):
        alone = DCWarp(augment, torch.full_like(warp.choice, family), warp.u, warp.seed)
        mine = (warp.choice == family).to(device)
        torch.testing.assert_close(y[mine], apply(alone, x)[mine])


def test_dc_fill_depends_on_the_batch_and_says_so(device):
    x = images(device)
    warp = DCAugment(strategy="crop").replay(
        {"choice": torch.zeros(1, dtype=torch.int64), "u": torch.zeros(1, 2), "seed": torch.tensor(0)}
    )
    assert warp.mixes
    assert not torch.equal(apply(warp, x)[:1], apply(warp, x[:1]))
    assert not DSA().sample(Rng(0)).mixes


def test_dc_is_differentiable(device):
    x = images(device, 6, (2, 9, 9)).requires_grad_()
    apply(DCAugment(strategy="crop_scale_rotate_noise").sample(Rng(0), 6), x).square().sum().backward()
    assert bool((x.grad.flatten(1).abs().sum(1) > 0).all())


def test_dc_published_defaults():
    expected = {
        "name": "dc-augment",
        "strategy": "crop_scale_rotate",
        "crop": 4,
        "scale": 0.2,
        "rotate": 45,
        "noise": 0.001,
    }
    assert DCAugment().dump() == expected


# -- none, and chains -----------------------------------------------------------------------------------------------


def test_none_gives_back_the_batch(device):
    given = batch(images(device))
    warp = NoAugment().sample(Rng(0), N)
    assert warp(given) is given
    assert warp.state() == {}
    assert not warp.mixes


def test_a_chain_applies_its_parts_in_order(device):
    x = images(device)
    crop, color = DSA(strategy="crop"), DSA(strategy="color")
    warp = Then(augments=(crop, color)).sample(Rng(3), N)
    rng = Rng(3)
    expected = apply(color.sample(rng.fold(1), N), apply(crop.sample(rng.fold(0), N), x))
    assert torch.equal(apply(warp, x), expected)
    swapped = Then(augments=(color, crop)).replay({f"{1 - int(k[0])}{k[1:]}": v for k, v in warp.state().items()})
    assert not torch.equal(apply(swapped, x), expected)


def test_a_chain_is_replayed_and_serialised(device):
    x = images(device)
    chain = Then(augments=(DSA(mode="M"), NoAugment(), Then(augments=(DCAugment(), DSA(strategy="flip")))))
    warp = chain.sample(Rng(6), N)
    assert torch.equal(apply(chain.replay(warp.state()), x), apply(warp, x))
    assert Then.model_validate(chain.dump()) == chain
    with pytest.raises(BadValue, match="chain of 3"):
        chain.replay({"3/flip": torch.zeros(1, 1)})


def test_two_equal_parts_of_a_chain_draw_apart():
    warp = Then(augments=(DSA(strategy="crop"), DSA(strategy="crop"))).sample(Rng(0), 50)
    assert not torch.equal(warp.state()["0/crop"], warp.state()["1/crop"])


def test_a_chain_mixes_where_a_part_does():
    assert Then(augments=(DSA(), DCAugment())).sample(Rng(0)).mixes
    assert not Then(augments=(DSA(), NoAugment())).sample(Rng(0)).mixes


def test_parameters_stay_on_the_host_until_they_are_used(device):
    warp = DSA(mode="M").sample(Rng(0), N)
    assert isinstance(warp, DSAWarp)
    assert all(u.device.type == "cpu" for u in warp.state().values())
    assert apply(warp, images(device)).device.type == device.type
