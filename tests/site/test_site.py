"""The built site: warnings are errors; in a browser it opens from a file, searches, and asks nothing of a network."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import bdflow
from tests.support.browser import PATIENCE, opened

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow(kind="pages and notebooks"), pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    where = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", where]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, check=True)
    return where


def test_every_public_name_and_the_repositorys_files_have_their_place(site):
    page = (site / "reference/python.html").read_text(encoding="utf-8")
    headings = re.findall(r'<h2 id="[\w.]+" class="doc doc-heading">(.*?)</h2>', page, re.DOTALL)
    shown = {re.sub(r"<.*?>|¶", "", heading).split()[0] for heading in headings}
    assert {f"bdflow.{name}" for name in bdflow.__all__ if name != "__version__"} <= shown
    assert (site / "repository/bdflow/models/tiny/index.html").is_file()


def test_no_page_names_a_script_a_style_or_a_picture_elsewhere(site):
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r'<(?:script|img|iframe)\b[^>]*\bsrc="https?:[^"]*"', text), page
        assert not re.findall(r'<link\b[^>]*rel="(?:stylesheet|preconnect)"[^>]*href="https?:[^"]*"', text), page


@pytest.mark.parametrize("width", [1400, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_opens_and_searches_from_a_file(site, width, scheme):
    with opened(site / "index.html") as browser:
        driver = browser.driver
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme_of = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", scheme_of)
        forget = {"source": "localStorage.clear()"}  # a visit keeps its colours there
        driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", forget)
        for page in ("reference/settings.html", "weights.html", "new_painter.html", "index.html"):
            driver.get((site / page).as_uri())
            shown = driver.execute_script("return document.body.dataset.mdColorScheme")
            assert shown == {"light": "default", "dark": "slate"}[scheme]
            assert driver.execute_script("return document.documentElement.scrollWidth") <= width, page
            assert {of for of in asked(driver) if not of.startswith(("file:", "data:"))} == set()
        driver.execute_script("document.querySelector('#__search').click()")
        assert any("noise ceiling" in text.lower() for text in results(browser, "ncsnr"))
        assert browser.complaints() == []


def asked(driver) -> list[str]:
    """Every address that the page has loaded something from."""
    script = "return JSON.stringify(performance.getEntriesByType('resource').map(entry => entry.name))"
    return json.loads(driver.execute_script(script))


def results(browser, word: str) -> list[str]:
    """The headings that the search finds, once there are some."""
    deadline = time.monotonic() + PATIENCE
    field = browser.one(".md-search__input")
    while not field.is_displayed() and time.monotonic() < deadline:
        time.sleep(0.1)
    field.send_keys(word)
    while time.monotonic() < deadline:
        found = [item.text for item in browser.all(".md-search-result__item h1, .md-search-result__item h2")]
        if any(found):
            return found
        time.sleep(0.1)
    return []
