"""python embed.py BUNDLE IMAGE "the man in red": where the object is, in ten lines."""

import sys

from lavt_edge.runtime import Segmenter

bundle, image, sentence = sys.argv[1:]
with Segmenter.load(bundle) as segmenter:
    mask = segmenter.segment(image, segmenter.encode(sentence)).mask  # bool (H, W)
y, x = mask.nonzero()
print(f"{sentence}: {len(x)} pixels" + (f", x {x.min()} to {x.max()}, y {y.min()} to {y.max()}" if len(x) else ""))
