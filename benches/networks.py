"""The networks of shapes/models.csv as a user of PyTorch would write them, for compare.py.

`build(name)` gives the module, the shape of a sample and the number of classes; `exported(name, batch)` an ONNX file and
an input for it.
"""

import io

import torch
from torch import nn
from torch.nn import functional as F


class Attention(nn.Module):
    def __init__(self, dim, heads, causal=False):
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.proj(y.transpose(1, 2).reshape(b, n, d))


class Block(nn.Module):
    """Pre-norm Transformer block: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, dim, heads, hidden, causal=False):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = Attention(dim, heads, causal)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    def __init__(self, channels, size, patch, dim, depth, heads, classes):
        super().__init__()
        self.patch = nn.Conv2d(channels, dim, patch, patch)
        self.cls = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos = nn.Parameter(torch.randn(1, (size // patch) ** 2 + 1, dim) * 0.02)
        self.blocks = nn.Sequential(*[Block(dim, heads, 4 * dim) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, classes)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1) + self.pos
        return self.head(self.norm(self.blocks(x))[:, 0])


class Encoder(nn.Module):
    """A stack of blocks over the vectors of words, averaged: BERT-base's size, or CLIP's text tower (causal)."""

    def __init__(self, dim, depth, heads, classes, causal=False):
        super().__init__()
        self.blocks = nn.Sequential(*[Block(dim, heads, 4 * dim, causal) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, classes)

    def forward(self, x):
        return self.head(self.norm(self.blocks(x)).mean(1))


def lenet5():
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10))


def nin():
    def block(i, o, k, s, p):
        return [nn.Conv2d(i, o, k, s, p), nn.ReLU(), nn.Conv2d(o, o, 1), nn.ReLU(), nn.Conv2d(o, o, 1), nn.ReLU()]

    pool = lambda: nn.MaxPool2d(3, 2, ceil_mode=True)
    return nn.Sequential(
        *block(3, 96, 11, 4, 0), pool(), *block(96, 256, 5, 1, 2), pool(), *block(256, 384, 3, 1, 1), pool(),
        nn.Conv2d(384, 1024, 3, 1, 1), nn.ReLU(), nn.Conv2d(1024, 1024, 1), nn.ReLU(), nn.Conv2d(1024, 1000, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten())


def mlp():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 512), nn.Sigmoid(), nn.Linear(512, 10))


def build(name):
    import torchvision.models as tv

    image = (3, 224, 224)
    made = {
        "mlp": lambda: (mlp(), (1, 28, 28), 10),
        "lenet5": lambda: (lenet5(), (1, 28, 28), 10),
        "alexnet": lambda: (tv.alexnet(dropout=0.0), image, 1000),
        "nin": lambda: (nin(), image, 1000),
        "googlenet": lambda: (tv.googlenet(aux_logits=False, init_weights=False, transform_input=False), image, 1000),
        "vit-mnist": lambda: (ViT(1, 28, 4, 64, 4, 4, 10), (1, 28, 28), 10),
        "vit-s16": lambda: (ViT(3, 224, 16, 384, 12, 6, 1000), image, 1000),
        "vit-b16": lambda: (ViT(3, 224, 16, 768, 12, 12, 1000), image, 1000),
        "clip-image-b32": lambda: (ViT(3, 224, 32, 768, 12, 12, 512), image, 512),
        "clip-text": lambda: (Encoder(512, 12, 8, 512, causal=True), (77, 512), 512),
        "bert-base.128": lambda: (Encoder(768, 12, 12, 2), (128, 768), 2),
    }
    torch.manual_seed(0)
    return made[name]()


def exported(name, batch):
    """The network as an ONNX file with its weights inside, and an input."""
    net, shape, _ = build(name)
    x = torch.randn(batch, *shape)
    file = io.BytesIO()
    names = {"input_names": ["x"], "output_names": ["y"]}
    torch.onnx.export(net.eval(), (x,), file, opset_version=17, dynamo=False, **names)
    return file.getvalue(), x.numpy()
