"""The model: an encoder with nested classifiers on its embedding."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from mrl.backbones import build_backbone
from mrl.heads import NestedHead, TiedHead, build_head
from mrl.nesting import check_granularities, log_spaced, uniform

if TYPE_CHECKING:
    from mrl.config import BackboneConfig, HeadConfig, TrainConfig


class MRLModel(nn.Module):
    """``encode(images)`` -> embeddings (N, D); ``forward(images)`` -> {m: logits (N, C)}.

    There is no normalisation between encoder and head (paper, appendix C).
    """

    def __init__(self, backbone: nn.Module, head: NestedHead | TiedHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    @property
    def embed_dim(self) -> int:
        return self.head.embed_dim

    @property
    def granularities(self) -> list[int]:
        return self.head.granularities

    def encode(self, images: Tensor) -> Tensor:
        return self.backbone(images)

    def forward(self, images: Tensor) -> dict[int, Tensor]:
        return self.head(self.encode(images))


def build_model(
    backbone: "BackboneConfig",
    head: "HeadConfig",
    *,
    num_classes: int,
    in_channels: int,
    image_size: int,
) -> MRLModel:
    """A freshly initialised model; PyTorch's global generator decides its weights.

    Raises:
        ValueError: for an unknown backbone, or granularities that do not fit its embedding width.
    """
    encoder, embed_dim = build_backbone(
        backbone.name,
        in_channels=in_channels,
        image_size=image_size,
        widths=backbone.widths,
        blocks=backbone.blocks,
        small_stem=backbone.stem.name == "small",
        pretrained=backbone.pretrained,
        drop_path=backbone.drop_path,
        blur_pool=backbone.blur_pool,
    )
    widths = resolve_granularities(head, embed_dim)
    return MRLModel(
        encoder, build_head(head.kind.name, embed_dim, num_classes, widths, bias=head.bias)
    )


def model_for(cfg: "TrainConfig", data_facts: Mapping[str, Any]) -> MRLModel:
    """The model of a run; ``data_facts`` (classes, in_channels) is what its checkpoint notes."""
    return build_model(
        cfg.backbone,
        cfg.head,
        num_classes=len(data_facts["classes"]),
        in_channels=data_facts["in_channels"],
        image_size=cfg.data.image_size,
    )


def resolve_granularities(head: "HeadConfig", embed_dim: int) -> list[int]:
    """The widths that a head section asks for, given the backbone's embedding width."""
    if head.granularities is not None:
        try:
            return check_granularities(head.granularities, embed_dim)
        except ValueError as error:
            raise ValueError(f"head.granularities: {error}") from None
    if head.spacing.name == "uniform":
        return uniform(embed_dim, head.count, head.smallest)
    return log_spaced(embed_dim, head.smallest)
