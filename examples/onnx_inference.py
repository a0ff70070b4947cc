"""An exported ticket outside this project: python onnx_inference.py FILE.onnx IMAGES.npy. Needs only onnxruntime.

IMAGES.npy holds float32 [N, channels, height, width], normalised as in training. Prints the most likely class of each.
"""

import sys

import numpy as np  # comes with onnxruntime
import onnxruntime

file, images = sys.argv[1:]
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
(logits,) = session.run(["logits"], {"images": np.load(images)})
print(*logits.argmax(1))
