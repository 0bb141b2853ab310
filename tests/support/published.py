"""The earlier systems' 3D network, written anew from its description: their names of modules, their behaviour."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class BatchNorm(nn.BatchNorm3d):
    """Normalises by the statistics of the batch, in evaluation as in training, and leaves the running ones alone."""

    def forward(self, images):
        return functional.batch_norm(images, None, None, self.weight, self.bias, training=True, eps=self.eps)


class Unit(nn.Module):
    """3×3×3 convolution, batch norm, ReLU."""

    def __init__(self, num_in, num_out):
        super().__init__()
        self.conv1 = nn.Conv3d(num_in, num_out, kernel_size=3, padding=1)
        self.bn1 = BatchNorm(num_out)

    def forward(self, images):
        return functional.relu(self.bn1(self.conv1(images)))


class Down(nn.Module):
    """Two units; gives the features before the pooling too."""

    def __init__(self, num_in, num_middle, num_out):
        super().__init__()
        self.ops = nn.Sequential(Unit(num_in, num_middle), Unit(num_middle, num_out))

    def forward(self, images):
        features = self.ops(images)
        return functional.max_pool3d(features, 2), features


class Up(nn.Module):
    """Doubles the size, puts the skipped features behind, two units."""

    def __init__(self, num_below, num_skip):
        super().__init__()
        self.up_conv = nn.ConvTranspose3d(num_below, num_below, kernel_size=2, stride=2)
        self.ops = nn.Sequential(Unit(num_below + num_skip, num_skip), Unit(num_skip, num_skip))

    def forward(self, below, skip):
        return self.ops(torch.cat((self.up_conv(below), skip), dim=1))


class Output(nn.Module):
    def __init__(self, num_in):
        super().__init__()
        self.final_conv = nn.Conv3d(num_in, 1, kernel_size=1)

    def forward(self, features):
        return torch.sigmoid(self.final_conv(features))


class Classification(nn.Module):
    def __init__(self, num_in, num_classes):
        super().__init__()
        self.conv1 = nn.Conv3d(num_in, 2 * num_in, kernel_size=3, padding=1)
        self.bn1 = BatchNorm(2 * num_in)
        self.fc1 = nn.Linear(2 * num_in, num_classes)

    def forward(self, bottleneck):
        features = functional.relu(self.bn1(self.conv1(bottleneck)))
        return self.fc1(functional.adaptive_avg_pool3d(features, 1).flatten(1))


class PublishedUNet(nn.Module):
    """[n, 1, z, y, x] → (restored [n, 1, z, y, x] in [0, 1], logits [n, num_classes]); theirs has base width 32."""

    def __init__(self, base_width=32, num_classes=44):
        super().__init__()
        w = base_width
        self.down_tr64 = Down(1, w, 2 * w)
        self.down_tr128 = Down(2 * w, 2 * w, 4 * w)
        self.down_tr256 = Down(4 * w, 4 * w, 8 * w)
        self.down_tr512 = Down(8 * w, 8 * w, 16 * w)
        self.up_tr256 = Up(16 * w, 8 * w)
        self.up_tr128 = Up(8 * w, 4 * w)
        self.up_tr64 = Up(4 * w, 2 * w)
        self.out_tr = Output(2 * w)
        self.clc_out = Classification(16 * w, num_classes)

    def forward(self, images):
        images, skip64 = self.down_tr64(images)
        images, skip128 = self.down_tr128(images)
        images, skip256 = self.down_tr256(images)
        _, bottleneck = self.down_tr512(images)
        restored = self.up_tr64(self.up_tr128(self.up_tr256(bottleneck, skip256), skip128), skip64)
        return self.out_tr(restored), self.clc_out(bottleneck)
