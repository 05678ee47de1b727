"""The CPU backend: TVM lowers a planned program to one native library with two entries."""

from graphwright.backends.tvm.importing import import_tvm

import_tvm()
