"""Networks in the authors' layouts, built from torchvision's and plain layers."""

import torch
import torch.nn.functional as F
import torchvision
from torch import nn

NUM_CLASSES = 7


class Numbered(nn.Module):
    """MRL: a linear layer for each width, called nesting_classifier_i."""

    def __init__(self, widths):
        super().__init__()
        self.widths = widths
        for i, m in enumerate(widths):
            self.add_module(f"nesting_classifier_{i}", nn.Linear(m, NUM_CLASSES))

    def forward(self, z):
        layers = list(self.children())
        return {m: layer(z[:, :m]) for m, layer in zip(self.widths, layers, strict=True)}


def sliced(layer, z, widths):
    """MRL-E: the first m columns of one weight."""
    return {m: z[:, :m] @ layer.weight[:, :m].T + layer.bias for m in widths}


class TiedNumbered(nn.Module):
    """MRL-E: the one layer is called nesting_classifier_0."""

    def __init__(self, widths):
        super().__init__()
        self.widths = widths
        self.nesting_classifier_0 = nn.Linear(widths[-1], NUM_CLASSES)

    def forward(self, z):
        return sliced(self.nesting_classifier_0, z, self.widths)


class TiedSingle(nn.Linear):
    """MRL-E, the older form: the layer itself."""

    def __init__(self, widths):
        super().__init__(widths[-1], NUM_CLASSES)
        self.widths = widths

    def forward(self, z):
        return sliced(self, z, self.widths)


class Fixed(nn.Linear):
    """FF: reads the first m features."""

    def __init__(self, widths):
        super().__init__(widths[0], NUM_CLASSES)

    def forward(self, z):
        return {self.in_features: super().forward(z[:, : self.in_features])}


class Blurred(nn.Module):
    def __init__(self, conv):
        super().__init__()
        self.conv = conv
        kernel = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16
        self.register_buffer("blur_filter", kernel.expand(conv.in_channels, 1, 3, 3).clone())

    def forward(self, x):
        blur = F.conv2d(x, self.blur_filter, stride=1, padding=1, groups=self.conv.in_channels)
        return self.conv(blur)


def blur_strided(module):
    for name, child in module.named_children():
        is_strided = isinstance(child, nn.Conv2d) and max(child.stride) > 1
        if is_strided and child.in_channels >= 16:
            setattr(module, name, Blurred(child))
        else:
            blur_strided(child)


def original(architecture, head, *, blur=False):
    """A released network in eval mode, every parameter and running statistic of it random."""
    torch.manual_seed(0)
    network = getattr(torchvision.models, architecture)()
    if architecture == "convnext_tiny":
        network.classifier[2] = head
    else:
        network.fc = head
    for name, tensor in network.state_dict().items():
        if tensor.ndim == 1 or name.endswith("layer_scale"):
            tensor.copy_(torch.rand(tensor.shape) + 0.5)  # norms, biases, running variances
    if blur:
        blur_strided(network)
    return network.eval()


def save(network, path, *, prefix=""):
    torch.save({prefix + name: w for name, w in network.state_dict().items()}, path)
    return path
