"""Image sets, ranges, equalisation, and the placement of 8-bit operators in an exported graph."""

from __future__ import annotations

from t2t_deploy.calibration._budget import (
    BudgetSearch,
    LayerGroup,
    Loss,
    Trial,
    layer_groups,
    search_budget,
)
from t2t_deploy.calibration._budget_plot import plot_budget
from t2t_deploy.calibration._equalise import (
    Equalisation,
    EqualisedPair,
    equalised_weights,
    norm_channel_max,
    plan_equalisation,
    replace_weights,
    stored_arrays,
)
from t2t_deploy.calibration._forms import (
    ACCURATE,
    BALANCED,
    COMPACT,
    FP8_BALANCED,
    FP8_COMPACT,
    IN_OPERATOR,
    WEIGHTS_BALANCED,
    WEIGHTS_COMPACT,
    Form,
    FormRule,
    Placement,
)
from t2t_deploy.calibration._histogram import MagnitudeHistogram
from t2t_deploy.calibration._image_set import (
    ImageSet,
    PictureBatch,
    file_digests,
    identity_of,
    image_set_from_folder,
)
from t2t_deploy.calibration._labelled_set import LabelledSet, labelled_set_from_folder
from t2t_deploy.calibration._layers import (
    POLICY,
    Decision,
    LinearLayer,
    Rule,
    decide,
    find_layers,
)
from t2t_deploy.calibration._observe import (
    MAX_MOMENT_PICTURES,
    ChannelMaxima,
    Observation,
    observed_model,
    sources,
)
from t2t_deploy.calibration._placement import (
    SIGNED,
    TYPED_QDQ_OPSET,
    UNSIGNED,
    CodeStorage,
    QuantizedGraph,
    place_dynamic,
    place_static,
)
from t2t_deploy.calibration._ranges import RangeMethod, range_of
from t2t_deploy.calibration._ranges_file import (
    PREPROCESSING,
    Calibration,
    CalibrationKey,
    load_calibration,
    save_calibration,
)
from t2t_deploy.calibration._rounding import (
    RoundedWeight,
    WeightScale,
    code_limit,
    round_weight,
    storable_scale,
)
from t2t_deploy.calibration._scales import half_bound, weight_scales

__all__ = [
    "ACCURATE",
    "BALANCED",
    "COMPACT",
    "FP8_BALANCED",
    "FP8_COMPACT",
    "IN_OPERATOR",
    "MAX_MOMENT_PICTURES",
    "POLICY",
    "PREPROCESSING",
    "SIGNED",
    "TYPED_QDQ_OPSET",
    "UNSIGNED",
    "WEIGHTS_BALANCED",
    "WEIGHTS_COMPACT",
    "BudgetSearch",
    "Calibration",
    "CalibrationKey",
    "ChannelMaxima",
    "CodeStorage",
    "Decision",
    "Equalisation",
    "EqualisedPair",
    "Form",
    "FormRule",
    "ImageSet",
    "LabelledSet",
    "LayerGroup",
    "LinearLayer",
    "Loss",
    "MagnitudeHistogram",
    "Observation",
    "PictureBatch",
    "Placement",
    "QuantizedGraph",
    "RangeMethod",
    "RoundedWeight",
    "Rule",
    "Trial",
    "WeightScale",
    "code_limit",
    "decide",
    "equalised_weights",
    "file_digests",
    "find_layers",
    "half_bound",
    "identity_of",
    "image_set_from_folder",
    "labelled_set_from_folder",
    "layer_groups",
    "load_calibration",
    "norm_channel_max",
    "observed_model",
    "place_dynamic",
    "place_static",
    "plan_equalisation",
    "plot_budget",
    "range_of",
    "replace_weights",
    "round_weight",
    "save_calibration",
    "search_budget",
    "sources",
    "storable_scale",
    "stored_arrays",
    "weight_scales",
]
