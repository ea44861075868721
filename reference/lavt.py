"""LAVT: Language-Aware Vision Transformer for referring image segmentation (arXiv 2112.02244), in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from .config import IMAGENET_MEAN, IMAGENET_STD, LAVTConfig, TextConfig
from .decoder import Decoder, upsample
from .swin import Backbone


def normalise(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """RGB images, uint8 (B,H,W,3), as LAVT takes them, (B,3,H,W): 0..1, less ImageNet's mean, over its deviation."""
    pixels = images.to(dtype) / 255
    normalised = (pixels - pixels.new_tensor(IMAGENET_MEAN)) / pixels.new_tensor(IMAGENET_STD)
    return normalised.permute(0, 3, 1, 2).contiguous()


def bert(config: TextConfig) -> BertModel:
    """transformers' BertModel without pooler, at the sizes of `config`."""
    sizes = BertConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        intermediate_size=config.intermediate_size,
        max_position_embeddings=config.max_positions,
    )
    return BertModel(sizes, add_pooling_layer=False)


class LAVT(nn.Module):
    """Segments the object that a sentence refers to.

    The image is RGB, scaled to 0..1 and normalised with ImageNet's mean and standard deviation. Any size works.
    """

    def __init__(self, config: LAVTConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config)
        self.classifier = Decoder(config.channels)
        self.text_encoder = bert(config.text)

    def encode_words(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Word features (B,L,T) of token ids (B,T) under a mask (B,T) of ones and zeros."""
        hidden: Tensor = self.text_encoder(input_ids, attention_mask=attention_mask).last_hidden_state
        return hidden.transpose(1, 2)

    def segment(self, image: Tensor, language: Tensor, word_mask: Tensor) -> Tensor:
        """Logits (B,2,H,W) of an image (B,3,H,W), word features (B,L,T) and a word mask (B,T,1)."""
        maps = self.backbone(image, language, word_mask.to(language.dtype))
        height, width = image.shape[-2:]
        return upsample(self.classifier(maps), height, width)

    def forward(self, image: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits (B,2,H,W) of an image (B,3,H,W), token ids (B,T) and their mask (B,T)."""
        words = self.encode_words(input_ids, attention_mask)
        return self.segment(image, words, attention_mask.unsqueeze(-1))
