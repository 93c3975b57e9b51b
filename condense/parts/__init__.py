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
from .bilevel import Bilevel
from .budgets import PerClass, Ratio, Total
from .by_experts import ExpertLogits, SoftTargets, Understood
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
from .rules import LAMB, SGD, AdaBelief, Adam, NormClipped
from .schedules import Cosine, Drops, Learned, Linear, WarmCosine
from .selections import OnValidation
from .sequence import Sequence
from .subspace import Subspace
from .sums import Sum
from .trajectory import Trajectory


@hookimpl
def condense_components() -> list[type[Component]]:
    return [
        *(OwnLoss, TaskLoss, Fit, Constant, Tensors, Accuracy, RocAuc),
        *(SGD, Adam, AdaBelief, LAMB, NormClipped, Cosine, Drops, Linear, Learned, WarmCosine),
        *(Gradient, MeanFeature, RowCosine, SquaredError, ClassWise, Joint, Matching),
        *(Joined, RelativeError),
        *(Sum, KernelRidge, KernelOrthogonal, CentredError, InfiniteMLP, InfiniteConvNet),
        *(InfiniteWidth, Ridge, Krr, Solved, FeatureKernel, Ensemble, LabelMargin),
        *(Fresh, NoModel, Online, Trained, Experts, Trajectories, Trajectory, Subspace),
        *(ExpertLogits, SoftTargets, Understood),
        *(Noise, Real, Herding, KCenter, Hard, LearnedLabels, PerClass, Total, Ratio),
        *(Pixels, WithRate, Averaged, Preconditioned),
        *(NoAugment, Then, Beside, OnValidation, Bilevel, Implicit, Sequence),
    ]
