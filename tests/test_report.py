import json
import math
import re
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

from data.pairs import Pair
from evaluation.report import preview_side, write_report
from evaluation.scoring import Scores, save_preview
from evaluation.summary import Estimate, estimate_mean

NASTY = "a<b>&\"'</script><img src=x onerror=alert(1)>"
NAMES = ["sub/10", "sub/9", NASTY, "equal\udce9"]
EQUAL = r"equal\udce9"  # how a name that is no UTF-8 is shown
PSNRS = [21.5, 30.25, 12.0, math.inf]
CARD = '[data-name="sub/9"]'  # the best that has an input
ORIGIN = {"left_out": ["<broken>.png is empty"], "versions": {}, "weights": {}, "unmatched": {}}


def picture(seed: int) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    return np.array(Image.fromarray(small).resize((900, 600), Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    """A report of four images; the last has no input."""
    folder, scored = tmp_path_factory.mktemp("report"), []
    for number, (name, psnr) in enumerate(zip(NAMES, PSNRS, strict=True)):
        pair = Pair(name, Path("gt"), Path("out"), Path("in") if number < 3 else None)
        standard = {"psnr": psnr, "ssim": 0.8, "lpips": 0.1 * (number + 1)}
        values = {"standard": standard, "released": dict(standard)}
        gt = picture(number)
        versions = {"gt": gt, "enhanced": gt // 2} | ({"input": gt // 5} if pair.input else {})
        previews = {name: save_preview(pixels, folder, 300) for name, pixels in versions.items()}
        scored.append(Scores(pair, (900, 600), values, previews=previews))
    estimates = {
        "psnr": estimate_mean(PSNRS),
        "ssim": estimate_mean([0.8] * 4),
        "lpips": estimate_mean([0.1, 0.2, 0.3, 0.4]),
        "fid": Estimate(None, note="unavailable: <no> file"),
    }
    path = folder / "report.html"
    write_report(path, scored, {"standard": estimates, "released": estimates}, ORIGIN)
    return path


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Debian's Chromium without a window, recording every request."""
    programs = shutil.which("chromium"), shutil.which("chromedriver")
    if None in programs:
        pytest.skip("needs a browser: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--window-size=1300,1100",
        f"--user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):
        options.add_argument(flag)
    driver = webdriver.Chrome(options, webdriver.ChromeService(programs[1]))
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser, page):
    browser.get(page.as_uri())
    return browser


def order(browser) -> list[str]:
    cards = browser.find_elements(By.CLASS_NAME, "card")
    return [card.get_attribute("data-name") for card in cards]


def choose(browser, name: str, value: str) -> None:
    browser.find_element(By.CSS_SELECTOR, f"input[name={name}][value={value}] + span").click()


def clip(browser, version: str) -> str:
    image = browser.find_element(By.CSS_SELECTOR, f'{CARD} img[data-version="{version}"]')
    return image.value_of_css_property("clip-path").replace(" ", "")


def test_page_needs_nothing_from_elsewhere(page):
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"https?://|@import|<link|src=\"(?!data:)", text)
    assert "<no>" not in text and "<broken>" not in text and "<img src=x" not in text
    assert text.count("data:image/webp;base64,") == 11
    assert "<small>standard, without 1 infinite</small>" in text
    assert text.count('<td class="none" colspan="2">unavailable</td>') == 1
    assert "FID is unavailable: &lt;no&gt; file" in text and "<b>inf</b>" in text


def test_browser_loads_only_the_page(opened, page):
    events = [json.loads(entry["message"])["message"] for entry in opened.get_log("performance")]
    requests = [e["params"] for e in events if e["method"] == "Network.requestWillBeSent"]
    asked = {
        request["request"]["url"]
        for request in requests
        if not request["documentURL"].startswith("chrome:")  # the browser's own first tab
    }
    assert {url for url in asked if not url.startswith("data:")} == {page.as_uri()}
    assert opened.get_log("browser") == []


def test_all_pictures_are_drawn(opened, tmp_path):
    loaded = "return [...document.images].every((image) => image.complete && image.naturalWidth)"
    assert opened.execute_script(loaded)
    assert len(opened.find_elements(By.CSS_SELECTOR, "figure img")) == 6
    shot = tmp_path / "report.png"
    assert opened.save_screenshot(str(shot))
    pixels = np.asarray(Image.open(shot).convert("RGB"))
    view = opened.find_element(By.CSS_SELECTOR, f"{CARD} .view").rect
    y, x = int(view["y"]), int(view["x"])
    shown = pixels[y : y + int(view["height"]), x : x + int(view["width"])]
    left, right = np.array_split(shown, 2, axis=1)
    assert right.mean() > 1.5 * left.mean() > 0  # a fifth of the light, and half of it


def test_slider_moves(opened):
    slider = opened.find_element(By.CSS_SELECTOR, f"{CARD} .view input")
    assert clip(opened, "input") == "inset(0px50%0px0px)"
    opened.execute_script("arguments[0].focus()", slider)
    slider.send_keys(Keys.ARROW_RIGHT * 4)
    assert slider.get_attribute("value") == "52"
    assert clip(opened, "input") == "inset(0px48%0px0px)"
    webdriver.ActionChains(opened).move_to_element_with_offset(slider, -100, 0).click().perform()
    value = float(slider.get_attribute("value"))
    assert value < 45
    assert clip(opened, "input") == f"inset(0px{100 - value:g}%0px0px)"


def test_versions_can_be_chosen(opened):
    choose(opened, "left", "gt")
    assert clip(opened, "gt").startswith("inset")
    image = opened.find_element(By.CSS_SELECTOR, 'img[data-version="input"]')
    assert not image.is_displayed()
    tags = [tag.text for tag in opened.find_elements(By.CSS_SELECTOR, f"{CARD} .tag")]
    assert tags == ["Ground truth", "Enhanced"]
    choose(opened, "right", "input")
    last = opened.find_elements(By.CSS_SELECTOR, '[data-name^="equal"] .tag.right')
    assert last[0].text == "no input"


def test_sorting_sorts(opened):
    assert order(opened) == [EQUAL, "sub/9", "sub/10", NASTY]
    choose(opened, "order", "worst")
    assert order(opened) == [NASTY, "sub/10", "sub/9", EQUAL]
    Select(opened.find_element(By.ID, "sort")).select_by_value("standard-lpips")
    assert order(opened) == [EQUAL, NASTY, "sub/9", "sub/10"]
    choose(opened, "order", "best")
    assert order(opened) == ["sub/10", "sub/9", NASTY, EQUAL]
    marked = opened.find_element(By.CSS_SELECTOR, "td.chosen")
    assert marked.text == "LPIPS 0.1000"


def test_images_that_all_equal_their_ground_truth_have_no_histogram(tmp_path):
    scored = [Scores(Pair("1", Path("gt"), Path("out")), (9, 9), {"standard": {"psnr": math.inf}})]
    path = tmp_path / "report.html"
    write_report(path, scored, {"standard": {"psnr": estimate_mean([math.inf])}}, ORIGIN)
    assert "<p>all infinite</p>" in path.read_text() and "svg+xml" not in path.read_text()


def test_previews_do_not_pile_up_in_memory(tmp_path):
    scored = []
    for number in range(20):
        preview = tmp_path / f"{number}.webp"
        preview.write_bytes(np.random.default_rng(number).bytes(2**20))
        pair = Pair(str(number), Path("gt"), Path("out"))
        values = {"standard": {"psnr": 10.0 + number}}
        scored.append(Scores(pair, (9, 9), values, previews={"gt": preview}))
    summary = {"standard": {"psnr": estimate_mean([10.0, 49.0])}}
    write_report(tmp_path / "first.html", scored[:1], summary, ORIGIN)  # loads fonts and such
    tracemalloc.start()
    write_report(tmp_path / "report.html", scored, summary, ORIGIN)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "report.html").stat().st_size > 25 * 2**20 > 3 * peak


def test_previews_shrink_with_the_number_of_images():
    assert preview_side(1) == 960 and preview_side(100) == 640 and preview_side(10**6) == 320


@pytest.mark.parametrize("width", [320, 430, 700, 1320])
def test_nothing_is_cut_off_in_any_window(opened, width):
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        root = "const root = document.documentElement; return root.scrollWidth <= innerWidth"
        assert opened.execute_script(root)
        for card in opened.find_elements(By.CLASS_NAME, "card"):
            table = card.find_element(By.CLASS_NAME, "scores")
            ends = [edge.rect["x"] + edge.rect["width"] for edge in (card, table)]
            assert ends[1] <= ends[0]
        sticky = opened.find_element(By.CLASS_NAME, "bar-tools").value_of_css_property("position")
        assert (sticky == "static") == (width < 600)
    finally:
        opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
