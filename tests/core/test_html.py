"""`report.html`: nothing in it is foreign markup, nothing is loaded, and what it shows are the set's own numbers."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html import escape
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from condense.html import CLASSES, report_page, size, thinned
from condense.markup import Html, join, tag
from condense.observers import Line
from condense.report import Report, Row

HOSTILE = "<script>alert('x')</script>"
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")


class Elements(HTMLParser):
    """Start tags with their attributes, and the text of the page."""

    def __init__(self, page):
        super().__init__()
        self.found, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, name, attributes):
        self.found.append((name, dict(attributes)))

    def handle_data(self, data):
        self.text += data

    def named(self, name):
        return [attributes for found, attributes in self.found if found == name]


def row(kind, accuracies, net="toy-net", **changes):
    fields = {
        "kind": kind,
        "method": "toy" if kind == "condensed" else kind,
        "images": 6,
        "protocol": "judged",
        "rules": "r",
        "net": net,
        "network": {"name": net},
        "labels": "hard",
        "preprocessing": {},
        "preprocessing_digest": "p",
        "classes": 3,
        "split": "test",
        "tested": "t",
        "seed": 3,
        "accuracies": accuracies,
        "bests": [a + 0.01 for a in accuracies],
        "curves": [[(1, 0.2), (2, a / 2), (3, a)] for a in accuracies],
        "numbers": {"accuracy": accuracies},
        "seconds": 75.0,
        "peak_memory_bytes": 10**9,
        "hardware": {"device": "a processor"},
        "versions": {},
    }
    return Row.model_validate({**fields, **changes})


REPORT = Report(rows=(row("condensed", [0.7, 0.9]), row("random", [0.5, 0.5]), row("full", [1.0, 1.0])))


@pytest.fixture
def artifact(toy_artifact):
    """The toy's, with a source on record, and a log of its losses."""
    source = {"counts": [100, 50, 30], "licence": "MIT", "citation": "A & B <2024>", "title": "Toys"}
    facts = {"source": source, "seconds": 130.0, "peak_memory_bytes": 2_500_000, "machine": {"device": "a processor"}}
    (toy_artifact.path / ".run").mkdir()
    lines = [Line(i, i / 10, {"match": 100 / (i + 1)}).json() for i in range(1000)]
    (toy_artifact.path / ".run" / "log.jsonl").write_text("".join(lines))
    return replace(toy_artifact, provenance={**toy_artifact.provenance, **facts})


def hostile(artifact):
    """Everything that an artifact's maker can write, written as markup."""
    classes = (HOSTILE, '"><img src=x onerror=alert(1)>', "a&b")
    source = {"counts": [2, 2, 2], "licence": HOSTILE, "citation": HOSTILE, "title": HOSTILE, "fingerprint": HOSTILE}
    facts = {
        "source": source,
        "notes": {HOSTILE: HOSTILE},
        "versions": {HOSTILE: HOSTILE},
        "machine": {"device": HOSTILE},
    }
    return replace(
        artifact,
        task=artifact.task.model_copy(update={"classes": classes}),
        plan=artifact.plan.model_copy(update={"method": HOSTILE}),
        provenance={**artifact.provenance, **facts},
    )


HOSTILE_REPORT = Report(
    rows=(
        row("condensed", [0.1], net=HOSTILE, protocol=HOSTILE, hardware={"device": HOSTILE}, warnings={"w": HOSTILE}),
    )
)


def test_texts_and_attributes_are_escaped_and_markup_is_not():
    assert tag("p", HOSTILE) == f"<p>{escape(HOSTILE)}</p>"
    assert (
        tag("p", tag("b", "x"), None, 3, class_="a", aria_label='"', id=None)
        == '<p class="a" aria-label="&quot;"><b>x</b>3</p>'
    )
    assert join(["<", Html("<br>")]) == "&lt;<br>"


def test_hostile_texts_show_as_text(artifact):
    page = report_page(hostile(artifact), HOSTILE_REPORT)
    elements = Elements(page)
    assert elements.named("script") == []
    assert all(attributes["src"].startswith("data:image/png;base64,") for attributes in elements.named("img"))
    assert not any(name.startswith("on") for _, attributes in elements.found for name in attributes)
    assert elements.text.count(HOSTILE) >= 8
    assert '"><img src=x onerror=alert(1)>' in elements.text


def test_page_loads_nothing(artifact):
    page = report_page(artifact, REPORT)
    elements = Elements(page)
    addresses = [
        value for _, a in elements.found for key, value in a.items() if key in ("src", "href", "srcset", "action")
    ]
    assert addresses
    assert all(address.startswith("data:") for address in addresses)
    assert not elements.named("link")
    assert "url(" not in page
    assert "@import" not in page
    assert "http" not in re.sub(r"http-equiv", "", page)
    policy = next(a["content"] for a in elements.named("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def test_headline_says_what_the_report_says(artifact):
    text = Elements(report_page(artifact, REPORT)).text
    assert "6 images instead of 180" in text
    assert "80.0 ± 10.0 %" in text
    assert "30.0 points more" in text
    assert "80.0 % of what they get when they see all of the data" in text
    assert "2 min 10 s" in text
    assert "2.5 MB" in text
    assert "30.0×" in text


def test_bars_are_as_long_as_the_accuracies(artifact):
    page = report_page(artifact, REPORT)
    drawn = re.findall(r'class="bar (\w+)" x="0" y="2" width="([\d.]+)"', page)
    assert drawn == [("full", "100"), ("random", "50"), ("condensed", "80")]
    errors = re.findall(r'<line class="err" x1="([\d.]+)" x2="([\d.]+)" y1="10" y2="10"', page)
    assert errors == [("70", "90")], "one error bar: the other sets have no spread"


def test_images_are_the_artifacts_own_under_their_own_class(artifact, toy_images):
    page = report_page(artifact, REPORT)
    body = page[page.index("The images") : page.index("How it went")]
    found = re.findall(r'class="class">([^<]*)</div>|src="data:image/png;base64,([^"]*)"', body)
    named = [name for name, _ in found if name]
    assert named == list(artifact.task.classes)
    pixels = [np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) for _, data in found if data]
    expected = (toy_images * 255).round().to(dtype=torch.uint8).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(np.stack(pixels).astype(int), expected.astype(int), atol=1)


def test_page_is_accessible(artifact):
    elements = Elements(report_page(artifact, REPORT))
    assert elements.named("html") == [{"lang": "en"}]
    assert len(elements.named("h1")) == 1
    assert all("alt" in image for image in elements.named("img"))
    assert all(head.get("scope") in ("row", "col") for head in elements.named("th"))
    assert [head.get("scope") for head in elements.named("th")].count("row") == 3
    assert len(elements.named("caption")) == 1
    told = [a["aria-label"] for _, a in elements.found if a.get("role") == "img"]
    assert all(told)
    assert "2 images of the class circle" in told


def test_many_classes_are_said_to_be_left_out(artifact):
    classes = tuple(f"class {i}" for i in range(CLASSES + 5))
    many = replace(artifact, task=artifact.task.model_copy(update={"classes": classes}))
    images = [np.zeros((1, 4, 4), dtype=np.uint8)] * len(classes)
    from condense.html import pictures

    text = Elements(str(pictures(many, images))).text
    assert f"Shown: the first {CLASSES} of {len(classes)} classes." in text
    assert f"class {CLASSES - 1}" in text
    assert f"class {CLASSES}" not in text


def test_page_of_an_artifact_that_records_little(toy_artifact):
    text = Elements(report_page(toy_artifact, Report())).text
    assert "Not judged yet." in text
    assert "6 images" in text


def test_doubts_are_shown(artifact):
    doubted = Report(rows=(row("condensed", [0.3], warnings={"constant-prediction": "always class 2"}),))
    assert "always class 2" in Elements(report_page(artifact, doubted)).text


def test_loss_curve_of_a_long_run_keeps_its_ends_and_extremes(artifact):
    page = report_page(artifact, REPORT)
    points = re.search(r'class="line condensed" points="([^"]*)"', page)[1].split()
    assert 100 < len(points) <= 300
    assert points[-1].startswith("100,")
    spread = list(range(1000))
    assert thinned(spread)[-1] == 999
    assert thinned(spread, min)[0] == 0
    assert thinned(spread, max)[-1] == 999
    assert len(thinned(spread)) == 300


def test_page_is_the_same_text_for_the_same_artifact(artifact):
    assert report_page(artifact, REPORT) == report_page(artifact, REPORT)


def test_page_is_part_of_what_the_artifact_verifies(artifact):
    from condense.artifact import load
    from condense.errors import Damaged

    artifact.update(report=REPORT.dump(), extra={"report.html": report_page(artifact, REPORT).encode()})
    assert Report.model_validate(load(artifact.path).report) == REPORT
    page = artifact.path / "report.html"
    page.write_text(page.read_text().replace("80.0", "99.9"))
    with pytest.raises(Damaged, match=r"report\.html"):
        load(artifact.path)


@pytest.mark.parametrize(
    ("n", "text"), [(0, "0 B"), (999, "999 B"), (26400, "26.4 kB"), (2.5e6, "2.5 MB"), (3e12, "3.0 TB")]
)
def test_size(n, text):
    assert size(n) == text


def browse(page, tmp_path, *options):
    """Headless Chromium on a file; returns what it printed."""
    quiet = ("--disable-quic", "--disable-background-networking", "--disable-component-update", "--disable-sync")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", *quiet]
    command += [f"--user-data-dir={tmp_path / 'profile'}", *options, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


FRAME = """<!DOCTYPE html><iframe style="width:{width}px;height:900px;border:0" srcdoc="{page}"></iframe><pre></pre>
<script>
  const frame = document.querySelector("iframe");
  frame.onload = () => {{
    const inner = frame.contentDocument, bar = inner.querySelector(".bar.condensed");
    document.querySelector("pre").textContent = JSON.stringify({{
      width: inner.documentElement.scrollWidth, scripts: inner.querySelectorAll("script").length,
      names: [...inner.querySelectorAll(".class")].map((part) => part.textContent),
      images: [...inner.images].filter((image) => image.naturalWidth > 0).length,
      bar: bar.getBoundingClientRect().width / bar.parentNode.getBoundingClientRect().width,
      colour: inner.defaultView.getComputedStyle(bar).fill,
    }});
    frame.remove();
  }};
</script>"""


@pytest.mark.skipif(BROWSER is None, reason="chromium is not installed (Debian: apt-get install chromium)")
@pytest.mark.parametrize("width", [400, 1400])
def test_page_in_a_browser(artifact, tmp_path, width):
    marked = hostile(artifact)
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME.format(width=width, page=escape(report_page(marked, REPORT))))
    printed = browse(frame, tmp_path, "--window-size=1600,1000", "--virtual-time-budget=5000", "--dump-dom")
    found = json.loads(Elements(re.search(r"<pre>.*?</pre>", printed, re.DOTALL)[0]).text)
    assert found["scripts"] == 0
    assert found["names"] == list(marked.task.classes), "a class named like markup shows as text"
    assert found["images"] == 6
    assert found["width"] <= width, "nothing sticks out sideways"
    assert found["bar"] == pytest.approx(0.8, abs=0.01)
    assert found["colour"] != "rgb(0, 0, 0)", "the style sheet is in force"


@pytest.mark.skipif(BROWSER is None, reason="chromium is not installed (Debian: apt-get install chromium)")
def test_page_can_be_looked_at(artifact, tmp_path):
    page, shot = tmp_path / "report.html", tmp_path / "shot.png"
    page.write_text(report_page(artifact, REPORT))
    browse(page, tmp_path, "--window-size=1400,1000", "--hide-scrollbars", f"--screenshot={shot}")
    pixels = np.asarray(Image.open(shot).convert("RGB")).reshape(-1, 3)
    colours = {tuple(colour) for colour in pixels}
    assert (70, 80, 216) in colours, "the bar of the condensed set is drawn"
    assert len(colours) > 100
