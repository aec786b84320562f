"""The errors gpunet raises. Each is also the built-in error that one would expect, so `except ValueError` works."""


class ShapeError(ValueError):
    """Arrays whose shapes do not fit each other, or an argument that does not fit a shape."""


class DTypeError(TypeError):
    """An array of a data type that the operation does not accept."""


class DeviceError(RuntimeError):
    """Arrays on different devices in one operation, or a device that this machine does not have."""


class GradientError(RuntimeError):
    """A derivative that cannot be computed, or that would be wrong."""


class FileFormatError(ValueError):
    """A file that is truncated, damaged, or not of the format it should be."""


class KernelError(RuntimeError):
    """A CUDA kernel that does not compile, misbehaves on the emulated device, or cannot be launched."""
