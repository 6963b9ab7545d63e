"""Schemas of the parts chosen by `_target_` or `kind`, and the one mapping that chooses them.

A part's dataclass repeats the keyword arguments of the class it stands for, so that a grid is
checked on a login node without importing torch; `tests/test_conf.py` compares both.
"""

from __future__ import annotations

from zolab.config.parts.baselines import (
    APOLLO,
    ICL,
    LOMO,
    SGD,
    AdaLOMO,
    AdamW,
    AdamWSN,
    GaLore,
    HiFT,
    LinearProbing,
    ZeroShot,
)
from zolab.config.parts.launchers import LocalLauncher, SlurmLauncher
from zolab.config.parts.masks import Dense, LargeWeights, LayerMask, RandomMask, SmallWeights
from zolab.config.parts.optimizers import (
    BlockWise,
    Conservative,
    ForwardGrad,
    MeZOSVRG,
    ZeroOrder,
)
from zolab.config.parts.probing import (
    Auto,
    Gaussian,
    InPlace,
    LazyLowRank,
    Offload,
    OnePoint,
    OneSided,
    Paired,
    PerLayer,
    Rademacher,
    Subspace,
    TwoSided,
)
from zolab.config.parts.rules import Adam, FactorMomentum, Helene, Momentum, Sgd, Sign
from zolab.config.parts.tasks import (
    Classification,
    Generation,
    MultipleChoice,
    Python,
    Record,
)
from zolab.config.parts.tuning import (
    BiasTuning,
    FullTuning,
    HeadTuning,
    LoraTuning,
    PrefixTuning,
    PromptTuning,
    TensorTrainTuning,
)

#: slot -> (key that chooses, value of that key -> dataclass). The only such mapping.
PARTS: dict[str, tuple[str, dict[str, type]]] = {
    "optimizer": (
        "_target_",
        {
            "zolab.optim.ZeroOrder": ZeroOrder,
            "zolab.optim.MeZOSVRG": MeZOSVRG,
            "zolab.optim.Conservative": Conservative,
            "zolab.optim.ForwardGrad": ForwardGrad,
            "zolab.optim.BlockWise": BlockWise,
            "zolab.baselines.AdamW": AdamW,
            "zolab.baselines.SGD": SGD,
            "zolab.baselines.LOMO": LOMO,
            "zolab.baselines.AdaLOMO": AdaLOMO,
            "zolab.baselines.APOLLO": APOLLO,
            "zolab.baselines.GaLore": GaLore,
            "zolab.baselines.AdamWSN": AdamWSN,
            "zolab.baselines.HiFT": HiFT,
            "zolab.baselines.ZeroShot": ZeroShot,
            "zolab.baselines.ICL": ICL,
            "zolab.baselines.LinearProbing": LinearProbing,
        },
    ),
    "optimizer.estimator": (
        "_target_",
        {
            "zolab.optim.TwoSided": TwoSided,
            "zolab.optim.OneSided": OneSided,
            "zolab.optim.OnePoint": OnePoint,
        },
    ),
    "optimizer.direction": (
        "_target_",
        {
            "zolab.optim.Gaussian": Gaussian,
            "zolab.optim.Rademacher": Rademacher,
            "zolab.optim.Subspace": Subspace,
            "zolab.optim.LazyLowRank": LazyLowRank,
        },
    ),
    "optimizer.rule": (
        "_target_",
        {
            "zolab.optim.Sgd": Sgd,
            "zolab.optim.Momentum": Momentum,
            "zolab.optim.Adam": Adam,
            "zolab.optim.Sign": Sign,
            "zolab.optim.FactorMomentum": FactorMomentum,
            "zolab.optim.Helene": Helene,
        },
    ),
    "optimizer.placement": (
        "_target_",
        {
            "auto": Auto,
            "zolab.optim.InPlace": InPlace,
            "zolab.optim.Paired": Paired,
            "zolab.optim.PerLayer": PerLayer,
            "zolab.optim.Offload": Offload,
        },
    ),
    "sparsity": (
        "_target_",
        {
            "zolab.optim.Dense": Dense,
            "zolab.optim.SmallWeights": SmallWeights,
            "zolab.optim.LargeWeights": LargeWeights,
            "zolab.optim.RandomMask": RandomMask,
            "zolab.optim.LayerMask": LayerMask,
        },
    ),
    "task": (
        "kind",
        {
            "classification": Classification,
            "multiple_choice": MultipleChoice,
            "generation": Generation,
            "record": Record,
            "python": Python,
        },
    ),
    "model.tuning": (
        "kind",
        {
            "full": FullTuning,
            "lora": LoraTuning,
            "prefix": PrefixTuning,
            "prompt": PromptTuning,
            "head": HeadTuning,
            "bitfit": BiasTuning,
            "tensor_train": TensorTrainTuning,
        },
    ),
    "launcher": ("kind", {"local": LocalLauncher, "slurm": SlurmLauncher}),
}

#: target -> dataclass over all slots that are built from classes.
TARGETS: dict[str, type] = {
    target: cls
    for chooser, choices in PARTS.values()
    if chooser == "_target_"
    for target, cls in choices.items()
}
