"""The token inspector as a person uses it, in a real Chromium: pointer, keys, hostile tokens."""

import math
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from benchmarks.browser import Timed
from stages.inspection.inspect import Settings, inspect_set
from storage.files.place import Place
from storage.rows import Rows
from tests.browser.conftest import Open
from tests.storage.make import meta_of, sequence, write_parts
from tests.world import commit, make_world

pytestmark = pytest.mark.browser

HOSTILE = (
    "</script><script>document.title='taken'</script>",
    "<img src=x onerror=\"document.title='taken'\">",
    "\u202eright to left",
    "a\nb\tc",
    "\x00\x1b[31m",
    "&amp;'\"`${document.title='taken'}",
    "-->]]>",
    "\ufe0f",
)


def page_of(
    directory: Place, into: Path, models: dict[str, Path] | None = None, **fields: Any
) -> Path:
    into.write_text(inspect_set(directory, models or {}, Settings(**fields))[0])
    return into


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of records, with a student before and after training."""
    root = tmp_path_factory.mktemp("world")
    world = make_world(root, count=40)
    models = {"before": world.reference, "after": world.teacher}
    return page_of(world.records.directory, root / "page.html", models)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of one sequence whose tokens are what nobody hopes to find in a set."""
    root = tmp_path_factory.mktemp("hostile")
    words = {word: index for index, word in enumerate(("<pad>", "<end>", *HOSTILE))}
    made = Tokenizer(models.WordLevel(words, "<pad>"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>", pad_token="<pad>")
    tokenizer.save_pretrained(root / "model")
    ids = np.arange(2, len(words))
    one = {"seq_id": 0, "prompt_id": 0, "sample": 0, "finish": 0, "outcome": -1}
    rows = Rows.from_sequences([{**one, "prompt": ids, "tok": ids, "ref_lp": -np.ones(len(ids))}])
    commit(root / "set", rows, key="aa" * 32, vocab_size=len(words), words=root / "model")
    return page_of(root / "set", root / "page.html")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of 20,000 sequences, the tokens of a few of them."""
    root = tmp_path_factory.mktemp("large")
    meta = meta_of("sequences", vocab_size=50, candidates=0)
    rng = np.random.default_rng(0)
    block = Rows.from_sequences([sequence(rng, meta, i, positions=3) for i in range(1000)])
    parts = [
        (Rows({**block.columns, "seq_id": block["seq_id"] + 1000 * i}, block.offsets), "train")
        for i in range(20)
    ]
    write_parts(root / "set", meta, parts)
    return page_of(root / "set", root / "page.html", tokens=3000)


def ready(show: Open, file: Path, scheme: str = "light") -> Any:
    page = show(file, scheme)
    page.wait_for_selector("#inspector[data-ready]")
    return page


def test_the_worst_sequence_comes_first_and_its_worst_token_is_explained(
    show: Open, records: Path
) -> None:
    page = ready(show, records)
    shown = [float(text) for text in page.locator(".row span:nth-child(3)").all_text_contents()]
    assert len(shown) > 10
    assert shown == sorted(shown, reverse=True)
    page.get_by_label("colour").select_option("gap:before")
    page.get_by_label("order").select_option("worst token first")
    shown = [float(text) for text in page.locator(".row span:nth-child(3)").all_text_contents()]
    assert shown == sorted(shown)  # the teacher thinks least of the first
    details = page.locator(".details").inner_text()
    assert f"{shown[0]:.3f}" in details  # of its worst token
    for heading in ("teacher, head", "before", "after"):
        assert page.locator(".details h3", has_text=heading).count() >= 1
    assert "◀" in details  # the token itself, among the teacher's ids


def test_the_token_is_among_the_ids_of_every_model_however_unlikely(
    show: Open, records: Path
) -> None:
    page = ready(show, records)
    page.get_by_label("colour").select_option("drift:after")
    page.get_by_label("order").select_option("worst token first")
    for name in ("before", "after"):
        block = page.locator(f'.details > div:has(> h3:text-is("{name}"))')
        (share,) = block.locator("tr.realised td.share").all_text_contents()
        lines = page.locator(".details > div:has(> h3:text-is('what the models say of it')) tr")
        heads = lines.nth(0).locator("th").all_text_contents()
        drift = lines.filter(has_text="drift").locator("td").nth(heads.index(name) - 1).inner_text()
        drawn = page.locator(".details tr", has_text="surprise of the sampler").locator("td")
        expected = math.exp(float(drift) - float(drawn.inner_text()))
        assert float(share) == pytest.approx(expected, rel=0.02, abs=1e-3)


def test_the_pointer_and_the_arrow_keys_go_from_token_to_token(show: Open, records: Path) -> None:
    page = ready(show, records)
    page.get_by_label("order").select_option("longest first")
    tokens = page.locator(".token")
    tokens.nth(0).hover()
    assert page.locator(".details h3").first.inner_text().startswith("token 1:")
    tokens.nth(0).focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.locator(".details h3").first.inner_text().startswith("token 3:")
    page.keyboard.press("End")
    assert page.locator(".details h3").first.inner_text().startswith(f"token {tokens.count()}:")
    before = page.locator(".reader strong").inner_text()
    page.keyboard.press("ArrowDown")
    assert page.locator(".reader strong").inner_text() != before
    assert page.evaluate("document.activeElement.className").startswith("token")


def test_everything_can_be_reached_with_the_tab_key(show: Open, records: Path) -> None:
    page = ready(show, records)
    seen = set()
    for _ in range(12):
        page.keyboard.press("Tab")
        seen.add(
            page.evaluate("document.activeElement.className || document.activeElement.tagName")
        )
    assert {"BUTTON", "SELECT", "list", "text prompt"} <= seen
    assert any(name.startswith("token") for name in seen)


def test_a_sequence_is_opened_by_its_number_also_where_the_list_lacks_it(
    show: Open, large: Path
) -> None:
    page = ready(show, large)
    page.get_by_label("order").select_option("by number")
    page.get_by_label("show").select_option("all sequences")
    number = page.locator(".row.absent").first.inner_text().split()[0]
    page.get_by_label("show").select_option("sequences with tokens")
    assert "20,000 sequences" not in page.locator(".bar").inner_text()
    box = page.get_by_label("go to sequence")
    box.fill(number)
    box.press("Enter")
    assert page.locator(".reader strong").inner_text().startswith(f"sequence {number},")
    assert page.locator('.row[aria-selected="true"]').inner_text().startswith(f"{number} ")
    assert "20,000 sequences" in page.locator(".bar").inner_text()
    box.fill("20000")
    box.press("Enter")
    assert "no sequence 20000 here" in page.locator(".bar").inner_text()
    assert page.locator(".reader strong").inner_text().startswith(f"sequence {number},")


def test_a_page_can_be_timed(chromium: Any, large: Path) -> None:
    shown = Timed(chromium, large)
    assert 0 < shown.first_paint <= shown.ready
    assert shown.choose("show", "all") > 0
    assert shown.scroll(0.5) > 0
    assert shown.press("ArrowDown") > 0
    assert shown.heap > 1e6
    shown.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("eyes", ["protanopia", "deuteranopia", "tritanopia"])
def test_bad_and_good_stay_apart_for_colour_blind_readers(
    show: Open, records: Path, scheme: str, eyes: str
) -> None:
    """The ends of the scale, as the browser simulates these eyes."""
    page = ready(show, records, scheme)
    page.get_by_label("colour").select_option("gap:before")
    session = page.context.new_cdp_session(page)
    session.send("Emulation.setEmulatedVisionDeficiency", {"type": eyes})
    scale = page.locator(".scale")
    picture = np.asarray(Image.open(BytesIO(scale.screenshot())).convert("RGB"), float)
    height, width, _ = picture.shape
    bad, plain, good = (picture[height // 2, x] for x in (4, width // 2, width - 5))
    for one, other in ((bad, good), (bad, plain), (good, plain)):
        assert np.linalg.norm(one - other) > 60
    assert page.locator(".token.bad").count() > 0  # and underlined


def test_a_narrow_page_does_not_scroll_sideways(show: Open, records: Path) -> None:
    page = show(records, width=375)
    page.wait_for_selector("#inspector[data-ready]")
    assert page.evaluate("document.documentElement.scrollWidth") <= 375


def test_tokens_are_text_whatever_they_say(show: Open, hostile: Path) -> None:
    page = ready(show, hostile)
    tokens = page.locator(".token").all_text_contents()
    assert tokens[0] == HOSTILE[0]
    assert tokens[1] == HOSTILE[1]
    assert tokens[2] == "⟨U+202E⟩right to left"
    assert tokens[3] == "a⏎\nb⇥\tc"
    assert tokens[4] == "⟨U+0000⟩⟨U+001B⟩[31m"
    assert tokens[5:-1] == list(HOSTILE[5:-1])
    assert tokens[-1] == "⟨U+FE0F⟩"  # by itself it would be nothing
    for index in range(len(HOSTILE)):
        page.locator(".token").nth(index).hover()
    assert "taken" not in page.title()
    assert page.locator("img").count() == 0
    assert page.locator("script").count() == 2


def test_a_list_of_many_sequences_holds_few_rows(show: Open, large: Path) -> None:
    page = ready(show, large)
    page.get_by_label("show").select_option("all sequences")
    assert "20,000 sequences" in page.locator(".bar").inner_text()
    assert page.locator(".row").count() < 60
    page.locator(".list").focus()
    page.keyboard.press("End")
    selected = page.locator('.row[aria-selected="true"]')
    assert selected.get_attribute("aria-posinset") == "20000"
    assert page.locator(".row").count() < 60
    page.get_by_label("order").select_option("by number")
    assert page.locator(".row span:first-child").first.inner_text().startswith("0 ")
    page.keyboard.press("Tab")
    absent = page.locator(".row.absent").first
    absent.click()
    assert "--only" in page.locator(".reader").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read_in_light_and_dark(show: Open, records: Path, scheme: str) -> None:
    """WCAG 2.2, 1.4.3: a contrast of 4.5, also on the strongest colours of tokens."""
    page = ready(show, records, scheme)
    contrast = page.evaluate(
        """() => {
          const canvas = document.createElement("canvas").getContext("2d");
          const channels = (colours) => {  // painted over each other, as the browser does it
            canvas.clearRect(0, 0, 1, 1);
            for (const colour of colours) {
              canvas.fillStyle = colour;
              canvas.fillRect(0, 0, 1, 1);
            }
            return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
          };
          const luminance = (rgb) => rgb.map((part) => part / 255)
            .map((x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4))
            .reduce((sum, x, i) => sum + x * [0.2126, 0.7152, 0.0722][i], 0);
          const paper = getComputedStyle(document.body).backgroundColor;
          return [...document.querySelectorAll(".token, .row span, .details td, th")].map((one) => {
            const layers = [paper];
            const above = [];
            for (let at = one; at && at !== document.body; at = at.parentElement) {
              above.unshift(getComputedStyle(at).backgroundColor);
            }
            const back = luminance(channels([...layers, ...above]));
            const front = luminance(channels([...layers, ...above, getComputedStyle(one).color]));
            const [low, high] = [back, front].sort((a, b) => a - b);
            return (high + 0.05) / (low + 0.05);
          });
        }"""
    )
    assert len(contrast) > 50
    assert min(contrast) >= 4.5
