"""Three training steps of iBOT and of DINOv2 in float64, from section 3 of https://arxiv.org/abs/2111.07832 and section 4 of
https://arxiv.org/abs/2304.07193.

    python tests/reference/ibot.py [--float32]

Made with torch 2.9.1, torchvision 0.24.1, numpy and safetensors. Two global crops, in which patches of the student are hidden,
and one local crop. Three cases: one head for class tokens and patches, with centres; a head of their own for each, with
Sinkhorn-Knopp and KoLeo, and masks that half of the crops have; the same with centres, that of patches the mean of the
hidden ones. Masks come from `chacha`, by algorithm 1 of https://arxiv.org/abs/2106.08254 as BEiT's code has it.
"""

import math

import chacha
import torch
from dino import Head
from steps import ADAMW, SGD, follow, frozen, main, noisy_views
from torch import nn
from torch.nn.functional import normalize
from vit import Vit

SIZE, PATCH, DIM, DEPTH = 8, 2, 128, 2
SIDE = SIZE // PATCH
STEPS_PER_EPOCH, TOTAL_STEPS, MOMENTUM, CENTER_MOMENTUM = 2, 6, 0.7, 0.9
STUDENT, TEACHER = 0.1, [0.04, 0.06]
RATIOS = (0.1, 0.5)


class Network(nn.Module):
    def __init__(self, own_head: bool):
        super().__init__()
        self.backbone, self.head = Vit(SIZE, PATCH, DIM, DEPTH, learned=True), Head()
        if own_head:
            self.patch_head = Head()

    def patch_scores(self, patches: torch.Tensor, freeze: bool = False) -> torch.Tensor:
        return (self.patch_head if hasattr(self, "patch_head") else self.head)(patches, freeze)


class Ibot(Network):
    def __init__(self, v2: bool, sinkhorn: bool):
        super().__init__(own_head=v2)
        self.v2, self.sinkhorn = v2, sinkhorn
        self.mask_token = nn.Parameter(torch.zeros(1, DIM))
        self.teacher = frozen(Network(own_head=v2))
        if not sinkhorn:
            self.register_buffer("center", torch.zeros(len(self.head.last_layer.weight_v)))
            self.register_buffer("patch_center", torch.zeros(len(self.head.last_layer.weight_v)))

    def loss(self, crops: list, step: int) -> torch.Tensor:
        epoch = step // STEPS_PER_EPOCH
        freeze, tau = epoch == 0, TEACHER[min(epoch, 1)]
        n, x = len(crops[0]), torch.cat(crops[:2])
        hidden = torch.tensor(batch_masks(step, 2 * n) if self.v2 else [mask(step, i % n, i // n) for i in range(2 * n)])

        patches = self.backbone.patch_embed(x)
        patches = torch.where(hidden[..., None], self.mask_token, patches) + self.backbone.positions(SIDE)
        tokens = self.backbone.run(patches)
        local = self.backbone(crops[2])[:, 0]
        student = [*self.head(tokens[:, 0], freeze).chunk(2), self.head(local, freeze)]
        student = [(g / STUDENT).log_softmax(dim=1) for g in student]

        seen = self.teacher.backbone(x)
        self.scores = self.teacher.head(seen[:, 0])
        self.patch_scores_of_all = self.teacher.patch_scores(seen[:, 1:])
        self.hidden = hidden
        if self.sinkhorn:
            teacher = sinkhorn_knopp(self.scores, tau)
            of_patches = sinkhorn_knopp(self.patch_scores_of_all[hidden], tau)
        else:
            teacher = ((self.scores - self.center) / tau).softmax(dim=1)
            of_patches = ((self.patch_scores_of_all[hidden] - self.patch_center) / tau).softmax(dim=1)
        teacher = teacher.chunk(2)
        pairs = [(t, s) for t in range(2) for s in range(3) if s != t]
        total = sum(-(teacher[t] * student[s]).sum(dim=1).mean() for t, s in pairs) / len(pairs)

        predicted = (self.patch_scores(tokens[:, 1:][hidden], freeze) / STUDENT).log_softmax(dim=1)
        of_image = hidden.nonzero()[:, 0]
        for image in range(2 * n):
            own = of_image == image
            if own.any():
                total = total - (of_patches[own] * predicted[own]).sum(dim=1).mean() / (2 * n)
        if self.v2:
            total = total + 0.1 * sum(koleo(z) for z in tokens[:, 0].chunk(2))
        return total

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        follow(self.teacher, self, 1 - (1 - MOMENTUM) * (math.cos(math.pi * step / TOTAL_STEPS) + 1) / 2)
        if not self.sinkhorn:
            of_patches = self.patch_scores_of_all[self.hidden] if self.v2 else self.patch_scores_of_all.flatten(0, 1)
            for center, scores in ((self.center, self.scores), (self.patch_center, of_patches)):
                center.mul_(CENTER_MOMENTUM).add_((1 - CENTER_MOMENTUM) * scores.mean(dim=0))


def koleo(z: torch.Tensor) -> torch.Tensor:
    """Minus the mean logarithm of the distance to the nearest neighbour on the sphere."""
    z = normalize(z, dim=1)
    nearest = [max((j for j in range(len(z)) if j != i), key=lambda j: (z[i] @ z[j]).item()) for i in range(len(z))]
    return -torch.log(nn.PairwiseDistance(2, eps=1e-8)(z, z[nearest]) + 1e-8).mean()


def sinkhorn_knopp(scores: torch.Tensor, tau: float) -> torch.Tensor:
    """Three iterations: prototypes equally often, then every row a distribution."""
    q = torch.exp((scores - scores.max()) / tau)
    for _ in range(3):
        q = q / q.sum(dim=0, keepdim=True)
        q = q / q.sum(dim=1, keepdim=True)
    return q


def mask(step: int, image: int, view: int) -> list:
    """iBOT: one global view in two has hidden patches."""
    rng = chacha.masks(step, image, view)
    hides = rng.uniform(0, 1) < 0.5
    ratio = rng.uniform(*RATIOS)
    return blocks(rng, ratio * SIDE**2 if hides else 0, (SIDE // 3) ** 2, math.inf)


def batch_masks(step: int, crops: int) -> list:
    """DINOv2: half of the crops, with ratios from equal parts of the range, in a random order."""
    rng = chacha.masks(step, 0, 2**32 - 1)
    masked = crops // 2
    low, high = RATIOS
    bounds = [low + (high - low) * part / masked for part in range(masked + 1)]
    found = [[False] * SIDE**2 for _ in range(crops)]
    for part in range(masked):
        target = int(SIDE**2 * rng.uniform(bounds[part], bounds[part + 1]))
        found[part] = blocks(rng, target, 4, SIDE**2 // 2)
    return [found[crop] for crop in rng.permutation(crops)]


def blocks(rng: chacha.Rng, target: float, smallest: int, largest: float) -> list:
    mask = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    count = 0
    while count < target:
        left = min(target - count, largest)
        placed = 0
        for _ in range(10):
            area = rng.uniform(smallest, left)
            aspect = math.exp(rng.uniform(math.log(0.3), -math.log(0.3)))
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if height >= SIDE or width >= SIDE:
                continue
            top, start = rng.below(SIDE - height + 1), rng.below(SIDE - width + 1)
            block = mask[top : top + height, start : start + width]
            new = (~block).sum().item()
            if 0 < new <= left:
                block.fill_(True)
                placed = new
                break
        if placed == 0:
            break
        count += placed
    return mask.flatten().tolist()


def case(name: str, v2: bool, sinkhorn: bool, seed: int, notes: str) -> None:
    method = {
        "name": "dinov2" if v2 else "ibot",
        "head_hidden": 16,
        "bottleneck_dim": 6,
        "prototypes": 5,
        "shared_head": not v2,
        "norm_last_layer": False,
        "freeze_last_layer_epochs": 1,
        "student_temperature": STUDENT,
        "teacher_temperature": TEACHER[1],
        "warmup_teacher_temperature": TEACHER[0],
        "warmup_teacher_temperature_epochs": 2,
        "center_momentum": CENTER_MOMENTUM,
        "momentum": MOMENTUM,
    }
    if v2:
        method |= {"patch_bottleneck_dim": 6, "patch_prototypes": 5, "patch_embed_lr_factor": 1.0}
        method |= {"sinkhorn_iterations": 3 if sinkhorn else 0}
    main(
        name,
        lambda: Ibot(v2, sinkhorn),
        noisy_views(seed, [SIZE, SIZE, SIZE // 2]),
        program="ibot",
        method=method,
        backbone={"name": "vit_tiny", "image_size": SIZE, "patch_size": PATCH, "width": DIM, "depth": DEPTH},
        runs={"sgd": SGD | {"lr": 0.01, "movement_tolerance": 4e-4}, "adamw": ADAMW},
        steps_per_epoch=STEPS_PER_EPOCH,
        total_steps=TOTAL_STEPS,
        chosen=[
            "backbone.cls_token",
            "backbone.pos_embed",
            "backbone.blocks.1.attn.qkv.bias",
            "head.mlp.0.bias",
            "head.last_layer.weight_v",
            "mask_token",
            "teacher.backbone.norm.weight",
            *(["patch_head.last_layer.weight_g"] if v2 else []),
            *([] if sinkhorn else ["center", "patch_center"]),
        ],
        notes=notes,
    )


if __name__ == "__main__":
    case("ibot", False, False, 3, "Three steps of iBOT on one batch of two global crops and a local one.")
    case("dinov2", True, True, 3, "Three steps of DINOv2 on one batch of two global crops and a local one.")
    case("dinov2_centers", True, False, 3, "As dinov2, with targets that are centred.")
