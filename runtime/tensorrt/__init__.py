"""TensorRT engines at run time: their records, CUDA memory and the backend."""
