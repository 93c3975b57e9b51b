"""Dataset distillation (DD; Wang, Zhu, Torralba and Efros, 2018, arXiv:1811.10959): the method that began it.

A few steps of gradient descent on the images, each step on images and at a step size of its own, should leave a network
that is right about real ones. The loss on real images is differentiated through all of these steps, exactly. `dd` meets
a network with new random weights in every update; `dd-fixed` always the same weights, which belong to what is released.

As in the official code (SsnL/dataset-distillation): one image of each class for each step, so as many steps as images
per class, three times over (its `distill_epochs`); step sizes through softplus, learned by the same Adam as the images,
whose rate halves after every tenth of the updates (40 of 400 epochs); an update for every batch of 1,024 real images;
networks start from Xavier's normal weights and biases of zero, one for an update. `outer.steps` counts updates: 400
epochs are 23,600 on MNIST and 19,600 on CIFAR-10.

`--with repeats=5` makes a set of five rounds. The judge `replay` repeats the steps with which a set was made. It is a
statement about these few steps: trained on for longer, such a set is not what it was made for.
"""

from __future__ import annotations

from typing import ClassVar, Self, final

from pydantic import Field
from torch import nn

from condense.axes import Augment, Init, Net, Preprocess, Rule
from condense.component import Component, named
from condense.data import Sampler
from condense.evaluate import Protocol
from condense.fit import Fit
from condense.hookspecs import hookimpl
from condense.parts.bilevel import Bilevel
from condense.parts.budgets import PerClass
from condense.parts.labels import Hard
from condense.parts.parameterizations import Pixels
from condense.parts.pools import Fresh
from condense.parts.rules import SGD, Adam
from condense.parts.schedules import Drops, Learned
from condense.parts.sequence import Sequence
from condense.recipe import Group, Outer, Published, Recipe, published
from condense.task import Task

from .nets.trunk import Shape, Trunked

# -- networks -------------------------------------------------------------------------------------------------------


@final
class Xavier(Net):
    """Another network with the initialisation of DD's code: Xavier's normal weights (gain 1) and biases of zero in
    convolutions and linear layers; normalisation scales by 1 and shifts by 0.
    """

    net: Net

    def build(self, task: Task) -> nn.Module:
        module = self.net.build(task)
        for part in module.modules():
            if isinstance(part, nn.modules.conv._ConvNd | nn.Linear):
                nn.init.xavier_normal_(part.weight)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)
        return module


@final
class AlexCifar(Trunked):
    """DD's network for CIFAR-10 (`AlexCifarNet` of its code, after cuda-convnet): two 5 x 5 convolutions of 64 channels
    with overlapping max pooling and local response norm, linear layers of 384 and 192. D = 192.
    """

    name: ClassVar[str] = "alex-cifar"

    def trunk(self, shape: Shape) -> nn.Module:
        def around() -> nn.Module:
            return nn.LocalResponseNorm(4, alpha=0.001 / 9.0, beta=0.75, k=1.0)

        height, width = ((side + 3) // 4 for side in shape[1:])
        return nn.Sequential(
            *(nn.Conv2d(shape[0], 64, 5, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1), around()),
            *(nn.Conv2d(64, 64, 5, padding=2), nn.ReLU(inplace=True), around(), nn.MaxPool2d(3, 2, 1), nn.Flatten()),
            *(nn.Linear(64 * height * width, 384), nn.ReLU(inplace=True)),
            *(nn.Linear(384, 192), nn.ReLU(inplace=True)),
        )


def lenet() -> Net:
    return Xavier(net=named(Net, "lenet"))


# -- methods --------------------------------------------------------------------------------------------------------


@published(
    paper="arXiv:1811.10959",
    title="DD: a few steps on the images, at learned rates, should train networks of any random weights",
    settings="published/dd.toml",
    protocol="replay",
)
def dd(*, per_class: int = 10, iterations: int = 23_600, repeats: int = 3) -> Recipe:
    return Recipe(
        objective=Bilevel(fit=Fit(rule=SGD(), lr=Learned(), epochs=repeats, batch=None), n=1024),
        pool=Fresh(net=lenet()),
        parameterization=Sequence(inner=Pixels(), repeats=repeats, start=0.02),
        budget=PerClass(n=per_class),
        init=named(Init, "noise"),
        labels=Hard(),
        augment=named(Augment, "none"),
        preprocess=named(Preprocess, "normalise"),
        outer=Outer(
            steps=iterations,
            groups=(
                Group(
                    rule=Adam(betas=(0.5, 0.999)),
                    lr=Drops(start=0.01, at=tuple(i / 10 for i in range(1, 10)), factor=0.5),
                ),
            ),
        ),
    )


@published(
    paper="arXiv:1811.10959",
    title="DD for one network: its initial weights are known, and released with the set",
    settings="published/dd_fixed.toml",
    protocol="replay",
)
def dd_fixed(*, per_class: int = 10, iterations: int = 23_600, repeats: int = 3) -> Recipe:
    recipe = dd(per_class=per_class, iterations=iterations, repeats=repeats)
    return recipe.with_(parameterization=Sequence(inner=Pixels(), repeats=repeats, start=0.02, network=lenet()))


# -- judge ----------------------------------------------------------------------------------------------------------


@final
class Replay(Protocol):
    """DD's: the steps that a set was made with, once more. Gradient descent without momentum on the set's own batches,
    in their order, at its own step sizes; a set that brings weights to start from is replayed from these.

    epochs: rounds through the set's batches; asked for by name, as many as it was made with. Sets without batches of
    their own (random real images) are trained on for as many steps, in random batches of as many images as there are
    classes, at the step size `otherwise`: 0.02, where learning starts; the paper compares with random images at rates
    chosen for them.
    """

    nets: tuple[Net, ...] = Field(default_factory=lambda: (lenet(),), min_length=1)
    epochs: int = Field(default=3, ge=0)
    rule: Rule = SGD()
    otherwise: float = Field(default=0.02, gt=0)

    def following(self, recipe: Recipe) -> Self:
        made = [part for part in recipe.walk() if isinstance(part, Sequence)]
        return self.with_(epochs=made[0].repeats) if made else self

    def fit(self, data: Sampler) -> Fit:
        batch = None if data.turns is not None else len(data.task.classes)
        return Fit(rule=self.rule, lr=Learned(otherwise=self.otherwise), epochs=self.epochs, batch=batch)


@hookimpl
def condense_components() -> list[type[Component]]:
    return [Xavier, AlexCifar, Replay]


@hookimpl
def condense_recipes() -> dict[str, Published]:
    return {"dd": dd, "dd-fixed": dd_fixed}
