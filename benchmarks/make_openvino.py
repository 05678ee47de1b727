"""A checkpoint as OpenVINO's stateful IR with compressed weights, by optimum-intel.

Runs in OpenVINO's environment: make_openvino.py CHECKPOINT DIRECTORY int4|int8 GROUP
"""

from __future__ import annotations

import sys

import openvino
from openvino_tokenizers import convert_tokenizer
from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig
from transformers import AutoTokenizer

if __name__ == "__main__":
    source, directory, kind, group = sys.argv[1:5]
    if kind == "int4":
        config = OVWeightQuantizationConfig(bits=4, sym=False, group_size=int(group), ratio=1.0)
    else:
        config = OVWeightQuantizationConfig(bits=8, sym=False)
    model = OVModelForCausalLM.from_pretrained(
        source, export=True, stateful=True, compile=False, load_in_8bit=False,
        quantization_config=config,
    )  # fmt: skip
    model.save_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.save_pretrained(directory)
    for part, name in zip(convert_tokenizer(tokenizer, with_detokenizer=True),
                          ("tokenizer", "detokenizer"), strict=True):  # fmt: skip
        openvino.save_model(part, f"{directory}/openvino_{name}.xml")
