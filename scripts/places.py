"""Where the data of filesystems under test lies: on a disk of its own, or far away. Used by bench and scale."""

import contextlib
import os
import struct
import subprocess

from systems import Failed, Passthrough, is_mounted, say

# Requests that a program waits for, or that at least keep a connection busy. FORGET is neither: it has no answer.
REQUESTS = ["lookup", "getattr", "setattr", "readlink", "mknod", "mkdir", "symlink", "unlink", "rmdir", "rename", "link", "open", "create", "read",
            "write_buf", "statfs", "flush", "release", "fsync", "opendir", "readdir", "readdirplus", "releasedir", "fsyncdir", "fallocate", "lseek",
            "copy_file_range"]


class Disk:
    """A filesystem on a block device: ext4 in an image file, which has a cold state that memory has not."""

    def __init__(self, home, gib):
        self.image, self.path, self.gib = home / "disk.img", home / "disk", gib
        self.device = None

    def missing(self):
        return None if os.geteuid() == 0 else "a loop device needs root"

    @property
    def mountpoint(self):
        return self.path

    def create(self):
        self.path.mkdir()
        with open(self.image, "wb") as file:
            file.truncate(self.gib << 30)
        # Inodes enough for small files; all of them written now, not by the kernel while it is measured.
        run("mkfs.ext4", "-q", "-F", "-m", "0", "-i", "6144", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard", self.image)
        # Not through the page cache of the filesystem that the image is on, which would be a second cache.
        self.device = run("losetup", "--find", "--show", "--direct-io=on", self.image)
        run("mount", "-o", "noatime", self.device, self.path)

    def destroy(self):
        with contextlib.suppress(Failed):
            if is_mounted(self.path):
                run("umount", self.path)
            if self.device:
                run("losetup", "--detach", self.device)
                self.device = None
        if is_mounted(self.path):
            say(f"WARNING: {self.path} is still mounted")
        else:
            self.image.unlink(missing_ok=True)


class Far(Passthrough):
    """A directory that each request takes time to reach, and which counts them: libfuse's example of a filesystem that shows another directory.

    The kernel trusts names and attributes for a second, as it does with network filesystems, and has up to ten requests under way.
    """

    program = "far"

    def __init__(self, home, delay_s):
        super().__init__("far", home / "far")
        self.delay_s = delay_s
        self.counters = self.home / "counters"

    @property
    def path(self):
        return self.mountpoint

    def init_command(self):
        (self.home / "far.c").write_text(FAR)
        return [*super().init_command(), "-finstrument-functions"]

    def environment(self):
        return {"FAR_DELAY_US": str(round(self.delay_s * 1e6)), "FAR_COUNTERS": str(self.counters)}

    def mount_command(self):
        self.counters.write_bytes(bytes(8 * len(REQUESTS)))
        return self.command("timeout=1")

    def counts(self):
        """Returns how many requests there were of each kind since it was mounted."""
        return dict(zip(REQUESTS, struct.unpack(f"{len(REQUESTS)}Q", self.counters.read_bytes())))


FAR = r"""
#include "passthrough_ll.c"
#include <fcntl.h>
#include <sys/mman.h>
#include <time.h>

#define UNTRACED __attribute__((no_instrument_function))

static void *const requests[] = { """ + ", ".join(f"(void *) lo_{name}" for name in REQUESTS) + r""" };
#define COUNT (sizeof(requests) / sizeof(requests[0]))
static uint64_t *counters;
static struct timespec delay;

UNTRACED __attribute__((constructor)) static void begin(void)
{
    int fd = open(getenv("FAR_COUNTERS"), O_RDWR);
    long us = atol(getenv("FAR_DELAY_US"));
    counters = mmap(NULL, COUNT * sizeof(*counters), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (counters == MAP_FAILED)
        abort();
    delay = (struct timespec) { us / 1000000, us % 1000000 * 1000 };
}

/* Called by the compiler's doing at the beginning of every function. */
UNTRACED void __cyg_profile_func_enter(void *function, void *from)
{
    for (size_t i = 0; i < COUNT; i++) {
        if (requests[i] != function)
            continue;
        __atomic_fetch_add(&counters[i], 1, __ATOMIC_RELAXED);
        if (delay.tv_sec || delay.tv_nsec)
            nanosleep(&delay, NULL);
    }
}

UNTRACED void __cyg_profile_func_exit(void *function, void *from)
{
}
"""


def run(*command):
    done = subprocess.run([str(word) for word in command], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Failed(f"{command[0]}: {done.stderr.strip() or done.returncode}")
    return done.stdout.strip()


def duration(text):
    """Reads 5ms, 200us or 1s; in seconds."""
    for unit, seconds in (("us", 1e-6), ("ms", 1e-3), ("s", 1.0)):
        if text.endswith(unit) and text[:-len(unit)].replace(".", "", 1).isdigit():
            return float(text[:-len(unit)]) * seconds
    raise ValueError(f"{text} is no time; say 5ms")
