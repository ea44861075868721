"""Generated referring segmentation: scenes of simple objects with sentences that each single one object out."""

from .scenes import (
    HELD_OUT,
    KINDS,
    SPLITS,
    VOCABULARY,
    Scene,
    SceneObject,
    SceneSentence,
    generate_scene,
    sample,
    scene_at,
    scene_rng,
    sentence_kind,
    swapped,
)

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
