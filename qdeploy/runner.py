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
import base64
import difflib
import functools
import gc
import hashlib
import io
import json
import math
import os
import platform
import re
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any

# onnxruntime's wheels report usage to their makers: a thread, files in the home folder, a connection.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

try:
    import numpy as np
    import onnxruntime as ort
    from onnxruntime.capi import onnxruntime_pybind11_state as _ort_state
except ImportError as _missing:
    if __name__ != "__main__":
        raise
    print(f"error: {_missing}. Install what this needs: pip install numpy onnxruntime", file=sys.stderr)
    sys.exit(2)

SCHEMA = "qdeploy.bundle/2"
# The files of a bundle in the order in which they lie in it, and the most bytes that each may have. protobuf itself
# cannot hold a model of more than 2 GiB.
# fmt: off
MEMBERS = {
    "manifest.json": 16 << 20, "model.onnx": 2 << 30, "golden.npz": 1 << 30, "run.py": 1 << 20, "README.md": 16 << 20,
}
# fmt: on
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
        "memory_bytes": memory_bytes(),
        "governor": governor(),
        "emulator": emulator(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "onnxruntime": ort.__version__,
        "numpy": np.__version__,
    }


def governor(folder: str = "/sys/devices/system/cpu/cpu0/cpufreq") -> str | None:
    """How the clock is chosen, with the driver where the CPU does that by itself: there, "powersave" is not slow."""
    name, driver = (_read_text(Path(folder, f"scaling_{what}")).strip() for what in ("governor", "driver"))
    return f"{name} ({driver})" if name and driver in ("intel_pstate", "amd-pstate-epp") else name or None


def memory_bytes() -> int:
    """The memory that this process may use: the machine's, or what its cgroup is left; 0 where nobody says."""
    present = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    names = {True: "memory.max", False: "memory.limit_in_bytes"}
    limits = [_read_text(folder / names[v2]).strip() for folder, v2 in cgroup_folders("memory")]
    return min([present, *(int(limit) for limit in limits if limit.isdigit())])


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
        name, flags = "", set()  # qemu-user shows the host's /proc/cpuinfo to an x86 program: not what it emulates
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
    quotas = [(_quota_v2 if v2 else _quota_v1)(folder) for folder, v2 in cgroup_folders("cpu", membership, mount)]
    return min((quota for quota in quotas if quota is not None), default=None)


def cgroup_folders(
    controller: str, membership: str = "/proc/self/cgroup", mount: str = "/sys/fs/cgroup"
) -> list[tuple[Path, bool]]:
    """Where limits of this process may lie: folders of its cgroup and of those above it, and whether they are v2's."""
    found: list[tuple[Path, bool]] = []
    for line in _read_text(membership).splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        inner = PurePosixPath(path.lstrip("/"))
        if controllers == "":
            roots = [Path(mount), Path(mount, "unified")]
        elif controller in controllers.split(","):
            roots = [Path(mount, controllers), Path(mount, controller)]
        else:
            continue
        # In a container the path is often the host's and does not exist here; the mount's own root always does.
        found += [(root / folder, controllers == "") for root in roots for folder in (inner, *inner.parents)]
    return found


def _quota_v2(folder: Path) -> float | None:
    fields = _read_text(folder / "cpu.max").split()
    return int(fields[0]) / int(fields[1]) if len(fields) == 2 and fields[0] != "max" else None


def _quota_v1(folder: Path) -> float | None:
    quota, period = (_read_text(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period"))
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) else None


# -------------------------------------------------------------------------------------------------- bundle reading
# Everything that reads a bundle reads it here, on a device and in qdeploy alike: what one refuses, all refuse.


def read_bundle(path: str | Path) -> dict[str, Any]:
    """Read and check a bundle: a NAME.qdeploy.zip or the folder that it was unpacked into.

    Returns {"manifest": dict, "model": bytes, "golden": {array name: ndarray}, "path": str, "sha256": str}; sha256
    is the zip's, or for a folder that of its manifest (which holds the digest of every other file).
    """
    members, sha256 = read_members(path)
    manifest, golden = check_members(path, members)
    return {"manifest": manifest, "model": members["model.onnx"], "golden": golden, "path": str(path), "sha256": sha256}


def read_members(path: str | Path) -> tuple[dict[str, bytes], str]:
    """The files of a bundle by name, and the sha256 that identifies it. Nothing is extracted, no name is a path.

    A zip has to be byte for byte the one that ``zip_header`` and ``zip_directory`` make of its files: other names,
    another order, compression, links, and bytes before, between or behind are refused. RunnerError.
    """
    path = Path(path)
    try:
        if path.is_dir():
            members = {name: _read_member_of_folder(path / name, limit) for name, limit in MEMBERS.items()}
            return members, hashlib.sha256(members["manifest.json"]).hexdigest()
        with path.open("rb") as file:
            return read_zip(file, os.fstat(file.fileno()).st_size, MEMBERS)
    except FileNotFoundError:
        raise RunnerError(f"There is no bundle {path}.", "Give a NAME.qdeploy.zip or an unpacked folder.") from None
    except OSError as error:
        raise RunnerError(f"{path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise _invalid(path, error) from None


def check_members(path: str | Path, members: Mapping[str, bytes]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The manifest and the golden arrays of a bundle's files, checked against each other. RunnerError."""
    manifest = parse_manifest(members["manifest.json"], path)
    for name, digest in manifest["files"].items():
        if hashlib.sha256(members[name]).hexdigest() != digest:
            raise RunnerError(
                f"{path}: {name} is not the file that the bundle was built with (its sha256 differs).",
                "Copy or build the bundle again.",
            )
    try:
        return manifest, read_golden(manifest, members["golden.npz"])
    except ValueError as error:
        raise _invalid(path, f"golden.npz: {error}") from None


def _invalid(path: str | Path, what: object) -> RunnerError:
    return RunnerError(
        f"{path} is not a valid bundle: {what}.",
        "A bundle is what `qdeploy build` writes: copy or build it again, and do not repack it.",
    )


def _read_member_of_folder(file: Path, limit: int) -> bytes:
    if file.is_symlink() or (file.exists() and not file.is_file()):
        raise ValueError(f"{file.name} is not a plain file")
    if not file.exists():
        raise ValueError(f"{file.name} is missing")
    with file.open("rb") as opened:
        return _read_exactly(opened, os.fstat(opened.fileno()).st_size, file.name, limit)


def _read_exactly(file: IO[bytes], size: int, name: str, limit: int) -> bytes:
    """``size`` bytes, which a header or a file system claims; no more are read, and no fewer are taken."""
    if size > limit:
        raise ValueError(f"{name} has {size:,} bytes, more than the {limit:,} that it may have")
    data = file.read(size)
    if len(data) != size:
        raise ValueError(f"it ends within {name}")
    return data


def zip_header(name: str, data: bytes) -> bytes:
    """What stands in front of ``data`` in a zip of a bundle's kind: stored, dated 1980-01-01."""
    encoded, utf8 = name.encode(), 0 if name.isascii() else 0x800
    size, date = len(data), 1 << 5 | 1  # the first month and day of the first year that a zip can hold
    fields = (b"PK\3\4", 20, utf8, 0, 0, date, zlib.crc32(data), size, size, len(encoded), 0)
    return struct.pack("<4s5H3I2H", *fields) + encoded


def zip_directory(headers: Sequence[bytes]) -> bytes:
    """What ends a zip whose members have these headers, in order: plain files that everyone may read."""
    listing, offset = b"", 0
    for header in headers:
        fields = (b"PK\1\2", 3 << 8 | 20, header[4:30], 0, 0, 0, 0o100644 << 16, offset)
        listing += struct.pack("<4sH26s3H2I", *fields) + header[30:]
        offset += len(header) + int.from_bytes(header[22:26], "little")
    count = len(headers)
    return listing + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count, count, len(listing), offset, 0)


def read_zip(file: IO[bytes], size: int, limits: Mapping[str, int]) -> tuple[dict[str, bytes], str]:
    """The members of a zip of ``size`` bytes, which has to hold exactly those of ``limits``, in order; its sha256.

    Each member has at most the bytes that ``limits`` gives it. ValueError for anything that is not as ``zip_header``
    and ``zip_directory`` would have written it.
    """
    digest, members, left = hashlib.sha256(), {}, size
    headers: list[bytes] = []
    for name, limit in limits.items():
        found = file.read(30)
        length, claimed = int.from_bytes(found[26:28], "little"), int.from_bytes(found[22:26], "little")
        found += file.read(length)
        _check_header(found, name, first=not headers)
        left -= len(found)
        if left < claimed <= limit:
            raise ValueError(f"it ends within {name}")
        data = _read_exactly(file, claimed, name, limit)
        if found != (header := zip_header(name, data)):
            raise ValueError(f"{name} is damaged: its checksum differs")
        left -= len(data)
        digest.update(header)
        digest.update(data)
        members[name] = data
        headers.append(header)
    directory = zip_directory(headers)
    rest = file.read(max(len(directory), 30) + 256)
    if rest != directory:
        more = rest.startswith(b"PK\3\4")
        name = rest[30 : 30 + int.from_bytes(rest[26:28], "little")].decode(errors="replace")
        raise ValueError(f"it also holds {name!r}" if more else "its end is not what belongs behind its files")
    digest.update(directory)
    return members, digest.hexdigest()


def _check_header(found: bytes, name: str, first: bool) -> None:
    """Say what is wrong with a header that cannot be the one of the member ``name``."""
    if first and not found.startswith(b"PK\3\4"):
        raise ValueError("it is not a zip, or something stands in front of it")
    if not found.startswith(b"PK\3\4"):
        raise ValueError(f"{name} is missing")
    if found[30:] != name.encode():
        raise ValueError(f"it holds {found[30:].decode(errors='replace')!r} where {name} should be")
    if found[6] & 1 or found[8:10] != b"\0\0":
        raise ValueError(f"{name} is {'encrypted' if found[6] & 1 else 'compressed'} in it")
    plain = zip_header(name, b"")
    if found[:14] + found[26:] != plain[:14] + plain[26:]:  # all but checksum and sizes
        raise ValueError(f"{name} has another header than `qdeploy build` gives it: it was repacked")


def read_golden(manifest: Mapping[str, Any], data: bytes) -> dict[str, np.ndarray]:
    """The arrays of golden.npz: one for each input and output, as the manifest promises them. ValueError otherwise."""
    described = {f"input.{entry['name']}": (entry["raw"], entry["raw"]["shape"]) for entry in manifest["inputs"]}
    described |= {f"output.{entry['name']}": (entry, entry["shape"][1:]) for entry in manifest["outputs"]}
    members, _ = read_zip(io.BytesIO(data), len(data), {f"{name}.npy": len(data) for name in sorted(described)})
    golden = {}
    for name, (entry, shape) in described.items():
        array = golden[name] = _read_npy(name, members[f"{name}.npy"])
        wanted = [manifest["golden"]["samples"], *shape]
        fits = len(wanted) == array.ndim and all(
            n == m or isinstance(m, str) for n, m in zip(array.shape, wanted, strict=True)
        )
        if array.dtype.name != entry["dtype"] or not fits:
            raise ValueError(f"{name} is {array.dtype.name} {list(array.shape)}, not {entry['dtype']} {wanted}")
        _check_range(array, entry, name)
    return golden


def _read_npy(name: str, data: bytes) -> np.ndarray:
    """A .npy file as ``np.lib.format`` writes it (version 1.0, C order), without ever making more of it than it is."""
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    except (ValueError, TypeError, SyntaxError, EOFError) as error:
        raise ValueError(f"{name} is no array: {str(error).splitlines()[0]}") from None
    if version != (1, 0) or fortran or dtype.kind not in "biuf" or not dtype.isnative:
        raise ValueError(f"{name} is not stored as a plain array of numbers")
    if math.prod(shape) * dtype.itemsize != len(data) - file.tell():
        raise ValueError(f"{name} has not the size that its header claims")
    return np.frombuffer(data, dtype, offset=file.tell()).reshape(shape).copy()


# ------------------------------------------------------------------------------------------------------- manifest
# What a manifest holds, as checks: a check is called with a value and with where it stands, and raises ValueError.

Check = Callable[[Any, str], None]
LARGEST = sys.float_info.max  # JSON can write larger whole numbers, which no array can hold


def parse_manifest(data: bytes, path: str | Path) -> dict[str, Any]:
    """The manifest in ``data`` (JSON, UTF-8) of the bundle ``path``, which holds what MANIFEST says and nothing else.

    RunnerError for the first key that is wrong.
    """
    try:
        found = json.loads(
            data.decode(), object_pairs_hook=_without_repeats, parse_constant=_finite, parse_float=_finite
        )
        schema = found.get("schema") if isinstance(found, dict) else None
    except (ValueError, RecursionError) as error:
        raise _invalid(path, f"manifest.json is not JSON: {error}") from None
    if schema != SCHEMA:
        raise RunnerError(
            f"{path} has schema {schema!r}, this version reads {SCHEMA!r}.",
            "Use the run.py of that bundle, or the qdeploy that built it.",
        )
    try:
        MANIFEST(found, "")
        _check_together(found)
    except ValueError as error:
        raise _invalid(path, f"manifest.json: {error}") from None
    return dict(found)


def check_preprocessing(steps: Any) -> None:
    """RunnerError unless ``steps``, plain JSON data, are steps that ``preprocess`` can execute."""
    try:
        _list(_step)(json.loads(json.dumps(steps, allow_nan=False)), "preprocessing")
    except (ValueError, TypeError) as error:
        raise RunnerError(f"{error}.") from None


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) != len(pairs):
        raise ValueError(f"an object has a key twice: {sorted(key for key, _ in pairs)}")
    return found


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text.replace("Infinity", "inf"))):
        raise ValueError(f"{text} is no finite number")
    return value


def _check_together(manifest: dict[str, Any]) -> None:
    """What concerns several keys at once."""
    if sorted(manifest["files"]) != sorted(set(MEMBERS) - {"manifest.json"}):
        raise ValueError(f"files lists {sorted(manifest['files'])}")
    for name in ("qdeploy", "onnxruntime"):
        if name not in manifest["versions"]:
            raise ValueError(f"versions.{name} is missing")
    if manifest["golden"]["comparison"] == "exact" and manifest["golden"]["tolerance"] != 0:
        raise ValueError("golden.tolerance: an exact comparison has tolerance 0")
    for kind in ("inputs", "outputs"):
        names = [entry["name"] for entry in manifest[kind]]
        if len(set(names)) != len(names):
            raise ValueError(f"{kind} has one name twice: {names}")


def _object(required: Mapping[str, Check], optional: Mapping[str, Check] | None = None) -> Check:
    known = {**required, **(optional or {})}

    def check(value: Any, where: str) -> None:
        prefix = f"{where}." if where else ""
        if not isinstance(value, dict):
            raise ValueError(f"{where or 'it'} is no object")
        for key in required:
            if key not in value:
                raise ValueError(f"{prefix}{key} is missing")
        for key, inner in value.items():
            if key not in known:
                raise ValueError(f"{prefix}{key} is an unknown key")
            known[key](inner, prefix + key)

    return check


def _mapping(item: Check) -> Check:
    def check(value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise ValueError(f"{where} is no object")
        for key, inner in value.items():
            item(inner, f"{where}.{key}")

    return check


def _list(item: Check, least: int = 0) -> Check:
    def check(value: Any, where: str) -> None:
        if not isinstance(value, list) or len(value) < least:
            raise ValueError(f"{where} is no list" + (f" of {least} or more" if least else ""))
        for i, inner in enumerate(value):
            item(inner, f"{where}[{i}]")

    return check


def _text(pattern: str = "(?s).*") -> Check:
    def check(value: Any, where: str) -> None:
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            raise ValueError(f"{where}: {value!r:.60} cannot stand here")

    return check


def _number(low: float = -LARGEST, high: float = LARGEST, *, whole: bool = False) -> Check:
    kinds = (int,) if whole else (int, float)
    words = f"{'whole ' * whole}number" + f" from {low:g}" * (low > -LARGEST) + f" to {high:g}" * (high < LARGEST)

    def check(value: Any, where: str) -> None:
        if not isinstance(value, kinds) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError(f"{where}: {value!r:.60} is no {words}")

    return check


def _one_of(*options: Any) -> Check:
    def check(value: Any, where: str) -> None:
        if not any(value is option or (isinstance(value, str) and value == option) for option in options):
            raise ValueError(f"{where}: {value!r:.60} is none of {', '.join(map(str, options))}")

    return check


def _either(first: Check, second: Check) -> Check:
    def check(value: Any, where: str) -> None:
        try:
            first(value, where)
        except ValueError:
            second(value, where)

    return check


def _or_null(item: Check) -> Check:
    return lambda value, where: None if value is None else item(value, where)


def _settings(value: Any, where: str, levels: int = 8) -> None:
    """JSON data of any kind, but of few levels."""
    if levels == 0:
        raise ValueError(f"{where:.60} is nested too deeply")
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        _settings(item, f"{where}.{key}", levels - 1)


def _interval(value: Any, where: str) -> None:
    _list(_number())(value, where)
    if len(value) != 2 or value[0] >= value[1]:
        raise ValueError(f"{where}: {value} is not [low, high]")


def _step(value: Any, where: str) -> None:
    """One preprocessing step: an operation and exactly its arguments."""
    op = value.get("op") if isinstance(value, dict) else None
    if not isinstance(op, str) or op not in STEPS:
        raise ValueError(f"{where}: {_unknown_operation(op)}")
    _object({"op": _text(), **STEPS[op]})(value, where)


# fmt: off
TEXT, LABEL = _text(r"(?s).+"), _text(r"[^\x00-\x1f`|<>]+")  # a label is shown, and used in file names, as it is
NUMBER, COUNT, SIZE, SHARE = _number(), _number(0, whole=True), _number(1, whole=True), _number(0, 1)
PER_CHANNEL = _either(NUMBER, _list(NUMBER, 1))
NUMERIC = ("bool", "int8", "uint8", "int32", "int64", "float16", "float32", "float64")
DTYPE, SHAPE = _one_of(*NUMERIC, "int16", "uint16", "uint32", "uint64"), _list(_either(SIZE, TEXT))
# What a preprocessing step says beside its "op": the arguments of the operation in OPERATIONS.
STEPS: dict[str, dict[str, Check]] = {
    "scale": {"factor": NUMBER}, "normalize": {"mean": PER_CHANNEL, "std": PER_CHANNEL},
    "layout": {"from": TEXT, "to": TEXT}, "channel": {}, "cast": {"dtype": _one_of(*NUMERIC)},
    "resize": {"height": SIZE, "width": SIZE}, "resize_shorter": {"size": SIZE},
    "center_crop": {"height": SIZE, "width": SIZE},
}
TENSOR = {"name": TEXT, "dtype": DTYPE, "shape": SHAPE}
# "range" is there where raw values do not fill their type: digits are uint8 from 0 to 16.
RAW = _object({"dtype": DTYPE, "shape": SHAPE}, {"range": _interval})
# Where other CPUs can answer otherwise: layers whose products of codes saturate on x86 without VNNI, in so many pairs
# of weights; additions and multiplications of two tensors that kernels round differently, for so many pairs of codes.
PORTABILITY = _object({
    "saturation": _list(_object({"name": TEXT, "channels": SIZE, "pairs": SIZE, "worst": SIZE})),
    "arithmetic": _list(_object({"name": TEXT, "op": TEXT, "pairs": SIZE})),
})
METRIC = _object({
    "name": TEXT, "value": NUMBER, "low": NUMBER, "high": NUMBER, "samples": COUNT,
    "higher_is_better": _one_of(True, False), "dataset": TEXT, "split": TEXT, "fingerprint": _text("[0-9a-f]*"),
})
LAYER = _object({
    "name": TEXT, "op": TEXT, "kernel": TEXT, "integer": _one_of(True, False), "reason": _text(), "macs": COUNT,
})
MANIFEST = _object({
    "schema": TEXT, "name": LABEL, "recipe": LABEL, "method": LABEL,
    "model": _object({"file": _one_of("model.onnx"), "opset": COUNT}),
    "inputs": _list(_object({**TENSOR, "raw": RAW, "preprocessing": _list(_step)}), 1),
    "outputs": _list(_object(TENSOR), 1),
    "task": LABEL, "classes": _list(_text()), "quantization": _mapping(_settings),
    "metric": _or_null(METRIC),
    "coverage": _or_null(_object({"integer_mac_share": SHARE, "layers": _list(LAYER)})),
    "parity": _or_null(_object({"samples": COUNT, "outputs_checked": COUNT, "differing_codes": COUNT})),
    "portability": _or_null(PORTABILITY),
    "golden": _object({
        "file": _one_of("golden.npz"), "samples": SIZE, "comparison": _one_of("exact", "close"),
        "tolerance": _number(0),
    }),
    "versions": _mapping(_text()), "files": _mapping(_text("[0-9a-f]{64}")),
})
# fmt: on


# -------------------------------------------------------------------------------------------------------- sessions

PROVIDER = "ExecutionProvider"  # what all of their names end in
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
    options: Mapping[str, str] | None = None,
    provider: str | None = None,
    optimized_path: str | None = None,
    profile: str | None = None,
    optimization: str = "all",
) -> ort.InferenceSession:
    """An onnxruntime session: the only place where session options are made.

    ``threads`` None means allowed_cores(). ``options`` are onnxruntime's configuration entries
    ("session.x64quantprecision": "1"). ``provider`` is "CPU" (the default), "CUDA", "CoreML" ...; one that is not
    there, or that onnxruntime gave up for the CPU, is a RunnerError. ``optimized_path`` receives the graph that really
    runs, a file that starts with ``profile`` what ran where. ``optimization`` is one of "disabled", "basic",
    "extended", "all".
    """
    allowed, reason = allowed_cores()
    threads = allowed if threads is None else threads
    # onnxruntime would start any number of threads at once, and tens of thousands of them stop a whole machine.
    if not 1 <= threads <= max(THREAD_LIMIT, os.cpu_count() or 1):
        raise RunnerError(f"A session cannot run with {threads} threads.", f"Use 1 to {allowed} ({reason}).")
    chosen = provider_name(provider)
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
    if profile is not None:
        settings.enable_profiling, settings.profile_file_prefix = True, profile
    try:
        session = ort.InferenceSession(model, settings, providers=[chosen])
    except ORT_ERRORS as error:
        reason = str(error).splitlines()[0]
        raise RunnerError(f"onnxruntime {ort.__version__} cannot load the model: {reason}") from None
    if session.get_providers()[0] != chosen:
        raise _fell_back(chosen)
    return session


def provider_name(provider: str | None) -> str:
    """The name of a provider that is there: "CUDAExecutionProvider" of "CUDA" or "cuda". RunnerError."""
    available: dict[str, str] = {name.removesuffix(PROVIDER).lower(): name for name in ort.get_available_providers()}
    found = available.get((provider or "CPU").removesuffix(PROVIDER).lower())
    if found is None:
        known = ", ".join(name.removesuffix(PROVIDER) for name in available.values())
        raise RunnerError(
            f"onnxruntime has no provider {provider!r} here.",
            f"There is {known}. Others need another package, such as onnxruntime-gpu.",
        )
    return found


def _fell_back(provider: str) -> RunnerError:
    return RunnerError(
        f"onnxruntime could not use {provider} and fell back to the CPU.",
        "Its drivers or libraries are missing, or it has no kernel for this model.",
    )


def require_provider(model: bytes, provider: str, feeds: dict[str, np.ndarray]) -> None:
    """RunnerError where a session on ``provider`` leaves all of the model to the CPU, as onnxruntime silently does."""
    with tempfile.TemporaryDirectory() as folder:
        session = make_session(model, provider=provider, profile=str(Path(folder, "profile")))
        run_session(session, feeds)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    used = {event.get("args", {}).get("provider") for event in events}
    if provider_name(provider) not in used:
        raise _fell_back(provider_name(provider))


def run_session(session: ort.InferenceSession, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All outputs of one call."""
    try:
        values = session.run(None, feeds)
    except ORT_ERRORS as error:
        raise RunnerError(f"onnxruntime failed to run the model: {str(error).splitlines()[0]}") from None
    return {output.name: values[i] for i, output in enumerate(session.get_outputs())}


# ---------------------------------------------------------------------------------------------- saturating products
# x86 with AVX2 and no VNNI multiplies uint8 by int8 codes two at a time and adds the pair in 16 bits, which can
# saturate. Weights can be such that no pair does; a bundle says whether its are.

# One MatMulInteger of uint8 "a" [1, 64] and int8 "b" [64, 16] into int32 "c", as ONNX.
PRODUCT = base64.b64decode(
    "CAo6XAoYCgFhCgFiEgFjIg1NYXRNdWxJbnRlZ2VyEgFwWhMKAWESDgoMCAISCAoCCAEKAghAWhMKAWISDgoMCAMSCAoCCEAKAggQ"
    "YhMKAWMSDgoMCAYSCAoCCAEKAggQQgQKABAV"
)
PRECISE = {"session.x64quantprecision": "1"}  # uint8 weights: exact everywhere, at half the speed or less


@functools.cache
def saturates() -> bool:
    """Whether this CPU saturates products of codes: two of 255 x 127 need 17 bits."""
    ones = np.ones((64, 16), np.int8)
    (result,) = make_session(PRODUCT, 1).run(None, {"a": np.full((1, 64), 255, np.uint8), "b": 127 * ones})
    return bool(np.any(result != 255 * 127 * 64))


def exact_products(manifest: Mapping[str, Any]) -> tuple[dict[str, str], str | None]:
    """The session options with which this CPU computes a bundle's products exactly, and what there is to say of it."""
    found = manifest["portability"]
    if (found is not None and not found["saturation"]) or not saturates():
        return {}, None
    return PRECISE, (
        "products of codes saturate on this CPU (AVX2 without VNNI), and this bundle's weights are not proven to avoid "
        "that: session.x64quantprecision=1 keeps the answers right and costs speed"
    )


def open_bundle(
    bundle: Mapping[str, Any],
    threads: int | None = None,
    *,
    options: Mapping[str, str] | None = None,
    provider: str | None = None,
) -> tuple[ort.InferenceSession, str | None]:
    """A session for the bundle that ``read_bundle`` has read, exact on this CPU, and what there is to say of it."""
    exact, note = exact_products(bundle["manifest"])
    try:
        return make_session(bundle["model"], threads, options={**exact, **(options or {})}, provider=provider), note
    except RunnerError as error:
        hint = (
            "On this CPU its products would saturate otherwise: build it with portable: true." if exact else error.hint
        )
        raise RunnerError(error.message, hint) from None


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
            raise RunnerError(_unknown_operation(step.get("op")))
        try:
            x = operation(x, **arguments)
        except (TypeError, ValueError, KeyError, IndexError) as error:
            raise RunnerError(f"Preprocessing {json.dumps(step)} fails on shape {x.shape}: {error}.") from None
    return np.ascontiguousarray(x)


def _unknown_operation(op: Any) -> str:
    close = difflib.get_close_matches(str(op), STEPS, n=1) or sorted(STEPS)
    return f"There is no preprocessing op {op!r}. Known: {', '.join(close)}."


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
        if entry["name"] not in raw:
            raise RunnerError(f"{manifest['name']} needs the input {entry['name']!r}, not {', '.join(raw) or 'none'}.")
        feeds[entry["name"]] = preprocess(raw[entry["name"]], entry["preprocessing"])
    return feeds


# ------------------------------------------------------------------------------------------------ golden self-test


def selftest(bundle: str | Path | dict[str, Any], threads: int | None = None) -> dict[str, Any]:
    """Run the golden inputs and compare with the golden outputs, as strictly as the manifest says.

    Returns {"name", "passed", "samples", "values", "differing", "max_difference", "comparison", "tolerance", "note"}.
    """
    if not isinstance(bundle, dict):
        bundle = read_bundle(bundle)
    session, note = open_bundle(bundle, threads)
    run = functools.partial(run_session, session)
    result = compare_golden(bundle, run_batched(run, bundle["manifest"], golden_feeds(bundle)))
    return {**result, "note": note}


def golden_feeds(bundle: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """What the model is fed for all golden samples."""
    manifest, golden = bundle["manifest"], bundle["golden"]
    return make_feeds(manifest, {entry["name"]: golden[f"input.{entry['name']}"] for entry in manifest["inputs"]})


# Kernels that quantize what they read with the range of the call: an answer depends on all samples of the batch, and on
# how onnxruntime divides it between threads. What a bundle says of its answers, it says of one sample a call.
RANGE_OF_THE_CALL = ("DynamicQuantizeLSTM", "DynamicQuantizeMatMul", "MatMulInteger", "ConvInteger")


def answers_alone(kernels: Iterable[str]) -> bool:
    """Whether each sample of a model of these kernels is to be run by itself wherever its answers count."""
    return not set(RANGE_OF_THE_CALL).isdisjoint(kernels)


def run_batched(
    run: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]],
    manifest: dict[str, Any],
    feeds: dict[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """All outputs that ``run`` gives for ``feeds`` of any number of samples, also where a model's batch is fixed.

    Where answers depend on the batch, each sample is run by itself.
    """
    samples, step = len(next(iter(feeds.values()))), fixed_batch(manifest)
    if step is None and answers_alone(layer["kernel"] for layer in (manifest["coverage"] or {}).get("layers", ())):
        step = 1
    if step is None:
        return run(feeds)
    # The last chunk is filled up with the first samples.
    chunks = [np.arange(start, start + step) % samples for start in range(0, samples, step)]
    parts = [run({name: value[rows] for name, value in feeds.items()}) for rows in chunks]
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
SHORTEST, LONGEST = 0.01, 86400.0  # seconds to measure for; less than a few calls is noise
STEADY = 0.05  # warm-up ends when three windows in a row have medians within this of each other


def bench_feeds(bundle: dict[str, Any], batch: int) -> dict[str, np.ndarray]:
    """``batch`` preprocessed golden samples, repeated as needed: zeros and noise would time differently."""
    manifest = bundle["manifest"]
    fixed = fixed_batch(manifest)
    if batch < 1 or fixed not in (None, batch):
        takes = "at least 1" if fixed is None else f"always {fixed}"
        raise RunnerError(f"{manifest['name']} cannot run with a batch of {batch}: its batch is {takes}.")
    golden = {entry["name"]: bundle["golden"][f"input.{entry['name']}"] for entry in manifest["inputs"]}
    fed = make_feeds(manifest, {name: samples[:1] for name, samples in golden.items()})
    needed, there = batch * sum(array.nbytes for array in fed.values()), memory_bytes()
    too_large = RunnerError(
        f"A batch of {batch} does not fit this machine's memory ({there >> 20:,} MiB): its inputs alone take "
        f"{needed >> 20:,} MiB.", "Use a smaller batch.",
    )  # fmt: skip
    if 0 < there < needed:
        raise too_large
    try:
        raw = {name: samples[np.arange(batch) % len(samples)] for name, samples in golden.items()}
        return make_feeds(manifest, raw)
    except MemoryError:
        raise too_large from None


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


def warm_up(block: Callable[[float], Sequence[int]], limit_seconds: float = 3.0) -> dict[str, Any]:
    """Call until times are steady, or until the limit. Returns {"call_seconds": median, "steady": bool}.

    ``block`` takes seconds and gives the times of the calls that fit in, in nanoseconds.
    """
    windows: list[float] = []
    deadline = time.perf_counter() + limit_seconds
    while True:
        windows.append(statistics.median(block(0.05)) / 1e9)
        recent = windows[-3:]
        steady = len(recent) == 3 and max(recent) <= min(recent) * (1 + STEADY)
        if steady or (len(recent) == 3 and time.perf_counter() > deadline):
            return {"call_seconds": recent[-1], "steady": steady}


def check_seconds(seconds: float) -> None:
    """RunnerError unless ``seconds`` is a time that one can measure for."""
    if not SHORTEST <= seconds <= LONGEST:
        raise RunnerError(f"{seconds} is no time to measure for.", f"Give {SHORTEST} to {LONGEST:.0f} seconds.")


def plan_blocks(seconds: float, slowest_call_seconds: float) -> tuple[int, float]:
    """(rounds, seconds a block): ROUNDS blocks, fewer (at least 5) where a block would not hold three calls."""
    rounds = int(min(ROUNDS, max(5, seconds / max(3 * slowest_call_seconds, 1e-9))))
    return rounds, seconds / rounds


def settle(limit_seconds: float = 1.0) -> None:
    """Wait until this process's threads are idle: onnxruntime's spin for some 30 ms after a call.

    Three looks in a row, because a thread that another process keeps from its core seems idle to one.
    """
    deadline, quiet = time.perf_counter() + limit_seconds, 0
    while time.perf_counter() < deadline and quiet < 3:
        before = time.process_time()
        time.sleep(0.005)
        quiet = quiet + 1 if time.process_time() - before < 0.0005 else 0


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


class Engine:
    """A bundle's model in onnxruntime, as a worker runs and times it. ``note``: what the answers needed."""

    def __init__(
        self, bundle: Mapping[str, Any], threads: int, options: Mapping[str, str] | None, provider: str | None
    ) -> None:
        self.provider = provider_name(provider)
        self.name = f"onnxruntime ({self.provider.removesuffix(PROVIDER)})"
        # Only a provider that may have left the model to the CPU is asked a second time.
        self._model = b"" if self.provider == provider_name(None) else bundle["model"]
        self._session, self.note = open_bundle(bundle, threads, options=options, provider=provider)

    def check(self, feeds: dict[str, np.ndarray]) -> None:
        """RunnerError where something else than was asked for runs the model."""
        if self.provider != provider_name(None):
            require_provider(self._model, self.provider, feeds)

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """All outputs by name."""
        return run_session(self._session, feeds)

    def block(self, feeds: dict[str, np.ndarray], seconds: float) -> list[int]:
        """Times of back-to-back calls, in nanoseconds."""
        return time_block(lambda: self._session.run(None, feeds), seconds)


class Worker:
    """One bundle in one process, run and timed on request.

    Requests and replies are JSON objects, one a line. A request is {"do": method, ...arguments}; a reply is
    {"ok": true, ...} or {"ok": false, "error": str, "hint": str}. Between requests the process is blocked on reading.
    """

    requests = ("load", "warm_up", "block", "predict", "finish")

    def engine(self, *arguments: Any) -> Any:
        """What runs a bundle, of (bundle, threads, options, provider)."""
        return Engine(*arguments)

    def load(
        self, bundle: str, threads: int | None = None, batch: int | None = 1, options: Any = None,
        provider: str | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """Create the session (its time is load_ms, from bytes in memory) and check one call's answers.

        ``batch`` None: nothing will be timed, and all golden samples are checked.
        """
        self.bundle = read_bundle(bundle)
        manifest = self.bundle["manifest"]
        self.feeds = golden_feeds(self.bundle) if batch is None else bench_feeds(self.bundle, batch)
        self.threads = allowed_cores()[0] if threads is None else threads
        exact_products(manifest)  # asks the CPU, once, before the clock starts
        start = time.perf_counter_ns()
        self.running = self.engine(self.bundle, self.threads, options, provider)
        load_ms = (time.perf_counter_ns() - start) / 1e6
        del self.bundle["model"]
        outputs = run_batched(self.running.run, manifest, self.feeds)
        self.running.check(self.feeds)
        samples = manifest["golden"]["samples"]
        return {
            "load_ms": load_ms,
            "threads": self.threads,
            "runtime": self.running.name,
            "note": self.running.note,
            "golden": compare_golden(self.bundle, {name: value[:samples] for name, value in outputs.items()}),
            "environment": environment(),
        }

    def warm_up(self, limit_seconds: float = 3.0) -> dict[str, Any]:
        """Call until times are steady."""
        result = warm_up(functools.partial(self.running.block, self.feeds), limit_seconds)
        self.rest()
        return result

    def block(self, seconds: float) -> dict[str, Any]:
        """Times of the calls of one block, in nanoseconds."""
        times = self.running.block(self.feeds, seconds)
        self.rest()
        return {"times_ns": times}

    def predict(self, inputs: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """The outputs for raw samples by input name; arrays as ``encode_array`` writes them."""
        manifest = self.bundle["manifest"]
        raw = {name: decode_array(value) for name, value in inputs.items()}
        outputs = run_batched(self.running.run, manifest, make_feeds(manifest, raw))
        return {"outputs": {name: encode_array(value) for name, value in outputs.items()}}

    def answer(self, method: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Do what a request asks for."""
        if method not in self.requests:
            raise RunnerError(f"A worker cannot {method!r}.")
        reply: dict[str, Any] = getattr(self, method)(**arguments)
        return reply

    def rest(self) -> None:
        """Leave the CPU to others before answering. One thread is the caller's own, which does not spin."""
        if self.threads > 1:
            settle()

    def finish(self) -> dict[str, Any]:
        """The last request."""
        return {"peak_rss_bytes": peak_rss_bytes()}


def encode_array(array: np.ndarray) -> dict[str, Any]:
    """An array of numbers as JSON data: dtype, shape, and its bytes in C order as base64."""
    data = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
    return {"dtype": array.dtype.name, "shape": list(array.shape), "data": data}


def decode_array(value: Mapping[str, Any]) -> np.ndarray:
    """The inverse of ``encode_array``."""
    return np.frombuffer(base64.b64decode(value["data"]), value["dtype"]).reshape(value["shape"])


def serve(worker: Worker, requests: Iterable[str], replies: IO[str]) -> None:
    """Answer requests until the last one, or until the other side closes the pipe."""
    for line in requests:
        request = json.loads(line)
        method = request.pop("do")
        try:
            reply = {"ok": True, **worker.answer(method, request)}
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

    def add(name: str, run: Callable[[argparse.Namespace], int], what: str, example: str) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name, parents=[common], help=what, description=f"{what[0].upper()}{what[1:]}.", epilog=f"Example: {example}"
        )
        command.set_defaults(run=run)
        return command

    add("selftest", _command_selftest, "compare with the golden outputs", "python run.py selftest")
    command = add("bench", _command_bench, "measure latency and throughput", "python run.py bench --threads 1")
    command.add_argument("--batch", type=int, default=1, help="samples a call (default 1)")
    command.add_argument("--seconds", type=float, default=2.0, help="measuring time (default 2)")
    command = add(
        "predict", _command_predict, "run the model on samples of your own", "python run.py predict image.png"
    )
    command.add_argument("file", type=Path, help=".npy or .npz with one raw sample or several, or an image")
    command.add_argument("--top", type=int, default=3, help="classes to show (default 3)")
    # What a bench starts and talks to; without a help text it is not listed.
    commands.add_parser("worker", description=Worker.__doc__).set_defaults(run=_command_worker)
    return parser


def _bundle_path(options: argparse.Namespace) -> Path:
    here = Path(__file__).resolve().parent
    if options.bundle is None and not (here / "manifest.json").is_file():
        raise RunnerError("No bundle was given and none lies beside this file.", "Add --bundle NAME.qdeploy.zip.")
    return Path(options.bundle or here)


def _command_selftest(options: argparse.Namespace) -> int:
    result = selftest(_bundle_path(options), options.threads)
    _say(result["note"])
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
    check_seconds(options.seconds)
    worker, path = Worker(), _bundle_path(options)
    loaded = worker.load(str(path), options.threads, options.batch)
    record, name, threads = loaded["environment"], loaded["golden"]["name"], loaded["threads"]
    _say(loaded["note"])
    result = {"name": name, "threads": threads, "batch": options.batch, "note": loaded["note"], "environment": record}
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
    if options.top < 1:
        raise RunnerError(f"{options.top} classes cannot be shown.", "Give --top 1 or more.")
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
    session, note = open_bundle(bundle, threads)
    _say(note)
    return run_batched(functools.partial(run_session, session), manifest, make_feeds(manifest, raw))


def _say(note: str | None) -> None:
    if note:
        print(f"note: {note}", file=sys.stderr)


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
            loaded = _read_image(path, inputs[0]["raw"])
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
    try:
        _check_range(converted, raw, path)
    except ValueError as error:
        raise RunnerError(f"{error}.", "Give raw samples, scaled as those in golden.npz are.") from None
    return converted


def _read_image(path: Path, raw: dict[str, Any]) -> np.ndarray:
    shape = raw["shape"]
    try:
        from PIL import Image
    except ImportError:
        raise RunnerError(
            f"Reading {path.name} needs Pillow, which is not installed.", "Run pip install pillow, or give a .npy file."
        ) from None
    if len(shape) not in (2, 3):
        raise RunnerError(f"This model takes raw samples of shape {shape}, which is not an image.", "Give a .npy file.")
    try:
        with Image.open(path) as opened:
            if opened.mode.startswith(("I", "F")):  # converting would cut values off at 255
                raise RunnerError(
                    f"{path.name} has more than 8 bits a channel.", "Save it with 8, or give a .npy file."
                )
            image = opened.convert("L" if len(shape) == 2 or shape[-1] == 1 else "RGB")
    except Image.DecompressionBombError as error:
        raise RunnerError(f"{path} cannot be read: {error}", "Make it smaller.") from None
    height, width = shape[:2]
    if isinstance(height, int) and isinstance(width, int) and image.size != (width, height):
        print(f"note: {path.name} is resized from {image.size} to {(width, height)}", file=sys.stderr)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    array = _to_range(np.asarray(image), raw, path)
    return array[..., None] if len(shape) == 3 and array.ndim == 2 else array


def _to_range(pixels: np.ndarray, raw: dict[str, Any], path: Path) -> np.ndarray:
    """Pixels 0..255 as raw values, where those have another range. An image that is within it holds raw values."""
    low, high = raw.get("range", (0, 255))
    if (low, high) == (0, 255) or low <= pixels.min() <= pixels.max() <= high:
        return pixels
    print(f"note: the pixels of {path.name}, 0 to 255, are scaled to raw values, {low:g} to {high:g}", file=sys.stderr)
    scaled: np.ndarray = low + pixels * np.float64((high - low) / 255)
    return scaled.astype(raw["dtype"]) if np.dtype(raw["dtype"]).kind == "f" else np.rint(scaled)


def _check_range(values: np.ndarray, raw: dict[str, Any], what: object) -> None:
    """ValueError where ``values`` are outside the range that raw samples have."""
    if "range" not in raw:
        return
    low, high = raw["range"]
    if values.size and not low <= values.min() <= values.max() <= high:
        raise ValueError(f"{what} has values from {values.min():g} to {values.max():g}, not from {low:g} to {high:g}")


def _command_worker(_: argparse.Namespace) -> int:
    serve_process(Worker())
    return 0


def serve_process(worker: Worker) -> None:
    """Answer the process that started this one, over stdin and stdout."""
    # A Ctrl-C in the terminal reaches every process of the bench; the one that started this worker ends it in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Replies get stdout to themselves: what a library prints there goes to stderr.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    serve(worker, sys.stdin, replies)


if __name__ == "__main__":
    sys.exit(main())
