"""Three training steps of CLIP in float64, from figure 3 and section 2.4 of https://arxiv.org/abs/2103.00020.

    python tests/reference/clip.py [--float32]

Made with torch 2.9.1, torchvision 0.24.1, numpy and safetensors. The text tower is built of torch.nn.MultiheadAttention
with a causal mask over all 77 positions; the loss is a loop over images and texts. The logarithm of the scale starts so
near its lower bound that the first step carries it over, and it is put back.
"""

import math
from collections import OrderedDict

import torch
from steps import ADAMW, SGD, WIDTH, main, noisy_views, resnet18
from torch import nn

VOCABULARY, CONTEXT = 49_408, 77
START, END = 49_406, 49_407
TEXT_WIDTH, LAYERS, HEADS, EMBED_DIM = 8, 2, 2, 6
IMAGES = 6


def texts() -> torch.Tensor:
    """Ids (6, 77) of texts of 1 to 6 words, two of them equal."""
    ids = torch.zeros(IMAGES, CONTEXT, dtype=torch.int64)
    for row in range(IMAGES):
        words = [(7919 * word + 104_729 * (row % 5)) % START for word in range(1, 2 + row % 5)]
        ids[row, : len(words) + 2] = torch.tensor([START, *words, END])
    return ids


IDS = texts()


class QuickGelu(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.ln_1 = nn.LayerNorm(TEXT_WIDTH)
        self.attn = nn.MultiheadAttention(TEXT_WIDTH, HEADS, batch_first=True)
        self.ln_2 = nn.LayerNorm(TEXT_WIDTH)
        layers = [nn.Linear(TEXT_WIDTH, 4 * TEXT_WIDTH), QuickGelu(), nn.Linear(4 * TEXT_WIDTH, TEXT_WIDTH)]
        self.mlp = nn.Sequential(OrderedDict(zip(["c_fc", "gelu", "c_proj"], layers, strict=True)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.ln_1(x)
        mask = torch.full((CONTEXT, CONTEXT), -math.inf, dtype=x.dtype).triu(1)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class Clip(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = resnet18()
        self.visual = nn.Module()
        self.visual.proj = nn.Parameter(torch.zeros(8 * WIDTH, EMBED_DIM))
        self.token_embedding = nn.Embedding(VOCABULARY, TEXT_WIDTH)
        self.positional_embedding = nn.Parameter(torch.zeros(CONTEXT, TEXT_WIDTH))
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.ln_final = nn.LayerNorm(TEXT_WIDTH)
        self.text_projection = nn.Parameter(torch.zeros(TEXT_WIDTH, EMBED_DIM))
        self.logit_scale = nn.Parameter(torch.zeros(()))

    def embed_texts(self) -> torch.Tensor:
        x = self.token_embedding(IDS) + self.positional_embedding
        x = self.ln_final(self.transformer.resblocks(x))
        return torch.stack([x[row, IDS[row].argmax()] for row in range(len(IDS))]) @ self.text_projection

    def loss(self, views: list, step: int) -> torch.Tensor:
        return contrastive(self.backbone(views[0]) @ self.visual.proj, self.embed_texts(), self.logit_scale.exp())

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        self.logit_scale.clamp_(0, math.log(100))


def contrastive(images: torch.Tensor, texts: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The mean of the cross-entropies of each image among the texts and of each text among the images."""
    n = len(images)

    def logit(i: int, t: int) -> torch.Tensor:
        return scale * torch.dot(images[i], texts[t]) / (images[i].norm() * texts[t].norm())

    total = 0.0
    for k in range(n):
        own = torch.exp(logit(k, k))
        total = total - torch.log(own / sum(torch.exp(logit(k, t)) for t in range(n)))
        total = total - torch.log(own / sum(torch.exp(logit(i, k)) for i in range(n)))
    return total / (2 * n)


if __name__ == "__main__":
    main(
        "clip",
        Clip,
        # Images whose ReLUs have no input near zero, see simclr.py, and with which the scale falls.
        noisy_views(21071, [16], IMAGES),
        method=dict(
            name="clip", embed_dim=EMBED_DIM, text_width=TEXT_WIDTH, text_layers=LAYERS, text_heads=HEADS, temperature=0.07
        ),
        # Gradients are so small here that at the usual rate the rounding of weights near 1 would show in what they move.
        runs={"sgd": SGD | {"lr": 0.2, "movement_tolerance": 3e-4}, "adamw": ADAMW},
        inputs={"text": IDS},
        start={"logit_scale": torch.tensor(2e-4)},
        chosen=[
            "backbone.conv1.weight",
            "visual.proj",
            "positional_embedding",
            "transformer.resblocks.0.attn.in_proj_weight",
            "transformer.resblocks.0.attn.in_proj_bias",
            "transformer.resblocks.1.mlp.c_fc.weight",
            "ln_final.weight",
            "text_projection",
            "logit_scale",
        ],
        notes="CLIP: one view in training mode, six texts of which two are equal, the scale at its lower bound.",
    )
