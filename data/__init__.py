"""Data sets of referring segmentation: images, masks, and sentences that refer to them."""

from .masks import resize_mask
from .refcoco import RefCOCO, ReferredObject

__all__ = ["RefCOCO", "ReferredObject", "resize_mask"]
