"""A page in headless Chromium, without network."""

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
    "--window-size=1400,1000",
)  # fmt: skip
PATIENCE = 60
SIZES = {"desktop": (1400, 1000), "phone": (390, 844)}


class Browser:
    """One open report: what a reader can see and do."""

    def __init__(self, driver: Chrome) -> None:
        self.driver = driver

    def all(self, selector: str) -> list:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def show(self, size: str, scheme: str) -> None:
        """The page afresh, on a `desktop` or a `phone`, `light` or `dark`."""
        width, height = SIZES[size]
        device = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == "phone"}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", device)
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        self.driver.get(self.driver.current_url.partition("#")[0])

    def too_wide(self) -> int:
        """Pixels by which the page is wider than its window."""
        return self.driver.execute_script(
            "const page = document.documentElement; return page.scrollWidth - page.clientWidth"
        )

    def broken(self) -> list[str]:
        """Addresses of pictures of the whole page that do not load even when scrolled to."""
        return self._waiting("img")[1]

    def order(self) -> list[str]:
        """Ids of the rows there are, from the top."""
        return self.driver.execute_script(
            "return [...document.querySelectorAll('#rows article')].map(a => a.dataset.stimulus)"
        )

    def press(self, selector: str, text: str) -> None:
        next(button for button in self.all(selector) if button.text == text).click()

    def choose(self, selector: str, text: str) -> None:
        Select(self.one(selector)).select_by_visible_text(text)

    def find(self, text: str) -> None:
        field = self.one("#find")
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(Keys.BACKSPACE, text)

    def pressed(self, selector: str) -> list[str]:
        return [
            button.text for button in self.all(f"{selector} button") if button.get_attribute("aria-pressed") == "true"
        ]

    def scroll_through(self) -> None:
        """To the end, until every row that was found is there."""
        wanted = int(self.one("#count").text.split()[0])
        deadline = time.monotonic() + PATIENCE
        while len(self.order()) < wanted and time.monotonic() < deadline:
            self.driver.execute_script("scrollTo(0, document.documentElement.scrollHeight)")
            time.sleep(0.1)

    def pictures(self) -> tuple[int, list[str]]:
        """How many pictures there are, and the addresses of those that do not load even when scrolled to."""
        return self._waiting("#rows img")

    def _waiting(self, selector: str) -> tuple[int, list[str]]:
        script = """
            const images = [...document.querySelectorAll(arguments[0])].filter(i => i.checkVisibility());
            const waiting = images.filter(i => !(i.complete && i.naturalWidth > 0));
            waiting[0]?.scrollIntoView({ block: 'start' });
            return [images.length, waiting.map(i => i.src)];"""
        deadline = time.monotonic() + PATIENCE
        while True:
            count, waiting = self.driver.execute_script(script, selector)
            if not waiting or time.monotonic() > deadline:
                return count, waiting
            time.sleep(0.1)

    def loaded_from(self) -> set[str]:
        """Schemes of every address that the page names or has asked for."""
        script = """
            const named = [...document.querySelectorAll('[src], [href]')].map(e => e.src || e.href);
            const asked = performance.getEntriesByType('resource').map(e => e.name);
            return [...named, ...asked].map(address => new URL(address).protocol);"""
        return set(self.driver.execute_script(script))

    def complaints(self) -> list[str]:
        """Errors that the page's script met."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]


@contextmanager
def opened(page: Path) -> Iterator[Browser]:
    """The page in a fresh profile. The test fails where there is no Chromium, and says how to get it."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    chromedriver = shutil.which("chromedriver")
    if not chromium or not chromedriver:
        pytest.fail("this test needs Chromium and its driver: apt-get install chromium chromium-driver")
    options = ChromeOptions()
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with tempfile.TemporaryDirectory() as profile:
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        driver = Chrome(options=options, service=Service(chromedriver))
        try:
            driver.get(page.resolve().as_uri())
            yield Browser(driver)
        finally:
            driver.quit()
