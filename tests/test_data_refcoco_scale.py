"""Opening annotations of RefCOCO's size: seconds and memory, in a process of its own."""

import json
import pickle
import random
import subprocess
import sys
from pathlib import Path

import pytest

REFS = {"train": 42_404, "val": 3_811, "testA": 1_975, "testB": 1_810}
IMAGES = 19_994
ANNOTATIONS = 196_771
"""All objects of those images, whether referred to or not."""
SENTENCES_PER_REF = 142_210 / 50_000
WORDS = "the left right man woman in red blue shirt on of with white black bottom top front guy girl person".split()  # noqa: SIM905

MEASURE = """
import sys, time
start = time.perf_counter()
from lavt_edge.data import RefCOCO
dataset = RefCOCO(sys.argv[1], split=sys.argv[2])
seconds = time.perf_counter() - start
# This program's own peak: getrusage would count that of the process it was forked from.
(line,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
peak = int(line.split()[1]) * 1024
images = len({item.image_id for item in dataset})
sentences = sum(len(item.sentences) for item in dataset)
print(len(dataset), images, sentences, seconds, peak, dataset[len(dataset) - 1].mask.shape)
"""


def write_refcoco(folder: Path) -> None:
    """Writes `instances.json` and `refs(unc).p` with RefCOCO's counts, fields and lengths of polygons and sentences."""
    rng = random.Random(0)
    folder.mkdir(parents=True)
    image_ids = rng.sample(range(1, 581_922), IMAGES)
    annotation_images = [image_ids[i % IMAGES] for i in range(ANNOTATIONS)]
    segmentations = [json.dumps(_segmentation(rng)) for _ in range(2_000)]
    with (folder / "instances.json").open("w") as file:
        file.write('{"info": {"description": "generated"}, "licenses": [], "images": [')
        file.write(",".join(json.dumps(_image(image_id)) for image_id in image_ids))
        file.write('], "annotations": [')
        for i, image_id in enumerate(annotation_images):
            file.write("," if i else "")
            file.write(
                f'{{"segmentation": {segmentations[i % 2_000]}, "area": {1000.25 + i}, "iscrowd": 0, '
                f'"image_id": {image_id}, "bbox": [{i % 300}.31, 20.52, 101.7, 203.44], '
                f'"category_id": {i % 90 + 1}, "id": {1_000_000 + i}}}'
            )
        file.write('], "categories": [{"supercategory": "person", "id": 1, "name": "person"}]}')
    splits = [split for split, count in REFS.items() for _ in range(count)]
    refs = [_ref(rng, i, split, annotation_images[i]) for i, split in enumerate(splits)]
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))


def _segmentation(rng: random.Random) -> list[list[float]]:
    parts = rng.choice([1, 1, 1, 2, 3])
    return [[round(rng.uniform(0, 479), 2) for _ in range(2 * rng.randint(5, 45))] for _ in range(parts)]


def _image(image_id: int) -> dict[str, object]:
    name = f"COCO_train2014_{image_id:012d}.jpg"
    url = "http://example.org/8150/7386_b2d9de91c2_z.jpg"
    times = {"date_captured": "2013-11-14 11:18:45"}
    urls = {"coco_url": f"http://mscoco.org/images/{image_id}", "flickr_url": url}
    return {"license": 1, "file_name": name, "height": 480, "width": 640, "id": image_id} | urls | times


def _ref(rng: random.Random, ref_id: int, split: str, image_id: int) -> dict[str, object]:
    first = int(ref_id * SENTENCES_PER_REF)
    sentence_ids = list(range(first, int((ref_id + 1) * SENTENCES_PER_REF)))
    return {
        "sent_ids": sentence_ids,
        "file_name": f"COCO_train2014_{image_id:012d}_{ref_id}.jpg",
        "ann_id": 1_000_000 + ref_id,
        "ref_id": ref_id,
        "image_id": image_id,
        "split": split,
        "sentences": [_sentence(rng, sentence_id) for sentence_id in sentence_ids],
        "category_id": ref_id % 90 + 1,
    }


def _sentence(rng: random.Random, sentence_id: int) -> dict[str, object]:
    # As strings read from a file are: each token an object of its own, so the pickle shares none.
    text = " ".join(rng.choices(WORDS, k=rng.randint(1, 7)))
    return {"tokens": text.split(), "raw": text.capitalize(), "sent_id": sentence_id, "sent": text}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("refcoco_size")
    write_refcoco(folder / "refcoco")
    return folder


@pytest.mark.parametrize("split", ["train", "val"])
def test_annotations_of_refcoco_size_open_in_1_5_gb(root: Path, split: str) -> None:
    done = subprocess.run([sys.executable, "-c", MEASURE, str(root), split], capture_output=True, text=True, check=True)
    refs, images, sentences, seconds, peak = done.stdout.split()[:5]
    sizes = {path.name: path.stat().st_size >> 20 for path in (root / "refcoco").iterdir()}
    print(f"{split}: {refs} refs, {images} images, {sentences} sentences in {sizes} MiB:", end=" ")
    print(f"{float(seconds):.1f} s, {int(peak) / 1e9:.2f} GB")
    assert int(refs) == REFS[split]
    if split == "train":
        assert int(images) == IMAGES
    assert int(peak) < 1.5e9
