"""The flags with which XLA compiles quickly: most of what tests and examples run is compilation.

XLA aborts the process at a flag that it does not know, and versions differ.
"""

from importlib.metadata import version

FLAGS = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
if tuple(map(int, version("jaxlib").split(".")[:3])) < (0, 11, 1):  # gone from 0.11.1 or 0.11.2 on
    FLAGS += " --xla_cpu_use_fusion_emitters=false"

if __name__ == "__main__":
    print(FLAGS)
