"""What a sync makes of its configuration, and where the API key goes."""

import base64
import json
from traceback import format_exception
from urllib.parse import quote

import pytest

import connector
import http_server
import memory_api
from connector import SyncError, validate_configuration
from memory_api import ID, UPDATED_AT, URL, MemoryApi, always, envelope, instant

KEY = "s3cr3t-k3y"


def problem(**configuration) -> str:
    with pytest.raises(ValueError, match="onfiguration") as caught:
        validate_configuration({"base_url": URL, **configuration})
    return str(caught.value)


@pytest.mark.parametrize(
    "base_url",
    [
        None,
        "",
        "api.example.com/users",
        "localhost:5001/users",
        "ftp://api.example.com",
        "https://api.example.com:port/",
        "https://[::1/users",
        "<YOUR_BASE_URL>",
        f"ftp://example.com/?token={KEY}",
    ],
)
def test_an_unusable_base_url_is_an_error_that_names_it_and_what_is_allowed(base_url):
    message = problem(base_url=base_url)
    assert "base_url" in message
    assert "http or https" in message
    assert KEY not in message


@pytest.mark.parametrize(
    "url", [f"https://jo:{KEY}@example.com/u", f"https://{KEY}@example.com/u"]
)
def test_credentials_in_base_url_are_refused_and_not_shown(url):
    message = problem(base_url=url)
    assert KEY not in message
    assert "api_key" in message


@pytest.mark.parametrize(
    ("path", "asked"),
    [("/@me", "/@me?"), ("?owner=a@b.c", "?owner=a@b.c&"), ("?type=limit&x=", "?type=limit&x=&")],
)
def test_a_path_and_a_query_of_base_url_are_sent_as_they_are(sync, path, asked):
    with http_server.serve(MemoryApi()) as server:
        urls = []
        server.api.answer = lambda request: urls.append(request.url) or (204, {}, "")
        sync(base_url=server.url + path)
    assert urls[0].startswith(f"/users{asked}order_by=")


@pytest.mark.parametrize(
    ("name", "inside", "outside"),
    [
        ("page_size", ["2", "10000", "007"], ["0", "1", "-5", "10001", "ten", "1.5", "9" * 5000]),
        ("parallel_requests", ["1", "8"], ["0", "9", "many"]),
        ("lookback_seconds", ["10", "31536000"], ["-20", "0", "9", "31536001", "1e2", "0x10"]),
    ],
)
def test_numbers_are_taken_within_their_range_only(name, inside, outside):
    for value in inside:
        assert getattr(validate_configuration({"base_url": URL, name: value}), name) == int(value)
    for value in outside:
        message = problem(**{name: value})
        assert name in message
        assert f"{int(inside[-1] if name != 'page_size' else 10_000):,}" in message
        assert len(message) < 400


def test_what_is_empty_or_null_has_its_default():
    unset = validate_configuration({"base_url": URL})
    for empty in ("", " \r\n", None):
        names = set(type(unset).model_fields) - {"base_url"}
        assert validate_configuration({"base_url": URL, **dict.fromkeys(names, empty)}) == unset
    assert (unset.page_size, unset.parallel_requests, unset.lookback_seconds) == (100, 8, 300)


@pytest.mark.parametrize("blank", [" ", "\n", "\r\n", "\t"], ids=ascii)
def test_blanks_and_newlines_around_a_setting_do_not_count(api, sync, blank):
    settings = {"base_url": URL, "api_key": KEY, "page_size": "50", "start_date": "2024-01-02"}
    settings |= {"lookback_seconds": "60", "parallel_requests": "1", "mark_deleted": ""}
    sync(**{name: f"{blank}{value}{blank}" for name, value in settings.items()})
    assert set(api.keys) == {f"Bearer {KEY}"}
    assert api.requests[0]["limit"] == "50"
    assert instant(api.requests[0]["updated_since"]) == instant("2024-01-02")


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        *[({"start_date": date}, "start_date") for date in ("2999-01-01", "soon", "1700000000")],
        ({"start_date": "2024-01-01", "mark_deleted": "true"}, "start_date.*mark_deleted"),
        *[({"mark_deleted": word}, "mark_deleted.*true or false") for word in ("ja", "2")],
    ],
    ids=str,
)
def test_a_start_date_or_toggle_that_cannot_be_used_is_an_error_that_names_it(settings, names):
    with pytest.raises(ValueError, match=names):
        validate_configuration({"base_url": URL, **settings})


def test_everything_wrong_is_said_at_once_and_nothing_is_asked(api, sync):
    with pytest.raises(ValueError, match=r"base_url.*page_size.*lookback_seconds"):
        sync(base_url="nowhere", page_size="many", lookback_seconds="-1")
    assert api.requests == []


def test_a_setting_it_does_not_know_is_an_error_that_names_those_there_are():
    message = problem(page_sze="5")
    assert "page_sze" in message
    assert "page_size, parallel_requests" in message


def test_an_encrypted_key_says_to_use_fivetran_debug():
    assert "fivetran debug" in problem(api_key="fivetran_encrypted:AAAA")


@pytest.mark.parametrize("value", [f"Bearer {KEY}", f"{KEY}\n{KEY}", f"{KEY}é"])
def test_an_api_key_that_is_none_is_an_error_that_does_not_show_it(value):
    message = problem(api_key=value)
    assert "api_key" in message
    assert KEY not in message


# Where the key goes


def test_the_key_is_sent_with_every_request_and_only_if_there_is_one(api, sync):
    api.add(250)
    sync()
    assert set(api.keys) == {None}
    api.keys.clear()
    sync(api_key=KEY)
    assert set(api.keys) == {f"Bearer {KEY}"}


def test_accept_is_json_and_the_user_agent_is_not_that_of_requests(api, sync):
    """Otherwise some APIs answer errors in HTML, and some firewalls refuse any request."""
    asked, answer = [], api.answer
    api.answer = lambda request: asked.append(request.headers) or answer(request)
    sync()
    assert asked[0]["Accept"] == "application/json"
    assert asked[0]["User-Agent"]
    assert "python" not in asked[0]["User-Agent"]


def test_the_key_of_a_netrc_file_does_not_replace_it(api, sync, tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text("machine api.example.com login jo password other")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    sync(api_key=KEY)
    assert set(api.keys) == {f"Bearer {KEY}"}


@pytest.fixture
def send_key(monkeypatch):
    """Have the key sent in some header, made of it."""

    def use(header, value):
        def http_request(table, url, key, page):
            request = memory_api.http_request(table, url, "", page)
            request.headers[header] = value(key)
            return request

        monkeypatch.setattr(connector, "http_request", http_request)

    return use


@pytest.mark.parametrize("header", ["Authorization", "X-Api-Key"])
def test_a_redirect_to_another_host_is_an_error_that_names_it_and_gets_no_key(
    sync, send_key, header
):
    send_key(header, str)
    with http_server.serve(MemoryApi()) as other, http_server.serve(MemoryApi()) as server:
        server.api.answers = always((302, {"Location": f"{other.url}?offset=0&limit=100"}, ""))
        with pytest.raises(SyncError, match=rf"\b127\.0\.0\.1:{other.server_port}\b"):
            sync(base_url=server.url, api_key=KEY)
        assert (server.asked, other.asked) == (1, 0)


def test_a_redirect_on_the_same_host_is_followed_with_the_key(sync):
    with http_server.serve(MemoryApi()) as server:
        location = f"{server.url}/v2?offset=0&limit=100"
        server.api.answers = {1: (302, {"Location": location}, "")}
        sync(base_url=server.url, api_key=KEY)
        assert server.api.keys[:2] == [f"Bearer {KEY}"] * 2


def test_our_own_words_are_not_hidden_in_an_error_as_if_they_were_secrets(api, sync):
    api.answers = always(envelope([{ID: "1"}], 1))
    with pytest.raises(SyncError, match=rf"row 0\b.*{UPDATED_AT}.*\b{ID}\b"):
        sync(base_url=f"{URL}?fields={UPDATED_AT}")


@pytest.mark.parametrize("encode", [str, quote, json.dumps], ids=["", "in a URL", "in JSON"])
@pytest.mark.parametrize("user", ["{}:", "jo:{}", "{}"])
def test_a_key_that_is_sent_as_basic_base64_is_not_quoted(
    api, sync, send_key, lines, encode, user
):
    key = "~~~???>>>s3cr3t-k3y"  # makes + and /
    sent = base64.b64encode(user.format(key).encode()).decode()
    send_key("Authorization", lambda key: f"Basic {sent}")
    for status in (418, 503):
        api.answers = always((status, {}, f"bad key {encode(sent)}, sorry"))
        with pytest.raises(SyncError, match=r"bad key.*sorry") as caught:
            sync(api_key=key)
        for said in (str(caught.value), *lines("")):
            assert not any(sent[i : i + 8] in said for i in range(len(sent) - 7))


@pytest.mark.parametrize("value", ["{}\n", "{}\r\nX: 1", "Bearer {}é\n"], ids=ascii)
def test_a_header_that_the_key_cannot_be_part_of_is_an_error_that_does_not_show_it(
    api, sync, send_key, value
):
    send_key("X-Api-Key", value.format)
    with pytest.raises(SyncError) as caught:
        sync(api_key=KEY)
    assert KEY not in str(caught.value) + "".join(format_exception(caught.value))


def test_the_key_is_nowhere_in_what_a_working_sync_says_or_stores(api, sync, capsys):
    api.add(250)
    api.answers = {1: (503, {}, KEY), 3: lambda page: page | {"total": KEY}}
    destination = sync(api_key=KEY)
    captured = capsys.readouterr()
    assert "250" in captured.out
    assert KEY not in captured.out + captured.err + str(destination.all("checkpoint"))
    assert not any(KEY in str(request) for request in api.requests)


@pytest.mark.parametrize(
    "answer",
    [
        (401, {}, f"bad key {KEY}"),
        (400, {}, f'{{"error": "limit and key {KEY}"}}'),
        (418, {}, "x" * (200 - len(KEY) // 2) + KEY),
        (500, {}, f"bad key {KEY}"),
        (503, {"Retry-After": "9999"}, KEY),
        (200, {"Content-Type": f"text/{KEY}"}, KEY),
        (200, {}, f'{{"error": {{"key": "{KEY}"}}}}'),
        *[(200, {}, f'{{"message": "{"x" * length}{KEY}"}}') for length in (178, 190)],
    ],
    ids=lambda answer: str(answer)[:40],
)
@pytest.mark.parametrize("where", ["api_key", "base_url"])
def test_a_secret_is_nowhere_in_what_a_failing_sync_says(api, sync, capsys, answer, where):
    api.answers = dict.fromkeys(range(1, 100), answer)
    settings = {"api_key": KEY} if where == "api_key" else {"base_url": f"{URL}?token={KEY}"}
    with pytest.raises(SyncError) as caught:
        sync(**settings)
    captured = capsys.readouterr()
    said = (
        captured.out + captured.err + "".join(format_exception(caught.value)) + str(caught.value)
    )
    assert KEY[:4] not in said.replace(f"token={KEY}", "")
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    "quoted",
    [
        "ab/cd3/ef4==",
        "ab\\/cd3\\/ef4==",
        "ab%2Fcd3%2Fef4%3D%3D",
        "ab%2fcd3%2fef4%3d%3d",
        "ab\\u002Fcd3\\u002Fef4\\u003d\\u003d",
        "ab&#47;cd3&#x2F;ef4&equals;&equals;",
        "ab%252Fcd3%252Fef4%253D",
    ],
)
def test_a_secret_is_not_quoted_in_any_spelling(api, sync, quoted):
    api.answers = dict.fromkeys((1, 2), (418, {}, f"bad key {quoted}"))
    for settings in (
        {"api_key": "ab/cd3/ef4=="},
        {"base_url": f"{URL}?token=ab%2Fcd3%2Fef4%3D%3D&tenant=ab"},
    ):
        with pytest.raises(SyncError, match="bad key") as caught:
            sync(**settings)
        assert "cd3" not in str(caught.value)


def test_a_secret_is_not_quoted_in_part_however_long_it_is(api, sync):
    api.answers = {1: (401, {}, f"bad key {'k1' * 5000}, sorry")}
    with pytest.raises(SyncError, match="sorry") as caught:
        sync(api_key="k1" * 5000)
    assert "k1" not in str(caught.value)


def test_settings_do_not_show_the_key():
    assert KEY not in repr(validate_configuration({"base_url": URL, "api_key": KEY}))
