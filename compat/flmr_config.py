"""``FLMRConfig`` and its two parts: what a released config.json says, with the class defaults filled in."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.files import read_object, write_json
from models import flmr_files
from models.towers.folders import resolve


class _Section:
    """Keys as attributes, the defaults of the class where nothing is given; other keys are kept as they are."""

    model_type = ""
    defaults: dict[str, Any] = {}

    def __init__(self, **given: Any) -> None:
        given.pop("model_type", None)
        for key, value in {**copy.deepcopy(self.defaults), **given}.items():
            setattr(self, key, value)

    def to_dict(self) -> dict[str, Any]:
        plain = {k: v.to_dict() if isinstance(v, _Section) else copy.deepcopy(v) for k, v in vars(self).items()}
        return {**plain, "model_type": self.model_type}

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.to_dict() == self.to_dict()

    __hash__ = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in vars(self).items())})"


class FLMRTextConfig(_Section):
    model_type = "flmr_text_model"
    defaults = {
        **flmr_files.TEXT, "position_embedding_type": "absolute", "projection_dim": 0,
        "text_encoder_base_model": flmr_files.BERT, "query_maxlen": 32,
    }  # fmt: skip


class FLMRVisionConfig(_Section):
    model_type = "flmr_vision_model"
    defaults = flmr_files.VISION


class FLMRConfig(_Section):
    """text_config and vision_config may be given as dicts."""

    model_type = "flmr"
    defaults = flmr_files.TOP

    def __init__(self, text_config: Any = None, vision_config: Any = None, **given: Any) -> None:
        super().__init__(**given)
        self.text_config = text_config if isinstance(text_config, _Section) else FLMRTextConfig(**(text_config or {}))
        same = isinstance(vision_config, _Section)
        self.vision_config = vision_config if same else FLMRVisionConfig(**(vision_config or {}))

    @classmethod
    def from_text_vision_configs(
        cls, text_config: FLMRTextConfig, vision_config: FLMRVisionConfig, **given: Any
    ) -> FLMRConfig:
        return cls(text_config=text_config, vision_config=vision_config, **given)

    @classmethod
    def from_pretrained(cls, path: str | Path, **ignored: Any) -> FLMRConfig:
        """Of a folder in the released layout, or a hub name. Loading options of transformers are not needed."""
        folder = resolve(str(path))
        raw = read_object(folder / "config.json", "checkpoint config")
        if not flmr_files.is_released(raw):
            raise UserError(
                f"'{path}' is not in the released layout of FLMR (model_type '{raw.get('model_type')}'); write it so "
                "with python -m runs.convert_checkpoint --to original, or leave out FLMRConfig: nothing here needs it."
            )
        return cls(**raw)

    def save_pretrained(self, path: str | Path) -> None:
        """Write config.json into the folder ``path``."""
        write_json(Path(path) / "config.json", self.to_dict())
