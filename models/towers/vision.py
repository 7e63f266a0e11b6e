"""Vision tower: one global vector and P patch vectors per image, from layers that the config names."""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor, nn

from core.config import Strict
from core.errors import UserError
from models.keys.towers import match
from models.towers.cnn import EfficientNetLite
from models.towers.folders import assign, read_weights, resolve, tower_config

CLS = ("clip_vision_model", "dinov2", "dinov2_with_registers")
"""Towers whose first token is the global vector."""

HEAD = "siglip_vision_model"
"""SigLIP and the fixed-resolution SigLIP2: no such token, an attention-pooled head is the global vector."""

CNN = "efficientnet_lite"
"""The mean of the last grid is the global vector, its cells are the patches."""


class VisionConfig(Strict):
    """Which tower, which of its layers, and how patches are reduced. Part of every feature cache's key.

    global_layer, patch_layer: index into ``hidden_states`` (0 = embeddings, -1 = last). MIRe takes the CLS of the
    last layer and the patches of the one before it, both without the final norm (``norm: false``). SigLIP's head and
    a CNN's mean exist for the last layer only, and so do a CNN's cells: -1 there, anything else is an error.
    norm: the tower's final norm over the layers taken (SigLIP's head always has it inside). A CNN has none.
    grid: average the patch grid down to grid x grid cells; null keeps all patches.
    """

    tower: str
    global_layer: int = -1
    patch_layer: int = -2
    norm: bool = False
    grid: int | None = Field(None, ge=1)


class VisionTower(nn.Module):
    """pixels [N, 3, H, W] -> global [N, v], patches [N, P, v]. Always in eval mode, never with gradients."""

    def __init__(self, tower_config, config: VisionConfig) -> None:
        """tower_config: what ``vision_trunk_config`` gives."""
        super().__init__()
        self.config = config
        self.trunk = _trunk(tower_config).float().requires_grad_(False).eval()
        self._check_layers()

    @property
    def hidden_size(self) -> int:
        return self.trunk.config.hidden_size

    @property
    def family(self) -> str:
        return self.trunk.config.model_type

    def train(self, mode: bool = True) -> VisionTower:
        return super().train(False)  # frozen: dropout and drop-path stay off whatever the retriever's mode

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        return self.taps(pixels)

    def taps(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """As ``forward``, with a graph where weights ask for gradients (a family whose tower may train)."""
        pixels = pixels.to(next(self.trunk.parameters()).dtype)
        if self.family == CNN:
            patches = self.trunk(pixels).flatten(2).transpose(1, 2)  # cells in reading order
            return patches.mean(1).float(), self._cells(patches).float()
        out = self.trunk(pixel_values=pixels, output_hidden_states=True)
        patches = self._norm(out.hidden_states[self.config.patch_layer])
        if self.family == HEAD:
            return out.pooler_output.float(), self._cells(patches).float()
        top = self._norm(out.hidden_states[self.config.global_layer])
        return top[:, 0].float(), self._cells(patches[:, self._leading :]).float()

    @property
    def _leading(self) -> int:
        """Tokens in front of the patches: CLS, and the registers where there are any."""
        return 1 + getattr(self.trunk.config, "num_register_tokens", 0)

    def _check_layers(self) -> None:
        """Every layer named must exist and be one that the family can take."""
        config, cnn = self.config, self.family == CNN
        fixed = {CNN: ("global_layer", "patch_layer"), HEAD: ("global_layer",)}.get(self.family, ())
        for key in ("global_layer", "patch_layer"):
            value = getattr(config, key)
            layers = 0 if cnn else self.trunk.config.num_hidden_layers
            if key in fixed and value != -1:
                raise UserError(
                    f"model.vision.{key} is {value}, but a '{self.family}' tower gives its last layer only; "
                    "set it to -1."
                )
            if not -layers - 1 <= value <= layers:
                raise UserError(
                    f"model.vision.{key} is {value}, but this tower's layers are {-layers - 1} to {layers}; "
                    "choose one of these."
                )
        if config.norm and cnn:
            raise UserError(f"model.vision.norm is true, but a '{CNN}' tower has no final norm; set it to false.")

    def _norm(self, states: Tensor) -> Tensor:
        if not self.config.norm:
            return states
        trunk = getattr(self.trunk, "vision_model", self.trunk)
        return (trunk.layernorm if self.family.startswith("dinov2") else trunk.post_layernorm)(states)

    def _cells(self, patches: Tensor) -> Tensor:
        if self.config.grid is None:
            return patches
        side = round(patches.shape[1] ** 0.5)
        if side * side != patches.shape[1]:
            raise UserError(f"model.vision.grid needs a square patch grid, this tower has {patches.shape[1]} patches.")
        if self.config.grid > side:
            raise UserError(
                f"model.vision.grid is {self.config.grid}, but this tower gives {side} x {side} patches; set it to "
                f"{side} or less, or to null to keep them all."
            )
        image = patches.transpose(1, 2).unflatten(2, (side, side))
        return nn.functional.adaptive_avg_pool2d(image, self.config.grid).flatten(2).transpose(1, 2)

    def fingerprint(self, processor: dict) -> dict:
        """Key of features made by this tower: weights, layers, preprocessing."""
        from models.artifacts import weight_digest

        layers = self.config.model_dump(exclude={"tower"})
        return {"kind": "visual", "weights": weight_digest(self.trunk), **layers, "preprocessing": processor}


def vision_trunk_config(folder: Path):
    """The vision half of a folder's config: CLIP and SigLIP folders often hold both halves."""
    config = tower_config(folder)
    return getattr(config, "vision_config", config)


def _trunk(config) -> nn.Module:
    from transformers import AutoModel

    family = config.model_type
    if family == CNN:
        return EfficientNetLite(config)
    if family == "siglip2_vision_model":
        raise UserError(
            "SigLIP2 towers of variable resolution (naflex) are not supported; use one of fixed resolution such as "
            "google/siglip2-base-patch16-224, whose model_type is 'siglip'."
        )
    if family not in (*CLS, HEAD):
        raise UserError(
            f"vision towers of type '{family}' are not supported; use a CLIP, SigLIP, DINOv2 or "
            "EfficientNet-Lite checkpoint."
        )
    if family == HEAD and not getattr(config, "vision_use_head", True):
        raise UserError("this SigLIP folder has no attention-pooled head (vision_use_head: false); use one that has.")
    return AutoModel.from_config(config)


def load_vision_tower(config: VisionConfig, root: str | Path | None = None) -> tuple[VisionTower, list[str], Path]:
    """Build from a local folder or hub name. Returns the tower, the weights left at init, and the folder."""
    folder = resolve(config.tower, root)
    tower = VisionTower(vision_trunk_config(folder), config)
    tensors = read_weights(folder)
    names, _ = match(tower.family, list(tower.trunk.state_dict()), list(tensors))
    return tower, [f"vision.trunk.{k}" for k in assign(tower.trunk, tensors, names)], folder
