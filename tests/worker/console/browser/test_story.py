"""The newcomer's story, from a flagged part to the same picture that passes."""

from playwright.sync_api import Page, expect

from tests.worker.console.browser.conftest import OpenPage, live
from tests.worker.console.browser.plant import Plant


def shown(page: Page, selector: str) -> None:
    """A picture is there, and it is one."""
    page.wait_for_function("selector => document.querySelector(selector)?.naturalWidth > 0", arg=selector)


def test_a_part_is_flagged_seen_called_normal_and_passes_when_it_comes_again(plant: Plant, open_page: OpenPage) -> None:
    page = open_page("/")
    page.click(f"text={plant.story}")
    live(page)
    expect(page.locator("h1 + .badge")).to_have_text("scoring")
    page.evaluate("window.neverReloaded = true")
    flagged = plant.stain(plant.story, "strange-1")
    card = page.locator("#gallery li", has_text="strange-1")
    expect(card).to_be_visible()
    shown(page, "#gallery .picture")
    shown(page, "#gallery .heat")
    assert page.evaluate("window.neverReloaded")

    card.click()
    expect(page.locator("#verdict")).to_have_text("anomalous")
    shown(page, "#picture")
    shown(page, "#heat")
    assert float(page.inner_text("#score")) > flagged["threshold"]
    expect(page.locator("#gauge .fill")).to_have_class("fill over")
    expect(page.locator("#again-empty")).to_be_visible()

    live(page)
    page.click("#normal")
    expect(page.locator("#ask-title")).to_have_text("Is this part normal?")
    page.click("#ask-confirm")
    expect(page.locator("#answer")).to_have_attribute("data-ok", "true")
    expect(page.locator("#answer")).to_contain_text("anchors pinned")

    assert plant.stain(plant.story, "strange-1")["anomalous"] is False
    again = page.locator("#again tbody tr").first
    expect(again.locator(".verdict")).to_have_text("normal")
    page.click("nav >> text=" + plant.story)
    newest = page.locator("#results tbody tr").first
    expect(newest).to_contain_text("strange-1")
    expect(newest.locator(".verdict")).to_have_text("normal")
    expect(page.locator("#gallery li", has_text="strange-1")).to_have_count(1)
    expect(page.locator("#journal tbody tr").first).to_contain_text(f"annnormal {flagged['entry']} strange-1")


def test_the_slider_fades_the_heat_map_and_the_gallery_is_put_in_another_order(
    plant: Plant, open_page: OpenPage
) -> None:
    for seed in (11, 12, 13):
        plant.stain(plant.shown, f"other-{seed}", seed)
    page = open_page(f"/lines/{plant.shown}")
    expect(page.locator("#gallery li", has_text="other-13")).to_be_visible()
    page.focus("#opacity")
    page.keyboard.press("Home")
    expect(page.locator("#opacity-text")).to_have_text("0 %")
    expect(page.locator("#gallery .heat").first).to_have_css("opacity", "0")
    page.keyboard.press("End")
    expect(page.locator("#gallery .heat").first).to_have_css("opacity", "1")
    page.check("#order-largest", force=True)
    times = [float(text.split()[0]) for text in page.locator("#gallery .cap b span:first-child").all_inner_texts()]
    assert len(times) >= 3
    assert times == sorted(times, reverse=True)
