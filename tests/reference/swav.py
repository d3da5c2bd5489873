"""Three training steps of SwAV and of SEER in float64, from section 3 and algorithm 1 of https://arxiv.org/abs/2006.09882.

    python tests/reference/swav.py [--float32]

Made with torch 2.9.1, torchvision 0.24.1, numpy and safetensors. Three cases: crops of two sizes with prototypes that stay
as they are in the first step; a queue that is full, and used, from the third step on; and SEER's head of three layers
without norms (section 3 of https://arxiv.org/abs/2103.01988). All crops of one size pass the network together, and all
embeddings the head. Embeddings enter the queue after the step that made them, the newest first, one queue for each of the
two crops whose codes are predicted.
"""

import torch
from steps import ADAMW, LARS, SGD, WIDTH, main, noisy_views, pattern, resnet18
from torch import nn
from torch.nn.functional import normalize

HIDDEN, DIM, PROTOTYPES = 16, 12, 5
TEMPERATURE, EPSILON = 0.1, 0.05
# More than the images of a step, fewer than those of two.
QUEUE = 9


class Swav(nn.Module):
    def __init__(self, head: list, iterations: int, frozen_steps: int, queue: int):
        super().__init__()
        self.iterations, self.frozen_steps = iterations, frozen_steps
        self.backbone = resnet18()
        self.projector = nn.Sequential(*head)
        self.prototypes = nn.Linear(DIM, PROTOTYPES, bias=False)
        self.queue = Queue(queue) if queue else None

    def loss(self, views: list, step: int) -> torch.Tensor:
        sizes = list(dict.fromkeys(view.shape[-1] for view in views))
        order = [i for size in sizes for i, view in enumerate(views) if view.shape[-1] == size]
        assert order == sorted(order), "crops of one size are neighbours"
        features = [self.backbone(torch.cat([view for view in views if view.shape[-1] == size])) for size in sizes]
        z = normalize(self.projector(torch.cat(features)), dim=1).chunk(len(views))
        c = self.prototypes.weight.detach() if step < self.frozen_steps else self.prototypes.weight
        self.embeddings = [z_s.detach() for z_s in z[:2]]
        terms = []
        for s in (0, 1):
            q = self.codes(s)
            for t in range(len(views)):
                if t != s:
                    terms.append(sum(cross_entropy(z_n @ c.T, q_n) for z_n, q_n in zip(z[t], q, strict=True)) / len(q))
        return sum(terms) / len(terms)

    @torch.no_grad()
    def codes(self, s: int) -> torch.Tensor:
        """Equations 3 to 5: the codes of crop `s`, a row for each image."""
        z, n = self.embeddings[s], len(self.embeddings[s])
        if self.queue is not None and self.queue.filled == len(self.queue.rows(s)):
            z = torch.cat([self.queue.rows(s), z])
        m = torch.exp(self.prototypes.weight @ z.T / EPSILON)  # (K, B)
        v = torch.ones_like(m[0])
        for _ in range(self.iterations):
            u = 1 / (len(m) * (m @ v))
            v = 1 / (len(v) * (m.T @ u))
        plan = torch.diag(u) @ m @ torch.diag(v)
        return (plan * len(v)).T[-n:]

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        self.prototypes.weight.copy_(normalize(self.prototypes.weight, dim=1))
        if self.queue is not None:
            self.queue.push(self.embeddings)


class Queue(nn.Module):
    def __init__(self, length: int):
        super().__init__()
        for s in ("0", "1"):
            self.register_buffer(s, torch.zeros(length, DIM))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))

    def rows(self, s: int) -> torch.Tensor:
        return self.get_buffer(str(s))

    def push(self, embeddings: list) -> None:
        for s, z in enumerate(embeddings):
            length = len(self.rows(s))
            self.rows(s).copy_(torch.cat([z, self.rows(s)])[:length])
        self.filled.fill_(min(length, self.filled.item() + len(z)))


def cross_entropy(scores: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Equation 2."""
    p = torch.exp(scores / TEMPERATURE) / torch.exp(scores / TEMPERATURE).sum()
    return -(q * torch.log(p)).sum()


def head() -> list:
    return [nn.Linear(8 * WIDTH, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, DIM)]


def seer_head() -> list:
    layers = [nn.Linear(8 * WIDTH, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, DIM)]
    return layers


def case(name: str, make_head, seed: int, sizes: list, iterations: int, notes: str, frozen_steps: int = 0, queue: int = 0):
    weight = torch.from_numpy(pattern("prototypes.weight", (PROTOTYPES, DIM)))
    method = {
        "name": "seer" if make_head is seer_head else "swav",
        "projector_hidden": HIDDEN,
        "projector_dim": DIM,
        "prototypes": PROTOTYPES,
        "assigning_views": 2,
        "temperature": TEMPERATURE,
        "sinkhorn_epsilon": EPSILON,
        "sinkhorn_iterations": iterations,
        "freeze_prototypes_steps": frozen_steps,
    }
    if make_head is not seer_head:
        method |= {"queue_length": queue, "queue_start_epoch": 0}
    main(
        name,
        lambda: Swav(make_head(), iterations, frozen_steps, queue),
        # Seeds: see simclr.py.
        noisy_views(seed, sizes),
        program="swav",
        method=method,
        runs={"sgd": SGD, "adamw": ADAMW, "lars": LARS},
        chosen=[
            "backbone.conv1.weight",
            "backbone.layer2.0.bn1.weight",
            "backbone.bn1.running_mean",
            "projector.0.weight",
            "prototypes.weight",
            *(["queue.1", "queue.filled"] if queue else []),
        ],
        start={"prototypes.weight": normalize(weight.double(), dim=1).float()},
        notes=notes,
    )


if __name__ == "__main__":
    case(
        "swav",
        head,
        1,
        [16, 16, 10, 10, 10],
        3,
        "Three steps of SwAV on one batch of two large and three small crops; in the first one the prototypes are frozen.",
        frozen_steps=1,
    )
    case(
        "swav_queue",
        head,
        1,
        [16, 16],
        3,
        "Three steps of SwAV on one batch of two crops, with a queue that is full from the third step on.",
        queue=QUEUE,
    )
    case(
        "seer",
        seer_head,
        1,
        [16, 16, 10, 10],
        10,
        "Three steps of SwAV with the head and the codes of SEER on one batch of two large and two small crops.",
    )
