"""qemu and an ARM64 Python with onnxruntime: where they lie, and how they get there.

    python -m qdeploy.targets._emulators

fetches them once with apt and pip (140 MB; 190 MB unpacked), signatures checked, and prints the folder. Nothing is
installed: the folder holds all of it, no administrator is needed, and the system's own apt and pip are as before.
Both come from one release of Debian: its qemu is the first that runs onnxruntime's ARM64 wheel. Ubuntu and others
that have apt need QDEPLOY_DEBIAN_MIRROR, the address of a Debian mirror, and the package debian-archive-keyring.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import platform
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort

from qdeploy.core.errors import QDeployError
from qdeploy.core.files import sha256

CONTENTS = 1  # part of the folder's name: another number where this file puts something else into it
RELEASE, PYTHON = "trixie", "3.13"  # qemu 7.2, of the release before, crashes when onnxruntime is imported
ARCHITECTURES = ("aarch64", "x86_64")  # that are emulated, by qemu's names; the first is preferred
# What numpy, onnxruntime and the runner load on ARM64, and no more.
PACKAGES = (
    "libc6", "libexpat1", "libffi8", "libgcc-s1", f"libpython{PYTHON}-minimal", f"libpython{PYTHON}-stdlib",
    "libstdc++6", f"python{PYTHON}-minimal", "zlib1g",
)  # fmt: skip
SOURCES = "sources.list"
KEYRINGS = ("debian-archive-keyring.gpg", "debian-archive-keyring.pgp")


@dataclass(frozen=True, slots=True)
class Emulators:
    """The folder that was fetched."""

    folder: Path

    @property
    def root(self) -> Path:
        """What an ARM64 program sees in the place of /, as far as it is there."""
        return self.folder / "arm64"

    @property
    def python(self) -> Path:
        """The ARM64 Python, whose numpy and onnxruntime are of the versions that run here."""
        return self.root / "usr" / "bin" / f"python{PYTHON}"

    def qemu(self, architecture: str) -> Path:
        """The program that runs programs for one of ARCHITECTURES."""
        return self.folder / "bin" / f"qemu-{architecture}"


def find() -> Emulators:
    """The emulators of this machine. QDeployError, with the command that fetches them: they are not here."""
    found = Emulators(_folder())
    if not _is_whole(found):
        raise QDeployError(
            f"There are no emulated CPUs in {found.folder}.",
            f"This fetches them, once, 140 MB: {sys.executable} -m {__name__}",
        )
    return found


def fetch() -> Emulators:
    """Fetch the emulators where they are not here yet. QDeployError: something that this needs is missing or fails.

    The folder appears when it is complete. Where a fetch was killed, the next one goes on with what was downloaded.
    """
    found = Emulators(_folder())
    if _is_whole(found):
        return found
    _check_system()
    with _locked(found.folder.with_name(f"{found.folder.name}.lock")):
        if _is_whole(found):  # another process has fetched them while this one waited
            return found
        if found.folder.exists() and any(found.folder.iterdir()):
            raise QDeployError(
                f"{found.folder} holds something else.", "Remove it, or set QDEPLOY_EMULATORS to another."
            )
        partial = found.folder.with_name(f"{found.folder.name}.partial")
        try:
            _fill(partial)
            partial.rename(found.folder)
        except OSError as error:
            raise QDeployError(f"{partial} cannot be written: {error.strerror}.", "Set QDEPLOY_CACHE.") from error
    return found


def _folder() -> Path:
    """$QDEPLOY_EMULATORS, else a folder named by what lies in it in $QDEPLOY_CACHE, else in ~/.cache/qdeploy."""
    if named := os.environ.get("QDEPLOY_EMULATORS"):
        return Path(named).expanduser().resolve()
    cache = Path(os.environ.get("QDEPLOY_CACHE") or "~/.cache/qdeploy").expanduser().resolve()
    versions = f"{platform.machine()}-numpy-{np.__version__}-onnxruntime-{ort.__version__}"
    return cache / f"emulators-{CONTENTS}-{versions}"


def _is_whole(emulators: Emulators) -> bool:
    return all(file.is_file() for file in (emulators.python, *map(emulators.qemu, ARCHITECTURES)))


def _check_system() -> None:
    if sys.platform != "linux":
        raise QDeployError("CPUs are emulated on Linux only.", "Use a Linux machine, or a container.")
    missing = [program for program in ("apt-get", "dpkg", "dpkg-deb") if shutil.which(program) is None]
    if missing:
        raise QDeployError(
            f"Emulators are fetched with Debian's package manager, and there is no {missing[0]} here.",
            "Fetch them on Debian, or in a container of it, and set QDEPLOY_EMULATORS to a copy of the folder.",
        )


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock that the operating system gives back when this process and those that it started have ended."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        raise QDeployError(f"{path.parent} cannot be written: {error.strerror}.", "Set QDEPLOY_CACHE.") from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        os.set_inheritable(file.fileno(), True)
        yield


def _fill(folder: Path) -> None:
    """Download, unpack, and try what was unpacked. Leaves the emulators in ``folder``, and nothing else."""
    downloads, made = folder / "downloads", Emulators(folder)
    for unpacked in (made.root, folder / "bin"):  # of a fetch that was killed
        shutil.rmtree(unpacked, ignore_errors=True)
        unpacked.mkdir(parents=True)
    for package in _download(downloads):
        if package.name.startswith("qemu-user_"):
            _extract(package, [f"qemu-{architecture}" for architecture in ARCHITECTURES], folder / "bin")
        else:
            _run("dpkg-deb", "--extract", str(package), str(made.root))
    (made.root / "lib").symlink_to("usr/lib")  # where programs look for the loader; in Debian of a package of its own
    _install(made)
    _run(
        str(made.qemu("aarch64")), "-L", str(made.root), "-cpu", "cortex-a76", str(made.python), "-I", "-c",
        "import numpy, onnxruntime",  # this also leaves their compiled code for the next start
    )  # fmt: skip
    shutil.rmtree(downloads)


def _download(folder: Path) -> list[Path]:
    """The packages, checked by apt. One that is there, whole and of the newest version, is not fetched again."""
    native = _run("dpkg", "--print-architecture").strip()
    apt = {**os.environ, "APT_CONFIG": str(_configure_apt(folder / "apt", native)), "LC_ALL": "C"}
    _update(folder / "apt" / SOURCES, apt)
    names = [f"qemu-user:{native}", *(f"{name}:arm64" for name in PACKAGES)]
    # 'URI' NAME SIZE HASH of each, asked for in another folder: of files that are there it says nothing.
    listed = _run("apt-get", "download", "--print-uris", *names, environment=apt, cwd=folder / "apt").splitlines()
    packages = {folder / name: digest for _, name, _, digest in map(str.split, listed)}
    for package, digest in packages.items():  # apt takes a file of the right size for the right one
        if package.is_file() and digest != f"SHA256:{sha256(package)}":
            package.unlink()
    _run("apt-get", "download", *names, environment=apt, cwd=folder)
    return list(packages)


def _configure_apt(folder: Path, native: str) -> Path:
    """Write the settings of an apt whose state lies in ``folder``. Returns their file.

    Of the system's settings it has those that say how to reach a mirror: proxies, certificates, retries.
    """
    (folder / "lists" / "partial").mkdir(parents=True, exist_ok=True)
    (folder / "status").touch()
    unread = ("Main", "Parts", "SourceParts", "Preferences", "PreferencesParts")
    own = {
        **{f"Dir::Etc::{name}": "/dev/null" for name in unread},
        "Dir::Etc::SourceList": folder / SOURCES,
        "Dir::State": folder,
        "Dir::State::Status": folder / "status",
        "Dir::Cache": folder,
        "Dir::Cache::pkgcache": "",
        "Dir::Cache::srcpkgcache": "",
        "APT::Architecture": native,
        "APT::Architectures": "",
        "APT::Get::AllowUnauthenticated": "false",
        "APT::Update::Error-Mode": "any",
        "APT::Sandbox::User": "root",  # that is, the caller: apt's own user cannot enter a home
        "Acquire::AllowInsecureRepositories": "false",
        "Acquire::AllowWeakRepositories": "false",
        "Acquire::GzipIndexes": "true",
        "Acquire::Languages": "none",
    }
    lines = [line for line in _run("apt-config", "dump", "Acquire").splitlines() if "::IndexTargets::" not in line]
    lines += [f'{key} "{value}";' for key, value in own.items()]
    lines += [f'APT::Architectures:: "{name}";' for name in dict.fromkeys((native, "arm64"))]
    (folder / "apt.conf").write_text("\n".join([*lines, ""]), encoding="utf-8")
    return folder / "apt.conf"


def _update(sources: Path, environment: dict[str, str]) -> None:
    """Fetch the list of the release's packages, signed by Debian, from the first mirror that has it."""
    keyring = next((file for name in KEYRINGS if (file := Path("/usr/share/keyrings", name)).is_file()), None)
    if keyring is None:
        raise QDeployError("There are no keys to check Debian's signatures with.", "Install debian-archive-keyring.")
    problem = "The package sources of this system name no mirror of Debian."
    for mirror in _mirrors():
        sources.write_text(f"deb [signed-by={keyring}] {mirror} {RELEASE} main\n", encoding="utf-8")
        try:
            _run("apt-get", "update", environment=environment)
        except QDeployError as error:
            problem = error.message
        else:
            return
    raise QDeployError(
        problem, "Set QDEPLOY_DEBIAN_MIRROR to the address of a mirror of Debian that this machine can reach."
    )


def _mirrors() -> list[str]:
    """Where this system gets Debian from: $QDEPLOY_DEBIAN_MIRROR, else what its own package sources name."""
    if named := os.environ.get("QDEPLOY_DEBIAN_MIRROR"):
        return [named]
    fields = "$(REPO_URI) $(RELEASE) $(COMPONENT)"
    lines = _run("apt-get", "indextargets", "--format", fields, "Created-By: Packages").splitlines()
    sources = [line.split() for line in lines]
    # A release with a dash is one of updates, which lie elsewhere ("bookworm-security").
    found = [uri for uri, release, component in sources if component == "main" and "-" not in release]
    return list(dict.fromkeys(found))


def _extract(package: Path, names: list[str], folder: Path) -> None:
    """The programs of a package that are named, and not the dozens beside them."""
    command = ["dpkg-deb", "--fsys-tarfile", str(package)]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE) as unpacking,
        tarfile.open(fileobj=unpacking.stdout, mode="r|") as members,
    ):
        for member in members:
            name = Path(member.name).name
            if member.isfile() and name in names and (content := members.extractfile(member)) is not None:
                (folder / name).write_bytes(content.read())
                (folder / name).chmod(0o755)
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise QDeployError(f"{package.name} holds no {missing[0]}.", "Report this; Debian has changed the package.")


def _install(emulators: Emulators) -> None:
    """Install numpy and onnxruntime for ARM64, without what they need for other things than running a model."""
    packages = emulators.root / "usr" / "lib" / "python3" / "dist-packages"
    tags = [f"manylinux_2_{minor}_aarch64" for minor in range(17, 42)]
    _run(
        sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-compile",
        "--target", str(packages), "--only-binary=:all:", "--implementation=cp", f"--python-version={PYTHON}",
        *(f"--platform={tag}" for tag in (*tags, "manylinux2014_aarch64")),
        f"numpy=={np.__version__}", f"onnxruntime=={ort.__version__}",
    )  # fmt: skip


def _run(*command: str, environment: dict[str, str] | None = None, cwd: Path | None = None) -> str:
    """What a program prints. QDeployError with the line that says why: it fails."""
    try:
        # close_fds: the program keeps the lock, so that one which outlives a killed fetch is waited for by the next.
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, env=environment, cwd=cwd, close_fds=False
        )
    except OSError as error:
        raise QDeployError(f"{command[0]} cannot be started: {error.strerror}.") from error
    except subprocess.CalledProcessError as error:
        lines = [line for line in (error.stderr or error.stdout).splitlines() if line.strip()]
        telling = [line for line in lines if line.startswith(("E: ", "ERROR: ")) and line != "ERROR: Exception:"]
        telling += lines[-1:] or ["it says nothing."]
        what = " ".join(Path(word).name if word.startswith("/") else word for word in command[:3])
        raise QDeployError(f"{what} failed: {telling[0]}", "Nothing was installed; a next call goes on.") from error
    return done.stdout


def main() -> int:
    """Fetch, and print where it lies. Returns the exit code: 0, or 2 for an error."""
    argparse.ArgumentParser(prog="python -m qdeploy.targets._emulators", description=__doc__).parse_args()
    try:
        if not _is_whole(Emulators(_folder())):
            sys.stderr.write("Fetching qemu and an ARM64 Python: 140 MB.\n")
        sys.stdout.write(f"{fetch().folder}\n")
    except QDeployError as error:
        sys.stderr.write(f"error: {error.message} {error.hint}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
