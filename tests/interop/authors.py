"""The authors' code (PyPI sinq), as loader and as quantizer; from build/sinq-package or an installed package."""

import importlib.util
import json
import os
import pathlib
import sys
import types

import torch

import native

PACKAGE = pathlib.Path(__file__).resolve().parents[2] / "build" / "sinq-package"


def import_sinq(path=None):
    """(AutoSINQHFModel, SINQLinear, Quantizer)"""
    path = path or os.environ.get("SINQ_CHECKOUT") or (str(PACKAGE) if PACKAGE.is_dir() else None)
    if path and path not in sys.path:
        sys.path.insert(0, path)
    if "datasets" not in sys.modules and importlib.util.find_spec("datasets") is None:
        # Imported at the top of sinq/awq.py, for calibration text only.
        sys.modules["datasets"] = types.ModuleType("datasets")
        sys.modules["datasets"].load_dataset = None
    torch.cuda.empty_cache = lambda: None
    from sinq.patch_model import AutoSINQHFModel
    from sinq.quantizer import Quantizer
    from sinq.sinqlinear import SINQLinear

    return AutoSINQHFModel, SINQLinear, Quantizer


def load(directory, dtype=torch.float32, path=None):
    """The model as the authors' loader opens it, computing in `dtype`."""
    auto, linear, _ = import_sinq(path)
    sidecar = json.loads((pathlib.Path(directory) / native.SIDECAR).read_text())
    model = auto.from_quantized_safetensors(str(directory), compute_dtype=dtype, device="cpu")
    layers = [m for m in model.modules() if isinstance(m, linear)]
    for layer in layers:
        layer.meta["compute_dtype"] = dtype  # dequantize() casts to the dtype that the sidecar names
    if len(layers) != len(sidecar):
        raise AssertionError(f"{len(layers)} quantized layers were opened, the sidecar has {len(sidecar)}")
    return model.eval()


def method_name(symmetric, aux, base="sinq"):
    return base + ("_noz" if symmetric else "") + ("_quantAux" if aux == "u8" else "")


def quantize_dense(source, modules, bits=4, group_size=64, symmetric=False, aux="u8", half=False, base="sinq"):
    """`source` with the named modules quantized and dequantized by the authors' code: {name: F32 array}.

    base: "sinq", "hqq", "sinq_hqq", or "rtn", which their code takes for anything without "sinq" and "hqq".

    half: the path that the authors' models take (W, scales and zeros in F16); otherwise their F32 path, which
    exists only when the device is the string "cpu".
    """
    _, _, quantizer = import_sinq()
    tensors = native.read_checkpoint(source)
    dense = {n: native.as_float32(d, a) for n, (d, a) in tensors.items()}
    device = torch.device("cpu") if half else "cpu"
    for module in modules:
        weight = torch.from_numpy(dense[f"{module}.weight"])
        if tensors[f"{module}.weight"][0] == "BF16":
            weight = weight.to(torch.bfloat16)
        packed, meta = quantizer.quantize(
            weight,
            None,
            nbits=bits,
            group_size=group_size,
            axis=1,
            compute_dtype=torch.float32,
            device=device,
            method=method_name(symmetric, aux, base),
        )
        dense[f"{module}.weight"] = quantizer.dequantize(packed, meta).float().numpy()
    return dense


def save_native(source, out, bits=4, group_size=64, symmetric=False, aux="u8"):
    """A native checkpoint by the authors' quantizer, written by hand: a stand-in for our server's output."""
    _, _, quantizer = import_sinq()
    tensors = native.read_checkpoint(source)
    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    stored, sidecar = {}, {}
    for name, (dtype, array) in tensors.items():
        if not name.endswith("_proj.weight"):
            stored[name] = (dtype, array)
            continue
        module, method = name.removesuffix(".weight"), method_name(symmetric, aux)
        weight = torch.from_numpy(native.as_float32(dtype, array))
        packed, meta = quantizer.quantize(
            weight,
            None,
            nbits=bits,
            group_size=group_size,
            axis=1,
            compute_dtype=torch.float32,
            device=torch.device("cpu"),
            method=method,
        )
        stored[f"{module}.W_q"] = ("I32" if packed.dtype == torch.int32 else "U8", packed.numpy())
        entry = {
            "nbits": bits,
            "group_size": group_size,
            "shape": list(weight.shape),
            "awq_scale": None,
            "axis": 1,
            "packing": None if bits == 8 else meta["packing"],
            "method": method,
            "compute_dtype": "torch.float32",
            "unpack_view_dtype": str(meta["unpack_view_dtype"]),
            "view_as_float": False,
        }
        stored[f"{module}.meta.scale2"] = ("F16", meta["scale2"].half().numpy().reshape(1, -1))
        for part in ("scale", "zero"):
            value = meta[part]
            if isinstance(value, tuple) and value[0].numel() > 1:
                stored[f"{module}.meta.{part}.x"] = ("U8", value[0].numpy())
                stored[f"{module}.meta.{part}.s"] = ("F16", value[1].half().numpy())
                stored[f"{module}.meta.{part}.m"] = ("F16", value[2].half().numpy())
                entry[f"{part}.shape"] = list(value[3])
            else:
                value = value[2].reshape(()) if isinstance(value, tuple) else value
                stored[f"{module}.meta.{part}"] = ("F16", value.half().numpy())
        sidecar[module] = {"meta": entry}
    stored["model.rotary_emb.sinq_pad"] = ("U8", native.np.zeros(1, native.np.uint8))
    shard = "model-00001-of-00001.safetensors"
    native.write_safetensors(out / shard, stored)
    total = sum(a.nbytes for _, a in stored.values())
    index = {"metadata": {"total_size": total}, "weight_map": {n: shard for n in stored}}
    (out / native.INDEX).write_text(json.dumps(index))
    (out / native.SIDECAR).write_text(json.dumps(sidecar))
    (out / "config.json").write_bytes((pathlib.Path(source) / "config.json").read_bytes())
