"""The report in a real browser: it opens from a file, filters, sorts, finds the pictures, and runs no caption."""

from pathlib import Path

import numpy as np
import pytest

from bdflow.report import writer
from tests.report.test_report import BOTH, EVIL, SUBJECTS, TEST, build
from tests.support.browser import Browser, opened

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """The page, and its scores: (subject, variant, metric, stimulus), stimuli as in TEST."""
    context = build(tmp_path_factory.mktemp("study"))
    value = np.array([context.study.store(f"metrics/brain_diffuser/{subject}").read("value") for subject in SUBJECTS])
    return writer.write(context), value


@pytest.fixture
def page(study):
    with opened(study[0]) as browser:
        yield browser


def by(values: np.ndarray) -> list[int]:
    return TEST[np.argsort(values)].tolist()


def test_every_picture_is_found_and_nothing_comes_from_elsewhere(page: Browser) -> None:
    page.press("#variants button", "no_vdvae")
    page.scroll_through()
    count, broken = page.pictures()
    assert count == len(TEST) * (1 + len(SUBJECTS) * 3), "the photo; of each subject the guess and two variants"
    assert broken == []
    assert page.loaded_from() == {"file:"}
    assert page.complaints() == []


def test_the_pictures_of_two_painters_stand_below_one_another(tmp_path: Path) -> None:
    context = build(tmp_path, painters=BOTH)
    with opened(writer.write(context)) as browser:
        assert browser.pressed("#variants") == ["one/guess", "one/full", "two/guess", "two/full"]
        browser.press("#variants button", "one/no_vdvae")
        browser.scroll_through()
        assert browser.pictures() == (len(TEST) * (1 + len(SUBJECTS) * 5), [])
        browser.find("61")
        browser.all("#rows button.cell")[-1].click()
        assert browser.one("#details h3").text == "00061, subj02, two/full"
        assert [text.text for text in browser.all("#details figcaption")] == ["shown", "two/guess", "two/full"]
        assert 'study["reconstructions/two/subj02/full"]' in browser.one("#details code").text
        assert browser.complaints() == []


def test_it_sorts_by_any_metric_subject_and_variant(page: Browser, study) -> None:
    value = study[1]
    mean = value.mean(axis=0)[0, 0]
    assert page.order() == by(-mean)
    page.press("#order button", "worst first")
    assert page.order() == by(mean)
    page.press("#order button", "median first")
    away = np.abs(mean - np.median(mean))  # of six stimuli the two in the middle are as far from it
    far = dict(zip(TEST.tolist(), away.tolist(), strict=True))
    assert np.diff([far[stimulus_id] for stimulus_id in page.order()]).min() > -1e-6
    assert sorted(page.order()[:2]) == sorted(by(away)[:2])
    page.choose("#metric", "SSIM (paper)")
    page.choose("#by-subject", "subj02")
    page.choose("#by-variant", "no_vdvae")
    page.press("#order button", "best first")
    assert page.order() == by(-value[1, 1, 1])
    page.press("#order button", "by id")
    assert page.order() == sorted(TEST.tolist())


def test_it_filters_by_caption_number_subject_and_variant(page: Browser) -> None:
    page.find("caption 61")
    assert page.order() == ["00061"]
    assert page.one("#count").text == "1 of 6 stimuli"
    for asked in ("19", "nsd 00019", "00019"):
        page.find(asked)
        assert page.order() == ["00019"], asked
    page.find("no such words")
    assert page.order() == []
    page.find("CAPTION")
    assert len(page.order()) == 5, "all but the one whose caption is another"
    assert len(page.all("#rows article:first-child button.cell")) == 4
    page.press("#subjects button", "subj01")
    assert [cell.text for cell in page.all("#heads div")] == ["shown", "", "subj02"]
    assert len(page.all("#rows article:first-child button.cell")) == 2
    page.press("#variants button", "guess")
    assert len(page.all("#rows article:first-child button.cell")) == 1


def test_a_view_is_kept_in_the_address(page: Browser) -> None:
    page.press("#order button", "worst first")
    page.press("#subjects button", "subj01")
    page.find("caption")
    before, address = page.order(), page.driver.current_url
    page.driver.get("about:blank")
    page.driver.get(address)
    assert page.order() == before
    assert page.pressed("#subjects") == ["subj02"]
    assert page.pressed("#order") == ["worst first"]


def test_a_picture_opens_with_all_its_scores(page: Browser, study) -> None:
    page.find("61")
    page.all("#rows button.cell")[-1].click()
    assert page.one("#details h3").text == "00061, subj02, full"
    value = study[1][1, 0, :, TEST.tolist().index("00061")]
    cells = [cell.text.replace("−", "-") for cell in page.all("#details td")]
    assert [float(cells[0]), float(cells[2])] == pytest.approx(value[:2], abs=6e-4)
    assert cells[1] == f"{1 + (study[1][1, 0, 0] > value[0]).sum()} of 6"
    page.one("#details form button").click()
    assert page.all("dialog[open]") == []


def test_a_guess_opens_without_scores(page: Browser) -> None:
    page.find("61")
    page.all("#rows button.cell")[0].click()
    assert page.one("#details h3").text == "00061, subj01, guess"
    assert [text.text for text in page.all("#details figcaption")] == ["shown", "guess"]
    assert page.all("#details table") == []
    assert page.complaints() == []


def test_captions_are_text(page: Browser) -> None:
    page.find("friends")
    assert page.order() == ["00007"]
    assert page.one("#rows article h3 span").text == EVIL
    assert len(page.all("script")) == 2
    assert page.complaints() == []
