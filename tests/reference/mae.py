"""Three training steps of MAE in float64, from section 3 and appendix A.1 of https://arxiv.org/abs/2111.06377.

    python tests/reference/mae.py [--float32]

Made with torch 2.9.1, torchvision 0.24.1, numpy and safetensors. Of every image a quarter of the patches, drawn at random,
passes the encoder; the decoder gets them at their places, the mask token elsewhere, and fixed positions; the loss is the
squared error of the hidden patches' pixels, normalised by their mean and unbiased variance.
"""

import chacha
import torch
from steps import ADAMW, SGD, main, noisy_views
from torch import nn
from vit import Block, Vit, sin_cos

SIZE, PATCH, DIM, DEPTH = 16, 4, 128, 2
DECODER_DIM, DECODER_DEPTH, DECODER_HEADS = 32, 2, 2
RATIO = 0.75


class Mae(nn.Module):
    def __init__(self):
        super().__init__()
        side = SIZE // PATCH
        self.backbone = Vit(SIZE, PATCH, DIM, DEPTH)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, DECODER_DIM))
        self.decoder_embed = nn.Linear(DIM, DECODER_DIM)
        self.register_buffer("decoder_pos_embed", sin_cos(DECODER_DIM, side))
        self.decoder_blocks = nn.ModuleList(Block(DECODER_DIM, DECODER_HEADS) for _ in range(DECODER_DEPTH))
        self.decoder_norm = nn.LayerNorm(DECODER_DIM, eps=1e-6)
        self.decoder_pred = nn.Linear(DECODER_DIM, 3 * PATCH**2)

    def loss(self, views: list, step: int) -> torch.Tensor:
        (x,) = views
        patches = self.backbone.patch_embed(x) + self.backbone.pos_embed[:, 1:]
        b, n, d = patches.shape
        orders = torch.tensor([chacha.masks(step, image).permutation(n) for image in range(b)])
        visible = orders[:, : int(n * (1 - RATIO))]
        kept = torch.stack([tokens[order] for tokens, order in zip(patches, visible)])
        h = self.decoder_embed(self.backbone.run(kept))
        tokens = []
        for own, order in zip(h, visible):
            places = [self.mask_token[0, 0]] * n
            for token, place in zip(own[1:], order.tolist()):
                places[place] = token
            tokens.append(torch.stack([own[0], *places]))
        h = torch.stack(tokens) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            h = block(h)
        prediction = self.decoder_pred(self.decoder_norm(h))[:, 1:]
        pixels = nn.functional.unfold(x, PATCH, stride=PATCH).transpose(1, 2)  # (b, n, 3 p p), channel by channel
        pixels = pixels.reshape(b, n, 3, PATCH**2).transpose(2, 3).reshape(b, n, -1)
        target = (pixels - pixels.mean(-1, keepdim=True)) / (pixels.var(-1, keepdim=True) + 1e-6).sqrt()
        hidden = torch.ones(b, n).scatter(1, visible, 0)
        return ((prediction - target).pow(2).mean(-1) * hidden).sum() / hidden.sum()


if __name__ == "__main__":
    main(
        "mae",
        Mae,
        noisy_views(31, [SIZE]),
        method={
            "name": "mae",
            "mask_ratio": RATIO,
            "decoder_dim": DECODER_DIM,
            "decoder_depth": DECODER_DEPTH,
            "decoder_heads": DECODER_HEADS,
        },
        backbone={
            "name": "vit_tiny",
            "image_size": SIZE,
            "patch_size": PATCH,
            "width": DIM,
            "depth": DEPTH,
            "vit": {"positions": "sin_cos", "init": "xavier"},
        },
        # As far as PyTorch in float32 strays, doubled.
        runs={"sgd": SGD | {"movement_tolerance": 7e-4}, "adamw": ADAMW},
        start={
            "backbone.pos_embed": sin_cos(DIM, SIZE // PATCH),
            "decoder_pos_embed": sin_cos(DECODER_DIM, SIZE // PATCH),
        },
        chosen=[
            "backbone.cls_token",
            "backbone.patch_embed.proj.bias",
            "backbone.blocks.0.attn.qkv.bias",
            "backbone.blocks.1.norm2.weight",
            "mask_token",
            "decoder_embed.bias",
            "decoder_blocks.0.mlp.fc1.bias",
            "decoder_pred.weight",
        ],
        notes="Three steps of MAE on one batch.",
    )
