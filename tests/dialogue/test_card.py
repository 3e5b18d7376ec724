from omniaudio.dialogue.card import model_card, read_attribution, write_card


def test_card_before_and_after_the_evaluation(exported, model, trained):
    attribution = read_attribution(trained[1])
    assert "Not evaluated yet." in model_card(exported, model, "tiny", attribution, {})
    card = model_card(exported, model, "tiny", attribution, {"mel MAE": "0.5"})
    assert "| mel MAE | 0.5 |" in card and "Not evaluated" not in card


def test_code_of_the_card_runs(exported, model, tmp_path, monkeypatch):
    card = model_card(exported, model, "tiny", "", {})
    code = card.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "card", "exec"), {})
    assert (tmp_path / "reply.wav").stat().st_size > 44


def test_missing_attribution_is_said(exported, model, tmp_path):
    assert read_attribution(tmp_path) == ""
    write_card(exported, model, title="tiny", attribution="")
    assert "no ATTRIBUTION was found" in (exported / "README.md").read_text()
