"""The stages of benchmarks/gpu.py.

supervise.py    a stage in a process of its own: what it may take, what it leaves when it crashes
machine.py      the device, its clock, random operands, PyTorch beside it
products.py     matrix products, and those who compute them: gpunet, CuPy's cuBLAS, PyTorch
hardware.py     stages environment, compile, ceilings, overhead
correctness.py  stages correctness, sanitizer
tuning.py       stage tune: makes gpunet/ops/gemm.json
comparison.py   stage matmul
training.py     stage examples
"""
