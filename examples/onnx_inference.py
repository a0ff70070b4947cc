"""An exported ticket outside this project: python onnx_inference.py FILE.onnx IMAGES.npy. Needs onnxruntime and numpy.

IMAGES.npy holds float32 [N, channels, height, width], normalised as in training. Prints the most likely class of each.
"""

import sys

import numpy as np
import onnxruntime


def main(file: str, images: str) -> None:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": np.load(images)})
    print(*logits.argmax(1))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
