"""EfficientNet-Lite: a convolutional vision tower whose last grid of cells serves as patches.

Source: Tan & Le 2019 (EfficientNet) in Google's Lite form: no squeeze-and-excitation, ReLU6, unscaled stem and head.
Written here because transformers' EfficientNet always has squeeze-and-excitation, and timm needs torchvision.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import pad

from core.config import Strict
from core.files import write_json

LITE0 = [
    # repeats, kernel, stride of the first block, expansion, channels
    [1, 3, 1, 1, 16], [2, 3, 2, 6, 24], [2, 5, 2, 6, 40], [3, 3, 2, 6, 80], [3, 5, 1, 6, 112], [4, 5, 2, 6, 192],
    [1, 3, 1, 6, 320],
]  # fmt: skip


class CNNConfig(Strict):
    """config.json of a folder with ``model_type: efficientnet_lite``.

    stages: [repeats, kernel, stride, expansion, channels] each. hidden_size: channels of the last grid.
    """

    model_type: Literal["efficientnet_lite"] = "efficientnet_lite"
    stem: int = Field(32, ge=1)
    stages: list[Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=5, max_length=5)]] = LITE0
    hidden_size: int = Field(1280, ge=1)
    norm_eps: float = Field(1e-3, gt=0)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json, as transformers' configs do."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_json(Path(folder) / "config.json", self.model_dump())


class _Conv(nn.Module):
    """Convolution, batch norm and, unless ``linear``, ReLU6. Output side = ceil(input side / stride)."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int, eps: float, groups: int = 1, linear: bool = False
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs, eps=eps)
        self.act = nn.Identity() if linear else nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.conv.kernel_size[0], self.conv.stride[0]
        if kernel > 1:  # TensorFlow's "same": the odd pixel of padding lies on the right and at the bottom
            h, w = (max(-(-side // stride) * stride - stride + kernel - side, 0) for side in x.shape[-2:])
            x = pad(x, (w // 2, w - w // 2, h // 2, h - h // 2))
        return self.act(self.norm(self.conv(x)))


class _Block(nn.Module):
    """Inverted bottleneck: expand 1x1, depthwise k x k, project 1x1; a shortcut where the shape stays."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int, eps: float) -> None:
        super().__init__()
        wide = inputs * expansion
        self.expand = _Conv(inputs, wide, 1, 1, eps) if expansion > 1 else nn.Identity()
        self.depthwise = _Conv(wide, wide, kernel, stride, eps, groups=wide)
        self.project = _Conv(wide, outputs, 1, 1, eps, linear=True)
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.shortcut else y


class EfficientNetLite(nn.Module):
    """pixels [N, 3, H, W] -> grid [N, hidden_size, H/32, W/32] (with the strides of LITE0)."""

    def __init__(self, config: CNNConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = _Conv(3, config.stem, 3, 2, config.norm_eps)
        blocks, width = [], config.stem
        for repeats, kernel, stride, expansion, channels in config.stages:
            for step in range(repeats):
                blocks.append(_Block(width, channels, kernel, 1 if step else stride, expansion, config.norm_eps))
                width = channels
        self.blocks = nn.Sequential(*blocks)
        self.head = _Conv(width, config.hidden_size, 1, 1, config.norm_eps)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(pixels)))
