"""Parts that know no modality: rules, schedules, distances, matching, pools, inits, labels, budgets."""

from __future__ import annotations

from condense.axes import OwnLoss, TaskLoss
from condense.component import Component
from condense.fit import Constant, Fit
from condense.hookspecs import hookimpl
from condense.metrics import Accuracy, RocAuc
from condense.task import Tensors

from .assets import Trained
from .augment import NoAugment, Then
from .budgets import PerClass, Ratio, Total
from .by_experts import ExpertLogits, SoftTargets, Understood
from .distances import RowCosine, SquaredError
from .experts import Experts, Trajectories
from .inits import Herding, KCenter, Noise, Real
from .joined import Joined, RelativeError
from .labels import Hard
from .matching import ClassWise, Gradient, Joint, Matching, MeanFeature
from .parameterizations import Pixels, WithRate
from .pools import Fresh, NoModel
from .ridge import CentredError, KernelOrthogonal, KernelRidge
from .rules import LAMB, SGD, Adam
from .schedules import Cosine, Drops, Learned, Linear
from .selections import OnValidation
from .subspace import Subspace
from .sums import Sum
from .trajectory import Trajectory


@hookimpl
def condense_components() -> list[type[Component]]:
    return [
        *(OwnLoss, TaskLoss, Fit, Constant, Tensors, Accuracy, RocAuc),
        *(SGD, Adam, LAMB, Cosine, Drops, Linear, Learned),
        *(Gradient, MeanFeature, RowCosine, SquaredError, ClassWise, Joint, Matching),
        *(Joined, RelativeError),
        *(Sum, KernelRidge, KernelOrthogonal, CentredError),
        *(Fresh, NoModel, Trained, Experts, Trajectories, Trajectory, Subspace),
        *(ExpertLogits, SoftTargets, Understood),
        *(Noise, Real, Herding, KCenter, Hard, PerClass, Total, Ratio, Pixels, WithRate),
        *(NoAugment, Then, OnValidation),
    ]
