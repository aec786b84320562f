"""The parts of benchmarks/cpu.py.

libraries.py       gpunet and PyTorch behind one face: what differs between them in a user's program
workloads.py       the networks and their training steps, written once for both
small_ops.py       steps so small that they show what recording an op costs
worker.py          a process that computes with one library in one configuration, when it is told to
workers.py         the configurations, and how their workers take turns
timing.py          stages steps, overhead, busy, scaling
equality.py        stages same, loss: whether both sides compute the same
memory.py          stage memory
op_times.py        stage profile
report.py          tables and charts
"""
