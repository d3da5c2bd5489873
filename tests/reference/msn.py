"""Three training steps of MSN in float64, from section 3 of https://arxiv.org/abs/2204.07141.

    python tests/reference/msn.py [--float32]

Made with torch 2.9.1, torchvision 0.24.1, numpy and safetensors. The target encoder sees the first view; the encoder the
second, with half of its patches dropped after positions were added, the same ones in all images, and two small views. Targets
are sharpened and balanced by Sinkhorn-Knopp without a further exponential. The target encoder follows by a momentum on a
line that is 1.25 times as long as the run; prototypes have no weight decay.
"""

import chacha
import torch
from steps import ADAMW, SGD, follow, frozen, main, noisy_views
from torch import nn
from torch.nn.functional import normalize
from vit import Vit

SIZE, PATCH, DIM, DEPTH = 8, 2, 128, 2
HIDDEN, OUT, PROTOTYPES = 16, 6, 5
TEMPERATURE, SHARPENING, DROP = 0.1, 0.25, 0.5
TOTAL_STEPS, MOMENTUM = 6, 0.7


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = Vit(SIZE, PATCH, DIM, DEPTH, learned=True)
        hidden = lambda width: [nn.Linear(width, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.GELU()]  # noqa: E731
        self.projector = nn.Sequential(*hidden(DIM), *hidden(HIDDEN), nn.Linear(HIDDEN, OUT))


class Msn(Network):
    def __init__(self):
        super().__init__()
        self.teacher = frozen(Network())
        self.prototypes = nn.Linear(OUT, PROTOTYPES, bias=False)

    def loss(self, views: list, step: int) -> torch.Tensor:
        target, anchor, *focal = views
        patches = self.backbone.patch_embed(anchor) + self.backbone.positions(SIZE // PATCH)
        kept = chacha.masks(step, 0, 2**32 - 1).permutation(patches.shape[1])[: int(patches.shape[1] * (1 - DROP))]
        h = torch.cat([self.backbone.run(patches[:, kept])[:, 0], self.backbone(torch.cat(focal))[:, 0]])
        z = normalize(self.projector(h), dim=1)
        q = normalize(self.prototypes.weight, dim=1)
        p = (z @ q.T / TEMPERATURE).softmax(dim=1)
        t = self.targets(target, q.detach()).repeat(len(views) - 1, 1)
        mean = p.mean(dim=0)
        entropy = -(mean * mean.log()).sum()
        return -(t * p.log()).sum(dim=1).mean() - entropy + torch.log(torch.tensor(float(PROTOTYPES), dtype=p.dtype))

    @torch.no_grad()
    def targets(self, x: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        z = normalize(self.teacher.projector(self.teacher.backbone(x)[:, 0]), dim=1)
        t = (z @ q.T / TEMPERATURE).softmax(dim=1) ** (1 / SHARPENING)
        t = t / t.sum(dim=1, keepdim=True)
        for _ in range(3):
            t = t / t.sum(dim=0, keepdim=True)
            t = t / t.sum(dim=1, keepdim=True)
        return t

    def after_step(self, step: int) -> None:
        follow(self.teacher, self, MOMENTUM + step * (1 - MOMENTUM) / (1.25 * TOTAL_STEPS))


if __name__ == "__main__":
    main(
        "msn",
        Msn,
        noisy_views(3, [SIZE, SIZE, SIZE // 2, SIZE // 2]),
        method={
            "name": "msn",
            "projector_hidden": HIDDEN,
            "projector_dim": OUT,
            "prototypes": PROTOTYPES,
            "patch_drop": DROP,
            "temperature": TEMPERATURE,
            "sharpening": SHARPENING,
            "momentum": MOMENTUM,
        },
        backbone={"name": "vit_tiny", "image_size": SIZE, "patch_size": PATCH, "width": DIM, "depth": DEPTH},
        # Weight decay, which prototypes do without, is compared in the tests of the optimiser's groups.
        runs={"sgd": SGD | {"weight_decay": 0.0, "movement_tolerance": 4e-4}, "adamw": ADAMW | {"weight_decay": 0.0}},
        total_steps=TOTAL_STEPS,
        chosen=[
            "backbone.cls_token",
            "backbone.pos_embed",
            "backbone.blocks.1.attn.qkv.bias",
            "projector.1.weight",
            "projector.4.running_mean",
            "prototypes.weight",
            "teacher.backbone.norm.weight",
            "teacher.projector.6.weight",
            "teacher.projector.1.running_var",
        ],
        notes="Three steps of MSN on one batch of a target, an anchor and two focal views.",
    )
