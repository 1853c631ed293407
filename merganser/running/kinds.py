"""What a model is run as, and which class of transformers does that."""

from __future__ import annotations

from typing import Any, Literal

from merganser.errors import RequestError

Kind = Literal["encoder", "classifier", "image_classifier", "series_classifier", "causal", "masked"]
_CLASSES: dict[Kind, str] = {
    "encoder": "AutoModel",
    "classifier": "AutoModelForSequenceClassification",
    "image_classifier": "AutoModelForImageClassification",
    "series_classifier": "MODEL_FOR_TIME_SERIES_CLASSIFICATION_MAPPING",
    "causal": "AutoModelForCausalLM",
    "masked": "AutoModelForMaskedLM",
}
_ENDINGS: dict[str, Kind] = {
    "ForSequenceClassification": "classifier",
    "ForImageClassification": "image_classifier",
    "PatchTSTForClassification": "series_classifier",
    "ForTimeSeriesClassification": "series_classifier",
    "ForCausalLM": "causal",
    "LMHeadModel": "causal",
    "ForMaskedLM": "masked",
    "ForPreTraining": "masked",
}


def kind_of(config: Any) -> Kind:
    """What the architecture in a config says, an encoder where it says nothing of a head."""
    for architecture in getattr(config, "architectures", None) or ():
        for ending, kind in _ENDINGS.items():
            if architecture.endswith(ending):
                return kind
    return "encoder"


def class_for(config: Any, kind: Kind, name: str) -> Any:
    """The class of transformers that runs models of this config as `kind`."""
    import transformers

    auto = getattr(transformers, _CLASSES[kind])
    family = (auto if hasattr(auto, "get") else auto._model_mapping).get(type(config), None)
    if family is None:
        raise RequestError(f"{name}: transformers has no {kind} for models of type {config.model_type!r}")
    return family[0] if isinstance(family, tuple) else family
