"""Three training steps of BEiT in float64, from section 2 of https://arxiv.org/abs/2106.08254.

    python tests/reference/beit.py [--float32]

Made with torch 2.9.1, torchvision 0.24.1, numpy and safetensors. Every patch has a code, here the number of the nearest of
some fixed centres. Blocks of patches are hidden behind the mask token, and the network predicts their codes from its tokens.
Masks come from `chacha`, by algorithm 1 of the paper as its code has it.
"""

import math

import chacha
import torch
from ibot import blocks
from steps import ADAMW, SGD, main, noisy_views
from torch import nn
from vit import BEIT, Vit

SIZE, PATCH, DIM, DEPTH = 8, 2, 128, 2
SIDE, CODES, RATIO, MIN_BLOCK = SIZE // PATCH, 7, 0.4, 2
CENTERS = torch.randn(CODES, 3 * PATCH**2, generator=torch.Generator().manual_seed(44))


class Tokenizer(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("centers", CENTERS.clone())
        self.register_buffer("learned", torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pixels = nn.functional.unfold(x, PATCH, stride=PATCH).transpose(1, 2)  # channel by channel
        pixels = pixels.reshape(len(x), -1, 3, PATCH**2).transpose(2, 3).flatten(2)
        return (pixels[:, :, None] - self.centers).pow(2).sum(dim=-1).argmin(dim=-1)


class Beit(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokenizer = Tokenizer()
        self.backbone = Vit(SIZE, PATCH, DIM, DEPTH, beit=True)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, DIM))
        self.lm_head = nn.Linear(DIM, CODES)

    def loss(self, views: list, step: int) -> torch.Tensor:
        (x,) = views
        number = round(RATIO * SIDE**2)
        masks = [blocks(chacha.masks(step, image), number, MIN_BLOCK, math.inf) for image in range(len(x))]
        hidden = torch.tensor(masks)
        tokens = torch.where(hidden[..., None], self.mask_token, self.backbone.patch_embed(x))
        logits = self.lm_head(self.backbone.run(tokens)[:, 1:])
        return nn.functional.cross_entropy(logits[hidden], self.tokenizer(x)[hidden])


if __name__ == "__main__":
    main(
        "beit",
        Beit,
        noisy_views(43, [SIZE]),
        method={
            "name": "beit",
            "mask_ratio": RATIO,
            "min_block": MIN_BLOCK,
            "codes": CODES,
            "tokenizer_patches": CODES,
        },
        backbone={
            "name": "vit_tiny",
            "image_size": SIZE,
            "patch_size": PATCH,
            "width": DIM,
            "depth": DEPTH,
            "vit": BEIT,
        },
        # As far as PyTorch in float32 strays, doubled.
        runs={"sgd": SGD | {"movement_tolerance": 2e-3}, "adamw": ADAMW},
        start={"tokenizer.centers": CENTERS, "tokenizer.learned": torch.ones(1)},
        chosen=[
            "backbone.cls_token",
            "backbone.blocks.0.attn.q_bias",
            "backbone.blocks.1.gamma_2",
            "backbone.rel_pos_bias.relative_position_bias_table",
            "mask_token",
            "lm_head.weight",
        ],
        notes="Three steps of BEiT on one batch.",
    )
