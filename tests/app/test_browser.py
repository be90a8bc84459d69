"""The viewer in Chromium: it draws, answers clicks, and nothing is wider than the page."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FIGURE = ".figure svg"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def address(viewed_set, tmp_path_factory):
    """`saekit view` started from another folder, as a user does."""
    port = free_port()
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    server = subprocess.Popen(
        [sys.executable, "-m", "saekit", "view", str(viewed_set), "--port", str(port)],
        cwd=tmp_path_factory.mktemp("elsewhere"), env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{url}/_stcore/health", timeout=5)
                break
            except (urllib.error.URLError, OSError):
                assert server.poll() is None, "saekit view ended"
                time.sleep(0.5)
        yield url
    finally:
        server.terminate()
        server.wait(20)


@pytest.fixture(scope="module")
def browser(chromium):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium,
            args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"],
        )
        yield browser
        browser.close()


def no_error(page) -> bool:
    return page.locator(".stException").count() == 0


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.parametrize("width", [1440, 900])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_circuit_page(browser, address, width, scheme):
    page = browser.new_page(viewport={"width": width, "height": 1000}, color_scheme=scheme)
    page.goto(address)
    page.wait_for_selector(FIGURE, timeout=90_000)
    header = page.locator(".figure text", has_text="All heads map key pos 5 to query pos 8")
    assert header.count() == 1
    figure = page.locator(FIGURE).first.bounding_box()
    assert figure and figure["width"] <= width
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    background = page.evaluate("getComputedStyle(document.querySelector('.stApp')).backgroundColor")
    assert background == {"light": "rgb(255, 255, 255)", "dark": "rgb(16, 20, 27)"}[scheme]
    assert no_error(page)
    page.close()


@pytest.mark.browser
@pytest.mark.slow
def test_clicks_reach_python_and_the_address(browser, address):
    page = browser.new_page(viewport={"width": 1440, "height": 1200})
    page.goto(address)
    page.wait_for_selector(FIGURE, timeout=90_000)
    page.locator('.figure [data-kind="head"][data-head="L9-H1"]').last.click()
    page.wait_for_url("**head=L9-H1**", timeout=60_000)
    page.locator('.figure [data-kind="token"][data-position="5"]').first.click(modifiers=["Shift"])
    page.wait_for_url("**key=5**", timeout=60_000)
    page.locator('.figure [data-kind="token"][data-position="8"]').first.click()
    page.wait_for_url("**query=8**", timeout=60_000)
    page.wait_for_selector('.stApp[data-test-script-state="notRunning"]', timeout=60_000)
    assert no_error(page)
    with page.expect_download(timeout=60_000) as download:
        page.get_by_role("button", name="JSON", exact=True).click()
    assert download.value.suggested_filename == "circuit.json"
    page.close()


@pytest.mark.browser
@pytest.mark.slow
def test_a_feature_page_can_be_the_first_address(browser, address):
    page = browser.new_page()
    page.goto(f"{address}/feature?feature=1/3")
    page.wait_for_selector("[data-testid=stMetric]", timeout=90_000)
    assert page.get_by_role("link", name="Circuit").count() >= 1  # the viewer's own navigation
    assert no_error(page)
    page.close()
