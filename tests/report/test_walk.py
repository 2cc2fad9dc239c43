"""Everything that can be clicked in a report is clicked, on a desktop and a phone, in light and dark."""

from pathlib import Path

import pytest
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

from bdflow.report import writer
from tests.conftest import painter
from tests.report.test_report import SUBJECTS, TEST, VARIANTS, build
from tests.support import large_report
from tests.support.browser import Browser, opened

pytestmark = [pytest.mark.slow(kind="long checks"), pytest.mark.timeout(900)]

WATCH = """
    window.touched = new Set();
    for (const event of ["click", "change", "input"])
        addEventListener(event, e => touched.add(e.target.closest("a, button, summary, select, input")), true);"""
UNTOUCHED = """
    return [...document.querySelectorAll("a[href]:not([download]), button, summary, select, input")]
        .filter(e => e.checkVisibility() && !e.disabled && !e.closest("#rows") && !touched.has(e))
        .map(e => e.outerHTML);"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two painters: one with a control, one with several pictures of a stimulus."""
    one = painter(variants=list(VARIANTS), controls=["prior"])["brain_diffuser"]
    two = painter(variants=["full"], pictures=3)["brain_diffuser"]
    return writer.write(build(tmp_path_factory.mktemp("study"), painters={"one": one, "two": two}))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", ["desktop", "phone"])
def test_everything_is_clicked(report: Path, size: str, scheme: str) -> None:
    with opened(report) as browser:
        browser.show(size, scheme)
        browser.driver.execute_script(WATCH)
        for opener in browser.all("#examples button"):
            opener.click()
            assert browser.one("#details h3").text
            browser.one("#details .close").click()
        for summary in browser.all("summary"):
            summary.click()
        _filters(browser)
        _pictures(browser)
        for link in browser.all("nav a, main p a:not([download])"):
            link.click()
        assert browser.driver.execute_script(UNTOUCHED) == []
        for link in browser.all("a[download]"):
            assert (report.parent / link.get_attribute("href").rpartition("/report/")[2]).is_file()
        assert browser.broken() == []
        assert browser.too_wide() <= 0
        assert browser.complaints() == []
        assert browser.loaded_from() == {"file:"}


LETTERS = """
    return [...document.querySelectorAll("figure svg text")].map(text => parseFloat(getComputedStyle(text).fontSize)
        * text.ownerSVGElement.getBoundingClientRect().width / text.ownerSVGElement.viewBox.baseVal.width)"""
CUT = """
    return [...document.querySelectorAll("th[scope=row]")].filter(cell => cell.checkVisibility()).flatMap(cell => {
        const range = document.createRange(), words = [];
        for (const part of [...cell.childNodes].filter(node => node.nodeType === 3 && node.data.trim())) {
            range.selectNodeContents(part);
            const lines = new Set([...range.getClientRects()].map(box => Math.round(box.top)));
            if (lines.size > 1 && !part.data.includes(" "))
                words.push(part.data);
        }
        return words;
    })"""


def test_on_a_phone_labels_are_large_enough_and_names_are_not_cut_within_a_word(tmp_path: Path) -> None:
    settings = painter(variants=list(VARIANTS))["brain_diffuser"]
    context = build(tmp_path, painters={"brain_diffuser": settings, "stable_diffusion": settings})
    with opened(writer.write(context)) as browser:
        browser.show("phone", "light")
        assert min(browser.driver.execute_script(LETTERS)) > 8.5, "pixels"
        assert browser.too_wide() <= 0
        assert len([cell for cell in browser.all("th[scope=row]") if cell.is_displayed()]) > 5
        assert browser.driver.execute_script(CUT) == []


def _filters(browser: Browser) -> None:
    for button in browser.all("#order button"):
        button.click()
        assert button.get_attribute("aria-pressed") == "true"
    for select in browser.all("#controls select"):
        for option in Select(select).options:
            option.click()
        assert len(browser.order()) == len(TEST)
    for chip in browser.all(".chips button"):
        before = chip.get_attribute("aria-pressed")
        chip.click()
        assert chip.get_attribute("aria-pressed") != before
        chip.click()
        assert chip.get_attribute("aria-pressed") == before
    browser.find("no such words")
    assert browser.order() == []
    assert "Nothing found for “no such words”" in browser.one("#nothing").text
    browser.one("#reset").click()
    assert len(browser.order()) == len(TEST)
    assert not browser.one("#nothing").is_displayed()
    assert browser.one("#find").get_attribute("value") == ""


def _pictures(browser: Browser) -> None:
    """Photo, guesses, pictures and a control of the first row; and the way through the stimuli."""
    for name in ("one/no_vdvae", "one/prior"):
        browser.press("#variants button", name)
    browser.press("#order button", "by id")
    titles = {f"{stimulus}, the photo shown" for stimulus in [min(TEST)]}
    kinds = ("one/guess", "one/full", "one/no_vdvae", "one/prior", "two/guess", "two/full")
    titles |= {f"{min(TEST)}, {subject}, {kind}" for subject in SUBJECTS for kind in kinds}
    seen = set()
    for opener in browser.all("#rows article:first-child button"):
        opener.click()
        title = browser.one("#details h3").text
        seen.add(title)
        assert (browser.all("#details table") == []) == ("guess" in title or "photo" in title), title
        said = "The first of 3 pictures; scores are over all of them."
        assert (said in browser.one("#details").text) == title.endswith("two/full")
        dialog = browser.one("#details")
        assert dialog.get_property("scrollWidth") <= dialog.get_property("clientWidth")
        browser.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
        assert browser.all("dialog[open]") == []
        assert browser.driver.switch_to.active_element == opener, "the keyboard goes on where it was"
    assert seen == titles
    browser.one("#rows button.cell").click()
    ids, rest = sorted(TEST.tolist()), browser.one("#details h3").text[5:]
    for stimulus in ids[1:]:
        browser.driver.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
        assert browser.one("#details h3").text == stimulus + rest
    assert browser.all("#details .after:enabled") == []
    browser.one("#details .before").click()
    browser.one("#details .after").click()
    assert browser.one("#details h3").text == ids[-1] + rest
    for stimulus in ids[-2::-1]:
        browser.driver.switch_to.active_element.send_keys(Keys.ARROW_LEFT)
        assert browser.one("#details h3").text == stimulus + rest
    browser.one("#details .close").click()


def test_982_stimuli_are_few_nodes_and_few_pictures(tmp_path: Path) -> None:
    """Of 982 x 6 x 7 pictures, those of one page are asked for, and only near the window."""
    page = large_report.write(tmp_path)
    with opened(page) as browser:
        run = browser.driver.execute_script
        browser.show("desktop", "light")
        assert len(browser.order()) == 6
        nodes, images = run("return [document.querySelectorAll('*').length, document.images.length]")
        asked = run("return performance.getEntriesByType('resource').filter(e => e.name.endsWith('.webp')).length")
        assert nodes < 3000
        assert asked < images, "those far below wait"
        assert browser.too_wide() <= 0
        wide = "return [...document.querySelectorAll('.table')].filter(e => e.scrollWidth > e.clientWidth).length"
        assert run(wide) == 0, "nine metrics, and nine areas, fit at 1400 px"
        first = run("return performance.getEntriesByName('first-contentful-paint')[0]?.startTime")
        typed = run("""
            const field = document.getElementById("find"), took = [];
            for (const text of ["t", "th", "thi", "thing 77", "nsd 77"]) {
                const start = performance.now();
                field.value = text;
                field.dispatchEvent(new Event("input", { bubbles: true }));
                document.body.getBoundingClientRect();
                took.push(performance.now() - start);
            }
            return took;""")
        print(f"first content after {first} ms, a letter of the search {max(typed):.0f} ms at most, {nodes} nodes")
        assert browser.order()[0] == "00077" or "00077" in browser.order()
        browser.one("#reset").click()
        browser.press("#order button", "by id")
        browser.one("#below .on").click()
        assert browser.order() == [f"{7 * i:05d}" for i in range(6, 12)]
        assert "7 to 12 here" in browser.one("#count").text
        browser.one(".pager .back").click()
        assert browser.order()[0] == "00000"
        assert run("return document.querySelectorAll('*').length") < nodes + 100
        assert browser.complaints() == []
        browser.show("phone", "dark")
        assert browser.too_wide() <= 0
