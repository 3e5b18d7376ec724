"""No secret passes, whatever its name, form or depth; what only looks like one stays."""

import pytest

from omniaudio.secrets import holds_secret, is_secret, redacted


@pytest.mark.parametrize(
    "name",
    [
        "api_key", "WANDB_API_KEY", "apikey", "apiKey", "secret_key", "AWS_SECRET_ACCESS_KEY", "access_key",
        "aws_access_key_id", "private_key", "Authorization", "passwd", "db-password", "credentials", "hubToken",
        "HF_TOKEN", "client_secret",
    ],
)  # fmt: skip
def test_names_of_secrets(name):
    assert is_secret(name)
    assert redacted({"a": [{name: "abc"}]}) == {"a": [{name: "***"}]}
    assert holds_secret(f"+a.{name}=abc")


def test_what_is_no_secret_stays():
    config = {
        "max_tokens": 3, "token_space": {"eos": 1}, "tokens_per_step": 4, "key": "utt-1", "replacement": "token",
        "password": None, "token": "", "use_token": True, "hub_token": "${oc.env:HUB_TOKEN}",
        "url": "https://host:80/a?language=de&max_tokens=3", "mail": "me@host", "text": "Basic arithmetic: tokens = 3",
    }  # fmt: skip
    assert redacted(config) == config
    assert not any(
        map(holds_secret, ["data=my corpus", "+hub_token=${oc.env:HUB_TOKEN}", "--constraint=a100"])
    )


def test_secrets_of_any_form_are_blanked():
    assert redacted({"password": 1234, "credentials": {"user": "me", "keys": ["a", 2, None]}}) == {
        "password": "***",
        "credentials": {"user": "***", "keys": ["***", "***", None]},
    }
    assert redacted({"headers": {"X-Key": "k", "A": 1}, "b": 1}) == {
        "headers": {"X-Key": "***", "A": "***"},
        "b": 1,
    }
    assert redacted(
        ["https://user:pw@host/?api_key=abc&n=1", "X: Bearer abc", "--export=ALL,HF_TOKEN=abc"]
    ) == [
        "https://***@host/?api_key=***&n=1",
        "X: Bearer ***",
        "--export=ALL,HF_TOKEN=***",
    ]


@pytest.mark.parametrize(
    "word",
    [
        "+hub_token=abc", "++tracker={api_key: abc}", "+engine.headers.Authorization='Bearer abc'",
        "+engine.headers.X-Key=abc", "engine.url=https://me:pw@host", "--export=WANDB_API_KEY=abc", "+password=12",
    ],
)  # fmt: skip
def test_words_that_hold_a_secret(word):
    assert holds_secret(word)
