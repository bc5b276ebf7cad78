"""The filesystems under test: how each is made, mounted, unmounted and removed. Used by bench, scale and conformance."""

import contextlib
import gzip
import json
import os
import pathlib
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
MOUNT_TIMEOUT_S = 60
UNMOUNT_TIMEOUT_S = 120
CHECK_TIMEOUT_S = 600
# The bits of the exit codes of hushfs fsck and verify for more than findings: an operation failed, wrong usage, cancelled.
CHECK_FAILED = 8 | 16 | 32


class Failed(Exception):
    """What failed, on what; shown to the user as it is."""


# ---------------------------------------------------------------------------------------------------------------------
# Systems.

PASSPHRASE = "a passphrase that is for tests only"
# Those that clean_up() has to end.
active = []


class System:
    """A filesystem under test. Its daemon runs in the foreground, as our child: so its end can be waited for."""

    package = program = None
    is_peer = True

    def __init__(self, name, home, data=None):
        """What it stores is put into `data`, on whatever filesystem that is; all else into `home`."""
        self.name, self.home, self.data = name, home, data or home
        self.vault, self.mountpoint = self.data / "vault", home / "mount"
        self.passfile, self.log = home / "passfile", home / "log"
        self.daemon = None
        # Users other than the mounting one may use it.
        self.allow_other = False

    def missing(self):
        """What to do when the system is not here, or None."""
        return None if shutil.which(self.program) else f"install it: apt-get install {self.package}"

    def version(self):
        return "?"

    def init_command(self):
        return None

    def mount_command(self):
        raise NotImplementedError

    def mount_stdin(self):
        return None

    def environment(self):
        return {}

    def others(self, *arguments):
        """The arguments that let other users in, if they shall come in."""
        return list(arguments) if self.allow_other else []

    # What follows is the same for all.

    def create(self):
        self.home.mkdir(exist_ok=True)
        self.vault.mkdir(parents=True)
        self.mountpoint.mkdir()
        self.passfile.write_text(PASSPHRASE + "\n")
        self.passfile.chmod(0o600)
        if command := self.init_command():
            done = subprocess.run([str(a) for a in command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                  env={**os.environ, **self.environment()}, timeout=MOUNT_TIMEOUT_S, check=False)
            if done.returncode != 0:
                raise Failed(f"{self.name}: making a vault failed: {done.stdout.decode(errors='replace')[-500:].strip()}")
        self.mount()

    def mount(self):
        command = [str(a) for a in self.mount_command()]
        with open(self.log, "ab") as log:
            self.daemon = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True,
                                           env={**os.environ, **self.environment()})
        with contextlib.suppress(BrokenPipeError):
            if text := self.mount_stdin():
                self.daemon.stdin.write(text.encode())
            self.daemon.stdin.close()
        deadline = time.monotonic() + MOUNT_TIMEOUT_S
        while not is_mounted(self.mountpoint):
            if self.daemon.poll() not in (None, 0) or time.monotonic() > deadline:
                raise Failed(f"{self.name}: not mounted: {self.last_words()}")
            time.sleep(0.01)
        os.stat(self.mountpoint)

    def findings(self, with_notes):
        """What the system itself finds wrong in its unmounted vault; with notes also what is left over but harms nothing."""
        return []

    def unmount_commands(self):
        point = str(self.mountpoint)
        generic = [["fusermount3", "-u", point], ["fusermount", "-u", point]]
        return ([["umount", point]] if os.geteuid() == 0 else []) + generic

    def unmount(self):
        """Unmounts and waits until the daemon has written everything and gone."""
        deadline = time.monotonic() + UNMOUNT_TIMEOUT_S
        said = ""
        while is_mounted(self.mountpoint):
            for command in self.unmount_commands():
                with contextlib.suppress(FileNotFoundError):
                    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False,
                                          timeout=UNMOUNT_TIMEOUT_S)
                    said = done.stderr.decode(errors="replace").strip() or said
                    if done.returncode == 0:
                        break
            else:
                if time.monotonic() > deadline:
                    raise Failed(f"{self.name}: does not unmount: {said}")
                time.sleep(0.2)
        if self.daemon:
            try:
                self.daemon.wait(max(1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise Failed(f"{self.name}: unmounted, but its process does not end") from None
            self.daemon = None

    def remount(self):
        self.unmount()
        drop_caches()
        self.mount()

    def destroy(self, delete=True):
        """Ends the system by all means, and deletes its files; for the end, and after a failure."""
        try:
            self.unmount()
        except (Failed, subprocess.TimeoutExpired) as error:
            say(f"{error}; unmounting it lazily")
        if is_mounted(self.mountpoint):
            for command in (["umount", "-l"], ["fusermount3", "-uz"]):
                with contextlib.suppress(FileNotFoundError):
                    subprocess.run([*command, str(self.mountpoint)], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
        if self.daemon and self.daemon.poll() is None:
            self.daemon.kill()
            self.daemon.wait()
        self.daemon = None
        if is_mounted(self.mountpoint):
            say(f"WARNING: {self.mountpoint} is still mounted and was left alone")
        elif delete:
            for directory in {self.home, self.data}:
                shutil.rmtree(directory, ignore_errors=True)

    def last_words(self):
        with contextlib.suppress(OSError):
            return self.log.read_text(errors="replace")[-500:].strip() or "it said nothing"
        return "it said nothing"


class Native(System):
    is_peer = False

    def __init__(self, name, home, data=None):
        super().__init__(name, home, data)
        self.mountpoint = self.data / "mount"

    def missing(self):
        return None

    def version(self):
        return "plain directory"

    def create(self):
        self.mountpoint.mkdir(parents=True)

    def mount(self):
        pass

    def unmount(self):
        os.sync()


class Passthrough(System):
    """What FUSE itself costs and cannot do: libfuse's example without encryption, with all that the kernel caches."""

    program = "passthrough_ll"
    is_peer = False
    source = pathlib.Path("/usr/share/doc/libfuse3-dev/examples")

    def missing(self):
        if not list(self.source.glob("passthrough_ll.c*")):
            return "install its source: apt-get install libfuse3-dev"
        return next((f"install it: apt-get install {package}" for program, package in (("cc", "gcc"), ("pkg-config", "pkg-config"))
                     if shutil.which(program) is None), None)

    def version(self):
        return "passthrough_ll of libfuse " + first_line("pkg-config", "--modversion", "fuse3")

    def init_command(self):
        for name in ("passthrough_ll.c", "passthrough_helpers.h"):
            packed = self.source / f"{name}.gz"
            text = gzip.decompress(packed.read_bytes()) if packed.exists() else (self.source / name).read_bytes()
            (self.home / name).write_bytes(text)
        flags = shlex.split(first_line("pkg-config", "--cflags", "--libs", "fuse3"))
        # What libfuse's own build finds in the C library.
        has = ["-DHAVE_FALLOCATE", "-DHAVE_COPY_FILE_RANGE"]
        return ["cc", "-O2", "-w", *has, "-o", self.home / self.program, self.home / f"{self.program}.c", *flags]

    def mount_command(self):
        return self.command("writeback,cache=always,timeout=86400")

    def command(self, options):
        # It holds a descriptor for every file that the kernel knows.
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        return ["prlimit", f"--nofile={most}:{most}", self.home / self.program, "-f",
                "-o", f"source={self.vault},{options}", *self.others("-o", "allow_other,default_permissions"), self.mountpoint]


def first_line(*command):
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=20, check=False)
        return next((line.strip() for line in done.stdout.decode(errors="replace").splitlines() if line.strip()), "?")
    return "?"


class Gocryptfs(System):
    package = program = "gocryptfs"

    def version(self):
        return first_line("gocryptfs", "--version")

    def init_command(self):
        return ["gocryptfs", "-q", "-init", "-scryptn", "10", "-passfile", self.passfile, self.vault]

    def mount_command(self):
        return ["gocryptfs", "-q", "-fg", *self.others("-allow_other"), "-passfile", self.passfile, self.vault, self.mountpoint]


class Securefs(System):
    package = program = "securefs"

    def version(self):
        # Distributions build it without its version.
        said = first_line("securefs", "version")
        return said if "NOTFOUND" not in said else "securefs " + first_line("dpkg-query", "-W", "-f", "${Version}", "securefs")

    def init_command(self):
        return ["securefs", "create", "--format", "4", "-r", "1", "--pass", PASSPHRASE, self.vault]

    def mount_command(self):
        return ["securefs", "mount", *self.others("-o", "allow_other,default_permissions"), "--pass", PASSPHRASE, self.vault, self.mountpoint]


class Encfs(System):
    package = program = "encfs"

    def version(self):
        return first_line("encfs", "--version")

    def mount_command(self):
        return ["encfs", "-f", "-S", "--standard", *self.others("--public"), self.vault, self.mountpoint]

    def mount_stdin(self):
        return PASSPHRASE + "\n"


class Cryfs(System):
    package = program = "cryfs"

    def version(self):
        return first_line("cryfs", "--version")

    def environment(self):
        return {"CRYFS_FRONTEND": "noninteractive", "CRYFS_NO_UPDATE_CHECK": "true", "CRYFS_LOCAL_STATE_DIR": str(self.home / "state")}

    def mount_command(self):
        return ["cryfs", "-f", *self.others("-o", "allow_other,default_permissions"), self.vault, self.mountpoint]

    def mount_stdin(self):
        return PASSPHRASE + "\n"


class Hushfs(System):
    is_peer = False
    binary = None
    # For -o, one string each.
    options = ()
    transport = "auto"
    # What opens a vault: "passfile", or "key-file", which costs no time.
    secret = "passfile"

    def missing(self):
        if self.binary.is_file():
            return None
        if self.binary != REPOSITORY / "target/release/hushfs":
            return f"there is no {self.binary}"
        say("building hushfs: cargo build --release")
        try:
            done = subprocess.run(["cargo", "build", "--release", "--quiet"], cwd=REPOSITORY, check=False)
        except FileNotFoundError:
            return "cargo is not installed: see https://rustup.rs"
        return None if done.returncode == 0 and self.binary.is_file() else "cargo build --release failed"

    def version(self):
        return first_line(self.binary, "--version")

    def init_command(self):
        return [self.binary, "init", "--kdf-memory", "64M", "--kdf-time", "10ms", *self.secret_arguments(), self.vault]

    def secret_arguments(self):
        # The file with the passphrase will do as a key: it is long enough.
        return [f"--{self.secret}", self.passfile]

    def mount_command(self):
        return [self.binary, "mount", "--foreground", "--transport", self.transport, *self.others("--allow-other"), *(a for o in self.options for a in ("-o", o)),
                *self.secret_arguments(), self.vault, self.mountpoint]

    def findings(self, with_notes):
        found = []
        for check in ("fsck", "verify"):
            done = subprocess.run([str(self.binary), check, "--json", *map(str, self.secret_arguments()), str(self.vault)],
                                  stdin=subprocess.DEVNULL, capture_output=True, timeout=CHECK_TIMEOUT_S, check=False)
            if done.returncode < 0 or done.returncode & CHECK_FAILED:
                raise Failed(f"{self.name} {check}: {done.stderr.decode(errors='replace').strip()}")
            lines = map(json.loads, done.stdout.splitlines())
            found += (line for line in lines if line["type"] == "finding" and (with_notes or line["severity"] != "note"))
        return found

    def unmount_commands(self):
        return [[str(self.binary), "unmount", str(self.mountpoint)], *super().unmount_commands()]


class HushfsDevice(Hushfs):
    """hushfs without io_uring, where the kernel has it."""

    transport = "device"


class Template(System):
    """A system given on the command line; a command with {backing} and {mount} that may stay or go to the background."""

    def __init__(self, name, home, data, command):
        super().__init__(name, home, data)
        self.command = command
        self.is_peer = name != "passthrough"

    def missing(self):
        return None

    def version(self):
        return self.command

    def mount_command(self):
        values = {"{backing}": shlex.quote(str(self.vault)), "{mount}": shlex.quote(str(self.mountpoint))}
        command = self.command
        for key, value in values.items():
            command = command.replace(key, value)
        return ["sh", "-c", command]


BUILT_IN = {"native": Native, "passthrough": Passthrough, "gocryptfs": Gocryptfs, "securefs": Securefs, "encfs": Encfs, "cryfs": Cryfs,
            "hushfs": Hushfs, "hushfs-device": HushfsDevice}


def is_mounted(path):
    wanted = str(path).replace("\\", "\\134").replace(" ", "\\040").replace("\t", "\\011")
    return any(line.split()[4] == wanted for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines())


def drop_caches():
    os.sync()
    if os.geteuid() == 0:
        with contextlib.suppress(OSError):
            pathlib.Path("/proc/sys/vm/drop_caches").write_text("3\n")


def filesystem_type(path):
    best, kind = -1, "?"
    for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, tail = line.partition(" - ")
        point = fields.split()[4].encode().decode("unicode_escape")
        if (path == pathlib.Path(point) or pathlib.Path(point) in path.parents) and len(point) > best:
            best, kind = len(point), tail.split()[0]
    return kind


# ---------------------------------------------------------------------------------------------------------------------
# What the user is told, and the end.

def say(text):
    clear_progress()
    print(f"{pathlib.Path(sys.argv[0]).name}: {text}", file=sys.stderr, flush=True)


def clear_progress():
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)


def progress(text):
    if sys.stderr.isatty():
        width = shutil.get_terminal_size().columns - 1
        print(f"\r\033[K{text[:width]}", end="", file=sys.stderr, flush=True)
    else:
        print(text, file=sys.stderr, flush=True)


def interrupted(signum, frame):
    raise KeyboardInterrupt


def clean_up(home):
    # A second Ctrl-C must not leave half of it mounted.
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    # What stands on another comes after it.
    for system in reversed(active):
        system.destroy()
    if any(is_mounted(system.mountpoint) for system in active):
        say(f"WARNING: {home} was not deleted")
    else:
        shutil.rmtree(home, ignore_errors=True)
