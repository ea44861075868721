"""lavt-serve under load, and what its live loop costs over `Segmenter.stream` with the same drawing.

    python -m lavt_edge.tests.stress.serving BUNDLE --seconds 60

Prints latencies, refusals and memory of 64 clients at once; then frames a second of the loop and of the stream.
"""

from __future__ import annotations

import argparse
import io
import re
import statistics
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
from lavt_edge.data.shapes import scene_at
from lavt_edge.runtime import Segmenter
from lavt_edge.serving.live import draw
from lavt_edge.serving.source import Frame, Source
from lavt_edge.tests.served import Served, serve
from PIL import Image
from websockets.sync.client import connect

CLIENTS = 64
SCENE = scene_at(0, "val", 2)
SENTENCE = SCENE.sentences()[0].text


def resident(server: Served) -> int:
    """MiB of the server's process."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) // 1024


def load(bundle: Path, seconds: float) -> None:
    file = io.BytesIO()
    Image.fromarray(SCENE.render()).save(file, "PNG")
    statuses, times = Counter[str](), list[float]()
    with serve(bundle) as server:
        end = time.monotonic() + seconds

        def client(_: int) -> None:
            while time.monotonic() < end:
                begun = time.perf_counter()
                try:
                    status = str(server.segment(file.getvalue(), SENTENCE).status)
                except OSError as error:
                    status = type(error).__name__
                statuses[status] += 1
                if status == "200":
                    times.append(1e3 * (time.perf_counter() - begun))
                else:
                    time.sleep(0.05)  # sooner than it was asked to

        with ThreadPoolExecutor(CLIENTS) as pool:
            work = pool.map(client, range(CLIENTS))
            memory = []
            while time.monotonic() < end:
                time.sleep(seconds / 6)
                memory.append(resident(server))
            list(work)
    p50, p99 = np.percentile(times, (50, 99))
    print(f"{CLIENTS} clients, {seconds:g} s: answers {dict(statuses)}, p50 {p50:.0f} ms, p99 {p99:.0f} ms")
    print(f"resident memory every {seconds / 6:g} s: {memory} MiB")


def write_clip(path: Path) -> None:
    """A video of 60 frames a second, which no loop here keeps up with on two cores."""
    frames = [np.roll(SCENE.render()[:, :, ::-1], 3 * i, axis=1) for i in range(80)]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 60, frames[0].shape[1::-1])
    for frame in frames:
        writer.write(frame)
    writer.release()


def loop_rate(server: Served, seconds: float) -> float:
    """Frames a second that a watcher is sent who acknowledges each at once."""
    with connect(f"ws://127.0.0.1:{server.port}/v1/live", max_size=None) as watching:
        watching.send(f'{{"sentences": ["{SENTENCE}"]}}')
        count, begun = 0, 0.0
        while begun == 0.0 or time.perf_counter() < begun + seconds:
            if isinstance(message := watching.recv(), str):
                continue
            watching.send('{"ack": 1}')
            if SENTENCE.encode() in message[:4000]:
                begun = begun or time.perf_counter()
                count += 1
        return (count - 1) / (time.perf_counter() - begun)


def stream_rate(segmenter: Segmenter, clip: Path, seconds: float) -> float:
    """Frames a second of `stream` on the same source, with the loop's own drawing of each."""
    source, taken = Source(str(clip), as_live=True), deque[Frame]()

    def noted() -> Iterator[Frame]:
        for frame in source:
            taken.append(frame)
            yield frame

    count, begun = 0, 0.0
    with closing(segmenter.stream(noted(), [SENTENCE], pixels="bgr")) as results:
        for found in results:
            draw(taken.popleft(), found)
            begun = begun or time.perf_counter()
            count += 1
            if time.perf_counter() > begun + seconds:
                break
        source.close()
    return (count - 1) / (time.perf_counter() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--seconds", type=float, default=60)
    given = parser.parse_args()
    load(given.bundle, given.seconds)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write_clip(path)
        with (
            Segmenter.load(given.bundle, device="cpu") as segmenter,
            serve(given.bundle, "--source", str(path)) as server,
        ):
            pairs = [(loop_rate(server, 4), stream_rate(segmenter, path, 4)) for _ in range(5)]
    print("frames a second, live loop and stream:", [(round(a, 1), round(b, 1)) for a, b in pairs])
    print(f"time of the loop over the stream's: {statistics.median(b / a for a, b in pairs):.3f}, median of 5")


if __name__ == "__main__":
    main()
