"""Draws what bench measured: for each workload a bar for each system, its time over that of the plain directory, on a logarithmic axis."""

import math
from xml.sax.saxutils import escape

# Of each system, its colour: three to one or better against white and against near-black.
COLOURS = {"hushfs": "#1f7ae0", "hushfs-device": "#2a9d8f", "gocryptfs": "#d2691e", "securefs": "#6b8e23", "encfs": "#c2559d", "cryfs": "#8c6d46",
           "passthrough": "#808a94"}
# Of those that have none, in turn.
OTHER_COLOURS = ["#b8475a", "#7a6fd0", "#3d8f5f"]

STYLE = """
text { font: 11px system-ui, sans-serif; fill: #1f2328 }
.title { font-size: 15px; font-weight: 600 }
.value { font-size: 8.5px }
.faint { fill: #59636e }
.paper { fill: #ffffff }
.tick { stroke: #d1d9e0 }
.one { stroke: #59636e }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 }
  .faint { fill: #9198a1 }
  .paper { fill: #0d1117 }
  .tick { stroke: #30363d }
  .one { stroke: #9198a1 }
}
"""

WIDTH = 1000
MARGIN = 20
COLUMNS = 2
COLUMN_GAP = 24
# Room for the names of workloads, and for the number behind the longest bar.
NAME_WIDTH, VALUE_WIDTH = 112, 34
BAR, PITCH, GROUP_GAP = 7, 9, 8
LINE = 16
# About so many bytes of text fit into a line of the caption.
CAPTION_LENGTH = 165


def plot(names, rows, facts):
    """Returns an SVG of rows as bench saves them. `names` are the systems; the plain directory is 1, hushfs comes first."""
    names = sorted((name for name in names if name != "native"), key=lambda name: (name != "hushfs", not name.startswith("hushfs")))
    others = iter(OTHER_COLOURS * len(names))
    colours = {name: COLOURS.get(name) or next(others) for name in names}
    groups = [(row["workload"], [(name, ratio(row["medians"], name)) for name in names]) for row in rows]
    axis = Axis([found for _, bars in groups for _, found in bars if found])
    per_column = math.ceil(len(groups) / COLUMNS)
    group_height = len(names) * PITCH + GROUP_GAP
    top = MARGIN + 4 * LINE
    bottom = top + per_column * group_height
    caption = wrapped(caption_of(names, facts), CAPTION_LENGTH)
    height = bottom + 2 * LINE + len(caption) * LINE
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img">',
           f"<title>Time of {escape(', '.join(names))} over that of a plain directory</title>", f"<style>{STYLE}</style>",
           f'<rect class="paper" width="{WIDTH}" height="{height}"/>',
           text(MARGIN, MARGIN + 10, "Time, as a multiple of the same work on a plain directory", "title"),
           text(WIDTH - MARGIN, MARGIN + 10, "shorter is better; logarithmic", "faint", "end"), *legend(names, colours, MARGIN + 2 * LINE)]
    width = (WIDTH - 2 * MARGIN - (COLUMNS - 1) * COLUMN_GAP) / COLUMNS
    for column in range(COLUMNS):
        part = groups[column * per_column:(column + 1) * per_column]
        if part:
            left = MARGIN + column * (width + COLUMN_GAP)
            out += draw_column(part, colours, axis.at(left + NAME_WIDTH, width - NAME_WIDTH - VALUE_WIDTH), left, top, group_height)
    out += [text(MARGIN, bottom + 2 * LINE + n * LINE, line, "faint") for n, line in enumerate(caption)]
    return "\n".join([*out, "</svg>"]) + "\n"


def ratio(medians, name):
    native, seconds = medians.get("native"), medians.get(name)
    return seconds / native if native and seconds else None


class Axis:
    """Where a ratio lies between two ends, each 1, 2 or 5 times a power of ten."""

    def __init__(self, ratios):
        low, high = min([0.5, *ratios]), max([2, *ratios])
        steps = [digit * 10.0 ** power for power in range(-4, 7) for digit in (1, 2, 5)]
        first = max(n for n, step in enumerate(steps) if step <= low)
        last = min(n for n, step in enumerate(steps) if step >= high)
        self.ticks = steps[first:last + 1]

    def at(self, left, width):
        low, high = math.log(self.ticks[0]), math.log(self.ticks[-1])
        return [(tick, left + (math.log(tick) - low) / (high - low) * width) for tick in self.ticks], \
            lambda value: left + (math.log(value) - low) / (high - low) * width


def draw_column(groups, colours, axis, left, top, group_height):
    ticks, place = axis
    end = top + len(groups) * group_height - GROUP_GAP
    for tick, x in ticks:
        yield f'<line class="{"one" if tick == 1 else "tick"}" x1="{x:.1f}" x2="{x:.1f}" y1="{top - 4}" y2="{end + 4}"/>'
        yield text(x, top - 8, f"{tick:g}", "faint", "middle")
    for n, (workload, bars) in enumerate(groups):
        y = top + n * group_height
        yield text(left + NAME_WIDTH - 8, y + len(bars) * PITCH / 2 + 3, workload, anchor="end")
        for name, found in bars:
            if found is None:
                yield text(place(1) + 3, y + BAR, "failed", "value faint")
            else:
                ends = sorted((place(1), place(found)))
                yield f'<rect x="{ends[0]:.1f}" y="{y}" width="{max(1, ends[1] - ends[0]):.1f}" height="{BAR}" fill="{colours[name]}">' \
                      f"<title>{escape(f'{workload}, {name}: {found:.2f}')}</title></rect>"
                yield text(ends[1] + 3, y + BAR, f"{found:.1f}", "value")
            y += PITCH


def legend(names, colours, y):
    x = MARGIN
    for name in names:
        yield f'<rect x="{x}" y="{y - 9}" width="10" height="10" fill="{colours[name]}"/>'
        yield text(x + 14, y, name)
        x += 34 + 7 * len(name)


def caption_of(names, facts):
    """Date, machine and versions; of these as much as says which."""
    versions = [version(name, facts[key]) for name in names if (key := f"{name} version") in facts]
    return [facts[key] for key in ("date", "kernel", "cpu", "scale", "disk", "far away") if key in facts] + \
        [f"backing directory on {facts['backing']}" if "backing" in facts else "", *versions]


def version(name, said):
    """Returns a system's name and version, without what it says of its parts."""
    said = said.split(";")[0].strip().replace(" version ", " ")
    return said if said.startswith(f"{name} ") else f"{name}: {said}"


def wrapped(parts, length):
    """Joins parts with dots, into lines."""
    lines = [""]
    for part in filter(None, parts):
        if lines[-1] and len(lines[-1]) + len(part) > length:
            lines.append("")
        lines[-1] += (" · " if lines[-1] else "") + part
    return lines


def text(x, y, content, kind=None, anchor=None):
    attributes = (f' class="{kind}"' if kind else "") + (f' text-anchor="{anchor}"' if anchor else "")
    return f'<text x="{x:.1f}" y="{y:.1f}"{attributes}>{escape(content)}</text>'
