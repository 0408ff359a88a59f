"""compare.html in headless Chromium: it sorts, says nothing on the console, and fits 1280 and 390 pixels."""

import shutil

import pytest
from fake_grid import METHODS, failed_run, make_grid_runs, write_replicates
from test_comparison_page import make_compared_scenes

from duet.report.comparison import write_comparison

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")

pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no Chromium: apt-get install -y chromium chromium-driver"
)


@pytest.fixture(scope="module")
def browser():
    webdriver = pytest.importorskip("selenium.webdriver", reason="no selenium: pip install selenium")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of two blocks, one of them with long names."""
    folder = tmp_path_factory.mktemp("grid")
    runs = make_grid_runs(tuple(METHODS), seeds=(0, 1), name="pascal-four", root=folder)
    for run in runs:
        write_replicates(run)
    long = make_grid_runs(("duet", "lwf"), seeds=(0,), name="a-series-with-a-name-that-is-much-too-long-for-a-phone")
    for run in long:
        object.__setattr__(run, "label", run.label + "+a-merger-whose-name-does-not-end-before-the-edge")
    failed = failed_run(series="pascal-four", log_tail=("x" * 300,), error="e" * 200)
    scenes = make_compared_scenes(tuple(METHODS), "pascal-four")
    write_comparison([*runs, failed, *long], folder / "out", "All methods", scenes, date="1 May 2026")
    return (folder / "out" / "compare.html").as_uri()


def show(browser, page, width=1280, scheme="light"):
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(page)


def head(browser, title):
    return browser.find_element("xpath", f"(//table[contains(@class,'sortable')])[1]//th[normalize-space()='{title}']")


def column(browser, title):
    """(label, value) of each line of the first table as it stands now."""
    script = """
        const table = document.querySelector('table.sortable');
        const place = [...table.tHead.rows[0].cells].findIndex(cell => cell.textContent.trim() === arguments[0]);
        return [...table.tBodies[0].rows].map(row => [row.cells[0].dataset.value, row.cells[place].dataset.value]);
    """
    return browser.execute_script(script, title)


def numbers(browser, title):
    return [float(value) if value else None for _, value in column(browser, title)]


def test_a_click_sorts_and_another_one_turns_it(browser, page):
    show(browser, page)
    before = dict(column(browser, "RAI"))
    head(browser, "RAI").find_element("tag name", "button").click()
    found = numbers(browser, "RAI")
    known = [value for value in found if value is not None]
    assert known == sorted(known, reverse=True) and len(known) == len(METHODS) + 4  # with the published ones
    assert head(browser, "RAI").get_attribute("aria-sort") == "descending"
    assert found[-1] is None and None not in found[: len(known)]
    head(browser, "RAI").find_element("tag name", "button").click()
    found = numbers(browser, "RAI")
    assert [value for value in found if value is not None] == sorted(known)
    assert found[-1] is None and None not in found[: len(known)]  # missing last in both directions
    assert dict(column(browser, "RAI")) == before  # no line is lost, none gets another's value


def test_numbers_sort_as_numbers_and_lower_is_better_starts_low(browser, page):
    show(browser, page)
    head(browser, "BWT").find_element("tag name", "button").click()
    values = [value for value in numbers(browser, "BWT") if value is not None]
    assert min(values) < 0 and values == sorted(values, reverse=True)
    head(browser, "Training").find_element("tag name", "button").click()
    seconds = [value for value in numbers(browser, "Training") if value is not None]
    assert seconds == sorted(seconds) and seconds[0] < 100 <= seconds[-1]  # as text, 100 would come first
    sorted_by = browser.find_elements(
        "css selector", "table.sortable th:is([aria-sort=ascending],[aria-sort=descending])"
    )
    assert [item.text.strip() for item in sorted_by] == ["Training"]


@pytest.mark.parametrize("key", ["\ue007", " "])  # Enter, space
def test_the_keyboard_sorts(browser, page, key):
    show(browser, page)
    button = head(browser, "Method").find_element("tag name", "button")
    browser.execute_script("arguments[0].focus()", button)
    browser.switch_to.active_element.send_keys(key)
    labels = [label for label, _ in column(browser, "Method") if label.isalpha()]
    assert len(labels) > 5 and labels == sorted(labels, key=str.casefold)
    assert head(browser, "Method").get_attribute("aria-sort") == "ascending"


def test_chosen_methods_are_brought_out(browser, page):
    show(browser, page)
    buttons = browser.find_elements("css selector", "#b1-curves .legend button")
    chosen = buttons[1].get_attribute("data-m")
    buttons[1].click()
    dim = browser.execute_script(
        """
        return [...document.querySelectorAll('#b1-curves .curve')]
            .map(curve => [curve.dataset.m, curve.classList.contains('dim')]);
        """
    )
    assert dim and all(is_dim == (method != chosen) for method, is_dim in dim)
    assert buttons[1].get_attribute("aria-pressed") == "true"
    buttons[1].click()
    assert not browser.find_elements("css selector", ".curve.dim")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_no_overflow_and_a_silent_console(browser, page, width, scheme):
    browser.get_log("browser")
    show(browser, page, width, scheme)
    browser.execute_script("document.querySelectorAll('details').forEach(item => item.open = true)")
    wide = browser.execute_script(
        """
        const scrolls = item => item.closest('.scroll, .versus, pre, .hidden, .sortable caption');
        return [...document.querySelectorAll('body *')]
            .filter(item => !scrolls(item) && item.getBoundingClientRect().right > arguments[0] + 1)
            .map(item => item.outerHTML.slice(0, 80));
        """,
        width,
    )
    assert wide == []
    content, inner = browser.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert content <= width == inner
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("width", [1280, 390])
def test_text_is_large_enough_to_read(browser, page, width):
    show(browser, page, width)
    sizes = browser.execute_script(
        """
        return [...document.querySelectorAll('main p, main td, main th, main text, main figcaption, main button')]
            .filter(item => !item.querySelector(':scope > .hidden'))
            .filter(item => item.checkVisibility() && item.textContent.trim())
            .map(item => {
                const svg = item.ownerSVGElement;
                const scale = svg ? svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : 1;
                return [parseFloat(getComputedStyle(item).fontSize) * scale, item.textContent.trim().slice(0, 30)];
            });
        """
    )
    assert len(sizes) > 200
    assert [pair for pair in sizes if pair[0] < 9] == []


def test_one_scatter_for_each_width(browser, page):
    shown = """
        return [...document.querySelectorAll('#b1-plot .scatter')]
            .filter(figure => figure.checkVisibility()).map(figure => figure.className);
    """
    show(browser, page, 1280)
    assert browser.execute_script(shown) == ["scatter wide"]
    show(browser, page, 390)
    assert browser.execute_script(shown) == ["scatter narrow"]


def test_labels_of_the_scatter_do_not_touch_as_the_browser_draws_them(browser, page):
    for width in (1280, 390):
        show(browser, page, width)
        touching = browser.execute_script(
            """
            const names = new Set(arguments[0]);
            const boxes = [...document.querySelectorAll('#b1-plot .scatter text')]
                .filter(text => text.checkVisibility() && names.has(text.textContent.trim()))
                .map(text => [text.textContent.trim(), text.getBoundingClientRect()]);
            // A line of text is higher than its letters by some pixels.
            const beside = (a, b) => a.right > b.left && b.right > a.left;
            const above = (a, b) => a.bottom - 2 > b.top && b.bottom - 2 > a.top;
            const pairs = boxes.flatMap(([name, a], place) => boxes.slice(place + 1)
                .filter(([, b]) => beside(a, b) && above(a, b)).map(([other]) => [name, other]));
            return [boxes.length, pairs];
            """,
            list(METHODS),
        )
        assert touching == [len(METHODS), []]
