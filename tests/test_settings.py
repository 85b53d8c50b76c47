"""What a sync makes of its configuration, and where the API key goes."""

import pytest
import responses

import connector
import http_server
from connector import SyncError, validate_configuration
from memory_api import ID, UPDATED_AT, URL, MemoryApi, envelope

KEY = "s3cr3t-k3y"


def problems(**configuration) -> str:
    with pytest.raises(ValueError, match="The configuration cannot be used") as caught:
        validate_configuration({"base_url": URL, **configuration})
    return str(caught.value)


@pytest.mark.parametrize(
    ("base_url", "says"),
    [
        (None, "`base_url` is missing"),
        ("", "`base_url` is missing"),
        ("api.example.com/users", "http or https address"),
        ("ftp://api.example.com", "http or https address"),
        ("https:///users", "http or https address with a host"),
        ("https://api.example.com/users#top", "without spaces, line breaks or a fragment"),
        ("https://api.example.com/users?limit=5&offset=", "must not set limit, offset"),
        (" https://api.example.com/users", "without spaces"),
        ("https://api.example.com/my users", "without spaces"),
        ("https://api.example.com/users\n", "without spaces, line breaks"),
        ("https://api.example.com:port/", "http or https address"),
        ("https://api.example.com:0/", "http or https address"),
        ("https://[::1/users", "http or https address"),
        ("<YOUR_BASE_URL>", "`base_url` is a placeholder"),
    ],
)
def test_an_unusable_base_url_is_an_error_that_says_why(base_url, says):
    assert says in problems(base_url=base_url)


@pytest.mark.parametrize(
    "url",
    [
        "https://jo:s3cr3t@example.com/u",
        "https://jo:s3/cr3t@example.com/u",
        "https:jo:s3#cr3t@example.com/u",
        "jo:s3cr3t@example.com/u",
    ],
)
def test_credentials_in_base_url_are_refused_and_not_shown(url):
    message = problems(base_url=url)
    assert "s3" not in message
    assert "api_key" in message


@pytest.mark.parametrize("url", [f"{URL}/@me", f"{URL}?owner=a@b.c", f"{URL}?fields=updatedAt"])
def test_an_at_sign_in_a_path_or_query_is_no_credential(url):
    assert validate_configuration({"base_url": url}).base_url == url


def test_a_query_in_base_url_is_not_shown_in_errors():
    assert KEY not in problems(base_url=f"ftp://example.com/?token={KEY}")


@pytest.mark.parametrize(
    "value",
    [
        "ten",
        "1.5",
        "1e2",
        "-5",
        "+5",
        " 5",
        "5 ",
        "\u0665",
        "\uff15",
        "\u00b2",
        "0x10",
        "9" * 5000,
        "<5>",
    ],
)
@pytest.mark.parametrize("name", ["page_size", "parallel_requests", "lookback_seconds"])
def test_what_is_no_whole_number_is_an_error(name, value):
    message = problems(**{name: value})
    assert name in message
    assert "whole number from" in message or "placeholder" in message
    assert len(message) < 250


@pytest.mark.parametrize(
    ("name", "inside", "outside"),
    [
        ("page_size", ["1", "10000", "007"], ["0", "10001"]),
        ("parallel_requests", ["1", "16"], ["0", "17"]),
        ("lookback_seconds", ["0", "31536000"], ["31536001"]),
    ],
)
def test_numbers_are_taken_within_their_range_only(name, inside, outside):
    for value in inside:
        assert getattr(validate_configuration({"base_url": URL, name: value}), name) == int(value)
    for value in outside:
        assert f"but is '{value}'" in problems(**{name: value})


def test_what_is_empty_or_null_has_its_default():
    settings = validate_configuration(
        {"base_url": URL, "page_size": "", "parallel_requests": None, "api_key": ""}
    )
    assert (settings.page_size, settings.parallel_requests, settings.lookback_seconds) == (
        100,
        8,
        0,
    )
    assert settings.api_key.get_secret_value() == ""


def test_everything_wrong_is_said_at_once_and_nothing_is_asked(api, sync):
    with pytest.raises(ValueError, match="The configuration cannot be used") as caught:
        sync(base_url="nowhere", page_size="many", lookback_seconds="-1")
    assert [
        name in str(caught.value) for name in ("base_url", "page_size", "lookback_seconds")
    ] == [True] * 3
    assert api.requests == []


def test_a_setting_it_does_not_know_is_an_error_with_the_nearest_name():
    assert "`page_sze` is not a setting; is page_size meant?" in problems(page_sze="5")
    assert "is base_url or api_key or page_size or" in problems(colour="red")


@pytest.mark.parametrize("value", [0, 100, 1.5, True, ["5"]])
def test_a_value_that_is_no_string_is_an_error(value):
    assert "`page_size` must be a string, in quotes" in problems(page_size=value)


@pytest.mark.parametrize("name", ["base_url", "api_key", "page_size"])
def test_an_encrypted_value_says_to_use_fivetran_debug(name):
    assert "run `fivetran debug`" in problems(**{name: "fivetran_encrypted:AAAA"})


@pytest.mark.parametrize("value", ["<YOUR_API_KEY>", f"Bearer {KEY}", f"{KEY}\n", f"{KEY}é"])
def test_an_api_key_that_is_none_is_an_error_that_does_not_show_it(value):
    message = problems(api_key=value)
    assert "api_key" in message
    assert KEY not in message


# Where the key goes


def test_the_key_is_sent_as_a_bearer_token_and_only_if_there_is_one(api, sync):
    sync()
    sync(api_key=KEY)
    assert api.keys == [None, f"Bearer {KEY}"]


def test_the_key_of_a_netrc_file_does_not_replace_it(api, sync, tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text("machine api.example.com login jo password other")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    sync(api_key=KEY)
    assert api.keys == [f"Bearer {KEY}"]


def test_the_key_is_not_sent_to_another_host_on_a_redirect(sync):
    with http_server.serve(MemoryApi()) as other, http_server.serve(MemoryApi()) as server:
        server.api.answers = {
            1: (302, {"Location": f"{other.url}?order_by=updatedAt&offset=0&limit=100"}, "")
        }
        sync(base_url=server.url, api_key=KEY)
        assert server.api.keys == [f"Bearer {KEY}"]
        assert other.api.keys == [None]


@pytest.mark.parametrize(
    ("base_url", "warned"),
    [
        ("http://api.example.com/users", True),
        ("HTTP://api.example.com/users", True),
        ("https://api.example.com/users", False),
        ("http://127.0.0.1:5001/users", False),
        ("http://localhost:5001/users", False),
        ("http://[::1]:5001/users", False),
    ],
)
def test_a_key_is_known_to_be_exposed_over_plain_http_to_another_machine(base_url, warned):
    configuration = {"base_url": base_url, "api_key": KEY}
    assert validate_configuration(configuration).exposes_key == warned


def test_a_key_that_is_exposed_is_a_warning_that_does_not_show_it(sync):
    with http_server.serve(MemoryApi()) as server:
        assert sync(base_url=server.url, api_key=KEY).all("warning") == []
    with responses.RequestsMock() as mock:
        mock.get("http://api.example.com/users", json=envelope([], 0))
        (warning,) = sync(base_url="http://api.example.com/users", api_key=KEY).all("warning")
    assert "api_key is sent unencrypted" in warning
    assert KEY not in warning


def test_our_own_words_are_not_hidden_in_an_error_as_if_they_were_secrets(api, sync):
    api.answers = {1: lambda page: envelope([{ID: "1"}], 1)}
    with pytest.raises(SyncError, match=f"data.0.{UPDATED_AT}` is missing; there is {ID}"):
        sync(base_url=f"{URL}?fields={UPDATED_AT}")


def test_the_key_is_nowhere_in_what_a_working_sync_says_or_stores(api, sync, capsys):
    api.add(250)
    destination = sync(api_key=KEY)
    captured = capsys.readouterr()
    assert "Reading all rows" in captured.out
    assert KEY not in captured.out + captured.err + str(
        destination.all("warning") + destination.all("checkpoint")
    )
    assert not any(KEY in str(request) for request in api.requests)


@pytest.mark.parametrize(
    "answer",
    [
        (401, {}, f"bad key {KEY}"),
        (400, {}, f'{{"error": "limit and key {KEY}"}}'),
        (418, {}, f"bad key {KEY}"),
        (400, {}, "x" * (200 - len(KEY) // 2) + KEY),
        (503, {"Retry-After": "9999"}, KEY),
        (200, {"Content-Type": f"text/{KEY}"}, KEY),
        (200, {}, f'{{"data": [], "total": "{KEY}"}}'),
    ],
    ids=str,
)
def test_the_key_is_nowhere_in_what_a_failing_sync_says(api, sync, capsys, answer):
    api.answers = dict.fromkeys(range(1, 100), answer)
    with pytest.raises(SyncError) as caught:
        sync(api_key=KEY)
    captured = capsys.readouterr()
    assert KEY[:4] not in captured.out + captured.err + repr(
        caught.getrepr(showlocals=False)
    ) + str(caught.value)


def test_a_query_in_base_url_is_not_quoted_from_an_answer(api, sync):
    api.answers = {1: (418, {}, f"bad request: /users?token={KEY}")}
    with pytest.raises(SyncError, match=r"token=\*\*\*"):
        sync(base_url=f"{URL}?token={KEY}")


@pytest.mark.parametrize(
    ("secret", "quoted"),
    [
        ("ab/cd/ef==", "ab/cd/ef=="),
        ("ab/cd/ef==", "ab\\/cd\\/ef=="),
        ("ab/cd/ef==", "ab%2Fcd%2Fef%3D%3D"),
        ("ab/cd/ef==", "ab%2fcd%2fef%3d%3d"),
        ("ab/cd/ef==", "ab\\u002Fcd\\u002Fef\\u003d\\u003d"),
        ("ab/cd/ef==", "ab&#47;cd&#x2F;ef&equals;&equals;"),
    ],
)
def test_a_secret_is_not_quoted_in_any_of_its_forms(api, sync, secret, quoted):
    api.answers = dict.fromkeys((1, 2), (418, {}, f"bad key {quoted}"))
    for settings in (
        {"api_key": secret},
        {"base_url": f"{URL}?token=ab%2Fcd%2Fef%3D%3D&tenant=ab"},
    ):
        with pytest.raises(SyncError, match=r"bad key \*\*\*$"):
            sync(**settings)


def test_a_secret_is_not_quoted_in_part_however_long_it_is(api, sync):
    api.answers = {1: (401, {}, f"bad key {'k1' * 5000}, sorry")}
    with pytest.raises(SyncError, match=r"bad key \*\*\*, sorry$"):
        sync(api_key="k1" * 5000)


def test_what_is_short_in_a_query_is_no_secret(api, sync):
    api.add(50)
    api.limit_max = 30
    assert len(sync(base_url=f"{URL}?type=limit&expand=data").table) == 50


def test_neither_settings_nor_pages_show_what_is_not_to_be_seen():
    assert KEY not in repr(validate_configuration({"base_url": URL, "api_key": KEY}))
    answer = envelope([{ID: "1", UPDATED_AT: "2024-01-15", "name": "Jo", "nickname": "Jo"}], 1)
    assert "Jo" not in repr(connector.parse_page(answer, 0))
