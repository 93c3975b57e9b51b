"""Preprocessing against numpy: scales, both whitenings, their inverses, what they refuse and what they store."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
import torch

from condense import store
from condense.axes import Preprocess
from condense.component import checked, named
from condense.data import Facts, TensorSource
from condense.errors import BadData, BadValue
from condense.task import Task
from condense_image import preprocess
from condense_image.preprocess import NoPreprocess, Normalise, ZcaKip, ZcaKornia, components, whitener

FACTS = Facts()


def task(shape=(3, 5, 4)) -> Task:
    return Task(classes=("a", "b"), shape=shape)


def source(n=700, shape=(3, 5, 4), device="cpu", dtype=torch.uint8) -> TensorSource:
    """Images whose neighbouring pixels agree, and whose channels differ in mean and deviation."""
    g = torch.Generator().manual_seed(11)
    noise = torch.randn(n, *shape, generator=g)
    x = noise + noise.roll(1, 3) + torch.randn(n, 1, 1, 1, generator=g)
    x = 0.5 + 0.1 * torch.linspace(0.5, 1.2, shape[0]).view(-1, 1, 1) * (x + torch.arange(shape[0]).view(-1, 1, 1))
    x = (x.clamp(0, 1) * 255).round().to(torch.uint8)
    x = x if dtype == torch.uint8 else x.to(dtype) / 255
    return TensorSource(task(shape), x.to(device), torch.zeros(n, dtype=torch.int64, device=device))


def raw(train: TensorSource) -> np.ndarray:
    return train.x.cpu().double().numpy() / 255


def blanked(component: Preprocess, fitted, shape, tmp_path):
    """The transform as an artifact brings it back: its buffers through a file, into a blank one."""
    store.save(tmp_path / "t", dict(fitted.state_dict()), "t")
    blank = component.blank(task(shape))
    blank.load_state_dict(store.load(tmp_path / "t", "t"))
    return blank


# -- none, normalise ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_none_gives_the_unit_range(dtype, device):
    train = source(dtype=dtype, device=device)
    transform = NoPreprocess().fit(train, FACTS)
    x = transform.encode(train.x)
    assert x.dtype == torch.float32
    np.testing.assert_allclose(x.cpu().numpy(), raw(source()), atol=1e-7)
    assert torch.equal(transform.decode(x), x)
    assert transform.describe() == {"name": "none", "origin": "public"}


def test_normalise_by_published_constants_is_the_manual_sum(device):
    train = source(device=device)
    mean, std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    transform = Normalise().fit(train, Facts(mean=mean, std=std))
    x = transform.encode(train.x)
    expected = (raw(train) - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    np.testing.assert_allclose(x.cpu().numpy(), expected, atol=2e-6)
    np.testing.assert_allclose(transform.decode(x).cpu().numpy(), raw(train), atol=1e-6)
    assert x.dtype == torch.float32
    assert x.device.type == device.type
    assert transform.describe() == {"name": "normalise", "origin": "public", "mean": list(mean), "std": list(std)}


def test_normalise_measures_what_nobody_published(device):
    train = source(device=device)
    transform = Normalise().fit(train, FACTS)
    x = transform.encode(train.x).cpu().double().numpy()
    np.testing.assert_allclose(x.mean((0, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(x.std((0, 2, 3)), 1, atol=1e-5)
    np.testing.assert_allclose(transform.mean.cpu().numpy(), raw(train).mean((0, 2, 3)), rtol=1e-6)
    assert transform.origin == transform.describe()["origin"] == "data"


def test_normalise_prefers_its_own_constants():
    own = Normalise(mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 4.0))
    transform = own.fit(source(), Facts(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)))
    assert transform.describe()["mean"] == [0.1, 0.2, 0.3]
    assert transform.origin == "public"


def test_a_channel_that_does_not_vary_stays_finite():
    train = source()
    train.x[:, 1] = 51
    x = Normalise().fit(train, FACTS).encode(train.x)
    assert float(x[:, 1].abs().max()) < 1e-6


@pytest.mark.parametrize(
    "bad",
    [
        {"mean": (0.5,)},
        {"mean": (0.5,), "std": (0.1, 0.1)},
        {"mean": (0.5,), "std": (0.0,)},
        {"mean": (float("nan"),), "std": (1.0,)},
    ],
)
def test_bad_constants_are_refused(bad):
    with pytest.raises(BadValue, match=r"mean|std"):
        checked(lambda: Normalise(**bad), "preprocess")


def test_constants_for_other_channels_are_refused_early_and_late():
    with pytest.raises(BadValue, match="3 channels") as caught:
        Normalise(mean=(0.5,), std=(0.5,)).check(None, task())
    assert caught.value.field == "preprocess.mean"
    with pytest.raises(BadValue, match="3 channels"):
        Normalise().fit(source(), Facts(mean=(0.5,), std=(0.5,)))


def test_whole_numbers_of_unknown_range_are_refused():
    with pytest.raises(BadData, match="int64"):
        NoPreprocess().fit(source(), FACTS).encode(torch.zeros(1, 3, 5, 4, dtype=torch.int64))


# -- whitening: against numpy ---------------------------------------------------------------------------------------


def kornia_by_svd(x: np.ndarray, eps=0.1) -> tuple[np.ndarray, np.ndarray]:
    rows = x.reshape(len(x), -1)
    u, s, _ = np.linalg.svd(np.cov(rows, rowvar=False))
    return rows.mean(0), u @ np.diag((s + eps) ** -0.5) @ u.T


def kip_rows(x: np.ndarray) -> np.ndarray:
    x = (x - x.mean((0, 2, 3), keepdims=True)) / x.std((0, 2, 3), keepdims=True)
    rows = x.reshape(len(x), -1)
    rows = rows - rows.mean(1, keepdims=True)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def kip_by_svd(rows: np.ndarray, reg=0.1) -> np.ndarray:
    moments = rows.T @ rows / len(rows)
    d = len(moments)
    u, s, _ = np.linalg.svd(moments + reg * np.trace(moments) / d * np.eye(d))
    factors = s**-0.5
    factors[len(rows) :] = 1
    return u @ np.diag(factors) @ u.T


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_kornia_is_the_svd_of_the_unbiased_covariance(dtype, device):
    train = source(dtype=dtype, device=device)
    transform = ZcaKornia().fit(train, FACTS)
    mean, matrix = kornia_by_svd(raw(source()))
    np.testing.assert_allclose(transform.mean.cpu().numpy(), mean, atol=1e-6)
    np.testing.assert_allclose(transform.matrix.cpu().numpy(), matrix, atol=1e-5)
    expected = ((raw(source()).reshape(700, -1) - mean) @ matrix).reshape(700, 3, 5, 4)
    x = transform.encode(train.x)
    np.testing.assert_allclose(x.cpu().numpy(), expected, atol=1e-5)
    assert x.dtype == torch.float32
    assert transform.origin == "data"


@pytest.mark.parametrize("eps", [0.1, 0.5])
def test_kornia_leaves_the_analytic_covariance(eps):
    """The eigenvalues l of the covariance become l / (l + eps)."""
    train = source()
    x = ZcaKornia(eps=eps).fit(train, FACTS).encode(train.x).double().flatten(1).numpy()
    before = np.linalg.eigvalsh(np.cov(raw(train).reshape(700, -1), rowvar=False))
    after = np.linalg.eigvalsh(np.cov(x, rowvar=False))
    np.testing.assert_allclose(after, before / (before + eps), atol=1e-5)
    np.testing.assert_allclose(x.mean(0), 0, atol=1e-5)


def test_the_defaults_are_the_published_ones():
    assert ZcaKornia().dump() == {"name": "zca-kornia", "eps": 0.1}
    assert ZcaKip().dump() == {"name": "zca-kip", "reg": 0.1}


@pytest.mark.parametrize("n", [700, 40])
def test_kip_is_the_svd_of_the_regularised_moments(n, device):
    """With 40 images of 60 numbers, too: there the last 20 directions are left as they are."""
    train = source(n, device=device)
    transform = ZcaKip().fit(train, FACTS)
    rows = kip_rows(raw(train))
    expected = rows @ kip_by_svd(rows)
    np.testing.assert_allclose(transform.encode(train.x).flatten(1).cpu().numpy(), expected, atol=2e-4)
    assert np.abs(expected).max() > 0.1  # so that the tolerance says something
    np.testing.assert_allclose(transform.matrix.cpu().numpy(), kip_by_svd(rows), atol=1e-3)


def test_kip_leaves_the_analytic_moments():
    train = source()
    x = ZcaKip().fit(train, FACTS).encode(train.x).double().flatten(1).numpy()
    rows = kip_rows(raw(train))
    before = np.linalg.eigvalsh(rows.T @ rows / 700)
    ridge = 0.1 * before.sum() / 60
    np.testing.assert_allclose(np.linalg.eigvalsh(x.T @ x / 700), before / (before + ridge), atol=1e-4)


def test_kornia_comes_back(device):
    train = source(device=device)
    transform = ZcaKornia().fit(train, FACTS)
    back = transform.decode(transform.encode(train.x))
    np.testing.assert_allclose(back.cpu().numpy(), raw(train), atol=1e-5)


def test_kip_comes_back_up_to_contrast_and_brightness(device):
    train = source(device=device)
    transform = ZcaKip().fit(train, FACTS)
    x = transform.encode(train.x)
    back = transform.decode(x)
    torch.testing.assert_close(transform.encode(back), x, atol=1e-4, rtol=0)
    before, after = raw(train), back.cpu().double().numpy()
    mean, std = before.mean((0, 2, 3), keepdims=True), before.std((0, 2, 3), keepdims=True)
    for a, b in zip(((before - mean) / std)[:50], ((after - mean) / std)[:50], strict=True):
        assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.9999
    lengths = np.linalg.norm(((after - mean) / std).reshape(700, -1), axis=1)
    standard = ((before - mean) / std).reshape(700, -1)
    expected = np.linalg.norm(standard - standard.mean(1, keepdims=True), axis=1).mean()
    np.testing.assert_allclose(lengths, expected, rtol=1e-3)


def test_kip_of_a_flat_image_is_zero():
    train = source()
    transform = ZcaKip().fit(train, FACTS)
    flat = (
        torch.full((1, 3, 5, 4), 0.7) * transform.std.view(-1, 1, 1) + transform.mean.view(-1, 1, 1)
    ).requires_grad_()
    assert not transform.encode(flat).any()
    transform.encode(flat).sum().backward()
    assert bool(torch.isfinite(flat.grad).all())
    train.x[:] = 7
    with pytest.raises(BadData, match="one grey"):
        ZcaKip().fit(train, FACTS)


@pytest.mark.parametrize("component", [ZcaKornia(), ZcaKip(), Normalise()])
def test_blocks_and_order_do_not_matter(component, monkeypatch):
    train = source()
    whole = component.fit(train, FACTS)
    monkeypatch.setattr(preprocess, "BLOCK", 64)
    shuffled = component.fit(train.subset(torch.randperm(700, generator=torch.Generator().manual_seed(0))), FACTS)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(shuffled.state_dict()[name], value, atol=1e-5, rtol=1e-5)


def test_whitener_of_a_known_matrix():
    """diag(3, 0) turned by 45 degrees, ridge 1: factors 1/2 and 1; of rank 1, the second stays 1 for any ridge."""
    turn = torch.tensor([[1.0, -1.0], [1.0, 1.0]], dtype=torch.float64) / 2**0.5
    moments = turn @ torch.diag(torch.tensor([3.0, 0.0], dtype=torch.float64)) @ turn.T
    expected = turn @ torch.diag(torch.tensor([0.5, 1.0], dtype=torch.float64)) @ turn.T
    torch.testing.assert_close(whitener(moments, 1.0), expected)
    ranked = turn @ torch.diag(torch.tensor([3.25**-0.5, 1.0], dtype=torch.float64)) @ turn.T
    torch.testing.assert_close(whitener(moments, 0.25, rank=1), ranked)
    assert not torch.allclose(whitener(moments, 0.25), ranked)


def test_real_images_are_whitened(data_root):
    path = data_root / "FashionMNIST" / "raw" / "train-images-idx3-ubyte.gz"
    if not path.is_file():
        pytest.skip(f"no FashionMNIST: {path} is missing")
    with gzip.open(path) as file:
        x = np.frombuffer(file.read(16 + 1500 * 784), np.uint8, offset=16).reshape(1500, 1, 28, 28)[:, :, 6:22, 6:22]
    train = TensorSource(task((1, 16, 16)), torch.from_numpy(x.copy()), torch.zeros(1500, dtype=torch.int64))
    transform = ZcaKornia().fit(train, FACTS)
    white = transform.encode(train.x)
    before = np.linalg.eigvalsh(np.cov(x.reshape(1500, -1) / 255.0, rowvar=False))
    after = np.linalg.eigvalsh(np.cov(white.flatten(1).double().numpy(), rowvar=False))
    assert before.max() / before.mean() > 50  # real images are far from white
    np.testing.assert_allclose(after, before / (before + 0.1), atol=1e-4)
    np.testing.assert_allclose(transform.decode(white).numpy(), x / 255.0, atol=1e-4)
    rows = kip_rows(x / 255.0)
    made = ZcaKip().fit(train, FACTS).encode(train.x).flatten(1).numpy()
    np.testing.assert_allclose(made, rows @ kip_by_svd(rows), atol=1e-3)


# -- refusals, storage, gradients -----------------------------------------------------------------------------------


@pytest.mark.parametrize("component", [ZcaKornia(), ZcaKip()])
def test_too_wide_images_are_refused_before_memory_is_taken(component):
    wide = task((3, 224, 224))
    for refuse in (lambda: component.check(None, wide), lambda: component.blank(wide)):
        with pytest.raises(BadValue, match="normalise") as caught:
            refuse()
        assert caught.value.value == (3, 224, 224)
        assert "150,528" in caught.value.problem
        assert "844 GiB" in caught.value.problem
    train = TensorSource(wide, torch.zeros(2, 3, 224, 224, dtype=torch.uint8), torch.tensor([0, 1]))
    with pytest.raises(BadValue, match="GiB"):
        component.fit(train, FACTS)
    component.check(None, task((3, 32, 32)))


def test_one_image_has_no_covariance():
    with pytest.raises(BadData, match="two images"):
        ZcaKornia().fit(source(1), FACTS)


def test_whitening_reads_examples_and_the_others_do_not():
    assert ZcaKornia().reads(None).examples
    assert ZcaKip().reads(None).examples
    assert not Normalise().reads(None).examples
    assert not NoPreprocess().reads(None).examples


@pytest.mark.parametrize("component", [NoPreprocess(), Normalise(), ZcaKornia(eps=0.2), ZcaKip(reg=0.3)])
def test_a_stored_transform_is_the_fitted_one(component, tmp_path):
    train = source()
    fitted = component.fit(train, FACTS)
    again = blanked(component, fitted, (3, 5, 4), tmp_path)
    assert torch.equal(again.encode(train.x), fitted.encode(train.x))
    assert torch.equal(again.decode(train.x / 255), fitted.decode(train.x / 255))
    assert again.describe() == fitted.describe() == json.loads(json.dumps(fitted.describe()))
    assert again.describe()["name"] == component.name
    assert not any(parameter.requires_grad for parameter in fitted.parameters())


@pytest.mark.parametrize("component", [NoPreprocess(), Normalise(), ZcaKornia(), ZcaKip()])
def test_one_image_is_encoded_as_in_a_batch(component):
    train = source()
    transform = component.fit(train, FACTS)
    alone = torch.cat([transform.encode(train.x[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(alone, transform.encode(train.x[:5]), atol=1e-5, rtol=1e-4)
    assert train.encoded(transform).task.shape == (3, 5, 4)


@pytest.mark.parametrize("component", [NoPreprocess(), Normalise(), ZcaKornia(), ZcaKip()])
def test_gradient_flows_both_ways(component):
    transform = component.fit(source(), FACTS)
    x = (source(2, dtype=torch.float32).x + 0.01).requires_grad_()
    y = transform.encode(x)
    y.square().sum().backward()
    assert bool((x.grad.flatten(1).abs().sum(1) > 0).all())
    z = y.detach().requires_grad_()
    transform.decode(z).square().sum().backward()
    assert bool((z.grad.flatten(1).abs().sum(1) > 0).all())


def test_components_are_found_by_name():
    assert {part.name for part in components()} == {"none", "normalise", "zca-kornia", "zca-kip", "zca-frepo"}
    assert named(Preprocess, "zca-kornia", eps=0.2) == ZcaKornia(eps=0.2)
    own = Normalise(mean=(0.5,), std=(0.25,))
    assert Normalise.model_validate(own.dump()) == own
