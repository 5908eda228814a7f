"""The page, parsed, and opened in a browser."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import itertools
import re
import shutil
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest

from cellgan.evaluation.figures.canvas import Picture
from cellgan.evaluation.report.html import report_page, write_html
from cellgan.evaluation.report.rendering import environment
from tests.evaluation.documents import GENE, NASTY, PNG, make_document

PICTURES = (
    Picture("map", 'Map of "A" & <B>', f"57 % of {NASTY}", PNG),
    Picture("sizes", "Sizes", "median 2191", PNG + b"other"),
)
VOID = {"meta", "link", "img", "path", "rect"}


class Page(HTMLParser):
    """Elements as (tag, attributes) and all text between them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data.strip())

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def text():
    return report_page(make_document(), {"pbmc": PICTURES})


@pytest.fixture(scope="module")
def parsed(text):
    return Page(text)


def test_page_is_written_whole(tmp_path, text):
    path = tmp_path / "folder" / "report.html"
    write_html(path, make_document(), {"pbmc": PICTURES})
    assert path.read_text(encoding="utf-8") == text


def test_all_elements_are_closed(parsed):
    assert parsed.open == []


def test_text_is_shown_as_it_is_and_makes_no_elements(parsed):
    shown = "\n".join(parsed.texts)
    for expected in (NASTY, GENE, f"57 % of {NASTY}", 'Map of "A" & <B>'):
        assert expected in shown
    assert not {tag for tag, _ in parsed.elements} & {"t", "dra", "it", "b"}


def test_page_refers_to_nothing_outside_itself(text, parsed):
    places = [
        attributes[key]
        for _, attributes in parsed.elements
        for key in ("src", "href", "action", "data", "poster", "srcset")
        if key in attributes
    ]
    assert len(places) > 10
    assert all(place.startswith(("#", "data:")) for place in places)
    assert not re.search(r"https?:|url\(|@import|//www", text)


def test_policy_allows_the_page_own_style_and_script_alone(text, parsed):
    (policy,) = (
        meta["content"]
        for meta in parsed.all("meta")
        if meta.get("http-equiv") == "Content-Security-Policy"
    )
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    for tag in ("style", "script"):
        (inside,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.S)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert rules.pop(f"{tag}-src") == f"'sha256-{digest}'"
    assert rules == {
        "default-src": "'none'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    attributes = {key for _, found in parsed.elements for key in found}
    assert not {key for key in attributes if key == "style" or key.startswith("on")}


def test_links_lead_to_what_is_there(parsed):
    there = [found["id"] for _, found in parsed.elements if "id" in found]
    links = {link["href"][1:] for link in parsed.all("a")}
    assert len(there) == len(set(there))
    assert links <= set(there)


def test_pictures_are_inside_with_their_texts(parsed):
    images = parsed.all("img")[: len(PICTURES)]
    for image, picture in zip(images, PICTURES, strict=True):
        head, encoded = image["src"].split(",")
        assert head == "data:image/png;base64"
        assert base64.b64decode(encoded) == picture.png
        assert image["alt"] == picture.alt


def test_headings_step_down_one_level_at_a_time(parsed):
    levels = [int(tag[1]) for tag, _ in parsed.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert max(b - a for a, b in itertools.pairwise(levels)) == 1


def test_every_table_row_has_a_cell_per_header(text):
    tables = re.findall("<table>.*?</table>", text, re.S)
    assert len(tables) == 9
    for table in tables:
        head, *rows = re.findall("<tr>.*?</tr>", table, re.S)
        n_columns = head.count('<th scope="col"')
        assert n_columns > 3
        assert rows
        assert {len(re.findall("<t[hd][ >]", row)) for row in rows} == {n_columns}


def test_leaderboard_comes_first_and_leaks_come_last(text):
    order = re.findall(r'<h2 id="([^"]+)">([^<]*)', text)
    assert [name.strip() for _, name in order] == [
        *("Leaderboard", "Verdict", "pbmc", "pbmc_copied", "What the metrics mean"),
    ]


def test_verdicts_say_headline_findings_and_grade(text):
    (verdicts,) = re.findall('<div class="verdicts">.*?</div>', text, re.S)
    found = make_document().experiments
    shown = "\n".join(Page(verdicts.removesuffix("</div>")).texts)
    for experiment in found.values():
        verdict = experiment.verdict
        for sentence in (verdict.headline, *verdict.findings, verdict.grade):
            assert sentence in shown


def test_a_leak_is_marked_and_said(text):
    (section,) = re.findall(r'<section class="experiment"[^>]*-1">.*', text, re.S)
    assert "Training cells leak" in section
    assert '<div class="card leak">' in section


def test_unknown_training_cells_are_no_clean_bill():
    document = make_document()
    one = document.experiments["pbmc"]
    unknown = dataclasses.replace(one.memorisation, known=False)
    document.experiments["pbmc"] = dataclasses.replace(one, memorisation=unknown)
    text = report_page(document, {})
    assert "It is not known which cells were trained on" in text
    assert "No sign that training cells were copied" not in text


@pytest.fixture(scope="module")
def pieces():
    return environment().get_template("pieces.html.j2").module


def test_numbers_show_three_digits_and_sort_by_all(pieces):
    assert pieces.number(0.123456) == (
        '<td class="number" data-sort="0.123456">0.123</td>'
    )


def test_undefined_numbers_are_a_dash_that_says_so(pieces):
    dash = '<td class="number" data-sort=""><span title="undefined">\u2013</span></td>'
    assert pieces.number(None) == dash
    assert pieces.interval(SimpleNamespace(low=0.1, high=None)) == dash
    assert pieces.score(None) == dash


@pytest.mark.parametrize(
    ("score", "x", "width"),
    [(0.0, 10, 0), (0.5, 10, 50), (1.0, 10, 100), (-0.05, 5, 5), (9.0, 10, 120)],
)
def test_bar_reaches_from_floor_to_score_and_ends_in_the_picture(
    pieces, score, x, width
):
    (bar,) = re.findall('class="value" [^>]*', pieces.score(score))
    found = dict(re.findall(r'(\w+)="([-\d.]+)"', bar))
    assert (float(found["x"]), float(found["width"])) == (x, width)


def test_bar_draws_its_interval_and_says_it(pieces):
    cell = pieces.score(0.5, 0.25, 0.75)
    assert 'class="interval" d="M35.0 8H85.0"' in cell
    assert 'aria-label="score 0.500: 0 is the floor, 1 real cells; ' in cell
    assert "interval 0.250 to 0.750" in cell


def test_p_value_stands_beside_its_pooled_metric_alone(text):
    assert text.count("p = 0.00500") == 1


def test_page_of_a_report_without_labels_genes_and_pictures_is_whole():
    document = make_document()
    del document.experiments["pbmc"]
    text = report_page(document, {})
    assert Page(text).open == []
    assert "<h3>Pictures" not in text
    assert "<h3>Give-away" not in text
    assert "<h3>Labels" not in text


# In a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    programs = shutil.which("chromium"), shutil.which("chromedriver")
    if None in programs:
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for name in (
        *("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run"),
        *("disable-background-networking", "disable-component-update", "disable-sync"),
        f"user-data-dir={tmp_path_factory.mktemp('browser')}",
    ):
        options.add_argument(f"--{name}")
    driver = webdriver.Chrome(options=options, service=Service(programs[1]))
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser, tmp_path):
    """The browser with the page open, at 1280 x 900, in light colours."""
    set_window(browser, width=1280, colours="light")
    path = tmp_path / "report.html"
    write_html(path, make_document(), {"pbmc": PICTURES})
    browser.get(path.as_uri())
    return browser


def set_window(browser, *, width, colours):
    size = {
        "width": width,
        "height": 900,
        "deviceScaleFactor": 1,
        "mobile": width < 500,
    }
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    preference = {"name": "prefers-color-scheme", "value": colours}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [preference]})


def metrics_header(browser, name):
    """Return the header of a column of the table of pooled metrics."""
    table = "(//table[caption='Metrics of all cells together'])[1]"
    return browser.find_element("xpath", f"{table}//th[button='{name}']")


def metrics_column(browser, position):
    table = "(//table[caption='Metrics of all cells together'])[1]"
    cells = browser.find_elements("xpath", f"{table}/tbody/tr/*[{position}]")
    return [cell.text.splitlines()[0] for cell in cells]


VALUES = ["0.0120", "0.200", "0.740", "0.820", "0.912", "1.25"]


@pytest.mark.slow
def test_browser_sorts_a_table_by_its_header_both_ways(opened):
    header = metrics_header(opened, "value")
    assert header.get_attribute("aria-sort") == "none"
    button = header.find_element("tag name", "button")
    button.click()
    assert metrics_column(opened, 3) == [*VALUES, "\u2013"]
    assert header.get_attribute("aria-sort") == "ascending"
    button.click()
    assert metrics_column(opened, 3) == [*VALUES[::-1], "\u2013"]
    assert header.get_attribute("aria-sort") == "descending"


@pytest.mark.slow
def test_browser_sorts_by_the_keyboard_and_text_by_the_alphabet(opened):
    from selenium.webdriver.common.keys import Keys

    metrics_header(opened, "value").find_element("tag name", "button").click()
    header = metrics_header(opened, "metric")
    header.find_element("tag name", "button").send_keys(Keys.ENTER)
    names = metrics_column(opened, 1)
    assert names[0] == "classifier auc (0 < 1 & best)"
    assert names == sorted(names)
    assert header.get_attribute("aria-sort") == "ascending"
    assert metrics_header(opened, "value").get_attribute("aria-sort") == "none"


@pytest.mark.slow
def test_browser_loads_nothing_and_runs_no_script_but_the_page_own(opened):
    loaded = opened.execute_script(
        "return performance.getEntriesByType('resource').map(entry => entry.name)"
    )
    assert all(name.startswith("data:") for name in loaded)
    opened.execute_script(
        "const script = document.createElement('script');"
        "script.textContent = 'window.foreign = 1';"
        "document.body.append(script);"
    )
    assert opened.execute_script("return window.foreign") is None
    with pytest.raises(Exception, match="Failed to fetch"):
        opened.execute_script("return fetch('data:,x')")


@pytest.mark.slow
def test_browser_follows_dark_colours_and_keeps_pictures_on_white(opened):
    background = "return getComputedStyle(document.querySelector('{}')).backgroundColor"
    light = opened.execute_script(background.format("body"))
    set_window(opened, width=1280, colours="dark")
    assert light == "rgb(255, 255, 255)"
    assert opened.execute_script(background.format("body")) == "rgb(20, 23, 27)"
    assert opened.execute_script(background.format("figure")) == "rgb(255, 255, 255)"


@pytest.mark.slow
def test_browser_never_scrolls_the_page_sideways_on_a_phone(opened):
    set_window(opened, width=390, colours="light")
    opened.execute_script(
        "for (const one of document.querySelectorAll('details')) one.open = true"
    )
    widths = opened.execute_script(
        "return [document.documentElement.scrollWidth, innerWidth]"
    )
    assert widths[0] <= widths[1] == 390
    scrolling = opened.execute_script(
        "const boxes = [...document.querySelectorAll('.scroll')];"
        "return boxes.map(box => box.scrollWidth > box.clientWidth)"
    )
    assert any(scrolling)


@pytest.mark.slow
def test_browser_enlarges_a_picture_until_it_is_left(opened):
    from selenium.webdriver.common.keys import Keys

    dialog = opened.find_element("tag name", "dialog")
    assert not dialog.is_displayed()
    button = opened.find_element("css selector", "figure button")
    button.click()
    assert dialog.is_displayed()
    image = dialog.find_element("tag name", "img")
    assert image.get_attribute("alt") == PICTURES[0].alt
    opened.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert not dialog.is_displayed()


def test_guidance_is_shown_where_it_was_swept():
    html = report_page(make_document(), {})
    assert html.count("<h3>Guidance</h3>") == 1
    assert "real cells" in html
