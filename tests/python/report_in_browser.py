"""Opens a page of ssl-report in a headless browser and fails if it is not as it should be.

    python tests/python/report_in_browser.py PAGE.html FOLDER

Opens PAGE in light and dark, 1280 and 360 pixels wide, and writes a picture of the whole page for each
into FOLDER. Fails on a message in the console, on any request but the one for PAGE itself, if the page
can be scrolled sideways, if a picture is broken, if a text of a chart is cut off or lies on another one,
if the pointer on a line chart reads no values off it, and if without scripts the page has another text.
Needs playwright and a Chromium, which it looks for on the path:

    pip install playwright
    cargo run -p ssl-report --example demo -- /tmp/demo.html
    python tests/python/report_in_browser.py /tmp/demo.html /tmp/pictures
"""

import argparse
import shutil
import sys
from pathlib import Path

from playwright.sync_api import Browser, Page, Playwright, sync_playwright

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTHS = {"wide": (1280, 900), "phone": (360, 740)}
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
           "--disable-background-networking", "--disable-component-update"]
HOVERED_CHARTS = 3

# Texts of charts that leave their picture, and pairs that cover each other by more than the margin of a letter.
TEXTS = """
() => [...document.querySelectorAll("svg.chart:not(.symbol)")].flatMap((svg) => {
  const title = svg.getAttribute("aria-label").split(":")[0];
  const box = svg.getBoundingClientRect();
  const texts = [...svg.querySelectorAll("text")].map((text) => [text.textContent, text.getBoundingClientRect()]);
  const cut = texts.filter(([, t]) =>
    t.left < box.left - 1 || t.right > box.right + 1 || t.top < box.top - 2 || t.bottom > box.bottom + 2);
  const meet = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
    && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 4;
  const pairs = texts.flatMap(([a, one], n) =>
    texts.slice(n + 1).filter(([, other]) => meet(one, other)).map(([b]) => `${title}: "${a}" lies on "${b}"`));
  return [...cut.map(([text]) => `${title}: "${text}" is cut off`), ...pairs];
})
"""
BROKEN_PICTURES = """
async () => {
  const pictures = [...document.images];
  const states = await Promise.allSettled(pictures.map((picture) => picture.decode()));
  return pictures.filter((_, n) => states[n].status === "rejected").map((picture) => picture.alt);
}
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)

    address = args.page.resolve().as_uri()
    problems: list[str] = []
    with sync_playwright() as playwright:
        browser = launch(playwright)
        texts = set()
        for scheme in ("light", "dark"):
            for name, (width, height) in WIDTHS.items():
                page = open_page(browser, address, problems, color_scheme=scheme,
                                 viewport={"width": width, "height": height}, device_scale_factor=2 if width < 500 else 1)
                texts.add(page.inner_text("body"))
                problems += looked_at(page, f"{scheme}, {name}")
                page.screenshot(path=args.folder / f"{name}-{scheme}.png", full_page=True)
                problems += hovered(page, f"{scheme}, {name}")
                page.context.close()
        page = open_page(browser, address, problems, java_script_enabled=False)
        texts.add(page.inner_text("body"))
        if len(texts) != 1:
            problems.append("without scripts, or at another width, the page has another text")
        browser.close()
    return told(problems, str(args.page))


def launch(playwright: Playwright) -> Browser:
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        sys.exit(f"found no browser; looked for {', '.join(BROWSERS)}")
    return playwright.chromium.launch(executable_path=path, args=OPTIONS)


def told(problems: list[str], what: str) -> int:
    for problem in dict.fromkeys(problems):
        print(problem)
    print(f"{what}: {'in order' if not problems else 'not in order'}")
    return bool(problems)


def open_page(browser: Browser, address: str, problems: list[str], **options: object) -> Page:
    page = browser.new_context(**options).new_page()
    page.on("console", lambda message: problems.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: problems.append(f"script: {error}"))

    def asked(request) -> None:
        if request.url != address and not request.url.startswith("data:"):
            problems.append(f"request: {request.url[:100]}")

    page.on("request", asked)
    page.goto(address)
    return page


def looked_at(page: Page, where: str) -> list[str]:
    """What is wrong with the page as it stands."""
    problems = [f"a picture is broken: {caption}" for caption in page.evaluate(BROKEN_PICTURES)]
    problems += page.evaluate(TEXTS)
    page_width, window = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    if page_width > window:
        problems.append(f"the page is {page_width} pixels wide in a window of {window}")
    return [f"{where}: {problem}" for problem in problems]


def hovered(page: Page, where: str) -> list[str]:
    problems = []
    for n, figure in enumerate(page.query_selector_all("figure[data-hover]")[:HOVERED_CHARTS]):
        picture = figure.query_selector("svg.chart:not(.symbol)")
        picture.scroll_into_view_if_needed()
        box = picture.bounding_box()
        before, height = figure.inner_text(), figure.bounding_box()["height"]
        page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + box["height"] * 0.5)
        if "at " not in figure.inner_text() or figure.query_selector(".hair") is None:
            problems.append(f"{where}: chart {n} shows no values under the pointer")
        if figure.bounding_box()["height"] != height:
            problems.append(f"{where}: chart {n} changes its height under the pointer")
        page.mouse.move(1, 1)
        if figure.inner_text() != before:
            problems.append(f"{where}: chart {n} does not return to its usual text")
    return problems


if __name__ == "__main__":
    sys.exit(main())
