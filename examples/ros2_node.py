"""A ROS 2 node: camera images and sentences in, masks out.

    ros2 topic pub --once /sentence std_msgs/msg/String "{data: 'the man in red'}"
    python3 ros2_node.py --ros-args -p bundle:=/opt/lavt/bundle -p sentence:="the dog" -r image:=/camera/image_raw

Topics: `image` (sensor_msgs/Image: rgb8, bgr8, rgba8, bgra8, mono8 or mono16), `sentence` (std_msgs/String), and `mask`
(sensor_msgs/Image, mono8, 255 where the object is, with the image's header). Parameters: `bundle`, `device` (auto, cpu,
cuda) and `sentence`, the first one. Of images that come faster than they are segmented, the newest counts.

Run it in an environment that has both ROS's Python packages and lavt-edge: a venv with --system-site-packages.
"""

from __future__ import annotations

import sys
from array import array
from typing import Any

import numpy as np
from lavt_edge.runtime import LavtError, Prompt, Segmenter
from numpy.typing import NDArray

_PARAMETERS = {"bundle": "bundle", "device": "auto", "sentence": ""}
# Channels, bytes each, and the `pixels` of Segmenter.segment.
_ENCODINGS = {
    "rgb8": (3, 1, "rgb"),
    "bgr8": (3, 1, "bgr"),
    "rgba8": (4, 1, "rgbx"),
    "bgra8": (4, 1, "bgrx"),
    "mono8": (1, 1, "grey"),
    "mono16": (1, 2, "grey"),
}


def image_to_frame(message: Any) -> tuple[NDArray[np.uint8], str]:
    """A sensor_msgs/Image as a uint8 frame, (H, W, channels) or (H, W), and its `pixels`; mono16 becomes grey.

    Nothing is copied unless rows are padded (`step`). Raises ValueError for another encoding, or if the message's sizes
    contradict each other.
    """
    if message.encoding not in _ENCODINGS:
        raise ValueError(f"images of encoding {message.encoding!r} are not supported: publish {', '.join(_ENCODINGS)}")
    channels, width, pixels = _ENCODINGS[message.encoding]
    row = message.width * channels * width
    if (
        not message.height
        or not message.width
        or message.step < row
        or len(message.data) < message.step * message.height
    ):
        raise ValueError(
            f"the image is broken: {message.width}x{message.height} {message.encoding}, step {message.step}, "
            f"{len(message.data)} bytes"
        )
    lines = np.frombuffer(message.data, np.uint8, message.step * message.height).reshape(message.height, message.step)
    frame = np.ascontiguousarray(lines[:, :row])
    if width == 2:
        wide = frame.view(">u2" if message.is_bigendian else "<u2").astype(np.uint32)
        frame = ((wide * 255 + 32767) // 65535).astype(np.uint8)
    return frame.reshape(message.height, message.width, *(channels,) * (channels > 1)), pixels


def mask_to_image(mask: NDArray[np.bool_], message: Any, header: Any) -> Any:
    """Fill a sensor_msgs/Image with a mask, bool (H, W): mono8, 255 where it is true, and a header."""
    message.header = header
    message.height, message.width = mask.shape
    message.encoding = "mono8"
    message.is_bigendian = 0
    message.step = mask.shape[1]
    # Of anything but an array.array rclpy looks at each element, in Python.
    message.data = array("B", (mask.astype(np.uint8) * np.uint8(255)).tobytes())
    return message


class SegmentNode:
    """Subscribes, segments and publishes on a node; `messages` has the classes Image and String."""

    def __init__(self, node: Any, segmenter: Segmenter, messages: Any, image_qos: Any = 1) -> None:
        self._node = node
        self._segmenter = segmenter
        self._messages = messages
        self._prompt: Prompt | None = None
        self._publisher = node.create_publisher(messages.Image, "mask", 1)
        node.create_subscription(messages.String, "sentence", lambda message: self.listen(message.data), 10)
        node.create_subscription(messages.Image, "image", self.look, image_qos)

    def listen(self, sentence: str) -> None:
        """Segment for this sentence from the next image on; one without words leaves the one before."""
        try:
            self._prompt = self._segmenter.encode(sentence)
        except LavtError as error:
            self._node.get_logger().error(str(error))
        else:
            self._node.get_logger().info(f"segmenting {sentence!r}")

    def look(self, message: Any) -> None:
        """Publish the mask of one image. Nothing is published before the first sentence."""
        if self._prompt is None:
            return
        try:
            frame, pixels = image_to_frame(message)
            result = self._segmenter.segment(frame, self._prompt, pixels=pixels)
        except (LavtError, ValueError) as error:
            self._node.get_logger().error(str(error))
            return
        self._publisher.publish(mask_to_image(result.mask, self._messages.Image(), message.header))


def main() -> int:
    # ROS's packages come with ROS, not from PyPI; the rest of this file works without them.
    try:
        import rclpy
        from rclpy.executors import ExternalShutdownException
        from rclpy.qos import QoSProfile, ReliabilityPolicy
        from sensor_msgs import msg as sensor_messages
        from std_msgs import msg as std_messages
    except ModuleNotFoundError as error:
        print(f"error: {error.name} is not installed: source /opt/ros/DISTRO/setup.bash first", file=sys.stderr)
        return 1

    class Messages:
        Image = sensor_messages.Image
        String = std_messages.String

    rclpy.init()
    node = rclpy.create_node("lavt_edge")
    parameters = {name: node.declare_parameter(name, value).value for name, value in _PARAMETERS.items()}
    try:
        with Segmenter.load(parameters["bundle"], device=parameters["device"]) as segmenter:
            # Best effort, as cameras publish; a queue of one, so that an old image gives way to a new one.
            newest = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
            segment_node = SegmentNode(node, segmenter, Messages, newest)
            if parameters["sentence"]:
                segment_node.listen(parameters["sentence"])
            node.get_logger().info(f"{segmenter!r}")
            rclpy.spin(node)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except LavtError as error:
        node.get_logger().fatal(str(error))
        return 1
    finally:
        node.destroy_node()
        rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
