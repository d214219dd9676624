#!/usr/bin/env python3
"""Check, time and use a qdeploy bundle with nothing but Python, numpy and onnxruntime.

    python run.py selftest             does this machine give the answers that the bundle was built with?
    python run.py bench --threads 1    how fast is it here?
    python run.py predict image.png    what does it say?

This one file is both qdeploy's own runner (qdeploy/runner.py) and the run.py that lies in every bundle, byte for
byte. It imports nothing of qdeploy, so it can be copied to any device. qdeploy never executes the copy in a bundle.
"""

from __future__ import annotations

import argparse
import difflib
import gc
import hashlib
import io
import json
import math
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any

try:
    import numpy as np
    import onnxruntime as ort
    from onnxruntime.capi import onnxruntime_pybind11_state as _ort_state
except ImportError as _missing:
    if __name__ != "__main__":
        raise
    print(f"error: {_missing}. Install what this needs: pip install numpy onnxruntime", file=sys.stderr)
    sys.exit(2)

SCHEMA = "qdeploy.bundle/1"
# Larger members are refused before a byte of them is read. protobuf itself cannot hold a model of more than 2 GiB.
MEMBER_LIMITS = {"manifest.json": 16 << 20, "model.onnx": 2 << 30, "golden.npz": 512 << 20}
OTHER_MEMBER_LIMIT = 16 << 20
THREAD_LIMIT = 256  # or as many as there are cores
# onnxruntime's exceptions have no base class of their own.
ORT_ERRORS = tuple(e for e in vars(_ort_state).values() if isinstance(e, type) and issubclass(e, Exception))


class RunnerError(Exception):
    """What is wrong and where (``message``), and what to do about it (``hint``)."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


# ---------------------------------------------------------------------------------------------- environment record

# fmt: off
# The flags that decide which integer kernels run, by the names that Linux gives them.
ISA_FLAGS = (
    "sse4_1", "avx", "avx2", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16",
    "amx_int8", "amx_bf16", "neon", "asimd", "asimddp", "i8mm", "sve", "bf16",
)
MACOS_FLAGS = {  # "sysctl hw.optional.X" -> flag
    "sse4_1": "sse4_1", "avx1_0": "avx", "avx2_0": "avx2", "avx512f": "avx512f", "avx512bw": "avx512bw",
    "avx512vnni": "avx512_vnni", "neon": "asimd", "AdvSIMD": "asimd", "arm.FEAT_DotProd": "asimddp",
    "arm.FEAT_I8MM": "i8mm", "arm.FEAT_BF16": "bf16",
}
ARM_PARTS = {
    "0xd03": "Cortex-A53", "0xd04": "Cortex-A35", "0xd05": "Cortex-A55", "0xd07": "Cortex-A57", "0xd08": "Cortex-A72",
    "0xd09": "Cortex-A73", "0xd0a": "Cortex-A75", "0xd0b": "Cortex-A76", "0xd0c": "Neoverse-N1", "0xd40": "Neoverse-V1",
    "0xd41": "Cortex-A78", "0xd44": "Cortex-X1", "0xd46": "Cortex-A510", "0xd49": "Neoverse-N2", "0xd4f": "Neoverse-V2",
}
# fmt: on


def environment() -> dict[str, Any]:
    """The machine and software that a measurement is made with: the fields of qdeploy.core.records.Environment."""
    name, flags = cpu_name_and_flags()
    allowed, reason = allowed_cores()
    return {
        "cpu": name,
        "architecture": platform.machine(),
        "isa": [flag for flag in ISA_FLAGS if flag in flags],
        "cores_present": os.cpu_count() or 1,
        "cores_allowed": allowed,
        "cores_reason": reason,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0,
        "governor": _read_text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").strip() or None,
        "emulator": emulator(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "onnxruntime": ort.__version__,
        "numpy": np.__version__,
    }


def cpu_name_and_flags() -> tuple[str, set[str]]:
    """The CPU's name and the instruction sets that it reports, by Linux's names; none where they cannot be known."""
    machine = platform.machine()
    if sys.platform == "darwin":
        optional = {key.removeprefix("hw.optional."): value for key, value in _sysctl("hw.optional").items()}
        flags = {flag for key, flag in MACOS_FLAGS.items() if optional.get(key) == "1"}
        return _sysctl("machdep.cpu.brand_string").get("machdep.cpu.brand_string", machine), flags
    text = _read_text("/proc/cpuinfo")
    name, flags = parse_cpuinfo(text)
    if emulator() and "\nflags\t" in text:
        flags = set()  # qemu-user shows the host's /proc/cpuinfo to an x86 program: not what it emulates
    return name or platform.processor() or machine, flags


def parse_cpuinfo(text: str) -> tuple[str, set[str]]:
    """The CPU's name and flags from the text of /proc/cpuinfo (x86 "flags", ARM "Features")."""
    fields: dict[str, list[str]] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            fields.setdefault(key.strip(), []).append(value.strip())
    flags = set((fields.get("flags") or fields.get("Features") or [""])[0].split())
    parts = sorted({ARM_PARTS.get(part, f"ARM part {part}") for part in fields.get("CPU part", [])})
    board, cores = (fields.get("Model") or [""])[0], " + ".join(parts)
    if board and cores:
        return f"{board} ({cores})", flags
    return (fields.get("model name") or [cores or board])[0], flags


def emulator() -> str | None:
    """What emulates this CPU ("qemu", "rosetta", or what QDEPLOY_EMULATOR says); None on a real one."""
    if os.environ.get("QDEPLOY_EMULATOR"):
        return os.environ["QDEPLOY_EMULATOR"]
    if sys.platform == "darwin":
        return "rosetta" if _sysctl("sysctl.proc_translated").get("sysctl.proc_translated") == "1" else None
    # qemu-user forges /proc/self/exe and /proc/self/maps, but not the same files below /proc/thread-self.
    try:
        if Path("/proc/thread-self/exe").readlink().name.startswith("qemu-"):
            return "qemu"
    except OSError:
        pass
    cpuinfo = _read_text("/proc/cpuinfo")
    foreign = platform.machine() in ("aarch64", "armv7l", "arm64") and "\nflags\t" in cpuinfo
    return "qemu" if foreign or "QEMU TCG" in cpuinfo else None


def _sysctl(name: str) -> dict[str, str]:
    result = subprocess.run(["/usr/sbin/sysctl", name], capture_output=True, text=True, check=False)
    pairs = (line.partition(":") for line in result.stdout.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _read_text(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


# --------------------------------------------------------------------------------------------------- allowed cores


def allowed_cores() -> tuple[int, str]:
    """How many cores this process may use, and what says so.

    onnxruntime's own default looks at the whole machine; more threads than allowed cores make a model many times
    slower, not faster.
    """
    limits = [(os.cpu_count() or 1, "all cores")]
    if hasattr(os, "sched_getaffinity"):
        limits.append((len(os.sched_getaffinity(0)), "affinity mask"))
    quota = cgroup_quota()
    if quota is not None:
        limits.append((max(1, math.ceil(quota)), "cgroup quota"))
    slurm = os.environ.get("SLURM_CPUS_PER_TASK", "")
    if slurm.isdigit() and int(slurm) > 0:
        limits.append((int(slurm), "SLURM_CPUS_PER_TASK"))
    return min(limits, key=lambda limit: limit[0])


def cgroup_quota(membership: str = "/proc/self/cgroup", mount: str = "/sys/fs/cgroup") -> float | None:
    """The CPU quota of this process's cgroup and of those above it, in cores; None when there is none."""
    quotas = []
    for line in _read_text(membership).splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        inner = PurePosixPath(path.lstrip("/"))
        if controllers == "":
            roots, read = [Path(mount), Path(mount, "unified")], _quota_v2
        elif "cpu" in controllers.split(","):
            roots, read = [Path(mount, controllers), Path(mount, "cpu")], _quota_v1
        else:
            continue
        # In a container the path is often the host's and does not exist here; the mount's own root always does.
        quotas += [read(root / folder) for root in roots for folder in (inner, *inner.parents)]
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota_v2(folder: Path) -> float | None:
    fields = _read_text(folder / "cpu.max").split()
    return int(fields[0]) / int(fields[1]) if len(fields) == 2 and fields[0] != "max" else None


def _quota_v1(folder: Path) -> float | None:
    quota, period = (_read_text(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period"))
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) else None


# -------------------------------------------------------------------------------------------------- bundle reading


def read_bundle(path: str | Path) -> dict[str, Any]:
    """Read and check a bundle: a NAME.qdeploy.zip or the folder that it was unpacked into.

    Returns {"manifest": dict, "model": bytes, "golden": {array name: ndarray}, "path": str, "sha256": str}; sha256
    is the zip's, or for a folder that of its manifest (which holds the digest of every other file). Members are read
    in memory by fixed names, nothing is extracted; every file that the manifest lists is checked against its digest.
    """
    path = Path(path)
    if path.is_dir():
        return _assemble(path, lambda name: _read_member_of_folder(path, name), None)
    try:
        with path.open("rb") as file:
            digest = hashlib.sha256()
            while chunk := file.read(1 << 20):
                digest.update(chunk)
            with zipfile.ZipFile(file) as archive:
                names = archive.namelist()
                for name in names:
                    _check_name(path, name)
                _need(len(set(names)) == len(names), path, "it has two members of one name")
                bundle = _assemble(path, lambda name: _read_member_of_zip(path, archive, name), digest.hexdigest())
    except FileNotFoundError:
        raise RunnerError(f"There is no bundle {path}.", "Give a NAME.qdeploy.zip or an unpacked folder.") from None
    except (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise RunnerError(f"{path} is not a readable bundle: {error}.", "Copy or build it again.") from None
    unlisted = sorted(set(names) - set(bundle["manifest"]["files"]) - {"manifest.json"})
    _need(not unlisted, path, f"its manifest does not list the member {unlisted[:1]}")
    return bundle


def _assemble(path: Path, read: Callable[[str], bytes], sha256: str | None) -> dict[str, Any]:
    raw = read("manifest.json")
    manifest = _check_manifest(path, raw)
    kept = {}
    for name, digest in manifest["files"].items():
        data = read(name)
        if hashlib.sha256(data).hexdigest() != digest:
            raise RunnerError(
                f"{path}: {name} is not the file that the bundle was built with (its sha256 differs).",
                "Copy or build the bundle again.",
            )
        if name in ("model.onnx", "golden.npz"):
            kept[name] = data
    golden = _read_golden(path, kept["golden.npz"], manifest)
    sha256 = sha256 or hashlib.sha256(raw).hexdigest()
    return {"manifest": manifest, "model": kept["model.onnx"], "golden": golden, "path": str(path), "sha256": sha256}


def _check_manifest(path: Path, raw: bytes) -> dict[str, Any]:
    try:
        manifest = json.loads(raw)
    except ValueError as error:
        raise RunnerError(f"{path}: manifest.json is not JSON: {error}.", "Build the bundle again.") from None
    _need(isinstance(manifest, dict), path, "manifest.json is not an object")
    if manifest.get("schema") != SCHEMA:
        raise RunnerError(
            f"{path} has schema {manifest.get('schema')!r}, this runner reads {SCHEMA!r}.",
            "Use the run.py of that bundle, or the qdeploy that built it.",
        )
    kinds = {"name": str, "method": str, "inputs": list, "outputs": list, "golden": dict, "files": dict}
    for key, kind in kinds.items():
        _need(isinstance(manifest.get(key), kind), path, f"its manifest has no valid {key!r}")
    for entry in manifest["inputs"] + manifest["outputs"]:
        _need(isinstance(entry, dict) and isinstance(entry.get("name"), str), path, "a graph input has no name")
        _need(isinstance(entry.get("shape"), list), path, f"{entry['name']!r} has no shape")
    for entry in manifest["inputs"]:
        raw_spec, steps = entry.get("raw"), entry.get("preprocessing")
        _need(isinstance(raw_spec, dict) and isinstance(steps, list), path, f"{entry['name']!r} has no preprocessing")
        _need(isinstance(raw_spec.get("shape"), list) and "dtype" in raw_spec, path, f"{entry['name']!r} has no raw")
    comparison = manifest["golden"].get("comparison")
    _need(comparison in ("exact", "close"), path, f"its golden comparison is {comparison!r}")
    for name in manifest["files"]:
        _check_name(path, name)
    for name in ("model.onnx", "golden.npz"):
        _need(name in manifest["files"], path, f"its manifest lists no {name}")
    return dict(manifest)


def _read_golden(path: Path, data: bytes, manifest: dict[str, Any]) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            size = sum(info.file_size for info in archive.infolist())
        _need(size <= MEMBER_LIMITS["golden.npz"], path, "golden.npz unpacks to an absurd size")
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            golden = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise RunnerError(f"{path}: golden.npz cannot be read: {error}.", "Build the bundle again.") from None
    wanted = [f"{kind}.{e['name']}" for kind in ("input", "output") for e in manifest[f"{kind}s"]]
    for name in wanted:
        _need(name in golden and golden[name].ndim > 0 and len(golden[name]), path, f"golden.npz lacks {name!r}")
    _need(len({len(golden[name]) for name in wanted}) == 1, path, "golden.npz has unequal numbers of samples")
    return golden


def _check_name(path: Path, name: str) -> None:
    plain = name not in ("", ".", "..") and not set(name) & set("/\\:\0")
    _need(plain, path, f"it holds the unsafe file name {name!r}")


def _read_member_of_zip(path: Path, archive: zipfile.ZipFile, name: str) -> bytes:
    _need(name in archive.namelist(), path, f"it lacks {name}")
    _check_size(path, name, archive.getinfo(name).file_size)
    return archive.read(name)


def _read_member_of_folder(path: Path, name: str) -> bytes:
    file = path / name
    _need(file.is_file(), path, f"it lacks {name}")
    _check_size(path, name, file.stat().st_size)
    return file.read_bytes()


def _check_size(path: Path, name: str, size: int) -> None:
    limit = MEMBER_LIMITS.get(name, OTHER_MEMBER_LIMIT)
    _need(size <= limit, path, f"{name} has {size:,} bytes, more than the {limit:,} that are sane")


def _need(condition: Any, path: Path, what: str) -> None:
    if not condition:
        raise RunnerError(f"{path} is not a valid bundle: {what}.", "Copy or build it again.")


# -------------------------------------------------------------------------------------------------------- sessions

OPTIMIZATION = {
    "disabled": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


def make_session(
    model: bytes | str,
    threads: int | None = None,
    *,
    options: dict[str, str] | None = None,
    providers: list[Any] | None = None,
    optimized_path: str | None = None,
    optimization: str = "all",
) -> ort.InferenceSession:
    """An onnxruntime session: the only place where session options are made.

    ``threads`` None means allowed_cores(). ``options`` are onnxruntime's configuration entries
    ("session.x64quantprecision": "1"). ``optimized_path`` receives the graph that really runs. ``optimization`` is
    one of "disabled", "basic", "extended", "all".
    """
    allowed, reason = allowed_cores()
    threads = allowed if threads is None else threads
    # onnxruntime would start any number of threads at once, and tens of thousands of them stop a whole machine.
    if not 1 <= threads <= max(THREAD_LIMIT, os.cpu_count() or 1):
        raise RunnerError(f"A session cannot run with {threads} threads.", f"Use 1 to {allowed} ({reason}).")
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    settings.log_severity_level = 3
    settings.graph_optimization_level = OPTIMIZATION[optimization]
    if threads > allowed:
        # A thread that spins on a core that another one needs costs whole scheduler ticks.
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    for key, value in (options or {}).items():
        settings.add_session_config_entry(key, value)
    if optimized_path is not None:
        settings.optimized_model_filepath = optimized_path
    try:
        return ort.InferenceSession(model, settings, providers=providers or ["CPUExecutionProvider"])
    except ORT_ERRORS as error:
        reason = str(error).splitlines()[0]
        raise RunnerError(f"onnxruntime {ort.__version__} cannot load the model: {reason}") from None


def run_session(session: ort.InferenceSession, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All outputs of one call."""
    try:
        values = session.run(None, feeds)
    except ORT_ERRORS as error:
        raise RunnerError(f"onnxruntime failed to run the model: {str(error).splitlines()[0]}") from None
    return {output.name: values[i] for i, output in enumerate(session.get_outputs())}


# --------------------------------------------------------------------------------------------------- preprocessing
# Every operation below is elementwise and in a fixed order, in float32: no BLAS, no reductions. So the same raw
# sample gives the same bits on every CPU, which the exact golden test relies on.


def preprocess(raw: np.ndarray, steps: list[dict[str, Any]]) -> np.ndarray:
    """Apply the manifest's preprocessing ``steps`` to a raw batch [N, ...]; the result is what the model is fed."""
    x = np.asarray(raw)
    for step in steps:
        arguments = {key: value for key, value in step.items() if key != "op"}
        operation = OPERATIONS.get(step.get("op", ""))
        if operation is None:
            close = difflib.get_close_matches(str(step.get("op")), OPERATIONS, n=1) or sorted(OPERATIONS)
            raise RunnerError(f"There is no preprocessing op {step.get('op')!r}.", f"Known: {', '.join(close)}.")
        try:
            x = operation(x, **arguments)
        except (TypeError, ValueError, KeyError, IndexError) as error:
            raise RunnerError(f"Preprocessing {json.dumps(step)} fails on shape {x.shape}: {error}.") from None
    return np.ascontiguousarray(x)


def _scale(x: np.ndarray, factor: float) -> np.ndarray:
    return x.astype(np.float32) * np.float32(factor)


def _normalize(x: np.ndarray, mean: Any, std: Any) -> np.ndarray:
    return (x.astype(np.float32) - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)


def _layout(x: np.ndarray, **names: str) -> np.ndarray:
    source, target = names["from"], names["to"]
    if sorted(source) != sorted(target) or len(source) != x.ndim - 1:
        raise ValueError(f"{source!r} -> {target!r} is no permutation of {x.ndim - 1} axes")
    return x.transpose(0, *(source.index(axis) + 1 for axis in target))


def _channel(x: np.ndarray) -> np.ndarray:
    return x[..., None]


def _cast(x: np.ndarray, dtype: str) -> np.ndarray:
    if np.dtype(dtype).kind not in "biuf":
        raise ValueError(f"{dtype!r} is not a numeric type")
    return x.astype(dtype)


def _resize(x: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear with antialiasing and half-pixel centres, [N, H, W, C], as PIL and torchvision (antialias) do."""
    if x.ndim != 4:
        raise ValueError("resize takes [N, H, W, C]")
    return _resize_axis(_resize_axis(x.astype(np.float32), 2, width), 1, height)


def _resize_axis(x: np.ndarray, axis: int, size: int) -> np.ndarray:
    source = x.shape[axis]
    if source == size:
        return x
    scale = source / size
    support = max(scale, 1.0)  # shrinking widens the triangle, so that every source pixel counts
    centres = (np.arange(size) + 0.5) * scale
    first = np.floor(centres - support).astype(np.int64)
    taps = [first + k for k in range(math.ceil(2 * support) + 2)]
    triangle = [np.maximum(0.0, 1.0 - np.abs(t + 0.5 - centres) / support) * ((t >= 0) & (t < source)) for t in taps]
    total = sum(triangle)
    shape = [-1 if i == axis else 1 for i in range(x.ndim)]
    result = np.zeros([size if i == axis else n for i, n in enumerate(x.shape)], np.float32)
    for k, tap in enumerate(taps):
        weights = (triangle[k] / total).astype(np.float32).reshape(shape)
        result += np.take(x, np.clip(tap, 0, source - 1), axis=axis) * weights
    return result


def _resize_shorter(x: np.ndarray, size: int) -> np.ndarray:
    height, width = x.shape[1:3]
    if height <= width:
        return _resize(x, size, int(size * width / height))
    return _resize(x, int(size * height / width), size)


def _center_crop(x: np.ndarray, height: int, width: int) -> np.ndarray:
    if x.shape[1] < height or x.shape[2] < width:
        raise ValueError(f"the image is smaller than {height} x {width}")
    top, left = round((x.shape[1] - height) / 2), round((x.shape[2] - width) / 2)
    return x[:, top : top + height, left : left + width]


# fmt: off
OPERATIONS: dict[str, Callable[..., np.ndarray]] = {
    "scale": _scale, "normalize": _normalize, "layout": _layout, "channel": _channel, "cast": _cast,
    "resize": _resize, "resize_shorter": _resize_shorter, "center_crop": _center_crop,
}
# fmt: on


def make_feeds(manifest: dict[str, Any], raw: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the model is fed, by input name, from raw batches by input name."""
    feeds = {}
    for entry in manifest["inputs"]:
        feeds[entry["name"]] = preprocess(raw[entry["name"]], entry["preprocessing"])
    return feeds


# ------------------------------------------------------------------------------------------------ golden self-test


def selftest(bundle: str | Path | dict[str, Any], threads: int | None = None) -> dict[str, Any]:
    """Run the golden inputs and compare with the golden outputs, as strictly as the manifest says.

    Returns {"name", "passed", "samples", "values", "differing", "max_difference", "comparison", "tolerance"}.
    """
    if not isinstance(bundle, dict):
        bundle = read_bundle(bundle)
    manifest, golden = bundle["manifest"], bundle["golden"]
    session = make_session(bundle["model"], threads)
    raw = {entry["name"]: golden[f"input.{entry['name']}"] for entry in manifest["inputs"]}
    return compare_golden(bundle, run_batched(session, manifest, make_feeds(manifest, raw)))


def run_batched(
    session: ort.InferenceSession, manifest: dict[str, Any], feeds: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """All outputs for ``feeds`` of any number of samples, also of a model whose batch is fixed."""
    samples, step = len(next(iter(feeds.values()))), fixed_batch(manifest)
    if step is None:
        return run_session(session, feeds)
    # The last chunk is filled up with the first samples.
    chunks = [np.arange(start, start + step) % samples for start in range(0, samples, step)]
    parts = [run_session(session, {name: value[rows] for name, value in feeds.items()}) for rows in chunks]
    return {name: np.concatenate([part[name] for part in parts])[:samples] for name in parts[0]}


def fixed_batch(manifest: dict[str, Any]) -> int | None:
    """The batch size that the model insists on; None if it takes any."""
    first = (manifest["inputs"][0]["shape"] or [None])[0]
    return first if isinstance(first, int) else None


def compare_golden(bundle: dict[str, Any], outputs: dict[str, np.ndarray]) -> dict[str, Any]:
    """Compare outputs [n, ...] of the first n golden samples with the golden outputs."""
    manifest, golden = bundle["manifest"], bundle["golden"]
    rule, tolerance = manifest["golden"]["comparison"], float(manifest["golden"].get("tolerance", 0.0))
    differing, values, largest, samples = 0, 0, 0.0, 0
    for entry in manifest["outputs"]:
        actual = outputs.get(entry["name"])
        expected = golden[f"output.{entry['name']}"][: None if actual is None else len(actual)]
        if actual is None or actual.shape != expected.shape or actual.dtype != expected.dtype:
            raise RunnerError(
                f"{manifest['name']}: the model does not give the output {entry['name']!r} that its manifest promises.",
                "Build the bundle again.",
            )
        with np.errstate(invalid="ignore"):  # infinite minus infinite
            difference = np.abs(actual.astype(np.float64) - expected.astype(np.float64))
        bits = f"u{expected.itemsize}"
        unequal = actual.view(bits) != expected.view(bits) if rule == "exact" else ~(difference <= tolerance)
        differing += int(unequal.sum())
        values += expected.size
        largest = max(largest, float(difference.max(initial=0.0)))
        samples = len(expected)
    return {
        "name": manifest["name"],
        "passed": differing == 0,
        "samples": samples,
        "values": values,
        "differing": differing,
        "max_difference": largest,
        "comparison": rule,
        "tolerance": tolerance,
    }


# ----------------------------------------------------------------------------------------------------- timing loop

ROUNDS = 20  # blocks that a measurement is cut into; the bootstrap resamples them
STEADY = 0.05  # warm-up ends when three windows in a row have medians within this of each other


def bench_feeds(bundle: dict[str, Any], batch: int) -> dict[str, np.ndarray]:
    """``batch`` preprocessed golden samples, repeated as needed: zeros and noise would time differently."""
    manifest = bundle["manifest"]
    fixed = fixed_batch(manifest)
    if batch < 1 or fixed not in (None, batch):
        takes = "at least 1" if fixed is None else f"always {fixed}"
        raise RunnerError(f"{manifest['name']} cannot run with a batch of {batch}: its batch is {takes}.")
    raw = {}
    for entry in manifest["inputs"]:
        samples = bundle["golden"][f"input.{entry['name']}"]
        raw[entry["name"]] = samples[np.arange(batch) % len(samples)]
    return make_feeds(manifest, raw)


def time_block(call: Callable[[], Any], seconds: float) -> list[int]:
    """Times of back-to-back calls in nanoseconds, for about ``seconds``, at least one.

    Calls of the first twentieth are not counted: another process had the caches before.
    """
    clock, times = time.perf_counter_ns, []
    collecting = gc.isenabled()
    gc.disable()
    try:
        counted_from = clock() + int(seconds * 0.05e9)
        while True:
            call()
            start = clock()
            if start >= counted_from:
                break
        end = start + int(seconds * 1e9)
        while True:
            start = clock()
            call()
            stop = clock()
            times.append(stop - start)
            if stop >= end:
                return times
    finally:
        if collecting:
            gc.enable()


def warm_up(call: Callable[[], Any], limit_seconds: float = 3.0) -> dict[str, Any]:
    """Call until times are steady, or until the limit. Returns {"call_seconds": median, "steady": bool}."""
    windows: list[float] = []
    deadline = time.perf_counter() + limit_seconds
    while True:
        windows.append(statistics.median(time_block(call, 0.05)) / 1e9)
        recent = windows[-3:]
        steady = len(recent) == 3 and max(recent) <= min(recent) * (1 + STEADY)
        if steady or (len(recent) == 3 and time.perf_counter() > deadline):
            return {"call_seconds": recent[-1], "steady": steady}


def plan_blocks(seconds: float, slowest_call_seconds: float) -> tuple[int, float]:
    """(rounds, seconds a block): ROUNDS blocks, fewer (at least 5) where a block would not hold three calls."""
    rounds = int(min(ROUNDS, max(5, seconds / max(3 * slowest_call_seconds, 1e-9))))
    return rounds, seconds / rounds


def settle(limit_seconds: float = 1.0) -> None:
    """Wait until this process's threads are idle: onnxruntime's spin for some 30 ms after a call."""
    deadline = time.perf_counter() + limit_seconds
    while time.perf_counter() < deadline:
        before = time.process_time()
        time.sleep(0.005)
        if time.process_time() - before < 0.0005:
            return


def peak_rss_bytes() -> int:
    """The largest resident set that this process had."""
    # Not ru_maxrss on Linux: a child inherits its parent's.
    for line in _read_text("/proc/self/status").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


# ---------------------------------------------------------------------------------------------------------- worker


class Worker:
    """One bundle in one process, timed on request.

    Requests and replies are JSON objects, one a line. A request is {"do": method, ...arguments}; a reply is
    {"ok": true, ...} or {"ok": false, "error": str, "hint": str}. Between requests the process is blocked on reading.
    """

    requests = ("load", "warm_up", "block", "finish")

    def load(self, bundle: str, threads: int | None = None, batch: int = 1, options: Any = None) -> dict[str, Any]:
        """Create the session (its time is load_ms, from bytes in memory) and check one call's answers."""
        opened = read_bundle(bundle)
        feeds = bench_feeds(opened, batch)
        threads = allowed_cores()[0] if threads is None else threads
        start = time.perf_counter_ns()
        session = make_session(opened.pop("model"), threads, options=options)
        load_ms = (time.perf_counter_ns() - start) / 1e6
        samples = min(batch, opened["manifest"]["golden"].get("samples", batch))
        outputs = {name: value[:samples] for name, value in run_session(session, feeds).items()}
        self.call, self.threads = lambda: session.run(None, feeds), threads
        return {
            "load_ms": load_ms,
            "threads": threads,
            "runtime": "onnxruntime (CPU)",
            "golden": compare_golden(opened, outputs),
            "environment": environment(),
        }

    def warm_up(self, limit_seconds: float = 3.0) -> dict[str, Any]:
        """Call until times are steady."""
        result = warm_up(self.call, limit_seconds)
        self.rest()
        return result

    def block(self, seconds: float) -> dict[str, Any]:
        """Times of the calls of one block, in nanoseconds."""
        times = time_block(self.call, seconds)
        self.rest()
        return {"times_ns": times}

    def rest(self) -> None:
        """Leave the CPU to others before answering. One thread is the caller's own, which does not spin."""
        if self.threads > 1:
            settle()

    def finish(self) -> dict[str, Any]:
        """The last request."""
        return {"peak_rss_bytes": peak_rss_bytes()}


def serve(requests: Iterable[str], replies: IO[str]) -> None:
    """Answer requests until the last one, or until the other side closes the pipe."""
    worker = Worker()
    for line in requests:
        request = json.loads(line)
        method = request.pop("do")
        try:
            if method not in Worker.requests:
                raise RunnerError(f"A worker cannot {method!r}.")
            reply = {"ok": True, **getattr(worker, method)(**request)}
        except RunnerError as error:
            reply = {"ok": False, "error": error.message, "hint": error.hint}
        print(json.dumps(reply), file=replies, flush=True)
        if method == "finish":
            return


# ------------------------------------------------------------------------------------------------------------- CLI


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code: 0, 1 for a failed self-test, 2 for an error."""
    try:
        options = _parser().parse_args(arguments)
        return int(options.run(options))
    except RunnerError as error:
        print(f"error: {error}".replace("\n", " "), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--bundle", type=Path, help="a NAME.qdeploy.zip or an unpacked folder (default: beside run.py)")
    common.add_argument("--threads", type=int, help="threads of the session (default: the cores that are allowed)")
    common.add_argument("--json", action="store_true", help="print JSON")

    command = commands.add_parser("selftest", parents=[common], help="compare with the golden outputs")
    command.set_defaults(run=_command_selftest)
    command = commands.add_parser("bench", parents=[common], help="measure latency and throughput")
    command.add_argument("--batch", type=int, default=1, help="samples a call (default 1)")
    command.add_argument("--seconds", type=float, default=2.0, help="measuring time (default 2)")
    command.set_defaults(run=_command_bench)
    command = commands.add_parser("predict", parents=[common], help="run the model on samples of your own")
    command.add_argument("file", type=Path, help=".npy or .npz with one raw sample or several, or an image")
    command.add_argument("--top", type=int, default=3, help="classes to show (default 3)")
    command.set_defaults(run=_command_predict)
    command = commands.add_parser("worker", help="serve a bench over stdin and stdout")
    command.set_defaults(run=_command_worker)
    return parser


def _bundle_path(options: argparse.Namespace) -> Path:
    here = Path(__file__).resolve().parent
    if options.bundle is None and not (here / "manifest.json").is_file():
        raise RunnerError("No bundle was given and none lies beside this file.", "Add --bundle NAME.qdeploy.zip.")
    return Path(options.bundle or here)


def _command_selftest(options: argparse.Namespace) -> int:
    result = selftest(_bundle_path(options), options.threads)
    if options.json:
        print(json.dumps(result))
    elif result["passed"]:
        how = "bit for bit" if result["comparison"] == "exact" else f"within {result['tolerance']:g}"
        print(f"{result['name']}: {result['samples']} golden samples agree {how} ({result['values']} values)")
    else:
        print(
            f"{result['name']}: FAILED: {result['differing']} of {result['values']} golden values differ, "
            f"by up to {result['max_difference']:g}"
        )
    return 0 if result["passed"] else 1


def _command_bench(options: argparse.Namespace) -> int:
    worker, path = Worker(), _bundle_path(options)
    loaded = worker.load(str(path), options.threads, options.batch)
    record, name, threads = loaded["environment"], loaded["golden"]["name"], loaded["threads"]
    result = {"name": name, "threads": threads, "batch": options.batch, "environment": record}
    if record["emulator"]:
        result["withheld"] = f"the CPU is emulated ({record['emulator']}): its times would say nothing"
    else:
        rounds, seconds = plan_blocks(options.seconds, worker.warm_up()["call_seconds"])
        times = np.concatenate([worker.block(seconds)["times_ns"] for _ in range(rounds)])
        p50, p90, p99 = np.percentile(times, [50, 90, 99]) / 1e6
        result.update(p50_ms=p50, p90_ms=p90, p99_ms=p99, load_ms=loaded["load_ms"], calls=len(times))
        result.update(throughput_per_s=options.batch / times.mean() * 1e9, peak_rss_bytes=peak_rss_bytes())
    if options.json:
        print(json.dumps(result))
        return 0
    print(f"{name} on {record['cpu']}, {threads} thread(s), batch {options.batch}")
    if "withheld" in result:
        print(f"no times: {result['withheld']}")
    else:
        print(f"p50 {p50:.3f} ms, p90 {p90:.3f} ms, p99 {p99:.3f} ms, {result['throughput_per_s']:,.0f} samples/s")
    return 0


def _command_predict(options: argparse.Namespace) -> int:
    bundle = read_bundle(_bundle_path(options))
    manifest = bundle["manifest"]
    outputs = predict(bundle, read_samples(options.file, manifest), options.threads)
    name, values = next(iter(outputs.items()))
    if manifest.get("task") != "classification" or values.ndim != 2:
        if options.json:
            print(json.dumps({key: value.tolist() for key, value in outputs.items()}))
        else:
            for key, value in outputs.items():
                print(f"{key}: {value.dtype} {list(value.shape)}, {value.min():.4g} to {value.max():.4g}")
        return 0
    ranked = [top_classes(row, manifest.get("classes") or [], options.top) for row in values]
    if options.json:
        print(json.dumps(ranked))
        return 0
    print(f"{'sample':>6}  {'class':<20} {name:>10} {'softmax':>8}")
    for i, classes in enumerate(ranked):
        for entry in classes:
            print(f"{i:>6}  {entry['class']:<20} {entry['output']:>10.4g} {entry['softmax']:>8.2%}")
    return 0


def predict(bundle: dict[str, Any], raw: dict[str, np.ndarray], threads: int | None = None) -> dict[str, np.ndarray]:
    """The model's outputs for raw batches by input name."""
    manifest = bundle["manifest"]
    return run_batched(make_session(bundle["model"], threads), manifest, make_feeds(manifest, raw))


def top_classes(row: np.ndarray, classes: Sequence[str], top: int) -> list[dict[str, Any]]:
    """The ``top`` classes of one sample's outputs [classes], best first."""
    shifted = np.exp(row.astype(np.float64) - row.max())
    share = shifted / shifted.sum()
    best = np.argsort(-row, kind="stable")[:top]
    label = [classes[i] if i < len(classes) else str(i) for i in range(len(row))]
    return [{"class": label[i], "index": int(i), "output": float(row[i]), "softmax": float(share[i])} for i in best]


def read_samples(path: Path, manifest: dict[str, Any]) -> dict[str, np.ndarray]:
    """Raw batches by input name from a .npy or .npz file or an image."""
    inputs = manifest["inputs"]
    try:
        if path.suffix.lower() in (".npy", ".npz"):
            loaded = np.load(path, allow_pickle=False)
        else:
            loaded = _read_image(path, inputs[0]["raw"]["shape"])
        arrays = {name.removeprefix("input."): loaded[name] for name in loaded} if hasattr(loaded, "files") else {}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise RunnerError(f"{path} cannot be read: {error}.") from None
    if not arrays:
        arrays = {inputs[0]["name"]: loaded}
    elif len(arrays) == 1 and len(inputs) == 1:
        arrays = {inputs[0]["name"]: next(iter(arrays.values()))}
    missing = [entry["name"] for entry in inputs if entry["name"] not in arrays]
    if missing:
        raise RunnerError(f"{path} has no array for the input {missing[0]!r}.", "Give a .npz with one array an input.")
    return {entry["name"]: _as_batch(path, arrays[entry["name"]], entry["raw"]) for entry in inputs}


def _as_batch(path: Path, array: np.ndarray, raw: dict[str, Any]) -> np.ndarray:
    shape, batch = raw["shape"], array
    if array.ndim == len(shape):
        batch = array[None]
    fits = batch.ndim == len(shape) + 1 and len(batch) > 0
    if not fits or any(isinstance(n, int) and batch.shape[i + 1] != n for i, n in enumerate(shape)):
        raise RunnerError(f"{path} has shape {list(array.shape)}; a raw sample has shape {shape} (several: [N, ...]).")
    converted = batch.astype(raw["dtype"])
    if not np.array_equal(converted, batch):
        raise RunnerError(f"{path} holds {array.dtype} values that the raw type {raw['dtype']} cannot represent.")
    return converted


def _read_image(path: Path, shape: list[Any]) -> np.ndarray:
    try:
        from PIL import Image
    except ImportError:
        raise RunnerError(
            f"Reading {path.name} needs Pillow, which is not installed.", "Run pip install pillow, or give a .npy file."
        ) from None
    if len(shape) not in (2, 3):
        raise RunnerError(f"This model takes raw samples of shape {shape}, which is not an image.", "Give a .npy file.")
    with Image.open(path) as opened:
        image = opened.convert("L" if len(shape) == 2 or shape[-1] == 1 else "RGB")
    height, width = shape[:2]
    if isinstance(height, int) and isinstance(width, int) and image.size != (width, height):
        print(f"note: {path.name} is resized from {image.size} to {(width, height)}", file=sys.stderr)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    array = np.asarray(image)
    return array[..., None] if len(shape) == 3 and array.ndim == 2 else array


def _command_worker(_: argparse.Namespace) -> int:
    # A Ctrl-C in the terminal reaches every process of the bench; the one that started this worker ends it in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Replies get stdout to themselves: what a library prints there goes to stderr.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    serve(sys.stdin, replies)
    return 0


if __name__ == "__main__":
    sys.exit(main())
