"""Parts that know no modality: rules, schedules, distances, matching, pools, inits, labels, budgets."""

from __future__ import annotations

from condense.axes import OwnLoss, TaskLoss
from condense.component import Component
from condense.fit import Constant, Fit
from condense.hookspecs import hookimpl
from condense.metrics import Accuracy, RocAuc
from condense.task import Tensors

from .assets import Trained
from .augment import Beside, NoAugment, Then
from .budgets import PerClass, Ratio, Total
from .closed_form import InfiniteWidth, Krr, Ridge, Solved
from .distances import RowCosine, SquaredError
from .experts import Experts, Trajectories
from .features import Ensemble, FeatureKernel, LabelMargin
from .implicit import Implicit
from .inits import Herding, KCenter, Noise, Real
from .joined import Joined, RelativeError
from .kernels import InfiniteConvNet, InfiniteMLP
from .labels import Hard, LearnedLabels
from .matching import ClassWise, Gradient, Joint, Matching, MeanFeature
from .parameterizations import Averaged, Pixels, Preconditioned, WithRate
from .pools import Fresh, NoModel, Online
from .ridge import CentredError, KernelOrthogonal, KernelRidge
from .rules import LAMB, SGD, AdaBelief, Adam
from .schedules import Cosine, Drops, Learned, Linear, WarmCosine
from .selections import OnValidation
from .sums import Sum
from .trajectory import Trajectory


@hookimpl
def condense_components() -> list[type[Component]]:
    return [
        *(OwnLoss, TaskLoss, Fit, Constant, Tensors, Accuracy, RocAuc),
        *(SGD, Adam, LAMB, Cosine, Drops, Linear, Learned),
        *(Gradient, MeanFeature, RowCosine, SquaredError, ClassWise, Joint, Matching),
        *(Joined, RelativeError),
        *(Sum, KernelRidge, KernelOrthogonal, CentredError, InfiniteMLP, InfiniteConvNet),
        *(InfiniteWidth, Ridge, Krr, Solved, LearnedLabels),
        *(FeatureKernel, Ensemble, LabelMargin, Online, Beside, WarmCosine),
        *(Implicit, AdaBelief, Averaged, Preconditioned),
        *(Fresh, NoModel, Trained, Experts, Trajectories, Trajectory),
        *(Noise, Real, Herding, KCenter, Hard, PerClass, Total, Ratio, Pixels, WithRate),
        *(NoAugment, Then, OnValidation),
    ]
