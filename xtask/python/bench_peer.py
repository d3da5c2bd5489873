"""The peer's half of `cargo xtask bench`: one case a call, one JSON line out.

`python bench_peer.py CASE THREADS`, with a JPEG on standard input for the cases that decode one. Cases have the ids
and the order of `xtask/src/bench/*.rs`, and do the same work in PyTorch, torchvision, timm, transformers and lightly.
"""

import io
import json
import sys
import time

import lightly
import numpy
import PIL.Image
import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional as F


def timed(warm_up, calls, work):
    """Calls `work` to warm up, then at least `calls` times and for a second; the median time of a call."""
    for _ in range(warm_up):
        work()
    started, seconds = time.perf_counter(), []
    while len(seconds) < calls or time.perf_counter() - started < 1.0:
        call = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - call)
    return float(numpy.median(seconds))


# step.rs


def resnet18_cifar():
    backbone = torchvision.models.resnet18()
    backbone.conv1 = nn.Conv2d(3, 64, 3, stride=1, padding=1, bias=False)
    backbone.maxpool = nn.Identity()
    backbone.fc = nn.Identity()
    return backbone.to(memory_format=torch.channels_last), 512


def resnet50():
    backbone = torchvision.models.resnet50()
    backbone.fc = nn.Identity()
    return backbone.to(memory_format=torch.channels_last), 2048


def vit(name, size, patch):
    backbone = timm.create_model(name, img_size=size, patch_size=patch, num_classes=0)
    return backbone, backbone.num_features


def simclr_step(network, size, batch):
    backbone, d = network()
    projector = nn.Sequential(
        nn.Linear(d, d, bias=False), nn.BatchNorm1d(d), nn.ReLU(), nn.Linear(d, 128, bias=False), nn.BatchNorm1d(128)
    )
    projector[4].bias.requires_grad = False
    model = nn.Sequential(backbone, projector).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.01)
    views = torch.randn(2 * batch, 3, size, size)
    if isinstance(backbone, torchvision.models.ResNet):
        views = views.to(memory_format=torch.channels_last)
    positives = torch.arange(2 * batch).roll(batch)

    def step():
        z = F.normalize(model(views), dim=1)
        logits = (z @ z.T / 0.1).fill_diagonal_(float("-inf"))
        loss = F.cross_entropy(logits, positives)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return timed(2, 3, step)


def dino_step(size, patch, batch, local_views, prototypes):
    from lightly.loss import DINOLoss
    from lightly.models.modules import DINOProjectionHead

    def network():
        vit = timm.create_model(
            "vit_tiny_patch16_224", img_size=size, patch_size=patch, num_classes=0, dynamic_img_size=True
        )
        return nn.ModuleList([vit, DINOProjectionHead(vit.num_features, 2048, 256, prototypes)]).train()

    student, teacher = network(), network().requires_grad_(False)
    criterion = DINOLoss(output_dim=prototypes, warmup_teacher_temp_epochs=0)
    optimizer = torch.optim.AdamW([p for p in student.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.01)
    large = torch.randn(2 * batch, 3, size, size)
    small = torch.randn(local_views * batch, 3, size // 2, size // 2)

    def step():
        with torch.no_grad():
            targets = teacher[1](teacher[0](large)).chunk(2)
        scores = student[1](torch.cat([student[0](large), student[0](small)]))
        loss = criterion(list(targets), list(scores.chunk(2 + local_views)), epoch=1)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for own, other in zip(teacher.parameters(), student.parameters()):
                own.mul_(0.996).add_(other, alpha=0.004)

    return timed(2, 3, step)


def mae_step(size, patch, batch):
    import transformers

    config = transformers.ViTMAEConfig(
        hidden_size=192,
        num_hidden_layers=12,
        num_attention_heads=3,
        intermediate_size=768,
        image_size=size,
        patch_size=patch,
        decoder_hidden_size=128,
        decoder_num_hidden_layers=2,
        decoder_num_attention_heads=4,
        decoder_intermediate_size=512,
        mask_ratio=0.75,
        norm_pix_loss=True,
    )
    model = transformers.ViTMAEForPreTraining(config).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.01)
    images = torch.randn(batch, 3, size, size)

    def step():
        loss = model(images).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return timed(2, 3, step)


def adamw_resnet18():
    backbone, _ = resnet18_cifar()
    for p in backbone.parameters():
        p.grad = torch.randn_like(p)
    optimizer = torch.optim.AdamW(backbone.parameters(), lr=1e-3, weight_decay=0.01)
    return timed(3, 10, optimizer.step)


# augment.rs


def two_views(size, gaussian_blur, read, reads=64):
    from lightly.transforms import SimCLRTransform

    transform = SimCLRTransform(input_size=size, gaussian_blur=gaussian_blur)

    def images():
        for _ in range(reads):
            transform(read())

    return timed(2, 3, images)


def augment_32():
    # As in ours, small images are not blurred.
    image = PIL.Image.fromarray(numpy.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=numpy.uint8))
    return two_views(32, 0.0, image.copy)


def augment_jpeg(size, reads):
    jpeg = sys.stdin.buffer.read()
    return two_views(size, 0.5, lambda: PIL.Image.open(io.BytesIO(jpeg)).convert("RGB"), reads)


# knn.rs


def knn(bank_rows, query_rows, d, k=20, classes=10, temperature=0.07):
    raw_bank, raw_queries = torch.randn(bank_rows, d), torch.randn(query_rows, d)
    labels = torch.arange(bank_rows) % classes

    def predict():
        bank, queries = F.normalize(raw_bank, dim=1).T, F.normalize(raw_queries, dim=1)
        for chunk in queries.split(512):
            similarity, index = (chunk @ bank).topk(k, dim=1)
            scores = torch.zeros(len(chunk), classes)
            scores.scatter_add_(1, labels[index], (similarity / temperature).exp()).argmax(1)

    with torch.inference_mode():
        return timed(1, 1, predict)


# layer.rs


def conv(c_in, c_out, kernel, stride, size, batch):
    layer = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False).to(memory_format=torch.channels_last)
    x = torch.randn(batch, c_in, size, size).to(memory_format=torch.channels_last)
    return layer, x.requires_grad_(c_in != 3)


def batch_norm_relu():
    layer = nn.Sequential(nn.BatchNorm2d(64), nn.ReLU(inplace=True))
    return layer, torch.randn(128, 64, 32, 32).to(memory_format=torch.channels_last).requires_grad_()


def max_pool():
    x = torch.randn(8, 64, 112, 112).to(memory_format=torch.channels_last)
    return nn.MaxPool2d(3, 2, 1), x.requires_grad_()


def linear(inputs, outputs, rows):
    return nn.Linear(inputs, outputs, bias=False), torch.randn(rows, inputs).requires_grad_()


def block(dim, heads):
    layer = timm.models.vision_transformer.Block(dim, heads, qkv_bias=True)
    return layer, torch.randn(128, 65, dim).requires_grad_()


def forward(build):
    layer, x = build()
    return timed(3, 5, lambda: layer(x))


def forward_backward(build):
    layer, x = build()

    def both():
        layer.zero_grad(set_to_none=True)
        x.grad = None
        layer(x).sum().backward()

    return timed(3, 5, both)


RESNET18_CIFAR = [
    (3, 64, 3, 1, 32),
    (64, 64, 3, 1, 32),
    (64, 128, 3, 2, 32),
    (64, 128, 1, 2, 32),
    (128, 128, 3, 1, 16),
    (128, 256, 3, 2, 16),
    (128, 256, 1, 2, 16),
    (256, 256, 3, 1, 8),
    (256, 512, 3, 2, 8),
    (256, 512, 1, 2, 8),
    (512, 512, 3, 1, 4),
]
RESNET50 = [(3, 64, 7, 2, 224), (64, 64, 3, 1, 56), (64, 256, 1, 1, 56)]

LAYERS = {
    "batch-norm-relu-64/32px/b128": batch_norm_relu,
    "max-pool-64/112px/b8": max_pool,
}
for shape in [(512, 512, 128), (192, 768, 128 * 65), (384, 1536, 128 * 65)]:
    LAYERS["linear-{}-{}/b{}".format(*shape)] = lambda s=shape: linear(*s)
for shape in [(192, 3), (384, 6)]:
    LAYERS["block-{}-{}/65tokens/b128".format(*shape)] = lambda s=shape: block(*s)
for shapes, batch in [(RESNET18_CIFAR, 128), (RESNET50, 8)]:
    for c_in, c_out, kernel, stride, size in shapes:
        step = "" if stride == 1 else f"-s{stride}"
        name = f"conv{kernel}x{kernel}{step}-{c_in}-{c_out}/{size}px/b{batch}"
        LAYERS[name] = lambda c=(c_in, c_out, kernel, stride, size, batch): conv(*c)

CASES = {
    "resnet18-cifar-32/simclr/b64": lambda: simclr_step(resnet18_cifar, 32, 64),
    "resnet50-224/simclr/b4": lambda: simclr_step(resnet50, 224, 4),
    "vit-tiny-p4-32/simclr/b64": lambda: simclr_step(lambda: vit("vit_tiny_patch16_224", 32, 4), 32, 64),
    "vit-small-p8-96/simclr/b8": lambda: simclr_step(lambda: vit("vit_small_patch16_224", 96, 8), 96, 8),
    "vit-tiny-p4-32/dino/b64": lambda: dino_step(32, 4, 64, 4, 4096),
    "vit-tiny-p4-32/mae/b64": lambda: mae_step(32, 4, 64),
    "adamw/resnet18-cifar-32": adamw_resnet18,
    "augment/simclr-32": augment_32,
    "augment/simclr-224-jpeg": lambda: augment_jpeg(224, 64),
    "augment/simclr-96-photo": lambda: augment_jpeg(96, 8),
    "knn/60000x10000x512": lambda: knn(60_000, 10_000, 512),
}
for name, build in LAYERS.items():
    CASES[f"{name}/forward"] = lambda build=build: forward(build)
    CASES[f"{name}/forward-backward"] = lambda build=build: forward_backward(build)


def peak_rss_bytes():
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def main():
    if sys.argv[1] == "--versions":
        import transformers

        versions = [(m.__name__, m.__version__) for m in (torch, torchvision, timm, transformers, lightly)]
        python = sys.version.split()[0]
        print(", ".join(f"{name} {version}" for name, version in [*versions, ("Pillow", PIL.__version__), ("Python", python)]))
        return
    case, threads = sys.argv[1], int(sys.argv[2])
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    print(json.dumps({"seconds": CASES[case](), "peak_rss_bytes": peak_rss_bytes()}))


main()
