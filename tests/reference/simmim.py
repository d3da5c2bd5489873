"""Three training steps of SimMIM in float64, from section 3 of https://arxiv.org/abs/2111.09886.

    python tests/reference/simmim.py [--float32]

Made with torch 2.9.1, torchvision 0.24.1, numpy and safetensors. Cells of several patches are drawn at random; the mask token
takes the place of their patches, the network is BEiT's or a Swin Transformer, and a convolution with a kernel of one
followed by a pixel shuffle predicts the image. The loss is the absolute error of the hidden pixels.
"""

import math

import chacha
import torch
from steps import ADAMW, SGD, main, noisy_views
from swin import Swin
from torch import nn
from vit import BEIT, Vit

SIZE, PATCH, DIM, DEPTH = 16, 4, 128, 2
CELL, RATIO = 8, 0.6
# Of Swin: 8 by 8 patches in windows of 4, then 4 by 4 tokens.
SWIN_PATCH, SWIN_DIM, DEPTHS, WINDOW = 2, 32, [2, 2], 4


class SimMim(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = Vit(SIZE, PATCH, DIM, DEPTH, beit=True)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, DIM))
        self.decoder = nn.Sequential(nn.Linear(DIM, 3 * PATCH**2))
        self.patch, self.stride = PATCH, PATCH

    def tokens(self, patches: torch.Tensor) -> torch.Tensor:
        return self.backbone.run(patches)[:, 1:]

    def loss(self, views: list, step: int) -> torch.Tensor:
        (x,) = views
        side, cells = SIZE // self.stride, SIZE // CELL
        hidden = torch.zeros(len(x), cells**2, dtype=x.dtype)
        for image, row in enumerate(hidden):
            order = chacha.masks(step, image).permutation(cells**2)
            row[order[: math.ceil(RATIO * cells**2)]] = 1
        hidden = hidden.reshape(-1, 1, cells, cells).repeat_interleave(CELL, 2).repeat_interleave(CELL, 3)
        of_patches = hidden[:, 0, :: self.patch, :: self.patch].flatten(1)[..., None]
        tokens = self.tokens(self.backbone.patch_embed(x) * (1 - of_patches) + self.mask_token * of_patches)
        # The linear layer's weight is that of a convolution with a kernel of 1.
        weight, bias = self.decoder[0].weight[..., None, None], self.decoder[0].bias
        grid = tokens.transpose(1, 2).reshape(len(x), -1, side, side)
        image = nn.functional.pixel_shuffle(nn.functional.conv2d(grid, weight, bias), self.stride)
        return ((image - x).abs() * hidden).sum() / (hidden.sum() + 1e-5) / 3


class SimMimOfSwin(SimMim):
    def __init__(self):
        nn.Module.__init__(self)
        self.backbone = Swin(SIZE, SWIN_PATCH, SWIN_DIM, DEPTHS, WINDOW)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, SWIN_DIM))
        self.patch, self.stride = SWIN_PATCH, SWIN_PATCH << len(DEPTHS) - 1
        self.decoder = nn.Sequential(nn.Linear(SWIN_DIM << len(DEPTHS) - 1, 3 * self.stride**2))

    def tokens(self, patches: torch.Tensor) -> torch.Tensor:
        return self.backbone.run(patches)


if __name__ == "__main__":
    main(
        "simmim",
        SimMim,
        noisy_views(32, [SIZE]),
        method={"name": "simmim", "mask_ratio": RATIO, "mask_cell": CELL},
        backbone={
            "name": "vit_tiny",
            "image_size": SIZE,
            "patch_size": PATCH,
            "width": DIM,
            "depth": DEPTH,
            "vit": BEIT,
        },
        # As far as PyTorch in float32 strays, doubled.
        runs={"sgd": SGD | {"movement_tolerance": 7e-3}, "adamw": ADAMW},
        chosen=[
            "backbone.cls_token",
            "backbone.patch_embed.proj.bias",
            "backbone.blocks.0.attn.q_bias",
            "backbone.blocks.0.gamma_1",
            "backbone.rel_pos_bias.relative_position_bias_table",
            "mask_token",
            "decoder.0.bias",
        ],
        notes="Three steps of SimMIM on one batch.",
    )
    main(
        "simmim_swin",
        SimMimOfSwin,
        noisy_views(33, [SIZE]),
        program="simmim",
        method={"name": "simmim", "mask_ratio": RATIO, "mask_cell": CELL},
        backbone={
            "name": "swin_tiny",
            "image_size": SIZE,
            "patch_size": SWIN_PATCH,
            "width": SWIN_DIM,
            "depths": DEPTHS,
            "window": WINDOW,
        },
        # As far as PyTorch in float32 strays, doubled.
        runs={"sgd": SGD | {"movement_tolerance": 5.2e-3}, "adamw": ADAMW},
        chosen=[
            "backbone.patch_embed.norm.bias",
            "backbone.layers.0.blocks.1.attn.relative_position_bias_table",
            "backbone.layers.0.blocks.1.attn.qkv.bias",
            "backbone.layers.1.downsample.norm.bias",
            "backbone.norm.weight",
            "mask_token",
            "decoder.0.bias",
        ],
        notes="Three steps of SimMIM with a Swin Transformer on one batch.",
    )
