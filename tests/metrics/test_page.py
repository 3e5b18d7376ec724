from omniaudio.metrics import page as html
from omniaudio.metrics.page import Page


def test_what_comes_from_data_cannot_become_markup():
    evil = '<script>alert("x")</script>'
    page = Page(title=evil, lead=evil, facts=[(evil, evil)], footer=evil)
    made = [html.tile(evil, evil), html.code(evil), html.command(evil), html.note(evil), html.missing(evil)]
    made += [
        html.tag(evil, evil),
        html.image(evil, evil),
        html.player(evil, evil, evil),
        html.more(evil, evil),
    ]
    page.add("a", evil, evil, *made, html.table([evil], []), html.chain([evil]))
    assert "<script" not in page.render()


def test_table_aligns_numbers():
    made = html.table(["name", "#value"], [["a", "1"]])
    assert '<th class="num">value</th>' in made and '<td class="num">1</td>' in made and "<td>a</td>" in made


def test_tile_without_a_number_says_so():
    assert "not measured" in html.tile(None, "mel error") and "not measured" not in html.tile(
        "0.4", "mel error"
    )


def test_every_section_has_its_link():
    page = Page(title="t", lead="", facts=[])
    page.add("one", "First", "")
    page.add("two", "Second", "")
    made = page.render()
    assert all(f'href="#{a}"' in made and f'id="{a}"' in made for a in ("one", "two"))
