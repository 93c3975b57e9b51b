"""The networks: what the official code builds, counted and computed independently; what is refused, and how."""

from __future__ import annotations

import copy
import functools
import math
import re
import sys

import numpy as np
import pluggy
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

from condense.axes import Net
from condense.component import checked, member
from condense.errors import BadValue
from condense.plugins import Plugin, Registry, using
from condense.rng import Rng
from condense.task import Task
from condense_image.nets import (
    MLP,
    VGG11,
    AlexNet,
    ConvNet,
    Custom,
    LeNet,
    ResNet18,
    ResNet18AP,
    TorchVision,
    components,
)
from condense_image.nets.functions import fingerprint, path_of
from condense_image.nets.resnet import Block
from condense_image.nets.torch_vision import known_models, misfit
from condense_image.nets.trunk import norm_layer, tried

GREY, COLOUR, DIGITS = (1, 28, 28), (3, 32, 32), (1, 8, 8)
OWN = [ConvNet(), MLP(), LeNet(), AlexNet(), VGG11(), ResNet18(), ResNet18AP()]


def task(shape, classes=10) -> Task:
    return Task(classes=tuple(map(str, range(classes))), shape=shape)


def made(net, shape=COLOUR, classes=10, key=0, device="cpu") -> nn.Module:
    return net.make(task(shape, classes), Rng(key), device)


def images(shape, n=2, key=1) -> torch.Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(key))


def ids(value):
    return re.sub(r"[^\w.,=-]+", "-", re.sub(r" at 0x\w+", "", str(value)))  # addresses differ from process to process


@pytest.fixture
def registered():
    plugin = Plugin("nets", "condense_image.nets", "test", "0", parts=components())
    with using(Registry([plugin], pluggy.PluginManager("condense"))) as registry:
        yield registry


# -- the architectures ------------------------------------------------------------------------------------------------


def conv(before, after, kernel, bias=True):
    return before * after * kernel * kernel + after * bias


def linear(before, after):
    return before * after + after


def norm(channels):
    return 2 * channels


def block(before, after):
    shortcut = conv(before, after, 1, False) + norm(after) if before != after else 0
    return conv(before, after, 3, False) + conv(after, after, 3, False) + 2 * norm(after) + shortcut


def resnet(channels, features):
    stages = sum(block(a, b) + block(b, b) for a, b in ((64, 64), (64, 128), (128, 256), (256, 512)))
    return conv(channels, 64, 3, False) + norm(64) + stages + linear(features, 10)


VGG = ((64, 128), (128, 256), (256, 256), (256, 512), (512, 512), (512, 512), (512, 512))
ALEX = conv(128, 192, 5) + conv(192, 256, 3) + conv(256, 192, 3) + conv(192, 192, 3) + linear(192 * 16, 10)
COUNTS = [
    (ConvNet(), COLOUR, 320_010),
    (ConvNet(), GREY, conv(1, 128, 3) + 2 * conv(128, 128, 3) + 3 * norm(128) + linear(2048, 10)),
    (ConvNet(norm="none"), COLOUR, 320_010 - 3 * norm(128)),
    (ConvNet(norm="layer"), COLOUR, 320_010 - 3 * norm(128) + norm(128) * (32**2 + 16**2 + 8**2)),
    (ConvNet(norm="layer"), GREY, 317_706 - 3 * norm(128) + norm(128) * (32**2 + 16**2 + 8**2)),
    (ConvNet(pooling="none", depth=1, width=8), COLOUR, conv(3, 8, 3) + norm(8) + linear(8 * 32 * 32, 10)),
    (ConvNet(depth=4), (3, 64, 64), conv(3, 128, 3) + 3 * conv(128, 128, 3) + 4 * norm(128) + linear(2048, 10)),
    (MLP(), COLOUR, linear(3072, 128) + linear(128, 128) + linear(128, 10)),
    (MLP(), GREY, linear(784, 128) + linear(128, 128) + linear(128, 10)),
    (LeNet(), COLOUR, 62_006),
    (LeNet(), GREY, 61_706),
    (AlexNet(), COLOUR, conv(3, 128, 5) + ALEX),
    (AlexNet(), GREY, conv(1, 128, 5) + ALEX),
    (AlexNet(norm="batch"), COLOUR, conv(3, 128, 5) + ALEX + norm(128 + 192 + 256 + 192 + 192)),
    (VGG11(), COLOUR, 9_231_114),
    (VGG11(), GREY, conv(1, 64, 3) + norm(64) + sum(conv(a, b, 3) + norm(b) for a, b in VGG) + linear(512, 10)),
    (ResNet18(), COLOUR, 11_173_962),
    (ResNet18(norm="batch"), COLOUR, 11_173_962),
    (ResNet18(), GREY, resnet(1, 512)),
    (ResNet18AP(), COLOUR, resnet(3, 512 * 4 * 4)),
    (ResNet18AP(norm="batch"), GREY, resnet(1, 512 * 3 * 3)),
]


@pytest.mark.parametrize(("net", "shape", "count"), COUNTS, ids=ids)
def test_as_many_parameters_as_the_official_network(net, shape, count):
    with torch.device("meta"):
        module = net.build(task(shape))
    assert sum(p.numel() for p in module.parameters()) == count


WIDTHS = [
    *((ConvNet(), shape, 2048) for shape in (GREY, COLOUR)),
    *((MLP(), shape, 128) for shape in (GREY, COLOUR, (7,))),
    *((LeNet(), shape, 84) for shape in (GREY, COLOUR)),
    *((AlexNet(), shape, 3072) for shape in (GREY, COLOUR)),
    *((VGG11(), shape, 512) for shape in (GREY, COLOUR)),
    *((ResNet18(), shape, 512) for shape in (GREY, COLOUR, (3, 64, 64), (3, 48, 40))),
    *((ResNet18AP(), *pair) for pair in ((GREY, 4608), (COLOUR, 8192))),
    (ConvNet(depth=2), DIGITS, 128 * 2 * 2),
    (ConvNet(depth=2, pad=3), DIGITS, 128 * 3 * 3),
    (ConvNet(), (3, 28, 28), 128 * 3 * 3),
]


@pytest.mark.parametrize(("net", "shape", "width"), WIDTHS, ids=ids)
def test_features_are_the_flat_input_of_the_head(net, shape, width, device):
    module = made(net, shape, device=device)
    x = images(shape).to(device)
    features = module.features(x)
    assert features.shape == (2, width)
    assert torch.equal(module(x), F.linear(features, module.head.weight, module.head.bias))
    assert module(x).shape == (2, 10)


SHAPES = [
    (ConvNet(), GREY, [(128, 32), (128, 16), (128, 16), (128, 8), (128, 8), (128, 4)]),
    (ConvNet(), COLOUR, [(128, 32), (128, 16), (128, 16), (128, 8), (128, 8), (128, 4)]),
    (ConvNet(depth=2), DIGITS, [(128, 8), (128, 4), (128, 4), (128, 2)]),
    (ConvNet(pooling="none"), COLOUR, [(128, 32)] * 3),
    (LeNet(), GREY, [(6, 28), (6, 14), (16, 10), (16, 5)]),
    (LeNet(), COLOUR, [(6, 28), (6, 14), (16, 10), (16, 5)]),
    *((AlexNet(), shape, [(128, 32), (128, 16), (192, 16), (192, 8), (256, 8), (192, 8), (192, 8), (192, 4)])
      for shape in (GREY, COLOUR)),
    *((VGG11(), shape, [(64, 32), (64, 16), (128, 16), (128, 8), (256, 8), (256, 8), (256, 4), (512, 4), (512, 4),
                        (512, 2), (512, 2), (512, 2), (512, 1)]) for shape in (GREY, COLOUR)),
    (ResNet18(), COLOUR, [(64, 32)] * 5 + [(128, 16)] * 5 + [(256, 8)] * 5 + [(512, 4)] * 5 + [(512, 1)]),
    (ResNet18(), GREY, [(64, 28)] * 5 + [(128, 14)] * 5 + [(256, 7)] * 5 + [(512, 4)] * 5 + [(512, 1)]),
    (ResNet18AP(), GREY, [(64, 28)] * 5 + [(128, 28), (128, 14), (128, 14), (128, 28), (128, 14), (128, 14), (128, 14)]
     + [(256, 14), (256, 7), (256, 7), (256, 14), (256, 7), (256, 7), (256, 7)]
     + [(512, 7), (512, 3), (512, 3), (512, 7), (512, 3), (512, 3), (512, 3)]),
]  # fmt: skip


@pytest.mark.parametrize(("net", "shape", "expected"), SHAPES, ids=ids)
def test_maps_have_the_official_sizes_layer_by_layer(net, shape, expected):
    seen = []
    layers = (nn.Conv2d, nn.AvgPool2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d)
    with torch.device("meta"):
        module = net.build(task(shape))
        for layer in module.modules():
            if isinstance(layer, layers):
                layer.register_forward_hook(lambda _, __, out: seen.append(tuple(out.shape[1:3])))
        module(torch.zeros(2, *shape))
    assert seen == expected


def test_instance_norm_standardises_each_channel_of_each_image_alone():
    x = images((5, 6, 7), n=3)
    layer = norm_layer("instance", (5, 6, 7))
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(0.5, 2, 5))
        layer.bias.copy_(torch.linspace(-1, 1, 5))
    a = x.numpy().astype(np.float64)
    wanted = (a - a.mean((2, 3), keepdims=True)) / np.sqrt(a.var((2, 3), keepdims=True) + 1e-5)
    wanted = wanted * np.linspace(0.5, 2, 5)[:, None, None] + np.linspace(-1, 1, 5)[:, None, None]
    np.testing.assert_allclose(layer(x).detach().numpy(), wanted, atol=2e-6)


def test_the_other_norms_share_statistics_over_what_they_say():
    x = images((8, 4, 4), n=3).double()
    groups = norm_layer("group", (8, 4, 4)).double()(x).reshape(3, 4, -1)
    assert torch.allclose(groups.mean(-1), torch.zeros(3, 4).double(), atol=1e-6)
    assert torch.allclose(groups.var(-1, correction=0), torch.ones(3, 4).double(), atol=1e-3)
    assert not torch.allclose(groups.reshape(3, 8, -1).mean(-1), torch.zeros(3, 8).double(), atol=1e-3)
    layer = norm_layer("layer", (8, 4, 4))
    assert layer.weight.shape == layer.bias.shape == (8, 4, 4)
    assert torch.allclose(layer.double()(x).flatten(1).mean(-1), torch.zeros(3).double(), atol=1e-6)
    assert norm_layer("none", (8, 4, 4)) is None


ACTIVATIONS = {
    "relu": lambda x: np.maximum(x, 0),
    "leaky-relu": lambda x: np.where(x > 0, x, 0.01 * x),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "swish": lambda x: x / (1 + np.exp(-x)),
}


@pytest.mark.parametrize("pooling", ["avg", "max"])
@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_a_block_is_convolution_norm_activation_pooling_in_this_order(kind, pooling):
    module = made(ConvNet(depth=1, width=3, activation=kind, pooling=pooling), (2, 6, 6)).double()
    x = images((2, 6, 6)).double()
    weight, bias = (p.detach().numpy() for p in list(module.parameters())[:2])
    padded = np.pad(x.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)))
    maps = np.zeros((2, 3, 6, 6))
    for i in range(6):
        for j in range(6):
            maps[:, :, i, j] = np.einsum("nchw,ochw->no", padded[:, :, i : i + 3, j : j + 3], weight) + bias
    maps = (maps - maps.mean((2, 3), keepdims=True)) / np.sqrt(maps.var((2, 3), keepdims=True) + 1e-5)
    tiles = ACTIVATIONS[kind](maps).reshape(2, 3, 3, 2, 3, 2)
    pooled = tiles.mean((3, 5)) if pooling == "avg" else tiles.max((3, 5))
    np.testing.assert_allclose(module.features(x).detach().numpy(), pooled.reshape(2, -1), atol=1e-10)


@pytest.mark.parametrize("average", [False, True])
def test_a_residual_block_by_hand(average):
    torch.manual_seed(0)
    module = Block(4, 6, "instance", average=average).double()
    x = images((4, 8, 8)).double()
    stride = 1 if average else 2

    def halved(maps):
        return maps.reshape(*maps.shape[:2], 4, 2, 4, 2).mean((3, 5)) if average else maps

    def standard(maps):
        return (maps - maps.mean((2, 3), keepdim=True)) / (maps.var((2, 3), correction=0, keepdim=True) + 1e-5).sqrt()

    first = halved(standard(F.conv2d(x, module.conv1.weight, stride=stride, padding=1)).clamp(min=0))
    second = standard(F.conv2d(first, module.conv2.weight, padding=1))
    around = standard(halved(F.conv2d(x, module.shortcut[0].weight, stride=stride)))
    assert torch.allclose(module(x), (second + around).clamp(min=0), atol=1e-10)


# -- what is promised of every network --------------------------------------------------------------------------------

NORMS = [
    *(ConvNet(norm=norm, depth=d) for norm in ("instance", "batch", "layer", "group", "none") for d in (3, 5)),
    *(ConvNet(pooling=pooling, pad=pad) for pooling in ("max", "none") for pad in (0, 3)),
    *(LeNet(pad=pad) for pad in (None, 4)),
    *(AlexNet(norm=norm) for norm in ("none", "batch")),
    *(net(norm=norm) for net in (VGG11, ResNet18, ResNet18AP) for norm in ("instance", "batch")),
    MLP(hidden=(3,)),
]
SIZES = [GREY, COLOUR, DIGITS, (3, 28, 28), (3, 1, 1), (3, 16, 16), (4, 30, 50)]


@pytest.mark.parametrize("net", NORMS, ids=ids)
def test_every_network_takes_every_size_or_says_what_to_change(net):
    for shape in SIZES if isinstance(net, ConvNet | MLP | LeNet) else SIZES[:4]:
        try:
            with torch.device("meta"):
                module = net.build(task(shape))
                assert module(torch.zeros(2, *shape)).shape == (2, 10)
        except BadValue as error:
            follow_the_remedy(net, shape, error)


def follow_the_remedy(net, shape, error):
    assert error.field in {"task.shape", *(f"net.{field}" for field in type(net).model_fields)}
    assert " x ".join(map(str, shape)) in error.problem
    if error.field == "task.shape":
        assert error.value == shape
    else:
        field = error.field.removeprefix("net.")
        assert error.value == getattr(net, field)
        value = re.match(rf"Use {field}=(\w+), or ", error.remedy)[1]
        assert not tried(net.with_(**{field: int(value) if value.isdigit() else value}), shape)[1]
    side = int(re.search(r"images of at least (\d+) x \1 pixels", error.remedy)[1])
    assert [bool(tried(net, (3, s, s))[1]) for s in (side - 1, side)] == [True, False]


def test_a_network_too_deep_is_refused_by_its_depth():
    with pytest.raises(BadValue, match=r"net.depth: conv-net .* one pixel .* 1 x 8 x 8 \(got 4\). Use depth=3, or"):
        ConvNet(depth=4).build(task(DIGITS))
    with pytest.raises(BadValue, match=r"net.norm: resnet18 .* \(got 'instance'\). Use norm=batch, or"):
        ResNet18().build(task(DIGITS))
    with pytest.raises(BadValue, match=r"net.pad: lenet .* nothing, for images of 1 x 8 x 8 .* Use pad=4, or"):
        LeNet().build(task(DIGITS))
    with pytest.raises(BadValue, match=r"task.shape: vgg11 .* 3 x 8 x 8 .* or the net `mlp`"):
        VGG11(pad=0).build(task((3, 8, 8)))


@pytest.mark.parametrize("net", [ConvNet(), LeNet(), ResNet18(), TorchVision(model="resnet18")], ids=ids)
def test_vectors_are_no_images(net):
    with pytest.raises(BadValue, match=r"takes images.*\(7,\)|takes images .*not examples of 7"):
        net.build(task((7,)))


@pytest.mark.parametrize("fields", [{"depth": 0}, {"width": 0}, {"pad": -1}, {"norm": "instances"}, {"pooling": "mean"},
                                    {"activation": "gelu"}, {"norm": "group", "width": 6}], ids=str)  # fmt: skip
def test_impossible_fields_are_refused_by_name(fields):
    with pytest.raises(BadValue) as caught:
        checked(lambda: ConvNet(**fields), "net")
    assert caught.value.field == f"net.{next(iter(fields))}"


def test_a_width_that_four_groups_do_not_divide_comes_with_one_that_they_do():
    with pytest.raises(BadValue, match=r"4 groups do not divide the width 6.*Use width 8"):
        checked(lambda: ConvNet(width=6, norm="group"), "net")


@pytest.mark.parametrize("net", [ConvNet(width=8), MLP(), LeNet(), ResNet18(), Custom(live=lambda: Plain(10))], ids=ids)
def test_equal_keys_give_equal_weights_and_others_differ(net, device):
    first, again, other = (made(net, COLOUR, key=key, device=device).state_dict() for key in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    weights = [name for name in first if first[name].dim() > 1]
    assert weights
    assert not any(torch.equal(first[name], other[name]) for name in weights)


def test_making_a_network_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    for net in (ConvNet(width=8), TorchVision(model="squeezenet1_1"), Custom(live=lambda: Plain(10))):
        made(net)
    assert torch.equal(before, torch.random.get_rng_state())


def test_weights_start_as_pytorch_starts_them():
    module = made(ConvNet(width=4, depth=1))
    with torch.random.fork_rng():
        torch.manual_seed(Rng(0).seed)
        first, last = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4 * 16 * 16, 10)
    assert torch.equal(module.trunk[0].weight, first.weight)
    assert torch.equal(module.head.weight, last.weight)


@pytest.mark.parametrize("net", OWN, ids=ids)
def test_a_check_allocates_nothing(net):
    net.check(None, task(COLOUR))
    with torch.device("meta"):
        assert {p.device.type for p in net.build(task(COLOUR)).parameters()} == {"meta"}


TWICE = [
    *((ConvNet(width=4, depth=2, activation=kind), DIGITS) for kind in ACTIVATIONS),
    *((ConvNet(width=4, depth=2, norm=kind), DIGITS) for kind in ("batch", "layer", "group", "none")),
    (ConvNet(width=4, depth=2, pooling="max"), DIGITS),
    (MLP(hidden=(9, 8)), DIGITS),
    (LeNet(pad=4), DIGITS),
    (AlexNet(), DIGITS),
    (Custom(live=lambda: residual("instance", average=False)), DIGITS),
    (Custom(live=lambda: residual("batch", average=True)), DIGITS),
]


def residual(norm, average):
    return nn.Sequential(Block(1, 4, norm, average=average), nn.Flatten(), nn.Linear(4 * 4 * 4, 3))


@pytest.mark.parametrize(("net", "shape"), TWICE, ids=ids)
def test_the_gradient_of_a_gradient_is_that_of_finite_differences(net, shape):
    module = made(net, shape, classes=3).double()
    y = torch.tensor([0, 2])
    x = images(shape).double()

    def matched(x, create_graph):  # how far the gradient of the loss is from a fixed direction
        loss = F.cross_entropy(module(x), y)
        grads = torch.autograd.grad(loss, list(module.parameters()), create_graph=create_graph)
        return sum((g * torch.linspace(-1, 1, g.numel()).double().view_as(g)).sum() for g in grads)

    leaf = x.clone().requires_grad_()
    (exact,) = torch.autograd.grad(matched(leaf, create_graph=True), leaf)
    step = 1e-7 * images(shape, key=2).double()
    slope = (matched(x + step, False) - matched(x - step, False)) / 2
    assert exact.abs().max() > 0
    assert slope.item() == pytest.approx((exact * step).sum().item(), rel=1e-4)


STACKED = [
    ConvNet(width=4),
    ConvNet(width=4, norm="batch", activation="swish"),
    MLP(hidden=(5,)),
    LeNet(),
    TorchVision(model="squeezenet1_1"),
    Custom(live=lambda: Plain(10)),
]


@pytest.mark.parametrize("net", STACKED, ids=ids)
def test_stacked_networks_give_what_each_gives_alone(net, device):
    modules = [made(net, key=key, device=device).eval() for key in range(3)]
    x = images(COLOUR).to(device)
    params, buffers = stack_module_state(modules)
    skeleton = copy.deepcopy(modules[0]).to("meta")
    together = vmap(lambda p, b: functional_call(skeleton, (p, b), (x,)))(params, buffers)
    for stacked, module in zip(together, modules, strict=True):
        assert torch.allclose(stacked, module(x), atol=1e-5)


def test_batch_norm_trains_when_stacked():
    modules = [made(ConvNet(width=4, norm="batch"), key=key) for key in range(2)]
    params, buffers = stack_module_state(modules)
    x = images(COLOUR, n=4)
    together = vmap(lambda p, b: functional_call(modules[0], (p, b), (x,)))(params, buffers)
    assert torch.allclose(together[1], modules[1](x), atol=1e-5)
    assert torch.allclose(buffers["trunk.1.running_mean"][1], modules[1].trunk[1].running_mean, atol=1e-6)


@pytest.mark.parametrize("net", [ConvNet(width=4, depth=2), Custom(live=lambda: Plain(10))], ids=ids)
def test_forward_and_features_compile_whole(net):
    module = made(net)
    x = images(COLOUR)
    for function in (module.forward, module.features):
        compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
        for batch in (x, x + 1):
            assert torch.allclose(compiled(batch), function(batch), atol=1e-6)


@pytest.mark.parametrize("net", [ConvNet(width=8), AlexNet(), ResNet18AP(norm="batch")], ids=ids)
def test_the_layout_in_memory_changes_no_number(net, device):
    module = made(net, device=device).eval()
    x = images(COLOUR).to(device)
    plain = module.features(x)
    last = module.to(memory_format=torch.channels_last).features(x.to(memory_format=torch.channels_last))
    assert torch.allclose(plain, last, atol=1e-4)


# -- torchvision ------------------------------------------------------------------------------------------------------

LIGHT = {  # name -> features for 3 x 32 x 32
    "resnet18": 512,
    "mobilenet_v3_small": 1024,
    "shufflenet_v2_x0_5": 1024,
    "mnasnet0_5": 1280,
    "squeezenet1_1": 512 * 8 * 8,
    "regnet_y_400mf": 440,
}


@pytest.mark.parametrize("shape", [GREY, COLOUR], ids=ids)
@pytest.mark.parametrize("name", LIGHT)
def test_torchvision_models_take_small_images(name, shape, device):
    module = made(TorchVision(model=name), shape, classes=7, device=device).eval()
    x = images(shape).to(device)
    assert module(x).shape == (2, 7)
    features = module.features(x)
    assert features.shape[1] == LIGHT[name] or (shape == GREY and name == "squeezenet1_1")
    head = [m for m in module.modules() if isinstance(m, nn.Linear)]
    if head:
        assert torch.allclose(head[-1](features), module(x), atol=1e-6)
    assert (features[0] - features[1]).abs().max() > 0


def test_the_small_stem_keeps_the_size_and_the_large_one_stays():
    sizes = {}
    for side in (32, 64):
        with torch.device("meta"):
            module = TorchVision(model="resnet18").build(task((1, side, side)))
            module.body.layer1.register_forward_pre_hook(lambda _, x, side=side: sizes.update({side: x[0].shape[1:]}))
            module(torch.zeros(2, 1, side, side))
    assert sizes == {32: (64, 32, 32), 64: (64, 16, 16)}


def test_a_vision_transformer_gets_patches_of_four_pixels():
    with torch.device("meta"):
        module = TorchVision(model="vit_b_16").build(task(COLOUR, 7))
        assert module.body.encoder.pos_embedding.shape == (1, 8 * 8 + 1, 768)
        assert module.features(torch.zeros(2, *COLOUR)).shape == (2, 768)
    with pytest.raises(BadValue, match=r"net.model: .*1 x 30 x 30.*side that 4 divides \(got 'vit_b_16'\)"):
        TorchVision(model="vit_b_16").check(None, task((1, 30, 30)))


def test_torchvision_names_are_checked_with_the_nearest(registered):
    with pytest.raises(BadValue, match=r"net.model: torchvision has no .* model 'resnet19'.*Did you mean resn"):
        checked(lambda: member(Net, "torchvision:resnet19"), "net")
    assert member(Net, "torchvision:resnet18") == TorchVision(model="resnet18")
    with pytest.raises(BadValue, match=r"net.model: cannot take images of 1 x 8 x 8: .*small"):
        TorchVision(model="vgg11").check(None, task(DIGITS))


@pytest.mark.slow
def test_all_models_of_torchvision_take_small_images():
    refused = {name for name in known_models() for shape in (GREY, COLOUR) if misfit(name, shape)}
    print(f"{len(known_models()) - len(refused)} of {len(known_models())} models fit")
    assert refused == {"maxvit_t"}


# -- the caller's own -------------------------------------------------------------------------------------------------


class Plain(nn.Module):
    """No method `features`, but a submodule of that name, as many people have."""

    def __init__(self, outputs=10, channels=3):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2))
        self.classifier = nn.Linear(16, outputs)

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1)).log_softmax(-1)


class Own(nn.Module):
    """Its own `features`, under which it must not be tapped."""

    def __init__(self, task):
        super().__init__()
        self.trunk = Plain().features
        self.classifier = nn.Linear(16, task.outputs)

    def features(self, x):
        return 2 * self.trunk(x).flatten(1)

    def forward(self, x):
        return self.classifier(self.features(x))


class Maps(Own):
    """Features that are not flat."""

    def features(self, x):
        return self.trunk(x)

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))


def plain() -> nn.Module:
    return Plain()


def from_task(task, channels=None) -> nn.Module:
    return Plain(task.outputs, channels or task.shape[0])


def flat(outputs):
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, outputs))


def test_features_of_a_plain_module_are_the_input_of_its_last_linear(device):
    module = made(Custom(live=plain), device=device)
    x = images(COLOUR).to(device)
    features = module.features(x)
    assert features.shape == (2, 16)
    assert torch.equal(features, module.body.features(x).flatten(1))
    assert torch.allclose(module(x), module.body.classifier(features).log_softmax(-1), atol=1e-6)
    features.sum().backward()
    assert module.body.features[0].weight.grad.abs().sum() > 0
    assert module.caught is None  # a pass keeps no activation alive


def test_a_copy_of_a_tapped_module_catches_for_itself():
    module = made(Custom(live=plain))
    twin = copy.deepcopy(module)
    with torch.no_grad():
        twin.body.features[0].weight.zero_()
    x = images(COLOUR)
    assert torch.equal(twin.features(x), twin.body.features(x).flatten(1))
    assert not torch.equal(twin.features(x), module.features(x))


@pytest.mark.parametrize("make", [plain, from_task, Own, functools.partial(from_task, channels=3), lambda: Plain()])
def test_functions_of_the_task_or_of_nothing_and_classes_make_networks(make):
    x = images(COLOUR)
    module = made(Custom(live=make))
    assert module(x).shape == (2, 10)
    assert module.features(x).shape == (2, 16)
    if make is Own:
        assert torch.equal(module.features(x), 2 * module.trunk(x).flatten(1))


def test_a_path_is_the_function_that_it_names(registered):
    live = Custom(live=from_task)
    assert live.path == f"{__name__}:from_task"
    stored = member(Net, live.dump())
    assert stored == live
    assert stored.live is None
    assert stored.dump() == {"name": "custom", "path": f"{__name__}:from_task", "fingerprint": fingerprint(from_task)}
    assert all(map(torch.equal, made(stored).state_dict().values(), made(live).state_dict().values()))
    assert made(member(Net, f"custom:{__name__}:Own")).features(images(COLOUR)).shape == (2, 16)
    assert Custom.model_json_schema()["properties"].keys() == {"path", "fingerprint"}


def test_a_function_that_cannot_be_imported_must_be_given_again():
    def make():
        return Plain()

    live = Custom(live=make)
    assert live.path == f"<local>{__name__}:{make.__qualname__}"
    stored = Custom.model_validate(live.dump())
    assert stored == live
    with pytest.raises(BadValue, match=r"net.path: is a function of a session that is gone .* Give it again"):
        stored.build(task(COLOUR, 4))
    stored.with_(live=make).build(task(COLOUR))
    with pytest.raises(BadValue, match=r"net: was recorded with the path .*; this function has .*:plain"):
        checked(lambda: Custom(**{"path": live.path, "fingerprint": live.fingerprint, "live": plain}), "net")


def test_fingerprints_tell_functions_apart():
    def closing(width):
        return lambda: Plain(width)

    makers = [plain, from_task, Own, closing(3), closing(4), lambda: Plain(), lambda: Own()]
    makers += [functools.partial(from_task, channels=c) for c in (1, 3)]
    assert len({fingerprint(make) for make in makers}) == len(makers)
    assert fingerprint(closing(3)) == fingerprint(closing(3))
    assert path_of(functools.partial(plain)).startswith("<local>")

    def endless():
        return endless

    assert len(fingerprint(endless)) == 16


def test_a_path_is_not_imported_while_it_is_read(tmp_path, monkeypatch):
    (tmp_path / "condense_test_danger.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    net = Custom(path="condense_test_danger:make")
    assert "condense_test_danger" not in sys.modules
    with pytest.raises(BadValue, match="condense_test_danger cannot be imported: SystemExit: imported"):
        net.build(task(COLOUR))


def test_a_function_that_changed_since_is_not_taken_for_the_recorded_one():
    net = Custom(path=f"{__name__}:plain", fingerprint="0" * 16)
    with pytest.raises(BadValue, match=r"net.fingerprint: .*:plain is not the function that was recorded"):
        net.build(task(COLOUR, 3))


KEPT = Plain()
BAD = [
    (lambda: Plain(9), r"gives \(2, 9\) for 2 examples, not \(2, 10\).*task.outputs"),
    (lambda: (None, Plain())[0], "made a NoneType .*must return a torch.nn.Module"),
    (lambda a, b: Plain(), "requires a, b .*one argument, the task, or of none"),
    (lambda *, width: Plain(), "requires keywords"),
    (lambda: 1 / 0, "raised ZeroDivisionError: division by zero, called with no argument"),
    (lambda task: task.colours, "raised AttributeError: .* called with the task"),
    (lambda: KEPT, "the same module, or parameters, twice .*inside the function"),
    (lambda: Plain(channels=1), r"fails on 2 examples of \(3, 32, 32\): RuntimeError: .*Build it for task.shape"),
    (lambda: nn.Sequential(nn.Conv2d(3, 10, 32), nn.Flatten()), "neither `features` nor an nn.Linear.*Define features"),
    (lambda task: Maps(task), r"features` that give \(2, 4, 2, 2\) for 2 examples.*Flatten"),
]


@pytest.mark.parametrize(("make", "message"), BAD, ids=ids)
def test_what_a_function_must_make_is_said_before_anything_runs(make, message):
    with pytest.raises(BadValue, match=message) as caught:
        Custom(live=make).check(None, task(COLOUR))
    assert caught.value.field == "net.path"
    assert caught.value.remedy


@pytest.mark.parametrize(("path", "message"), [
    ("condense_no_such_module:f", "condense_no_such_module cannot be imported: ModuleNotFoundError.*PYTHONPATH"),
    ("math:squirt", "math has no squirt .*Did you mean .*sqrt"),
    ("math:pi", "cannot be called"),
])  # fmt: skip
def test_paths_that_lead_nowhere(path, message):
    with pytest.raises(BadValue, match=message):
        Custom(path=path).build(task(COLOUR))


@pytest.mark.parametrize("path", ["", "math", "math.sqrt", "../evil:f", "os:system('x')", ":f", "a:"])
def test_what_is_no_import_path_is_refused_when_read(path):
    with pytest.raises(BadValue, match=r"net.path: .* is no import path .*package.module:function"):
        checked(lambda: Custom(path=path), "net")


@pytest.mark.parametrize("live", [Plain(), 3], ids=["module", "number"])
def test_a_module_is_no_function_that_makes_one(live):
    with pytest.raises(BadValue, match=r"net: every network is made afresh: .* makes none"):
        checked(lambda: Custom(live=live), "net")


# -- as components ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("net", [*OWN, *NORMS, TorchVision(model="alexnet"), Custom(live=plain)], ids=ids)
def test_networks_are_values(net, registered):
    assert member(Net, net.dump()) == net
    assert hash(member(Net, net.dump())) == hash(net)


def test_short_names_reach_the_official_variants(registered):
    names = {"conv-net", "kernel-conv-net", "mlp", "lenet", "alexnet", "vgg11", "resnet18", "resnet18-ap"}
    names |= {"torchvision", "custom"}
    assert registered.members(Net).keys() == names
    assert member(Net, "conv-net") == ConvNet(depth=3, width=128, norm="instance", pooling="avg", activation="relu")
    assert member(Net, "resnet18-ap:batch") == ResNet18AP(norm="batch")
    assert math.prod(made(member(Net, "conv-net:none"), DIGITS).head.weight.shape) == 10 * 128
