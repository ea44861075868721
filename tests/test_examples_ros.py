"""examples/ros2_node.py without ROS: its conversions on messages of the same fields, its node on a stand-in."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from lavt_edge.runtime import to_rgb_array
from lavt_edge.tests.example_runs import example as example  # a fixture
from lavt_edge.tests.example_runs import refusal, run
from numpy.typing import NDArray


@dataclass
class ImageMessage:
    """sensor_msgs/Image: the fields as they are defined there.

    rclpy takes any sequence as `data`, but looks at its elements one by one unless it is an array.array; here nothing
    else is taken.
    """

    header: Any = None
    height: int = 0
    width: int = 0
    encoding: str = ""
    is_bigendian: int = 0
    step: int = 0
    data: array[int] = field(default_factory=lambda: array("B"))

    def __setattr__(self, name: str, value: Any) -> None:
        assert name != "data" or (isinstance(value, array) and value.typecode == "B"), "rclpy would check each byte"
        super().__setattr__(name, value)


@dataclass
class StringMessage:
    data: str = ""


MESSAGES = SimpleNamespace(Image=ImageMessage, String=StringMessage)


def image_message(pixels: NDArray[Any], encoding: str, padding: int = 0, bigendian: int = 0) -> ImageMessage:
    """As a camera driver fills it; `padding` bytes of 0xEE end each row."""
    height, width = pixels.shape[:2]
    rows = np.frombuffer(pixels.tobytes(), np.uint8).reshape(height, -1)
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=0xEE)
    return ImageMessage("header", height, width, encoding, bigendian, rows.shape[1], array("B", rows.tobytes()))


class FakeNode:
    """What SegmentNode uses of an rclpy node."""

    def __init__(self) -> None:
        self.callbacks: dict[str, Callable[[Any], None]] = {}
        self.published: list[ImageMessage] = []
        self.errors: list[str] = []

    def create_publisher(self, kind: type, topic: str, qos: Any) -> SimpleNamespace:
        assert (kind, topic) == (ImageMessage, "mask")
        return SimpleNamespace(publish=self.published.append)

    def create_subscription(self, kind: type, topic: str, callback: Callable[[Any], None], qos: Any) -> None:
        assert kind is {"image": ImageMessage, "sentence": StringMessage}[topic]
        self.callbacks[topic] = callback

    def get_logger(self) -> SimpleNamespace:
        return SimpleNamespace(info=lambda text: None, error=self.errors.append)


@pytest.mark.parametrize("padding", [0, 5])
def test_ros_images_become_frames(example: Callable[[str], ModuleType], padding: int) -> None:
    ros = example("ros2_node")
    rgb = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    grey = rgb[:, :, 0]
    wide = np.random.default_rng(1).integers(0, 65536, (5, 7), dtype=np.uint16)
    eight = np.round(wide * (255 / 65535)).astype(np.uint8)
    rgba = np.dstack([rgb, 255 - grey])
    cases = [
        (image_message(rgb, "rgb8", padding), rgb),
        (image_message(rgb[:, :, ::-1], "bgr8", padding), rgb),
        (image_message(rgb, "rgb8", padding, bigendian=1), rgb),
        (image_message(rgba, "rgba8", padding), rgb),
        (image_message(rgba[:, :, (2, 1, 0, 3)], "bgra8", padding), rgb),
        (image_message(grey, "mono8", padding), np.dstack([grey] * 3)),
        (image_message(wide.astype("<u2"), "mono16", padding), np.dstack([eight] * 3)),
        (image_message(wide.astype(">u2"), "mono16", padding, bigendian=1), np.dstack([eight] * 3)),
    ]
    for message, wanted in cases:
        frame, pixels = ros.image_to_frame(message)
        np.testing.assert_array_equal(to_rgb_array(frame, pixels=pixels), wanted)


@pytest.mark.parametrize(
    "broken",
    [
        {"encoding": "yuv422"},
        {"step": 20},
        {"data": array("B", bytes(104))},
        {"height": 0},
        {"width": 0, "step": 0, "data": array("B")},
    ],
    ids=lambda broken: next(iter(broken)),
)
def test_broken_ros_images_are_refused(example: Callable[[str], ModuleType], broken: dict[str, Any]) -> None:
    ros = example("ros2_node")
    message = image_message(np.zeros((5, 7, 3), np.uint8), "rgb8")
    for name, value in broken.items():
        setattr(message, name, value)
    with pytest.raises(ValueError, match="not supported" if "encoding" in broken else "the image is broken"):
        ros.image_to_frame(message)


def test_the_ros_node_without_ros_says_so(tmp_path: Path) -> None:
    assert "rclpy is not installed: source /opt/ros" in refusal(run("ros2_node.py", cwd=tmp_path))
