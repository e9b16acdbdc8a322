"""Load a causal LM: find its files, refuse what cannot be served exactly, and describe what was loaded."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from semcache.daemon.engine.attention import ATTENTION_NAME, register_attention
from semcache.daemon.engine.fingerprint import model_fingerprint
from semcache.daemon.engine.forward import Forward, ModuleForward
from semcache.daemon.engine.kv import SlotPool
from semcache.daemon.engine.llama import WRITTEN_OUT, LlamaForward, is_llama_like
from semcache.daemon.engine.memory import free_bytes
from semcache.daemon.engine.packed import MISFITS, PLAIN, choose_products, held_bytes, pack
from semcache.daemon.engine.servable import Probe, probe, self_check, served_context
from semcache.daemon.engine.source import Progress, find_model_folder, one_line, read_config, weight_files
from semcache.daemon.engine.tokenizer import Tokenizer, load_tokenizer
from semcache.errors import ModelLoadError

log = logging.getLogger("semcache.engine")

_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


@dataclass(frozen=True)
class ModelInfo:
    """Facts about the loaded model; `fingerprint` keys everything that is stored for it."""

    name: str
    folder_id: str  # file-name safe: `kv/<folder_id>/`
    architecture: str
    num_parameters: int
    num_layers: int
    num_kv_heads: int
    key_dim: int
    value_dim: int
    vocab_size: int
    context_tokens: int
    device: str
    dtype: str
    fingerprint: str
    kv_bytes_per_token: int
    weights_bytes: int  # in memory, in all layouts
    eos_token_ids: tuple[int, ...]
    pad_token_id: int
    products: str = PLAIN  # how weights are multiplied, see `choose_products`
    forward: str = "modules"  # whose code computes it: the model's modules, or ours


@dataclass(frozen=True)
class LoadedModel:
    """A model that has passed every check, with its tokenizer."""

    forward: Forward
    tokenizer: Tokenizer
    info: ModelInfo

    @property
    def model(self) -> PreTrainedModel:
        """The modules that hold its weights."""
        return self.forward.model


def load_model(
    name: str, *, device: str, dtype: str, max_context_tokens: int | None, progress: Progress
) -> LoadedModel:
    """Load `name` (built-in, folder or hub id); every failure is a ModelLoadError that says what to do.

    `device` and `dtype` may be "auto". CUDA is a setting that has not run on a card yet.
    """
    register_attention()
    device = _resolve_device(device)
    dtype = _resolve_dtype(dtype, device)
    folder = find_model_folder(name, progress)
    try:
        config = _load_config(folder)
        text_config = config.get_text_config(decoder=True)
        context_tokens = served_context(text_config, max_context_tokens)
        tokenizer = load_tokenizer(folder)
        model = _load_weights(folder, config, device, dtype, progress)
        progress("checking the model", None)
        stock = probe(model, text_config.vocab_size, context_tokens)
        info = _describe(
            name, folder, model, tokenizer, stock, context_tokens=context_tokens, device=device, dtype=dtype
        )
        forward, info = prepare(model, info, stock)
    except ModelLoadError as error:
        raise ModelLoadError(f"model {name} cannot be served: {error.message}") from error
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise ModelLoadError(f"model {name} cannot be served: a trial run failed with {reason}") from error
    return LoadedModel(forward, tokenizer, info)


def prepare(model: PreTrainedModel, info: ModelInfo, stock: Probe) -> tuple[Forward, ModelInfo]:
    """Make the model fast and prove it against what it computed before; raises ModelLoadError where it differs."""
    pool = SlotPool(info, num_slots=2, capacity_tokens=len(stock.tokens))
    forward: Forward = ModuleForward(model)
    pack(model, info.products, lambda: self_check(forward, pool, stock))
    info = replace(info, weights_bytes=held_bytes(model))
    if is_llama_like(model):
        written_out = LlamaForward(model)
        try:
            self_check(written_out, pool, stock)
        except MISFITS as error:
            log.warning("the model's own modules serve it, which are slower: %s", error)
        else:
            return written_out, replace(info, forward=WRITTEN_OUT)
    return forward, info


def _resolve_device(device: str) -> str:
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ModelLoadError(f"model.device = {device!r} is not a device; use auto, cpu or cuda") from error
    if kind not in ("cpu", "cuda"):
        raise ModelLoadError(f"model.device = {device!r} is not supported; use auto, cpu or cuda")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ModelLoadError(f"model.device = {device!r}, but torch sees no CUDA device; use auto or cpu")
    return device


def _resolve_dtype(dtype: str, device: str) -> str:
    if dtype == "auto":
        return "bfloat16" if torch.device(device).type == "cuda" else "float32"
    dtype = _DTYPES.get(dtype, dtype)
    if dtype not in _DTYPES.values():
        raise ModelLoadError(f"model.dtype = {dtype!r} is not supported; use auto, float32, bfloat16 or float16")
    return dtype


def _load_config(folder: Path) -> PretrainedConfig:
    raw = read_config(folder)
    kind = raw.get("model_type")
    if kind not in transformers.CONFIG_MAPPING:
        if "auto_map" in raw:
            raise ModelLoadError("it needs Python code of its own (auto_map), which semcache never runs")
        raise ModelLoadError(f"transformers {transformers.__version__} does not know its architecture {kind!r}")
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, TypeError, KeyError, OSError, StrictDataclassError) as error:
        raise ModelLoadError(f"its config.json is not valid: {one_line(error)}") from error
    if type(config) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING and not getattr(
        config, "is_encoder_decoder", False
    ):
        raise ModelLoadError(f"its architecture {kind!r} is not a causal language model")
    model_class = transformers.MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if model_class is not None and not model_class._can_set_attn_implementation():
        raise ModelLoadError(f"the code of {kind!r} has an attention of its own that cannot be replaced by KV slots")
    return config


def _load_weights(
    folder: Path, config: PretrainedConfig, device: str, dtype: str, progress: Progress
) -> PreTrainedModel:
    weights_bytes = sum(path.stat().st_size for path in weight_files(folder))
    progress(f"loading {weights_bytes / 2**30:.2f} GiB of weights", None)
    transformers.utils.logging.disable_progress_bar()
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=getattr(torch, dtype),
            attn_implementation=ATTENTION_NAME,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported, and refused below with our own sentence
        )
        _refuse_incomplete(report)
        return model.to(device).eval().requires_grad_(False)
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _out_of_memory(weights_bytes, device) from error
    except (RuntimeError, ValueError, OSError, KeyError, ImportError, SafetensorError) as error:
        if "allocate memory" in str(error):
            raise _out_of_memory(weights_bytes, device) from error
        raise ModelLoadError(f"its weights cannot be loaded: {one_line(error)}") from error


def _refuse_incomplete(report: dict[str, Any]) -> None:
    """Weights absent from the files would be random numbers."""
    for problem in ("missing_keys", "mismatched_keys"):
        names = sorted(str(key[0] if isinstance(key, tuple) else key) for key in report.get(problem) or ())
        if names:
            raise ModelLoadError(f"its files have {len(names)} {problem.replace('_', ' ')}, the first is {names[0]}")


def _out_of_memory(weights_bytes: int, device: str) -> ModelLoadError:
    return ModelLoadError(
        f"its {weights_bytes / 2**30:.1f} GiB of weights do not fit into the {free_bytes(device) / 2**30:.1f} GiB "
        f"free on {device}; choose a smaller model or model.dtype = bfloat16"
    )


def _describe(
    name: str,
    folder: Path,
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    stock: Probe,
    *,
    context_tokens: int,
    device: str,
    dtype: str,
) -> ModelInfo:
    fingerprint = model_fingerprint(folder, dtype)
    parameters = list(model.parameters())
    weights_bytes = sum(parameter.nbytes for parameter in parameters)
    eos_token_ids = _eos_token_ids(model, tokenizer)
    pad_token_id = tokenizer.pad_token_id
    return ModelInfo(
        name=name,
        folder_id=f"{re.sub(r'[^A-Za-z0-9._-]+', '-', folder_label(name)).strip('.-')}-{fingerprint[:12]}",
        architecture=type(model).__name__,
        num_parameters=sum(parameter.numel() for parameter in parameters),
        num_layers=stock.num_layers,
        num_kv_heads=stock.num_kv_heads,
        key_dim=stock.key_dim,
        value_dim=stock.value_dim,
        vocab_size=stock.logits.shape[-1],
        context_tokens=context_tokens,
        device=device,
        dtype=dtype,
        fingerprint=fingerprint,
        kv_bytes_per_token=stock.num_layers
        * stock.num_kv_heads
        * (stock.key_dim + stock.value_dim)
        * getattr(torch, dtype).itemsize,
        weights_bytes=weights_bytes,
        eos_token_ids=eos_token_ids,
        pad_token_id=pad_token_id if pad_token_id is not None else (eos_token_ids or (0,))[0],
        products=choose_products(device, dtype, weights_bytes),
    )


def folder_label(name: str) -> str:
    """The readable part of a folder id: a hub id as it is, the last part of a path."""
    return Path(name).name if Path(name).expanduser().exists() else name


def _eos_token_ids(model: PreTrainedModel, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Every token that ends an answer, as the generation config and the tokenizer say."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    several = configured if isinstance(configured, list) else [configured]
    return tuple(sorted({int(token) for token in (*several, tokenizer.eos_token_id) if token is not None}))
