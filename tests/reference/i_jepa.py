"""Three training steps of I-JEPA in float64, from section 3 and appendix A of https://arxiv.org/abs/2301.08243.

    python tests/reference/i_jepa.py [--float32]

Made with torch 2.9.1, torchvision 0.24.1, numpy and safetensors. The context encoder passes the patches of a square that four
blocks leave; the predictor gets them and, for each block by itself, the mask token at its places, and predicts what the target
encoder makes of them in the whole image, normalised over its features. The distance is smooth L1, as in the official code.
Masks come from `chacha`: sizes are drawn once for the batch, places for each image.
"""

import math

import chacha
import torch
from steps import ADAMW, SGD, follow, frozen, main, noisy_views
from torch import nn
from vit import Block, PatchEmbed, sin_cos

SIZE, PATCH, DIM, DEPTH = 12, 2, 128, 2
PREDICTOR_DIM, PREDICTOR_DEPTH = 32, 2
SIDE = SIZE // PATCH
TARGETS, TARGET_SCALE, TARGET_ASPECT, CONTEXT_SCALE, MIN_CONTEXT = 4, (0.15, 0.2), (0.75, 1.5), (0.85, 1.0), 4
MOMENTUM, FINAL, TOTAL_STEPS = 0.7, 1.0, 6


class Encoder(nn.Module):
    """A vision transformer without a class token."""

    def __init__(self):
        super().__init__()
        self.register_buffer("pos_embed", sin_cos(DIM, SIDE)[:, 1:])
        self.patch_embed = PatchEmbed(DIM, PATCH)
        self.blocks = nn.ModuleList(Block(DIM, DIM // 64) for _ in range(DEPTH))
        self.norm = nn.LayerNorm(DIM, eps=1e-6)

    def forward(self, images: torch.Tensor, kept: torch.Tensor | None = None) -> torch.Tensor:
        x = self.patch_embed(images) + self.pos_embed
        if kept is not None:
            x = torch.stack([tokens[own] for tokens, own in zip(x, kept)])
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class Predictor(nn.Module):
    def __init__(self):
        super().__init__()
        self.mask_token = nn.Parameter(torch.zeros(1, 1, PREDICTOR_DIM))
        self.predictor_embed = nn.Linear(DIM, PREDICTOR_DIM)
        self.register_buffer("predictor_pos_embed", sin_cos(PREDICTOR_DIM, SIDE)[:, 1:])
        self.predictor_blocks = nn.ModuleList(Block(PREDICTOR_DIM, DIM // 64) for _ in range(PREDICTOR_DEPTH))
        self.predictor_norm = nn.LayerNorm(PREDICTOR_DIM, eps=1e-6)
        self.predictor_proj = nn.Linear(PREDICTOR_DIM, DIM)

    def forward(self, tokens: torch.Tensor, known: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """One image: tokens (K, DIM) of the patches `known`, and the numbers `wanted` of others."""
        p = self.predictor_pos_embed[0]
        x = torch.cat([self.predictor_embed(tokens) + p[known], self.mask_token[0] + p[wanted]])[None]
        for block in self.predictor_blocks:
            x = block(x)
        return self.predictor_proj(self.predictor_norm(x[0, len(known) :]))


class Teacher(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = Encoder()


class IJepa(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone, self.predictor = Encoder(), Predictor()
        self.teacher = frozen(Teacher())

    def loss(self, views: list, step: int) -> torch.Tensor:
        (x,) = views
        known, targets = masks(step, len(x))
        with torch.no_grad():
            h = nn.functional.layer_norm(self.teacher.backbone(x), (DIM,))
        z = self.backbone(x, known)
        distances = []
        for image in range(len(x)):
            for wanted in targets[image]:
                predicted = self.predictor(z[image], known[image], wanted)
                distances.append(nn.functional.smooth_l1_loss(predicted, h[image, wanted]))
        return torch.stack(distances).mean()

    def after_step(self, step: int) -> None:
        follow(self.teacher, self, MOMENTUM + (FINAL - MOMENTUM) * step / TOTAL_STEPS)


def masks(step: int, images: int) -> tuple:
    """The numbers of the contexts (B, K), and of the targets of each image."""
    sizes = chacha.Rng(0, chacha.MASK, step, 0, 2**32 - 1)
    scale = sizes.uniform(*TARGET_SCALE)
    target = size(scale, sizes.uniform(*TARGET_ASPECT))
    square = size(sizes.uniform(*CONTEXT_SCALE), 1.0)
    known, wanted = [], []
    for image in range(images):
        rng = chacha.masks(step, image)
        blocks = [place(rng, target) for _ in range(TARGETS)]
        wanted.append(torch.tensor(blocks))
        known.append(context(rng, square, blocks))
    shortest = min(len(own) for own in known)
    return torch.tensor([own[:shortest] for own in known]), wanted


def size(scale: float, aspect: float) -> tuple:
    area = math.floor(scale * SIDE**2)
    return tuple(min(max(round(math.sqrt(square)), 1), SIDE - 1) for square in (area * aspect, area / aspect))


def place(rng: chacha.Rng, block: tuple) -> list:
    top, left = (rng.below(SIDE - side + 1) for side in block)
    return [row * SIDE + column for row in range(top, top + block[0]) for column in range(left, left + block[1])]


def context(rng: chacha.Rng, square: tuple, blocks: list) -> list:
    for avoided in range(len(blocks), 0, -1):
        for _ in range(20):
            own = [patch for patch in place(rng, square) if not any(patch in block for block in blocks[:avoided])]
            if len(own) > MIN_CONTEXT:
                return own
    return place(rng, square)


if __name__ == "__main__":
    main(
        "i_jepa",
        IJepa,
        noisy_views(42, [SIZE]),
        method={
            "name": "i-jepa",
            "targets": TARGETS,
            "target_scale": TARGET_SCALE,
            "target_aspect": TARGET_ASPECT,
            "context_scale": CONTEXT_SCALE,
            "min_context": MIN_CONTEXT,
            "predictor_dim": PREDICTOR_DIM,
            "predictor_depth": PREDICTOR_DEPTH,
            "momentum": MOMENTUM,
            "final_momentum": FINAL,
        },
        backbone={
            "name": "vit_tiny",
            "image_size": SIZE,
            "patch_size": PATCH,
            "width": DIM,
            "depth": DEPTH,
            "vit": {"pooling": "mean", "class_token": False, "positions": "sin_cos"},
        },
        # As far as PyTorch in float32 strays, doubled.
        runs={"sgd": SGD | {"movement_tolerance": 2e-3}, "adamw": ADAMW},
        total_steps=TOTAL_STEPS,
        start={
            "backbone.pos_embed": sin_cos(DIM, SIDE)[:, 1:],
            "teacher.backbone.pos_embed": sin_cos(DIM, SIDE)[:, 1:],
            "predictor.predictor_pos_embed": sin_cos(PREDICTOR_DIM, SIDE)[:, 1:],
        },
        chosen=[
            "backbone.patch_embed.proj.bias",
            "backbone.blocks.0.attn.qkv.bias",
            "predictor.mask_token",
            "predictor.predictor_embed.bias",
            "predictor.predictor_blocks.1.mlp.fc1.bias",
            "predictor.predictor_proj.bias",
            "teacher.backbone.norm.weight",
        ],
        notes="Three steps of I-JEPA on one batch.",
    )
