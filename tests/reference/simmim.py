"""Three training steps of SimMIM in float64, from section 3 of https://arxiv.org/abs/2111.09886.

    python tests/reference/simmim.py [--float32]

Made with torch 2.9.1, torchvision 0.24.1, numpy and safetensors. Cells of several patches are drawn at random; the mask token
takes the place of their patches, the network is BEiT's, and a convolution with a kernel of one patch followed by a pixel
shuffle predicts the image. The loss is the absolute error of the hidden pixels.
"""

import math

import chacha
import torch
from steps import ADAMW, SGD, main, noisy_views
from torch import nn
from vit import BEIT, Vit

SIZE, PATCH, DIM, DEPTH = 16, 4, 128, 2
CELL, RATIO = 8, 0.6


class SimMim(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = Vit(SIZE, PATCH, DIM, DEPTH, beit=True)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, DIM))
        self.decoder = nn.Sequential(nn.Linear(DIM, 3 * PATCH**2))

    def loss(self, views: list, step: int) -> torch.Tensor:
        (x,) = views
        side, cells = SIZE // PATCH, SIZE // CELL
        hidden = torch.zeros(len(x), cells**2, dtype=x.dtype)
        for image, row in enumerate(hidden):
            order = chacha.masks(step, image).permutation(cells**2)
            row[order[: math.ceil(RATIO * cells**2)]] = 1
        hidden = hidden.reshape(-1, 1, cells, cells).repeat_interleave(CELL, 2).repeat_interleave(CELL, 3)
        of_patches = hidden[:, 0, ::PATCH, ::PATCH].flatten(1)[..., None]
        tokens = self.backbone.patch_embed(x) * (1 - of_patches) + self.mask_token * of_patches
        tokens = self.backbone.run(tokens)[:, 1:]
        # The linear layer's weight is that of a convolution with a kernel of 1.
        weight, bias = self.decoder[0].weight[..., None, None], self.decoder[0].bias
        grid = tokens.transpose(1, 2).reshape(len(x), DIM, side, side)
        image = nn.functional.pixel_shuffle(nn.functional.conv2d(grid, weight, bias), PATCH)
        return ((image - x).abs() * hidden).sum() / (hidden.sum() + 1e-5) / 3


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
