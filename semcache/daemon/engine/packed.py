"""Faster products on the CPU: weights in the layout that oneDNN multiplies in, sibling products in one.

Knows modules and not architectures: what it replaces is found by running the model once, and a check decides whether
the result stays. Nothing here changes what is computed, only in which order it is summed up.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from semcache.daemon.engine.machine import INTEL, memory_bytes, processor_vendor
from semcache.daemon.engine.servable import stock_attention
from semcache.errors import ModelLoadError

log = logging.getLogger("semcache.engine")

PACKED_VERSION = 3  # part of the numerics key: raise it whenever the products below are summed up differently
PLAIN = "plain"
PACKED = f"packed{PACKED_VERSION}"
BOTH = f"both{PACKED_VERSION}"
SPLIT = f"split{PACKED_VERSION}"
_MAX_SHARE_FOR_BOTH = 1 / 16  # of the machine's memory, for the second copy
_LAYOUT_ROWS = 128  # oneDNN chooses the layout for a number of rows; this one is also the faster one for 8 rows
# What a model may raise that asks a product for what only nn.Linear has.
MISFITS = (ModelLoadError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


class FewRows:
    """Products of a few rows with weights that are kept plain beside the packed ones.

    On Intel processors, in float32, MKL is 1.2 to 2 times as fast as oneDNN for 1 to 3 rows, and oneDNN 1.1 to 2.9
    times as fast for 4 to 64 (sizes of 135M to 1B).
    """

    max_rows = 3

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight  # [out, in]

    def __call__(self, states: Tensor) -> Tensor:
        """[rows, out] of states [rows, in]."""
        return F.linear(states, self.weight)


class SplitRows(FewRows):
    """A piece of the weights for each thread, in one batched product, so that MKL takes each piece as its own.

    On AMD processors, in float32, that reads 24 to 36 GB/s for one row and 20 to 30 for two, where one product of all
    threads reads 8 to 14 and oneDNN's 12 to 21; from the third row on oneDNN is as fast (sizes of 135M, two cores).
    """

    max_rows = 2

    def __init__(self, weight: Tensor) -> None:
        self._num_out, num_in = weight.shape
        pieces = torch.get_num_threads()
        missing = -self._num_out % pieces
        super().__init__(F.pad(weight, (0, 0, 0, missing)) if missing else weight)
        self._pieces = self.weight.view(pieces, -1, num_in)

    def __call__(self, states: Tensor) -> Tensor:
        num_rows, num_in = states.shape
        # Strides and not `t()`: MKL takes four times as long for columns side by side, and what is one row or one
        # column as well counts as either.
        columns = states.contiguous().as_strided((len(self._pieces), num_in, num_rows), (0, 1, num_in))
        output = torch.bmm(self._pieces, columns)
        return output.view(-1, num_rows)[: self._num_out].t().contiguous()


_FEW_ROWS: dict[str, type[FewRows]] = {BOTH: FewRows, SPLIT: SplitRows}


class PackedLinear(nn.Module):
    """The product of one nn.Linear, or of several with the same input, one below the other."""

    def __init__(self, linears: Sequence[nn.Linear], products: str) -> None:
        super().__init__()
        self.sizes = [linear.out_features for linear in linears]
        weights = [linear.weight.detach() for linear in linears]
        biases = [linear.bias.detach() for linear in linears if linear.bias is not None]
        joined = torch.cat(weights) if len(weights) > 1 else weights[0]
        # Attributes and no parameters: the packed one is opaque, and nobody is to count the plain one twice.
        self._packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(joined, _LAYOUT_ROWS)
        self._few = _FEW_ROWS[products](joined) if products in _FEW_ROWS else None
        self._bias = torch.cat(biases) if biases else None

    def forward(self, states: Tensor) -> Tensor:
        if (output := self._of_few(states)) is not None:
            return output
        product: Tensor = torch.ops.mkldnn._linear_pointwise(states, self._packed, self._bias, "none", [], "")
        return product

    def added(self, states: Tensor, residual: Tensor) -> Tensor:
        """The product with `residual` added, both [rows, out]."""
        if (output := self._of_few(states)) is not None:
            return output.add_(residual)
        joined: Tensor = torch.ops.mkldnn._linear_pointwise.binary(states, residual, self._packed, self._bias, "add")
        return joined

    def _of_few(self, states: Tensor) -> Tensor | None:
        """The product where plain weights serve so few rows."""
        few, num_in = self._few, states.shape[-1]
        if few is None or states.numel() > few.max_rows * num_in:
            return None
        output = few(states.reshape(-1, num_in)).reshape(*states.shape[:-1], -1)
        return output if self._bias is None else output + self._bias

    def extra_repr(self) -> str:
        return f"{self.sizes}, {self._packed.dtype}, bias={self._bias is not None}"

    def kept(self) -> list[Tensor]:
        """The tensors that it holds."""
        plain = self._few.weight if self._few is not None else None
        return [tensor for tensor in (self._packed, plain, self._bias) if tensor is not None]

    def unpacked(self) -> list[nn.Linear]:
        """The modules it was made of, with the same bits."""
        weights = torch.split(self._packed.to_dense(), self.sizes)
        biases = [None] * len(self.sizes) if self._bias is None else torch.split(self._bias, self.sizes)
        return [_linear(weight, bias) for weight, bias in zip(weights, biases, strict=True)]


class SharedProduct:
    """One product for modules that are called with the very same tensor; the first call computes it for all."""

    def __init__(self, product: PackedLinear) -> None:
        self.product = product
        self._last = len(product.sizes) - 1
        self._states: Tensor | None = None
        self._outputs: tuple[Tensor, ...] = ()

    def output(self, index: int, states: Tensor) -> Tensor:
        """What module `index` gives for `states`; a call out of order costs another product and changes nothing."""
        if self._states is not states:
            self._states, self._outputs = states, torch.split(self.product.forward(states), self.product.sizes, dim=-1)
        output = self._outputs[index]
        if index == self._last:
            self._states, self._outputs = None, ()
        return output


class LinearShare(nn.Module):
    """Stands where one of the modules of a `SharedProduct` stood."""

    def __init__(self, shared: SharedProduct, index: int) -> None:
        super().__init__()
        self._shared = shared
        self._index = index

    @property
    def product(self) -> PackedLinear:
        return self._shared.product

    @property
    def index(self) -> int:
        return self._index

    def forward(self, states: Tensor) -> Tensor:
        return self._shared.output(self._index, states)

    def extra_repr(self) -> str:
        return f"{self._index} of {self.product.extra_repr()}"

    def unpacked(self) -> nn.Linear:
        """The module it was made of, with the same bits."""
        return self.product.unpacked()[self._index]


def choose_products(device: str, dtype: str, weights_bytes: int) -> str:
    """PLAIN, PACKED, or with plain weights beside the packed ones BOTH or SPLIT, for a model on this machine.

    It is part of the numerics key, so it follows from what the machine is and not from what is free or fast just now.
    """
    vendor = processor_vendor()
    if torch.device(device).type != "cpu" or vendor is None or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return PLAIN
    if dtype == "bfloat16":
        return PACKED if torch.ops.mkldnn._is_mkldnn_bf16_supported() else PLAIN
    if dtype != "float32":
        return PLAIN
    has_room = weights_bytes <= memory_bytes() * _MAX_SHARE_FOR_BOTH
    if vendor == INTEL:
        return BOTH if has_room else PLAIN
    return SPLIT if has_room else PACKED  # MKL takes its fast paths on Intel's processors only


def pack(model: PreTrainedModel, products: str, check: Callable[[], None]) -> None:
    """Replace the model's products by faster ones as far as `check` accepts them; raises what it says of the model.

    Takes the memory of one group of modules on top of what stays.
    """
    groups = _siblings(model) if products != PLAIN else []
    single = [[name] for group in groups for name in group]
    for chosen in (groups, single):
        if not chosen:
            continue
        started = time.perf_counter()
        _replace(model, chosen, products)
        seconds = time.perf_counter() - started
        try:
            check()
        except MISFITS as error:
            log.debug("%d packed products do not fit this model: %s", len(chosen), error)
            _restore(model)
        else:
            log.info("packed %d weights into %d products in %.2f s", len(single), len(chosen), seconds)
            return
    check()


def shared_product(modules: Sequence[nn.Module]) -> PackedLinear | None:
    """The product whose parts are exactly these modules, in this order; None where there is none."""
    shares = [module for module in modules if isinstance(module, LinearShare)]
    product = shares[0].product if shares else None
    is_whole = product is not None and len(shares) == len(modules) == len(product.sizes)
    is_in_order = all(share.product is product and share.index == i for i, share in enumerate(shares))
    return product if is_whole and is_in_order else None


def held_bytes(model: PreTrainedModel) -> int:
    """Memory of all weights in whatever layouts they are kept; what several modules share counts once."""
    tensors = {parameter.data_ptr(): parameter.nbytes for parameter in model.parameters()}
    for module in model.modules():
        product = module.product if isinstance(module, LinearShare) else module
        if isinstance(product, PackedLinear):
            for kept in product.kept():
                # An opaque tensor has no address; it belongs to one product only.
                tensors[id(kept) if kept.is_mkldnn else kept.data_ptr()] = kept.numel() * kept.element_size()
    return sum(tensors.values())


def _siblings(model: PreTrainedModel) -> list[list[str]]:
    """Names of the modules to replace; those that one forward calls with the same tensor are in one group."""
    owners = Counter(id(tensor) for module in model.modules() for tensor in module.parameters(recurse=False))
    head = model.get_output_embeddings()  # may share its weight with the input embeddings, which keep it
    names = {
        module: name
        for name, module in model.named_modules()
        if type(module) is nn.Linear and (owners[id(module.weight)] == 1 or module is head)
    }
    calls: list[tuple[nn.Linear, Tensor]] = []  # the tensors are kept: an identity is unique only among the living

    def note(module: nn.Linear, args: tuple[Tensor, ...]) -> None:
        calls.extend((module, states) for states in args)

    hooks = [module.register_forward_pre_hook(note) for module in names]
    with torch.inference_mode(), stock_attention(model, "eager"):
        model(input_ids=torch.zeros(1, 2, dtype=torch.long, device=model.device), use_cache=False)
    for hook in hooks:
        hook.remove()
    num_calls = Counter(module for module, _ in calls)
    groups: list[list[nn.Linear]] = []
    previous: Tensor | None = None
    for module, states in calls:
        if num_calls[module] > 1:
            previous = None
        elif states is previous and _fits(groups[-1][0], module, names):
            groups[-1].append(module)
        else:
            groups.append([module])
            previous = states
    grouped = {module for group in groups for module in group}
    return [
        *([names[m] for m in group] for group in groups),
        *([name] for m, name in names.items() if m not in grouped),
    ]


def _fits(first: nn.Linear, other: nn.Linear, names: dict[nn.Linear, str]) -> bool:
    is_sibling = names[first].rpartition(".")[0] == names[other].rpartition(".")[0]
    return is_sibling and (first.bias is None) == (other.bias is None)


def _replace(model: PreTrainedModel, groups: list[list[str]], products: str) -> None:
    for group in groups:
        linears = [model.get_submodule(name) for name in group]
        product = PackedLinear([module for module in linears if isinstance(module, nn.Linear)], products)
        del linears  # else the weights of this group would live on while the next is packed
        shared = SharedProduct(product)
        for index, name in enumerate(group):
            model.set_submodule(name, LinearShare(shared, index) if len(group) > 1 else product)


def _restore(model: PreTrainedModel) -> None:
    """Plain modules again in place of the packed ones."""
    for name, module in list(model.named_modules()):
        if isinstance(module, PackedLinear):
            model.set_submodule(name, *module.unpacked())
        elif isinstance(module, LinearShare):
            model.set_submodule(name, module.unpacked())
    model.tie_weights()


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    with torch.device("meta"):
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias, requires_grad=False)
    return linear.eval()
