"""PyTorch models of the benchmark `wild`, as ``model.pt2``: `python -m benchmarks.wild_torch NAME FOLDER`.

torchvision's ResNet-18 and MobileNetV3-Small are written down here, because torchvision is not in the environment.
`torch-minilm` reads its weights from ``FOLDER/model.safetensors``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from benchmarks.wild_networks import read_safetensors

SEED = 7
Made = tuple[nn.Module, tuple[torch.Tensor, ...]]  # a model, and an example of its inputs


class _Basic(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs),
        )  # fmt: skip
        shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.shortcut = shortcut if stride > 1 or inputs != outputs else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def resnet18(folder: Path) -> Made:
    """ResNet-18 with its padded maximum pool behind the stem."""
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    blocks, inputs = [], 64
    for outputs, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        blocks += [_Basic(inputs, outputs, stride), _Basic(outputs, outputs, 1)]
        inputs = outputs
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000)]
    return nn.Sequential(*stem, *blocks, *head), (torch.zeros(1, 3, 128, 128),)


class _Inverted(nn.Module):
    def __init__(
        self, inputs: int, kernel: int, inner: int, outputs: int, squeeze: bool, act: str, stride: int
    ) -> None:
        super().__init__()
        activation = nn.Hardswish if act == "HS" else nn.ReLU
        layers: list[nn.Module] = []
        if inner != inputs:
            layers += [nn.Conv2d(inputs, inner, 1, bias=False), nn.BatchNorm2d(inner), activation()]
        layers += [
            nn.Conv2d(inner, inner, kernel, stride, kernel // 2, groups=inner, bias=False),
            nn.BatchNorm2d(inner),
            activation(),
        ]
        self.first = nn.Sequential(*layers)
        narrow = -(-inner // 4 // 8) * 8
        self.squeeze = (
            nn.Sequential(
                nn.AdaptiveAvgPool2d(1), nn.Conv2d(inner, narrow, 1), nn.ReLU(), nn.Conv2d(narrow, inner, 1),
                nn.Hardsigmoid(),
            )
            if squeeze
            else None
        )  # fmt: skip
        self.last = nn.Sequential(nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        if self.squeeze is not None:
            y = y * self.squeeze(y)
        y = self.last(y)
        return x + y if self.adds else y


def mobilenet_v3_small(folder: Path) -> Made:
    """MobileNetV3-Small."""
    rows = (
        (16, 3, 16, 16, True, "RE", 2), (16, 3, 72, 24, False, "RE", 2), (24, 3, 88, 24, False, "RE", 1),
        (24, 5, 96, 40, True, "HS", 2), (40, 5, 240, 40, True, "HS", 1), (40, 5, 240, 40, True, "HS", 1),
        (40, 5, 120, 48, True, "HS", 1), (48, 5, 144, 48, True, "HS", 1), (48, 5, 288, 96, True, "HS", 2),
        (96, 5, 576, 96, True, "HS", 1), (96, 5, 576, 96, True, "HS", 1),
    )  # fmt: skip
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.Hardswish(), *(_Inverted(*row) for row in rows),
        nn.Conv2d(96, 576, 1, bias=False), nn.BatchNorm2d(576), nn.Hardswish(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(576, 1024), nn.Hardswish(), nn.Linear(1024, 1000),
    )  # fmt: skip
    return model, (torch.zeros(1, 3, 128, 128),)


class _Sequence(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(24, 48, batch_first=True), nn.Linear(48, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(x)[0][:, -1])


def lstm(folder: Path) -> Made:
    """An LSTM over 32 steps with a head on its last answer."""
    return _Sequence(), (torch.zeros(1, 32, 24),)


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        rows, tokens, width = x.shape
        query, key, value = (
            layer(x).view(rows, tokens, self.heads, width // self.heads).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        seen = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.out(seen.transpose(1, 2).reshape(rows, tokens, width))


class _Encoder(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = _Attention(width, heads)
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-12) for _ in range(2))
        self.inner, self.outer = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.norm1(x + self.attention(x, mask))
        return self.norm2(x + self.outer(functional.gelu(self.inner(x))))


class _MiniLM(nn.Module):
    def __init__(self, vocabulary: int = 30522, tokens: int = 512, width: int = 384, depth: int = 6) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(tokens, width)
        self.kinds, self.norm = nn.Embedding(2, width), nn.LayerNorm(width, eps=1e-12)
        self.layers = nn.ModuleList(_Encoder(width, 12) for _ in range(depth))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        places = torch.arange(input_ids.shape[1])
        x = self.norm(self.words(input_ids) + self.positions(places) + self.kinds.weight[0])
        kept = attention_mask[:, None, None, :] > 0
        for layer in self.layers:
            x = layer(x, kept)
        weights = attention_mask[:, :, None].to(x.dtype)
        mean = (x * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
        return functional.normalize(mean, dim=1)


def minilm(folder: Path) -> Made:
    """all-MiniLM-L6-v2 with its own weights, for 128 tokens."""
    names = {
        "embeddings.word_embeddings": "words", "embeddings.position_embeddings": "positions",
        "embeddings.token_type_embeddings": "kinds", "embeddings.LayerNorm": "norm", "encoder.layer": "layers",
        "attention.self": "attention", "attention.output.dense": "attention.out",
        "attention.output.LayerNorm": "norm1", "intermediate.dense": "inner", "output.dense": "outer",
        "output.LayerNorm": "norm2",
    }  # fmt: skip
    model, weights = _MiniLM(), {}
    for name, value in read_safetensors(folder / "model.safetensors").items():
        for old, new in names.items():
            name = name.replace(old, new)
        weights[name] = torch.from_numpy(value)
    model.load_state_dict({name: weights[name] for name in model.state_dict()})
    return model, (torch.ones(1, 128, dtype=torch.int64), torch.ones(1, 128, dtype=torch.int64))


MODELS: dict[str, Callable[[Path], Made]] = {
    "torch-resnet18": resnet18,
    "torch-mobilenet-v3-small": mobilenet_v3_small,
    "torch-lstm": lstm,
    "torch-minilm": minilm,
}


def main() -> None:
    """Write one model, and its ONNX form for the stock tools and the judge."""
    name, folder = sys.argv[1], Path(sys.argv[2])
    torch.manual_seed(SEED)
    model, example = MODELS[name](folder)
    if example[0].is_floating_point():
        model.train()
        for _ in range(8):  # statistics of batch normalizations
            model(torch.rand(8, *example[0].shape[1:]))
    model.eval()
    two = tuple(value.repeat(2, *(1,) * (value.dim() - 1)) for value in example)
    batch = torch.export.Dim("batch", min=1, max=1024)
    program = torch.export.export(model, two, dynamic_shapes=tuple({0: batch} for _ in two))
    torch.export.save(program, folder / "model.pt2")
    torch.onnx.export(model, example, folder / "model.onnx", dynamo=True, external_data=False, verbose=False)


if __name__ == "__main__":
    main()
