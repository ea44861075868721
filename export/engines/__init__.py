"""TensorRT engines of a bundle: built, checked against their graphs, recorded."""
