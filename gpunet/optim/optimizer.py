"""Optimizer: what all optimizers share. Each of them adds its options, the names of its state, and an update rule."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import is_
from typing import Any

import numpy as np

from gpunet import autograd
from gpunet.backends import Backend, Device, backend_of_type
from gpunet.creation import asarray
from gpunet.dtypes import accumulation_dtype, float64, int64
from gpunet.errors import DeviceError, DTypeError, GradientError, ShapeError
from gpunet.ops import optimizer as rules
from gpunet.ops.op import Op
from gpunet.ops.shape import reshape
from gpunet.tensor import Tensor

# Keys of a parameter group that are no options. `initial_lr` is the learning-rate schedulers'.
_GROUP_KEYS = ("params", "param_names", "name", "initial_lr")
# Keys of PyTorch's groups that choose among its implementations, or that its schedulers keep there.
_FOREIGN_KEYS = {
    "foreach", "fused", "capturable", "differentiable", "max_lr", "min_lr", "max_momentum", "base_momentum",
}  # fmt: skip


class Optimizer:
    """Changes parameters in the direction that their gradients say.

    A parameter whose `grad` is None is left alone. Parameters are changed in place, in the memory that they have; the
    tape notices. float16 parameters are updated in float32, in which their state is kept.

    An optimizer of one's own needs three things: `__init__` that passes the options' defaults on, `state_names`, and
    `update`.

        class SignSGD(Optimizer):
            def __init__(self, params, lr=1e-3):
                super().__init__(params, {"lr": lr})

            def update(self, group, step, params, grads, state):
                for p, g in zip(params, grads):
                    p -= group["lr"] * np.sign(g)

    Args:
        params: Tensors; pairs (name, Tensor) as `named_parameters()` gives them, whose names then appear in errors; or
            groups, dicts with the key "params" and options of their own (and a "name", if you like).
        defaults: options and their values for groups that do not say otherwise.

    Attributes:
        param_groups: the groups, complete with all options. Options, and which parameters there are, may be changed
            between steps.
        defaults: as given.
        steps: how often `step` was called on this object.
        capturable: False unless you set it. Where it is True, kernels read learning rate and count of steps from the
            device's memory, so that a CUDA graph can be captured of a step and be replayed: take a step, capture one,
            and call `before_replay` before each replay.

    Raises:
        TypeError: `params` is a single Tensor, or holds something that is no Tensor.
        ValueError: there are no parameters, one occurs twice, one was computed by an op, or an option is unknown or out
            of range.
        DTypeError: a parameter is not floating-point.
    """

    counts_steps = True  # whether the number of steps is part of the state of a parameter

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]) -> None:
        if isinstance(params, (Tensor, Mapping)) or not isinstance(params, Iterable):
            advice = "; pass its parameters()" if hasattr(params, "parameters") else ""
            raise TypeError(
                f"{type(self).__name__}: expected a list of Tensors or of groups, got a single {type(params).__name__}"
                + advice
            )
        self.defaults = defaults
        self.param_groups: list[dict[str, Any]] = []
        self.steps = 0
        self.capturable = False
        self._buckets: list[list[_Bucket]] = []  # for each group; empty until it is first needed
        self._placed: list[list[Tensor]] = []  # for each group, the parameters that its buckets hold
        groups: list[Any] = list(params)
        if not groups or not all(isinstance(group, Mapping) for group in groups):
            groups = [{"params": groups}]
        for group in groups:
            self.add_param_group(group)

    # --- what an optimizer defines

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Raise ValueError if an option is out of range."""

    def state_names(self, options: Mapping[str, Any]) -> tuple[str, ...]:
        """Names of the quantities that are kept for each element of a parameter in a group with these options."""
        return ()

    def initial_value(self, name: str, options: Mapping[str, Any]) -> float:
        """The value that the quantity `name` starts from."""
        return 0.0

    def update(
        self, group: Mapping[str, Any], step: int, params: list[Any], grads: list[Any], state: dict[str, Any]
    ) -> None:
        """Change parameters and state in place. See gpunet/ops/optimizer.py for the form of the raw arrays.

        Args:
            group: the options.
            step: of these parameters, counted from 1.
            params, grads: 1-D arrays of one dtype, on one device; the gradients are not to be written to.
            state: for each of `state_names`, one 1-D array for all these parameters together.
        """
        raise NotImplementedError

    # --- groups

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Add a group of parameters, such as the layers that are unfrozen during fine-tuning.

        Args:
            group: {"params": Tensors or pairs (name, Tensor), option: value, ...}; other options have their defaults.

        Raises:
            TypeError, ValueError, DTypeError: as the constructor's; nothing is added then.
        """
        kind, where = type(self).__name__, f"{type(self).__name__}: group {len(self.param_groups)}"
        if not isinstance(group, Mapping) or "params" not in group:
            raise TypeError(f'{where}: expected a dict with the key "params", got {_brief(group)}')
        for key in group:
            if key not in self.defaults and key not in _GROUP_KEYS:
                raise ValueError(
                    f"{where}: unknown option {key!r}; the options of {kind} are {', '.join(self.defaults)}"
                )
        params = [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
        if not params:
            raise ValueError(f"{where}: got an empty parameter list (was the generator already used up?)")
        names = list(group.get("param_names") or ())
        if all(isinstance(p, tuple) and len(p) == 2 for p in params):
            names, params = [name for name, _ in params], [p for _, p in params]
        if names and len(names) != len(params):
            raise ValueError(f"{where}: got {len(names)} param_names for {len(params)} parameters")
        taken = {p for other in self.param_groups for p in other["params"]}
        for i, p in enumerate(params):
            what = f"parameter {names[i]!r}" if names else f"parameter {i}"
            if not isinstance(p, Tensor):
                raise TypeError(f"{where}: {what} is {_brief(p)}, expected a Tensor")
            if not p.is_leaf:
                raise ValueError(
                    f"{where}: {what}, of shape {p.shape}, was computed by an op, and changing it would train nothing; "
                    "pass the Tensor that it was computed from, or x.detach() with requires_grad set"
                )
            if p.dtype.kind != "f":
                raise DTypeError(
                    f"{where}: {what}, of shape {p.shape}, is {p.dtype}; only floating-point can be trained"
                )
            if p in taken:
                raise ValueError(f"{where}: {what}, of shape {p.shape}, is there already; each may be given only once")
            taken.add(p)
        options = {**self.defaults, **group, "params": params}
        if names:
            options["param_names"] = names
        self._check(options, where)
        self.param_groups.append(options)
        self._buckets.append([])
        self._placed.append([])

    def _check(self, options: dict[str, Any], where: str) -> None:
        for key, default in self.defaults.items():
            if isinstance(default, tuple) and isinstance(options[key], list):
                options[key] = tuple(options[key])
        try:
            self.check_options(options)
        except (ValueError, TypeError) as error:
            raise type(error)(f"{where}: {error}") from None

    # --- steps

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients: set them to None, or to zeros (which an optimizer would still act upon)."""
        for group in self.param_groups:
            for p in group["params"]:
                node = p._node
                if node is not None and node.grad is not None:
                    node.grad = None if set_to_none else Tensor._wrap(p._backend().xp.zeros_like(p.data))

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Change all parameters that have a gradient, once.

        Args:
            closure: computes the loss anew, gradients included, and returns it; called first.

        Returns:
            What `closure` returned, else None.

        Raises:
            GradientError, DTypeError, DeviceError: a gradient does not have the shape, dtype or device of its
                parameter, or a CUDA graph is being captured and this optimizer is not ready for that. Nothing has been
                changed.
        """
        loss = None
        if closure is not None:
            with autograd.enable_grad():
                loss = closure()
        runs: list[_Run] = []
        for index, group in enumerate(self.param_groups):
            for bucket in self._laid_out(index):
                bucket.collect(runs, group)
        capturing = any(run.bucket.capturing() for run in runs)
        if capturing:
            self._check_ready(runs)
        else:
            self.steps += 1
        written: list[Tensor] = []
        for run in runs:
            bucket = run.bucket
            with bucket.backend.on(bucket.device):
                group, step = self._in_device_memory(run, capturing) if self.capturable else (run.group, run.step)
                self.update(group, step, run.params, run.grads, bucket.part(run.start, run.stop))
            for slot, changed in zip(run.slots, run.params):
                if not capturing:
                    slot.step = run.step
                if slot.flat is None:
                    slot.scatter(changed)
                written.append(slot.param)
        autograd.mark_written(written)
        return loss

    def before_replay(self) -> None:
        """Count the step that a CUDA graph is about to repeat, and give it the learning rates that the groups have now.

        For graphs captured of a step of this optimizer, which must be `capturable`. Does not wait for the device.
        """
        self.steps += 1
        for group, buckets in zip(self.param_groups, self._buckets):
            for bucket in buckets:
                bucket.before_replay(group)

    def _check_ready(self, runs: list[_Run]) -> None:
        """Raise DeviceError unless a CUDA graph may be captured of these runs."""
        for run in runs:
            if not self.capturable or (run.start, run.stop) not in run.bucket.cells:
                raise DeviceError(
                    f"{type(self).__name__}.step: a CUDA graph is being captured, which would repeat this step with "
                    "its learning rate and count of steps; set `capturable` to True, and take a step (of all "
                    "parameters that have gradients now) before the capture"
                )

    def _in_device_memory(self, run: _Run, capturing: bool) -> tuple[dict[str, Any], Any]:
        """Options and step for `update`, of which the learning rate and the step are arrays in the device's memory."""
        cells = run.bucket.cells.get((run.start, run.stop))
        if cells is None:
            cells = run.bucket.cells[run.start, run.stop] = _Cells(run.bucket.backend.xp)
        if capturing:
            cells.captured = True
        else:
            cells.write(run.group["lr"], run.step - 1)
            cells.known_step = run.step
        rules.count_step.implementation(type(cells.step))(cells.step)
        return {**run.group, "lr": cells.lr}, cells.step if self.counts_steps else run.step

    def _laid_out(self, index: int) -> list[_Bucket]:
        """The buckets of a group, brought up to date with its parameters and options."""
        group, buckets, placed = self.param_groups[index], self._buckets[index], self._placed[index]
        if len(placed) != len(group["params"]) or not all(map(is_, placed, group["params"])):
            buckets = []  # someone changed the list itself
        for bucket in buckets:
            for slot in bucket.slots:
                if slot.param.data is not slot.data and not slot.follow():
                    buckets = []
        if not buckets:
            buckets = self._buckets[index] = self._lay_out(group, self._buckets[index])
            self._placed[index] = list(group["params"])
        names = self.state_names(group)
        for bucket in buckets:
            for name in names:
                if name not in bucket.state:
                    bucket.add(name, self.initial_value(name, group))
        return buckets

    def _lay_out(self, group: dict[str, Any], old: list[_Bucket]) -> list[_Bucket]:
        """Buckets for the parameters of a group where they are now; their state comes along."""
        placed: dict[Any, list[_Slot]] = {}
        names = group.get("param_names") or ()
        for i, p in enumerate(group["params"]):
            slot = _Slot(p, repr(names[i]) if i < len(names) else str(i), type(self).__name__)
            placed.setdefault((p.dtype, p.device), []).append(slot)
        buckets = [_Bucket(device, slots) for (_, device), slots in placed.items()]
        before = {slot.param: (bucket, slot) for bucket in old for slot in bucket.slots}
        for bucket in buckets:
            for slot in bucket.slots:
                if slot.param in before:
                    source, there = before[slot.param]
                    slot.step = there.step
                    for name in source.state:
                        if name not in bucket.state:
                            bucket.add(name, self.initial_value(name, group))
                        bucket.put(name, slot, source.get(name, there))
        return buckets

    # --- state

    @property
    def state(self) -> dict[Tensor, dict[str, Any]]:
        """For each parameter that was changed so far, its state: {"step": int, name: Tensor of the parameter's shape}.

        The Tensors share the optimizer's memory; the dicts are made anew by each access.
        """
        found = {}
        for index, group in enumerate(self.param_groups):
            names = self.state_names(group)
            for bucket in self._laid_out(index):
                for slot in bucket.slots:
                    if slot.step:
                        entry: dict[str, Any] = {"step": slot.step} if self.counts_steps else {}
                        entry |= {name: bucket.get(name, slot) for name in names}
                        if entry:
                            found[slot.param] = entry
        return found

    def state_dict(self) -> dict[str, Any]:
        """Everything that another optimizer needs to go on from here, in PyTorch's form.

        Returns:
            {"optimizer": name of the class, "state": {index: {name: Tensor or int}}, "param_groups": [{option: value,
            "params": [indices]}]}. Parameters are numbered through all groups. The Tensors share the optimizer's
            memory, so copy them (`copy.deepcopy`) if they are to outlast its next step.
        """
        numbers: dict[Tensor, int] = {}
        groups = []
        for group in self.param_groups:
            indices = [numbers.setdefault(p, len(numbers)) for p in group["params"]]
            groups.append({**{k: v for k, v in group.items() if k != "params"}, "params": indices})
        state = {numbers[p]: entry for p, entry in self.state.items()}
        return {"optimizer": type(self).__name__, "state": dict(sorted(state.items())), "param_groups": groups}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over the state and the options that `state_dict()` gave; the arrays are copied.

        A `state_dict` of PyTorch's optimizer of the same name loads too, with its tensors as such or as NumPy arrays.

        Raises:
            ValueError: it is of another kind of optimizer, of other groups, or of a different number of parameters.
            ShapeError: an array does not have the shape of its parameter. In all cases nothing has been changed.
        """
        kind = type(self).__name__
        if not isinstance(state_dict, Mapping) or not {"state", "param_groups"} <= set(state_dict):
            raise ValueError(f'{kind}.load_state_dict: expected a dict with "state" and "param_groups"')
        saved_kind = state_dict.get("optimizer", kind)
        if saved_kind != kind:
            raise ValueError(f"{kind}.load_state_dict: this is the state of {saved_kind}, not of {kind}")
        groups = self._matching_groups(state_dict["param_groups"])
        params = {i: p for saved, own in zip(groups, self.param_groups) for i, p in zip(saved["params"], own["params"])}
        state = {int(i): entry for i, entry in state_dict["state"].items()}
        for i, entry in state.items():
            if i not in params:
                raise ValueError(f"{kind}.load_state_dict: state for parameter {i}, of which no group knows")
            self._check_entry(i, entry, params[i])
        for index, (saved, own) in enumerate(zip(groups, self.param_groups)):
            own.update({k: v for k, v in saved.items() if k not in ("params", "param_names")})
            slots = {}
            for bucket in self._laid_out(index):
                for name in bucket.state:
                    bucket.fill(name, self.initial_value(name, own))
                slots.update({slot.param: (bucket, slot) for slot in bucket.slots})
            for i, p in zip(saved["params"], own["params"]):
                bucket, slot = slots[p]
                arrays = {k: v for k, v in state.get(i, {}).items() if k != "step" and v is not None}
                slot.step = int(state[i]["step"]) if i in state and self.counts_steps else int(bool(arrays))
                for name, value in arrays.items():
                    if name not in bucket.state:
                        bucket.add(name, self.initial_value(name, own))
                    bucket.put(name, slot, asarray(value))

    def _matching_groups(self, saved_groups: Sequence[Any]) -> list[dict[str, Any]]:
        """The groups of a state_dict, checked against those here."""
        kind = f"{type(self).__name__}.load_state_dict"
        if len(saved_groups) != len(self.param_groups):
            raise ValueError(
                f"{kind}: it has {len(saved_groups)} parameter groups, this optimizer {len(self.param_groups)}"
            )
        groups = []
        for number, (saved, own) in enumerate(zip(saved_groups, self.param_groups)):
            where = f"{kind}: group {number}"
            if len(saved["params"]) != len(own["params"]):
                raise ValueError(
                    f"{where}: it has {len(saved['params'])} parameters, this optimizer's has {len(own['params'])}"
                )
            names, own_names = saved.get("param_names"), own.get("param_names")
            if names and own_names and list(names) != own_names:
                i = next(i for i, (a, b) in enumerate(zip(names, own_names)) if a != b)
                raise ValueError(f"{where}: its parameter {i} is {names[i]!r}, this optimizer's is {own_names[i]!r}")
            group = {k: v for k, v in saved.items() if k in self.defaults or k not in _FOREIGN_KEYS}
            missing = [k for k in self.defaults if k not in group]
            unknown = [k for k in group if k not in self.defaults and k not in _GROUP_KEYS]
            if missing or unknown:
                raise ValueError(
                    f"{where}: it is of another kind of optimizer (missing options: {', '.join(missing) or 'none'}; "
                    f"unknown options: {', '.join(unknown) or 'none'})"
                )
            self._check(group, where)
            groups.append(group)
        return groups

    def _check_entry(self, index: int, entry: Mapping[str, Any], param: Tensor) -> None:
        where = f"{type(self).__name__}.load_state_dict: state of parameter {index}"
        if self.counts_steps and "step" not in entry:
            raise ValueError(f'{where}: it has no "step"; it has {", ".join(entry) or "nothing"}')
        for name, value in entry.items():
            if name == "step" or value is None:
                continue
            if name not in self._all_state_names():
                raise ValueError(
                    f"{where}: {name!r} is unknown to this optimizer, which has {', '.join(self._all_state_names())}"
                )
            if tuple(np.shape(value)) != param.shape:
                raise ShapeError(
                    f"{where}: {name!r} has shape {tuple(np.shape(value))}, the parameter has {param.shape}"
                )

    def _all_state_names(self) -> tuple[str, ...]:
        """Names of what may be kept for a parameter: with every option switched on."""
        return self.state_names(dict.fromkeys(self.defaults, 1))

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__}("]
        for i, group in enumerate(self.param_groups):
            options = ", ".join(f"{k}={v!r}" for k, v in group.items() if k in self.defaults)
            n, size = len(group["params"]), sum(p.size for p in group["params"])
            tensors = f"{n} Tensor{'s' * (n > 1)}"
            lines.append(f"  {group.get('name', f'group {i}')}: {size:,} elements in {tensors}, {options}")
        return "\n".join([*lines, ")"])


class _Slot:
    """One parameter in a bucket.

    Attributes:
        data: the parameter's raw array when this was made, or when it was last followed.
        axes: the order of axes in which the memory is contiguous; None if that is the order they have.
        flat: the memory as a 1-D array; None if it is not contiguous in any order.
        start, stop: where its values are in the bucket's arrays of state.
        step: how many times it was updated.
        device_varies: whether arrays of this class may be on one device or another.
    """

    __slots__ = ("axes", "data", "device_varies", "flat", "name", "param", "start", "step", "stop")

    def __init__(self, param: Tensor, name: str, optimizer: str) -> None:
        self.param = param
        self.name = f"{optimizer}: parameter {name}"
        self.start = self.stop = self.step = 0
        self.data = param.data
        if not getattr(self.data.flags, "writeable", True):
            raise ValueError(f"{self.name}, of shape {self.data.shape}, is a read-only array; pass a copy to train on")
        self.axes = _memory_order(self.data)
        self.flat = self._flat()
        self.device_varies = param.device.type != "cpu"

    def _flat(self) -> Any:
        data = self.data if self.axes is None else self.data.transpose(self.axes)
        return data.reshape(-1) if data.flags.c_contiguous else None

    def follow(self) -> bool:
        """Take the array that the parameter has now; False if the state would have to move or change for it."""
        old, new = self.data, self.param.data
        if type(new) is not type(old) or new.shape != old.shape or new.dtype != old.dtype:
            return False
        if not self.param._backend().same_device([old, new]) or _memory_order(new) != self.axes:
            return False
        self.data = new
        self.flat = self._flat()
        return True

    def flatten(self, array: Any) -> Any:
        """The elements of an array of the parameter's shape, in the order that the state has."""
        array = array if self.axes is None else array.transpose(self.axes)
        if self.device_varies and not array.flags.c_contiguous:
            return reshape(array, shape=(-1,))  # the op, whose copy is a kernel
        return array.reshape(-1)

    def unflatten(self, flat: Any) -> Any:
        """The inverse of `flatten`: a view of `flat`."""
        shape = self.data.shape
        if self.axes is None:
            return flat.reshape(shape)
        inverse = sorted(range(len(shape)), key=self.axes.__getitem__)
        return flat.reshape([shape[a] for a in self.axes]).transpose(inverse)

    def scatter(self, flat: Any) -> None:
        """Write changed elements back to where the parameter's memory is not contiguous."""
        self.data[...] = self.unflatten(flat)

    def gradient(self, grad: Tensor) -> Any:
        """`grad`, flattened, after a check."""
        g, data = grad.data, self.data
        if g.shape != data.shape:
            raise GradientError(f"{self.name}: its shape is {data.shape}, but that of its gradient is {g.shape}")
        if g.dtype is not data.dtype and g.dtype != data.dtype:
            raise DTypeError(f"{self.name}, of shape {data.shape}, is {data.dtype}, but its gradient is {g.dtype}")
        if type(g) is not type(data) or (self.device_varies and not self.param._backend().same_device([data, g])):
            raise DeviceError(
                f"{self.name}, of shape {data.shape}, is on {self.param.device}, but its gradient is on {grad.device}"
            )
        return g.reshape(-1) if self.axes is None and not self.device_varies else self.flatten(g)


class _Run:
    """Parameters that are neighbours in a bucket and at the same step: one call of the update rule."""

    __slots__ = ("bucket", "grads", "group", "params", "slots", "start", "step", "stop")

    def __init__(self, bucket: _Bucket, group: dict[str, Any], start: int, step: int) -> None:
        self.bucket = bucket
        self.group = group
        self.start = self.stop = start
        self.step = step
        self.slots: list[_Slot] = []
        self.params: list[Any] = []
        self.grads: list[Any] = []


class _Cells:
    """Learning rate and count of steps of a run in the device's memory.

    Attributes:
        lr, step: 0-d arrays, of float64 and int64.
        known_lr, known_step: what they hold when all work that is queued is done.
        captured: whether a CUDA graph advances them.
    """

    __slots__ = ("captured", "known_lr", "known_step", "lr", "step")

    def __init__(self, xp: Any) -> None:
        self.lr, self.step = xp.zeros((), dtype=float64), xp.zeros((), dtype=int64)
        self.known_lr, self.known_step = 0.0, 0
        self.captured = False

    def write(self, lr: float, step: int) -> None:
        """Make them these."""
        if lr != self.known_lr:
            self.lr[...] = self.known_lr = lr
        if step != self.known_step:
            self.step[...] = self.known_step = step


class _Bucket:
    """The parameters of a group that have one dtype and are on one device, and their state.

    Attributes:
        slots: the parameters, smaller ones first, so that the update rule can take small ones together; but last those
            behind which the state of others would not lie at multiples of 16 bytes, as fast kernels want it.
        state: for each quantity, a 1-D array that holds the values of all parameters one after the other.
        cells: of optimizers that are `capturable`: learning rate and step for each run, by its start and stop.
    """

    def __init__(self, device: Device, slots: list[_Slot]) -> None:
        self.device = device
        self.slots = sorted(slots, key=lambda slot: (slot.data.size % 4 != 0, slot.data.size))
        self.size = 0
        for slot in self.slots:
            slot.start, slot.stop = self.size, self.size + slot.data.size
            self.size = slot.stop
        self.backend: Backend = backend_of_type(type(slots[0].data))
        self.dtype = accumulation_dtype(slots[0].data.dtype)
        self.state: dict[str, Any] = {}
        self.cells: dict[tuple[int, int], _Cells] = {}

    def capturing(self) -> bool:
        """Whether the device's work goes into a CUDA graph now."""
        if self.backend.launcher is None or self.backend.platform != "cuda":
            return False
        with self.backend.on(self.device):
            return self.backend.launcher("optimizer").capturing()

    def before_replay(self, group: Mapping[str, Any]) -> None:
        """See `Optimizer`. Of the runs that were captured."""
        for (start, stop), cells in self.cells.items():
            if cells.captured:
                slots = [slot for slot in self.slots if start <= slot.start and slot.stop <= stop]
                with self.backend.on(self.device):
                    cells.write(group["lr"], slots[-1].step)
                cells.known_step += 1
                for slot in slots:
                    slot.step = cells.known_step

    def add(self, name: str, value: float) -> None:
        with self.backend.on(self.device):
            self.state[name] = self.backend.xp.full(self.size, value, dtype=self.dtype)

    def fill(self, name: str, value: float) -> None:
        self.state[name][...] = value

    def get(self, name: str, slot: _Slot) -> Tensor:
        """The state of one parameter: a Tensor of its shape, in the bucket's memory."""
        return Tensor._wrap(slot.unflatten(self.state[name][slot.start : slot.stop]))

    def put(self, name: str, slot: _Slot, value: Tensor) -> None:
        """Overwrite the state of one parameter."""
        here = value.detach().to_device(self.device).data
        slot.unflatten(self.state[name][slot.start : slot.stop])[...] = here

    def part(self, start: int, stop: int) -> dict[str, Any]:
        """The state of neighbouring parameters."""
        if stop - start == self.size:
            return self.state
        return {name: array[start:stop] for name, array in self.state.items()}

    def collect(self, runs: list[_Run], group: dict[str, Any]) -> None:
        """Add to `runs` the parameters that have a gradient."""
        run = None
        for slot in self.slots:
            node = slot.param._node
            if node is None or node.grad is None:
                run = None
                continue
            if run is None or run.step != slot.step + 1:
                run = _Run(self, group, slot.start, slot.step + 1)
                runs.append(run)
                slots, params, grads = run.slots, run.params, run.grads
            slots.append(slot)
            grads.append(slot.gradient(node.grad))
            params.append(slot.flatten(slot.data) if slot.flat is None else slot.flat)
            run.stop = slot.stop


def _memory_order(array: Any) -> tuple[int, ...] | None:
    """The order of axes in which the memory is contiguous; None if it is the order that they have, or there is none."""
    if array.flags.c_contiguous:
        return None
    strides = array.strides
    axes = tuple(sorted(range(array.ndim), key=lambda a: -strides[a]))
    return axes if array.transpose(axes).flags.c_contiguous else None


def _brief(value: Any) -> str:
    """A value for an error message."""
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) < 60 else text[:57] + '...'}"


def apply(rule: Op, params: list[Any], *arrays: Any, **numbers: Any) -> None:
    """Call an update rule of gpunet.ops.optimizer on lists of raw arrays."""
    rule.implementation(type(params[0]))(params, *arrays, **numbers)


def require(condition: bool, name: str, value: Any, expected: str) -> None:
    """Raise ValueError unless the option `name` is as expected."""
    if not condition:
        raise ValueError(f"{name} must be {expected}, got {value!r}")


def require_nonnegative(options: Mapping[str, Any], *names: str) -> None:
    """Raise unless the options are numbers of at least 0."""
    for name in names:
        value = options[name]
        valid = isinstance(value, (int, float, np.number)) and bool(value >= 0)
        require(valid, name, value, "a number of at least 0")
