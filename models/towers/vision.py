"""Vision tower: one global vector and P patch vectors per image, from layers that the config names."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from core.config import Strict
from core.errors import UserError
from models.keys.towers import match
from models.towers.folders import assign, read_weights, resolve, tower_config


class VisionConfig(Strict):
    """Which tower, which of its layers, and how patches are reduced. Part of every feature cache's key.

    global_layer, patch_layer: index into ``hidden_states`` (0 = embeddings, -1 = last). MIRe takes the CLS of the
    last layer and the patches of the one before it, both without the final norm (``norm: false``).
    grid: average the patch grid down to grid x grid cells; null keeps all patches.
    """

    tower: str
    global_layer: int = -1
    patch_layer: int = -2
    norm: bool = False
    grid: int | None = None


class VisionTower(nn.Module):
    """pixels [N, 3, H, W] -> global [N, v], patches [N, P, v]. Always in eval mode, never with gradients."""

    def __init__(self, hf_config, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = _trunk(hf_config).float().requires_grad_(False).eval()

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
        out = self.trunk(pixel_values=pixels.to(next(self.trunk.parameters()).dtype), output_hidden_states=True)
        if self.family.startswith("siglip"):  # no CLS token: the attention-pooled head is the global vector
            patches = self._norm(out.hidden_states[self.config.patch_layer])
            return out.pooler_output.float(), self._cells(patches).float()
        top = self._norm(out.hidden_states[self.config.global_layer])
        patches = self._norm(out.hidden_states[self.config.patch_layer])[:, 1:]
        return top[:, 0].float(), self._cells(patches).float()

    def _norm(self, states: Tensor) -> Tensor:
        if not self.config.norm:
            return states
        trunk = getattr(self.trunk, "vision_model", self.trunk)
        for name in ("layernorm", "post_layernorm"):
            if hasattr(trunk, name):
                return getattr(trunk, name)(states)
        raise UserError(f"model.vision.norm is true but a '{self.family}' tower has no final norm; set it to false.")

    def _cells(self, patches: Tensor) -> Tensor:
        if self.config.grid is None:
            return patches
        side = round(patches.shape[1] ** 0.5)
        if side * side != patches.shape[1]:
            raise UserError(f"model.vision.grid needs a square patch grid, this tower has {patches.shape[1]} patches.")
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

    if config.model_type not in ("clip_vision_model", "siglip_vision_model", "dinov2"):
        raise UserError(
            f"vision towers of type '{config.model_type}' are not supported; use a CLIP, SigLIP or DINOv2 checkpoint."
        )
    return AutoModel.from_config(config)


def load_vision_tower(config: VisionConfig, root: str | Path | None = None) -> tuple[VisionTower, list[str], Path]:
    """Build from a local folder or hub name. Returns the tower, the weights left at init, and the folder."""
    folder = resolve(config.tower, root)
    tower = VisionTower(vision_trunk_config(folder), config)
    tensors = read_weights(folder)
    names, _ = match(tower.family, list(tower.trunk.state_dict()), list(tensors))
    return tower, [f"vision.trunk.{k}" for k in assign(tower.trunk, tensors, names)], folder
