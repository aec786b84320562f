"""Data: datasets, the DataLoader that turns them into batches, samplers and image transforms.

Typical use:

    train = data.FashionMNIST(train=True)
    for x, y in data.DataLoader(train, batch_size=128, shuffle=True): ...
"""

from gpunet.data import transforms
from gpunet.data.cifar import CIFAR10, CIFAR100
from gpunet.data.collate import collate
from gpunet.data.dataset import ConcatDataset, Dataset, Subset, TensorDataset, random_split
from gpunet.data.digits import Digits
from gpunet.data.idx import read_idx, write_idx
from gpunet.data.images import ImageDataset
from gpunet.data.loader import DataLoader
from gpunet.data.mnist import MNIST, FashionMNIST
from gpunet.data.named import named
from gpunet.data.sampler import BatchSampler, RandomSampler, SequentialSampler, WeightedRandomSampler
from gpunet.data.source import data_root

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "MNIST",
    "BatchSampler",
    "ConcatDataset",
    "DataLoader",
    "Dataset",
    "Digits",
    "FashionMNIST",
    "ImageDataset",
    "RandomSampler",
    "SequentialSampler",
    "Subset",
    "TensorDataset",
    "WeightedRandomSampler",
    "collate",
    "data_root",
    "named",
    "random_split",
    "read_idx",
    "transforms",
    "write_idx",
]
