"""The page of `audioldm2 ui` in a real browser: Chromium, where it is installed with its driver."""

import shutil
import threading

import numpy as np
import pytest

from audioldm2.ui.limits import Limits
from tests.support.page import serve, until

pytest.importorskip("gradio", reason="the page needs Gradio")
pytest.importorskip("selenium", reason="selenium drives the browser")
import httpx
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


class Browser:
    """A page in Chromium, and what the tests do with it."""

    def __init__(self, driver: webdriver.Chrome, address: str):
        self.driver, self.address = driver, address

    def open(self, width: int = 1280) -> None:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.get(self.address)
        until(lambda: self.find("#generate-prompt textarea").is_displayed())

    def run(self, script: str) -> object:
        return self.driver.execute_script(script)

    def find(self, selector: str):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def text(self, selector: str = "body") -> str:
        return self.find(selector).text

    def fill(self, option: str, value: str) -> None:
        field = until(lambda: self.find(f"#generate-{option} :is(input, textarea)"))
        field.send_keys(Keys.CONTROL + "a")
        field.send_keys(value)

    def ask(self, prompt: str) -> None:
        field = self.find("#generate-prompt textarea")
        field.send_keys(Keys.CONTROL + "a")
        field.send_keys(prompt, Keys.ENTER)

    @property
    def sound(self) -> str | None:
        """The address of the sound that the page shows."""
        found = self.run("return (document.querySelector('#sound a[download]') || {}).href")
        return found if isinstance(found, str) else None


@pytest.fixture(scope="module")
def served(tiny_model):
    with serve(tiny_model, Limits(seconds=5, waiting=1)) as served:
        yield served


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    options = Options()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def opened(driver, served):
    """One page for all tests: loading it takes longer than using it."""
    browser = Browser(driver, served.address)
    browser.open()
    return browser


@pytest.fixture
def browser(opened):
    opened.fill("audio_length_in_s", "0.2")
    opened.fill("num_inference_steps", "2")
    return opened


@pytest.fixture
def busy(served):
    """Something that runs on the device until it is released."""
    gate = threading.Event()
    served.server.worker.submit(lambda job: gate.wait(120))
    yield gate
    gate.set()


def test_a_sound_is_made_and_heard_as_a_file_and_listed(browser, served, tmp_path):
    attack = "<img src=x onerror=window.hacked=1> rain"
    for prompt in ("rain", attack):
        before = browser.sound
        browser.ask(prompt)
        until(lambda before=before: browser.sound and browser.sound != before)
    (tmp_path / "x.wav").write_bytes(httpx.get(browser.sound, timeout=60).content)
    from audioldm2.audio import read

    alone = served.model.generate(attack, audio_length_in_s=0.2, num_inference_steps=2, seed=0)
    assert np.abs(read(tmp_path / "x.wav")[0] - alone.audio[0, 0]).max() < 1e-4
    until(lambda: "1. rain" in browser.text("#earlier") and "seed 0" in browser.text("#earlier"))
    assert attack in browser.text("#earlier")  # as text
    assert browser.run("return window.hacked") is None
    latest = browser.sound
    browser.find("#earlier label:last-of-type input").click()
    until(lambda: browser.sound != latest)
    assert browser.run("return document.querySelector('#picture img').naturalWidth") == 1000
    elsewhere = "return performance.getEntriesByType('resource').map(each => each.name)"
    assert all(name.startswith((served.address, "data:", "blob:")) for name in browser.run(elsewhere))


def test_a_bad_value_has_its_sentence_beside_its_field(browser):
    browser.fill("audio_length_in_s", "1000000000")
    browser.ask("rain")
    sentence = "Duration is 1000000000; it has to be at most 5 seconds on this server."
    until(lambda: sentence in browser.text("#generate-audio_length_in_s"))


def test_a_request_waits_behind_another_and_is_cancelled(browser, served, busy):
    first = served.client().submit(prompt="first", audio_length_in_s=0.2, api_name="/generate")
    until(lambda: served.running == 1)
    browser.ask("second")
    until(lambda: "queue: 1/1" in browser.text("#sound"))
    with pytest.raises(Exception, match="Queue is full"):
        served.client().predict(prompt="third", audio_length_in_s=0.2, api_name="/generate")
    browser.find("#generate-stop").click()
    until(lambda: served.waiting == 0)
    until(lambda: "queue" not in browser.text("#sound"))
    busy.set()
    assert first.result(timeout=60)[2]["prompt"] == "first"


def test_progress_shows_the_step_and_cancel_stops_it(browser, served):
    browser.fill("audio_length_in_s", "5")
    browser.fill("num_inference_steps", "200")
    browser.ask("a long one")
    until(lambda: "/200 steps" in browser.text("#sound") and "Denoising" in browser.text("#sound"))
    job = next(iter(served.server._jobs))
    browser.find("#generate-stop").click()
    until(job.outcome.done)
    assert job.latest.step < 200
    until(lambda: "steps" not in browser.text("#sound"))


def test_the_keyboard_alone_makes_a_sound(browser):
    before = browser.sound
    browser.find("#generate-prompt textarea").send_keys("rain", Keys.TAB)
    for _ in range(4):
        focused = browser.driver.switch_to.active_element
        if focused.get_attribute("id") == "generate-start":
            break
        focused.send_keys(Keys.TAB)
    browser.driver.switch_to.active_element.send_keys(Keys.ENTER)
    until(lambda: browser.sound != before)


def test_a_phone_shows_everything_in_one_column(browser):
    browser.open(width=390)
    assert browser.run("return document.documentElement.scrollWidth <= window.innerWidth")
    left, right = browser.find("#generate-prompt"), browser.find("#sound")
    assert right.location["y"] > left.location["y"] + left.size["height"]
