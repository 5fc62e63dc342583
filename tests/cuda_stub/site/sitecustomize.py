"""Run by every Python that the stub is given to: as soon as torch is imported, its calls of cuDNN and cuBLAS are
replaced (see kernels.py beside this folder). Worker processes import torch late, so that this waits for it."""

import importlib.util
import os
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path


class _AfterTorch(MetaPathFinder):
    def find_spec(self, name, *_):
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def load_and_replace(module):
            load(module)
            file = Path(__file__).parents[1] / "kernels.py"
            kernels = importlib.util.spec_from_file_location("cuda_stub_kernels", file)
            sys.modules[kernels.name] = importlib.util.module_from_spec(kernels)
            kernels.loader.exec_module(sys.modules[kernels.name])

        spec.loader.exec_module = load_and_replace
        return spec


if "CUDA_STUB" in os.environ:
    sys.meta_path.insert(0, _AfterTorch())
