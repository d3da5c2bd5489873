"""Watches the page of a run that trains in a headless browser, to its end, and fails if it is not as it should be.

    cargo xtask report RUN --follow
    python tests/python/live_report_in_browser.py http://127.0.0.1:PORT/ FOLDER

The page has to show later steps by itself, without a message in the console, without another request, and
without closing what was unfolded or moving what is read; the augmented views have to come, then what the
network makes of images, and at the end the results, after which the page asks no more. Writes a picture
of the page in between and one of its end into FOLDER. Needs what report_in_browser.py needs.
"""

import argparse
import sys
from pathlib import Path

from playwright.sync_api import Page, TimeoutError, sync_playwright

from report_in_browser import launch, looked_at, open_page, told

WINDOW = {"width": 1280, "height": 900}
SCROLLED = 400
# Seconds for each thing that is waited for.
PATIENCE = 90


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address")
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)

    problems: list[str] = []
    with sync_playwright() as playwright:
        browser = launch(playwright)
        page = open_page(browser, args.address, problems, viewport=WINDOW)
        page.set_default_timeout(1000 * PATIENCE)
        try:
            problems += watched(page, args.folder)
        except TimeoutError as error:
            problems.append(f"{PATIENCE} s were not enough: {error}")
        browser.close()
    return told(problems, args.address)


def watched(page: Page, folder: Path) -> list[str]:
    problems = []
    if page.get_attribute("body", "data-refresh") is None:
        return ["the page was that of an ended run from the start"]
    page.evaluate("document.querySelector('details').open = true")
    page.evaluate(f"scrollTo({{ top: {SCROLLED}, behavior: 'instant' }})")
    before = page.inner_text(".subtitle")
    page.wait_for_function("before => document.querySelector('.subtitle').innerText !== before", arg=before)
    if not page.evaluate("document.querySelector('details').open"):
        problems.append("what was unfolded is closed after a refresh")
    if abs(page.evaluate("scrollY") - SCROLLED) > 1:
        problems.append("the page has moved after a refresh")
    page.wait_for_selector("#pictures img")
    problems += looked_at(page, "while the run trains")
    page.screenshot(path=folder / "live.png", full_page=True)
    page.wait_for_selector("#neighbours img")
    page.wait_for_selector("#spectrum svg.chart")
    page.wait_for_selector("#map svg.chart")
    page.wait_for_selector("body:not([data-refresh])")
    page.wait_for_selector("#evaluation table")
    problems += looked_at(page, "at the end")
    page.screenshot(path=folder / "ended.png", full_page=True)
    return problems


if __name__ == "__main__":
    sys.exit(main())
