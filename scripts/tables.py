"""What measurements report: facts of the machine, and tables of Markdown that can also be read as they are. Used by bench and scale."""

import datetime
import os
import pathlib
import platform
import sqlite3

from systems import filesystem_type


def machine(backing):
    """Returns what figures depend on."""
    cpu = next((line.split(":", 1)[1].strip() for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines()
                if line.startswith(("model name", "Model"))), platform.machine())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": f"{cpu}, {os.cpu_count()} logical, {memory:.0f} GiB memory",
        "backing": filesystem_type(backing),
        "caches": "dropped for what is cold" if os.geteuid() == 0 else "NOT dropped (needs root); what is cold is remounted only",
        "python": f"{platform.python_version()}, SQLite {sqlite3.sqlite_version}",
    }


def facts_text(facts):
    return "\n".join(f"- {key}: {value}" for key, value in facts.items())


def table(header, rows):
    """Returns a table of strings: the first column to the left, the others to the right."""
    lines = [header, None, *rows]
    widths = [max(len(line[n]) for line in lines if line) for n in range(len(header))]
    return "\n".join("| " + " | ".join((c.ljust if n == 0 else c.rjust)(w) for n, (c, w) in enumerate(zip(line, widths))) + " |" if line
                     else "|" + "|".join("-" * (w + 1) + ("-" if n == 0 else ":") for n, w in enumerate(widths)) + "|" for line in lines)


def short(seconds):
    return f"{seconds:.2f}" if seconds >= 1 else f"{seconds:.3f}" if seconds >= 0.1 else f"{seconds:.4f}"
