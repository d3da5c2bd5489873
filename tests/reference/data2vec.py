"""Three training steps of data2vec in float64, from section 3 of https://arxiv.org/abs/2202.03555, for images.

    python tests/reference/data2vec.py [--float32]

Made with torch 2.9.1, torchvision 0.24.1, numpy and safetensors. Blocks of patches are hidden behind the mask token; at their
places the student predicts the mean of what leaves the teacher's last blocks for the whole image, each normalised over its
features, and the mean once more. The distance is smooth L1. Masks come from `chacha`, by algorithm 1 of
https://arxiv.org/abs/2106.08254 as BEiT's code has it.
"""

import math

import chacha
import torch
from ibot import blocks
from steps import ADAMW, SGD, follow, frozen, main, noisy_views
from torch import nn
from vit import BEIT, Vit

SIZE, PATCH, DIM, DEPTH, LAYERS = 8, 2, 128, 3, 2
SIDE = SIZE // PATCH
RATIO, MIN_BLOCK, BETA, MOMENTUM, FINAL, TOTAL_STEPS = 0.6, 2, 0.5, 0.7, 0.9, 6


class Teacher(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = Vit(SIZE, PATCH, DIM, DEPTH, beit=True)

    def targets(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.backbone.patch_embed(x)
        tokens = torch.cat([self.backbone.cls_token.expand(len(x), -1, -1), tokens], dim=1)
        bias, outputs = self.backbone.rel_pos_bias(), []
        for block in self.backbone.blocks:
            tokens = block(tokens, bias)
            outputs.append(nn.functional.layer_norm(tokens[:, 1:], (DIM,)))
        return nn.functional.layer_norm(sum(outputs[-LAYERS:]) / LAYERS, (DIM,))


class Data2Vec(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = Vit(SIZE, PATCH, DIM, DEPTH, beit=True)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, DIM))
        self.head = nn.Linear(DIM, DIM)
        self.teacher = frozen(Teacher())

    def loss(self, views: list, step: int) -> torch.Tensor:
        (x,) = views
        number = round(RATIO * SIDE**2)
        masks = [blocks(chacha.masks(step, image), number, MIN_BLOCK, math.inf) for image in range(len(x))]
        hidden = torch.tensor(masks)
        tokens = torch.where(hidden[..., None], self.mask_token, self.backbone.patch_embed(x))
        predicted = self.head(self.backbone.run(tokens)[:, 1:])
        with torch.no_grad():
            targets = self.teacher.targets(x)
        return nn.functional.smooth_l1_loss(predicted[hidden], targets[hidden], beta=BETA)

    def after_step(self, step: int) -> None:
        follow(self.teacher, self, MOMENTUM + (FINAL - MOMENTUM) * step / TOTAL_STEPS)


if __name__ == "__main__":
    main(
        "data2vec",
        Data2Vec,
        noisy_views(41, [SIZE]),
        method={
            "name": "data2vec",
            "mask_ratio": RATIO,
            "min_block": MIN_BLOCK,
            "target_layers": LAYERS,
            "beta": BETA,
            "momentum": MOMENTUM,
            "final_momentum": FINAL,
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
        runs={"sgd": SGD | {"movement_tolerance": 6e-3}, "adamw": ADAMW},
        total_steps=TOTAL_STEPS,
        chosen=[
            "backbone.cls_token",
            "backbone.blocks.0.attn.q_bias",
            "backbone.blocks.2.gamma_1",
            "backbone.rel_pos_bias.relative_position_bias_table",
            "mask_token",
            "head.bias",
            "teacher.backbone.blocks.1.norm2.weight",
        ],
        notes="Three steps of data2vec on one batch.",
    )
