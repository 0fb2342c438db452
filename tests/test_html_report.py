"""The report as text, and in a real browser where there is one."""

import base64
import html
import json
import re
import shutil
import subprocess

import pytest

import bayesnn as bnn
from bayesnn.html_report import CAPTIONS

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
in_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome on PATH")
NAME = "<b>bold</b> & \"co\" <script>document.title = 'gone'</script>"
METHODS = {NAME: bnn.MAP(), "wild": bnn.SGLD(lr=1e7, warm_up=0), "vi": bnn.MeanFieldVI(), "sgld": (bnn.SGLD(lr=0.1), 2)}


@pytest.fixture(scope="module")
def comparison():
    with pytest.warns(UserWarning, match="wild"):
        return bnn.compare("moons", methods=METHODS, epochs=2, seeds=(0, 1), validation=0.2, progress=False)


@pytest.fixture(scope="module")
def report(comparison, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    assert folder / "report.html" in comparison.save(folder)
    return folder / "report.html"


def dump(path, *flags):
    """The document as the browser has it after its scripts ran."""
    command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={path.parent}/profile"]
    command += ["--virtual-time-budget=5000", *flags]
    done = subprocess.run([*command, path.as_uri()], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout


def scripted(report, script):
    """A copy of the report at whose end a script runs that writes JSON into ``#found``."""
    path = report.with_name("scripted.html")
    text = report.read_text(encoding="utf-8")
    path.write_text(
        text.replace("</body>", f'<pre id="found"></pre><script>{script}</script></body>'), encoding="utf-8"
    )
    found = re.search(r'<pre id="found">(.*?)</pre>', dump(path, "--dump-dom"), re.DOTALL)
    return json.loads(html.unescape(found[1]))


def framed(report, attributes, values):
    """What JavaScript expressions give of the report's document ``d`` in a frame with such attributes."""
    path = report.with_name("framed.html")
    path.write_text(f"""<iframe src="{report.name}" {attributes}></iframe><pre id="found"></pre><script>
        onload = () => {{ const d = document.querySelector("iframe").contentDocument;
          document.getElementById("found").textContent = JSON.stringify([{values}]); }}</script>""")
    dom = dump(path, "--allow-file-access-from-files", "--dump-dom")
    return json.loads(html.unescape(re.search(r'<pre id="found">(.*?)</pre>', dom, re.DOTALL)[1]))


def shown(page):
    """The cells of the scores' table, headings first."""
    table = re.search(r'<table id="scores".*?</table>', page, re.DOTALL)[0]
    rows = re.findall(r"<tr>.*?</tr>", table, re.DOTALL)
    cells = [re.findall(r"<t[hd]\b[^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]
    return [[html.unescape(re.sub(r"<[^>]+>", "", cell)).strip() for cell in row] for row in cells]


def expected(comparison):
    lines = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in comparison.table().splitlines()]
    return [lines[0], *lines[2:]]


def test_the_table_is_the_one_in_markdown_and_marks_its_best(report, comparison):
    page = report.read_text(encoding="utf-8")
    assert shown(page) == expected(comparison)
    marked = re.findall(r'<td class="num best" data-value="([^"]+)">', page)
    assert [float(value) for value in marked] == [
        c.value for ln in comparison.lines for c in ln.cells.values() if c.best
    ]
    assert len(marked) >= 4  # a best of each score


def test_names_are_text_and_never_markup(report):
    page = report.read_text(encoding="utf-8")
    assert "<b>" not in page
    assert page.count("<script>") == 1
    assert html.escape(NAME) in page.replace("&#34;", "&quot;").replace("&#39;", "&#x27;")


def test_nothing_is_loaded_from_anywhere(report):
    page = report.read_text(encoding="utf-8")
    assert "http:" not in page
    assert "https:" not in page
    sources = re.findall(r"""(?:src|href|srcset|data|action|poster)\s*=\s*["']([^"']*)""", page)
    assert sources
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"@import|url\(|<link|<base|fetch\(|XMLHttpRequest|import\(", page)
    assert "default-src 'none'" in page  # and the browser holds it to that


def test_every_picture_is_inside_and_has_words(report, comparison):
    page = report.read_text(encoding="utf-8")
    inside = [base64.b64decode(one) for one in re.findall(r'src="data:image/png;base64,([^"]+)"', page)]
    files = [path.read_bytes() for path in report.parent.glob("*.png") if path.stem in CAPTIONS]
    assert len(files) > 4
    assert sorted(inside) == sorted(files)
    assert len(re.findall(r"<figcaption><strong>[^<]+</strong>[^<]{40,}</figcaption>", page)) == len(inside)


def test_what_failed_is_said_with_its_error(report, comparison):
    page = report.read_text(encoding="utf-8")
    errors = [row["error"] for row in comparison.rows if row["method"] == "wild"]
    assert len(errors) == 2
    for seed, error in enumerate(errors):
        assert f"<li>mlp, wild, seed {seed}: {html.escape(error)}</li>" in page


def test_settings_and_versions_are_there(report, comparison):
    page = report.read_text(encoding="utf-8")
    written = json.loads(html.unescape(re.search(r'<pre id="settings">(.*?)</pre>', page, re.DOTALL)[1]))
    kept = {key: value for key, value in comparison.settings.items() if key not in ("call", "command")}
    assert written == json.loads(json.dumps(kept))
    assert html.unescape(re.search(r'<pre id="call">(.*?)</pre>', page, re.DOTALL)[1]) == comparison.settings["call"]
    assert f"<dt>torch</dt><dd>{comparison.settings['versions']['torch']}</dd>" in page


def test_one_seed_marks_nothing_and_says_why(tmp_path):
    bnn.compare("moons", methods=("map", "vi"), epochs=1, out=tmp_path, progress=False)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert 'class="num best"' not in page
    assert "none is marked as the best" in page
    assert '<pre id="command">OMP_NUM_THREADS=' in page


@pytest.mark.filterwarnings("ignore:mlp, wild")
def test_where_nothing_was_fitted_there_is_still_a_report(tmp_path):
    with pytest.warns(UserWarning, match="Expected a finite loss"):
        bnn.compare("moons", methods={"wild": METHODS["wild"]}, epochs=2, out=tmp_path, progress=False)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "What failed" in page
    assert "<img" not in page
    assert shown(page)[1] == ["wild", *["failed"] * 6]


@in_browser
def test_the_browser_shows_it_and_loads_nothing(report, comparison):
    assert shown(dump(report, "--dump-dom")) == expected(comparison)
    found = scripted(report, """
        document.getElementById("found").textContent = JSON.stringify({
          title: document.title,
          requests: performance.getEntriesByType("resource").map((e) => e.name).filter((e) => !e.startsWith("data:")),
          broken: Array.from(document.images).filter((image) => image.naturalWidth < 100).length,
          wide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
        });""")  # fmt: skip
    assert found == {"title": "moons: a comparison by bayesnn", "requests": [], "broken": 0, "wide": 0}


@in_browser
def test_a_click_on_a_heading_sorts_the_table(report, comparison):
    found = scripted(
        report,
        """
        const table = document.getElementById("scores"), found = [];
        const names = () => Array.from(table.tBodies[0].rows).map((row) => row.cells[0].textContent);
        function click(column) {
          const heading = table.tHead.rows[0].cells[column];
          heading.querySelector("button").click();
          const marked = table.querySelectorAll("[aria-sort]").length;
          found.push([heading.getAttribute("aria-sort"), marked, names()]);
        }
        [1, 1, 2, 0].forEach(click);  // accuracy, again, NLL, method
        document.getElementById("found").textContent = JSON.stringify(found);""",
    )
    lines = [line for line in comparison.lines if line.method != "wild"]

    def by(key, reverse=False):
        return [line.method for line in sorted(lines, key=lambda line: line.cells[key].value, reverse=reverse)]

    # What is good comes first, and what failed last in either order.
    assert found[0] == ["descending", 1, [*by("accuracy", reverse=True), "wild"]]
    assert found[1] == ["ascending", 1, [*by("accuracy"), "wild"]]
    assert found[2] == ["ascending", 1, [*by("nll"), "wild"]]
    assert found[3] == ["ascending", 1, [NAME, "sgld", "vi", "wild"]]


@in_browser
def test_without_scripts_the_table_is_simply_there(report, comparison):
    # The frame's own scripts may not run, and those of the page around it may look inside.
    page = framed(report, 'sandbox="allow-same-origin" width="1200" height="800"', """
        d.querySelectorAll("button").length, d.getElementById("scores").outerHTML""")  # fmt: skip
    assert page[0] == 0
    assert shown(page[1]) == expected(comparison)


@in_browser
def test_it_follows_light_and_dark(report, tmp_path):
    from matplotlib.image import imread

    ground = []
    for scheme in (1, 0):
        picture = tmp_path / f"{scheme}.png"
        dump(report, f"--blink-settings=preferredColorScheme={scheme}", "--hide-scrollbars", "--window-size=900,700",
             f"--screenshot={picture}")  # fmt: skip
        ground.append(float(imread(picture)[2, 2, :3].mean()))
    assert ground[0] > 0.9
    assert ground[1] < 0.15


@in_browser
def test_on_a_phone_only_the_table_scrolls_sideways(report):
    # A window is never narrower than 500 pixels; a frame may be.
    width, needed, scrolls = framed(report, 'width="360" height="800"', """
        d.documentElement.clientWidth, d.documentElement.scrollWidth,
        d.querySelector(".scroll").scrollWidth > d.querySelector(".scroll").clientWidth""")  # fmt: skip
    assert width <= 360
    assert needed == width
    assert scrolls
