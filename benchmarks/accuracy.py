"""The figures of referring segmentation, under the name that programs import; they are computed in `data.metrics`."""

from ..data.metrics import THRESHOLDS, PublishedRow, ReferringMetrics, published_rows

__all__ = ["THRESHOLDS", "PublishedRow", "ReferringMetrics", "published_rows"]
