#!/usr/bin/env python3
"""What scripts/bench makes of a saved run: the report with its targets, and the picture. Nothing is measured."""

import importlib.machinery
import importlib.util
import json
import pathlib
import subprocess
import sys
import tempfile
import unittest
import xml.etree.ElementTree as ElementTree

BENCH = pathlib.Path(__file__).resolve().parents[2] / "scripts/bench"
SVG = "{http://www.w3.org/2000/svg}"


def loaded():
    """Returns the script as a module."""
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(BENCH.parent))
    loader = importlib.machinery.SourceFileLoader("bench", str(BENCH))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("bench", loader))
    loader.exec_module(module)
    return module


def row(workload, **seconds):
    peers = {name: seconds[name] for name in ("gocryptfs", "other") if seconds.get(name)}
    best = min(peers, key=peers.get)
    ratio = seconds["hushfs"] / peers[best]
    return {"workload": workload, "says": f"does {workload}", "medians": seconds, "best_peer": best, "ratio_to_best_peer": ratio, "ahead": ratio < 1}


# Targets of these: 4, 8 and 5; rename_across has none.
RUN = {
    "facts": {"date": "2026-11-21 09:14 UTC", "kernel": "Linux 6.18", "backing": "tmpfs", "native version": "plain directory",
              "gocryptfs version": "gocryptfs 2.3; go-fuse 2.1.0", "other version": "<other> version 7", "passthrough version": "passthrough_ll of libfuse 3",
              "hushfs version": "hushfs 0.1.0"},
    "rows": [
        row("seqwrite", native=0.01, gocryptfs=0.05, other=0.02, passthrough=0.02, hushfs=0.04),
        row("unlink", native=0.01, gocryptfs=0.2, other=0.6, passthrough=0.1, hushfs=0.1),
        row("rename_across", native=0.01, gocryptfs=0.2, other=None, passthrough=0.1, hushfs=0.126),
        row("rm_rf", native=0.01, gocryptfs=0.2, other=0.3, passthrough=0.04, hushfs=0.005),
    ],
    "samples": {}, "errors": [{"system": "other", "workload": "rename_across", "error": "it broke"}],
}


class Saved(unittest.TestCase):
    def setUp(self):
        place = tempfile.TemporaryDirectory()
        self.addCleanup(place.cleanup)
        self.place = pathlib.Path(place.name)
        self.run_file, self.picture = self.place / "run.json", self.place / "picture.svg"
        self.run_file.write_text(json.dumps(RUN))

    def bench(self, *arguments, code=0):
        done = subprocess.run([sys.executable, BENCH, "--from", self.run_file, *arguments], capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, code, done.stderr)
        return done

    def draw(self, *arguments):
        self.bench("--plot", self.picture, *arguments)
        return ElementTree.parse(self.picture).getroot()

    def bars(self, *arguments):
        """Of each bar by what it says: its place, its width and its colour."""
        rects = [rect for rect in self.draw(*arguments).iter(f"{SVG}rect") if rect.find(f"{SVG}title") is not None]
        return {rect.find(f"{SVG}title").text: (float(rect.get("x")), float(rect.get("width")), rect.get("fill")) for rect in rects}

    def test_targets_are_columns_of_the_report(self):
        markdown = self.place / "report.md"
        out = self.bench("--targets", "--markdown", markdown).stdout
        self.assertEqual(markdown.read_text(), out)
        cells = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]] for line in out.splitlines() if line.startswith("|")}
        self.assertEqual(cells["workload"][-4:], ["target", "reached", "hushfs / passthrough", "within 1.25"])
        self.assertEqual(cells["seqwrite"][-4:], ["4x", "yes", "2.00", "**no**"])
        self.assertEqual(cells["unlink"][-4:], ["8x", "**no**", "1.00", "yes"])
        self.assertEqual(cells["rename_across"][-4:], ["-", "-", "1.26", "**no**"])
        self.assertEqual(cells["rename_across"][2], "failed")
        self.assertEqual(cells["rm_rf"][-4:], ["5x", "yes", "0.12", "yes"])
        self.assertIn("reached in 2 of 3 rows; not in unlink\n", out)
        self.assertIn("reached in 2 of 4 rows; not in seqwrite, rename_across\n", out)
        self.assertNotIn("target", self.bench().stdout)

    def test_targets_are_of_workloads_that_there_are(self):
        listed = subprocess.run([sys.executable, BENCH, "--list"], capture_output=True, text=True, check=True).stdout
        names = {line.split()[0] for line in listed.splitlines()}
        self.assertLessEqual(set(loaded().TARGETS), names)

    def test_longer_times_have_longer_bars(self):
        bars = self.bars()
        self.assertEqual(len(bars), 4 * 4 - 1)
        x = bars["seqwrite, hushfs: 4.00"][0]
        for name, ratio in (("gocryptfs", "5.00"), ("other", "2.00"), ("passthrough", "2.00")):
            self.assertEqual(bars[f"seqwrite, {name}: {ratio}"][0], x)
        # Twice as long is as much more from one place of the axis as from another.
        self.assertAlmostEqual(bars["seqwrite, hushfs: 4.00"][1], 2 * bars["seqwrite, other: 2.00"][1], delta=0.2)
        at, width, _ = bars["rm_rf, hushfs: 0.50"]
        one = bars["rm_rf, passthrough: 4.00"][0]
        self.assertAlmostEqual(at + width, one, delta=0.2, msg="shorter than native lies to the left of it")

    def test_a_system_keeps_its_colour(self):
        of_all = {key.split(",")[1].split(":")[0]: colour for key, (_, _, colour) in self.bars().items()}
        self.assertEqual(len(set(of_all.values())), 4)
        for saved in RUN["rows"]:
            of_row = self.bars("--only", saved["workload"])
            self.assertTrue(all(of_all[key.split(",")[1].split(":")[0]] == colour for key, (_, _, colour) in of_row.items()))

    def test_the_picture_says_what_it_shows(self):
        texts = [text.text for text in self.draw().iter(f"{SVG}text")]
        self.assertEqual([text for text in texts if text in ("hushfs", "gocryptfs", "other", "passthrough")], ["hushfs", "gocryptfs", "other", "passthrough"])
        self.assertIn("failed", texts)
        caption = " ".join(texts)
        for part in ("2026-11-21 09:14 UTC", "tmpfs", "gocryptfs 2.3 ·", "other: <other> 7", "hushfs 0.1.0"):
            self.assertIn(part, caption)
        self.assertIn("prefers-color-scheme: dark", self.picture.read_text())

    def test_what_is_no_saved_run_is_refused(self):
        self.bench("--rounds", "5", code=2)
        for wrong in ("", "[]", "{}", '{"facts": {}}'):
            self.run_file.write_text(wrong)
            done = self.bench("--plot", self.picture, code=1)
            self.assertIn("is nothing that --json wrote", done.stderr)
            self.assertFalse(self.picture.exists())


if __name__ == "__main__":
    unittest.main()
