"""Generated referring segmentation: scenes of simple objects with sentences that each single one object out.

The same seed gives the same scene. `testB` shows pairs of colour and shape (`HELD_OUT`) that no other split shows, and
its sentences speak of those objects only. Segmentations are exact pixel masks of what is visible of each object.
"""

from .objects import HELD_OUT, KINDS, SPLITS, SceneObject
from .scenes import Scene, generate_scene, sample, scene_at, scene_rng
from .sentences import SceneSentence, sentence_kind, swapped
from .words import VOCABULARY

__all__ = [
    "HELD_OUT",
    "KINDS",
    "SPLITS",
    "VOCABULARY",
    "Scene",
    "SceneObject",
    "SceneSentence",
    "generate_scene",
    "sample",
    "scene_at",
    "scene_rng",
    "sentence_kind",
    "swapped",
]
