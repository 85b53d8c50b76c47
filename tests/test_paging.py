"""How a list is read while it moves: ties, filters, depths, totals and ends, changes that show late."""

import itertools
import random
import re
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest
import requests

import connector
from connector import SyncError
from memory_api import (
    EPOCH,
    ID,
    ROWS,
    always,
    cut_to_day,
    cut_to_minute,
    instant,
    names,
    order_by_page_end,
    timestamp,
    whole_minutes,
)
from memory_api import TOTALS as PLAIN_TOTALS


def offsets(api) -> list:
    return [int(request["offset"]) for request in api.requests]


def test_no_user_is_lost_when_users_change_between_two_pages(api, sync):
    api.add(500)
    api.before = [
        None,
        lambda: api.touch("1", "2", "3"),
        None,
        lambda: api.touch("150"),
        lambda: api.touch("151"),
    ]
    table = sync().table
    assert names(table) == names(api.users)


def test_no_user_is_lost_when_users_are_deleted_between_two_pages(api, sync):
    api.add(300)
    api.before = [None, lambda: api.delete("1", "2"), lambda: api.delete("120")]
    table = sync().table
    assert set(api.users) <= set(table)


@pytest.mark.parametrize(("count", "pages", "deleted"), [(500, 4, 390), (1500, 14, 1200)])
def test_users_deleted_by_the_hundreds_in_front_of_ties_hide_none_of_them(
    api, sync, count, pages, deleted
):
    api.add(count, updated_at=EPOCH)
    api.tie_order = lambda user: int(user[ID])
    ids = [str(number) for number in range(1, deleted + 1)]
    api.before = [None] * pages + [lambda: api.delete(*ids)]
    assert set(sync().table) >= set(api.users)


@pytest.fixture
def tied_api(api):
    """An API whose users but one, "slips", share the second in which a sync begins, and are then sorted by id."""
    api.seconds_per_request = 0
    api.tie_order = lambda user: user[ID]
    api.add(1, updated_at=EPOCH, **{ID: "slips"})
    for id in ("t1", "t2", "t3"):
        api.add(1, updated_at=api.now, **{ID: id})
    return api


def test_a_user_that_slips_in_front_of_a_seam_is_read_by_the_next_sync(tied_api, sync):
    """A user updated in the second in which the sync began may tie with users being read, and sort before them."""

    def slip():
        tied_api.touch("slips")  # leaves from the front, and joins in front of t2: the seam holds
        tied_api.now += timedelta(seconds=1)
        tied_api.touch("t3")

    tied_api.before = [None, slip]
    sync(page_size="3")
    assert sync(page_size="3").table["slips"]["name"] == "User 1'"


@pytest.mark.parametrize(("lookback", "age"), [("", 298), ("", 5), ("", -3600), ("10", 8)])
def test_the_cursor_stays_the_lookback_behind_the_start_of_the_sync(api, sync, lookback, age):
    api.add(3)
    api.add(1, updated_at=api.now - timedelta(seconds=age))
    state = sync(lookback_seconds=lookback).state
    assert state == {"last_updated_at": api.updated_at("3")}


@pytest.mark.parametrize(("lookback", "age"), [("", 300), ("10", 10), ("3600", 3600)])
def test_a_row_as_old_as_the_lookback_is_the_next_cursor(api, sync, lookback, age):
    api.add(3)
    (old,) = api.add(1, updated_at=api.now - timedelta(seconds=age))
    api.add(1, updated_at=api.now)
    assert sync(lookback_seconds=lookback).state == {"last_updated_at": api.updated_at(old)}


@pytest.mark.parametrize("state", [{"last_updated_at": "2024-01-15T10:30:00.000Z"}, {}])
def test_while_no_row_is_old_enough_the_state_stays_as_it_was(api, sync, state):
    api.add(1, updated_at=api.now)
    assert sync(state).state == state
    assert len(sync(state).table) == 1


def test_a_user_that_changes_while_the_first_page_is_answered_is_read_by_the_next_sync(
    tied_api, sync
):
    """What a page shows is older than its Date header: the users were looked up before it was written."""
    page = tied_api.page

    def page_then_slip(parameters):
        answer = page(parameters)
        if len(tied_api.requests) == 1:
            tied_api.touch("slips")  # in the second of t2, in front of it
            tied_api.now += timedelta(seconds=1)  # only now is the Date header written
            tied_api.touch("t3")
        return answer

    tied_api.page = page_then_slip
    sync(page_size="3")
    assert sync(page_size="3").table["slips"]["name"] == "User 1'"


@pytest.mark.parametrize(
    "date", ["yesterday", "", "0", "-0000", "Wed, 03 Apr 99999999999 12:34:56 GMT"]
)
def test_without_a_date_header_the_start_is_that_of_the_local_clock(api, sync, date):
    answer = api.answer

    def answer_without_date(request):
        status, headers, body = answer(request)
        return status, headers | {"Date": date}, body

    api.answer = answer_without_date
    for time in (EPOCH, datetime(2999, 1, 1, tzinfo=UTC)):
        api.add(updated_at=time)
    assert sync().state == {"last_updated_at": api.updated_at("1")}


def test_a_list_that_moves_faster_than_it_is_read_ends_the_sync(api, sync):
    api.add(5, updated_at=api.now)
    api.add(295, updated_at=api.now + timedelta(seconds=1))
    moves = iter(range(6, 300))
    api.before = [None] + [lambda: api.touch(str(next(moves))) for _ in range(200)]
    sync()
    api.before = []
    assert set(sync().table) == set(api.users)


@pytest.mark.parametrize("mark_deleted", ["false", "true"])
def test_a_list_that_never_stops_changing_ends_the_sync_with_a_warning(
    api, sync, destination, mark_deleted
):
    api.add(10)
    ids = itertools.cycle(api.users)
    page = api.page

    def change_and_page(parameters):
        api.touch(*itertools.islice(ids, 8))
        return page(parameters)

    api.page = change_and_page
    sync(page_size="5", mark_deleted=mark_deleted)
    assert 100 < len(api.requests) < 250
    assert len(destination.warnings) == 1
    api.page = page
    api.now += timedelta(seconds=15)
    table = sync(page_size="5").table
    assert names(table) == names(api.users)


def test_a_list_that_grows_faster_than_it_is_read_ends_the_sync(api, sync):
    api.add(10)
    page = api.page

    def grow_and_page(parameters):
        assert len(api.requests) < 250
        api.add(8, updated_at=api.now)
        return page(parameters)

    api.page = grow_and_page
    sync(page_size="5")
    assert len(api.requests) > 100


@pytest.mark.parametrize("count", [100, 250])
def test_rows_of_the_first_time_there_is_are_rows_like_others(api, sync, destination, count):
    """Some APIs write it for rows that were never updated."""
    api.stamp = lambda time: time.strftime("%Y-%m-%dT%H:%M:%SZ").rjust(20, "0")
    first_time = datetime(1, 1, 1, tzinfo=UTC)
    api.add(count, updated_at=first_time)
    api.add(200)
    api.answers = {3: (401, {}, "gone")}
    with pytest.raises(SyncError, match="401"):
        sync()
    api.answers = {}
    assert set(sync().table) == set(api.users)
    assert destination.state == {"last_updated_at": api.updated_at(str(count + 200))}


# Windows


@pytest.fixture
def small_windows(monkeypatch):
    monkeypatch.setattr(connector, "WINDOW_ROWS", 1000)


def test_offsets_never_go_deeper_than_a_window(api, sync, small_windows):
    api.add(3500)
    assert set(sync().table) == set(api.users)
    assert max(offsets(api)) + 100 <= 1000


def test_a_window_that_reached_its_depth_is_followed_by_another(api, sync, small_windows):
    api.add(1500)
    api.total_cap = 1000
    assert set(sync().table) == set(api.users)


@pytest.mark.parametrize("count", [99, 100, 101, 150, 999, 1000, 1001, 1500, 2500])
def test_more_users_with_one_time_than_fit_in_a_page_or_a_window_are_read(
    api, sync, small_windows, count
):
    api.add(50)
    api.add(count, updated_at=EPOCH + timedelta(hours=1))
    api.add(50, updated_at=EPOCH + timedelta(hours=2))
    assert set(sync().table) == set(api.users)


def test_an_api_that_refuses_offsets_above_2000_is_read_in_windows_of_that(api, sync):
    api.add(5000)
    api.offset_max = 2000
    assert set(sync().table) == set(api.users)
    assert sum(offset > 2000 for offset in offsets(api)) <= 1


def test_more_ties_than_an_api_lets_be_paged_through_are_read_in_larger_pages(api, sync):
    api.add(2500, updated_at=EPOCH)
    api.offset_max = 2000
    assert set(sync().table) == set(api.users)


def test_more_ties_than_an_api_lets_be_paged_through_are_an_error_that_says_so(api, sync):
    api.add(2500, updated_at=EPOCH)
    api.offset_max, api.page_cap = 2000, 100
    with pytest.raises(SyncError, match="page_size") as caught:
        sync()
    assert "2024-01-01T00:00:00Z" in str(caught.value)


@pytest.mark.slow
def test_more_ties_than_an_api_follows_offsets_through_without_a_word_are_an_error(api, sync):
    api.add(15_000, updated_at=EPOCH)
    api.depth = 10_000
    with pytest.raises(SyncError, match=r"10000.*15000"):
        sync(page_size="1000")


def test_a_total_that_never_says_more_than_1000_is_no_end(api, sync):
    api.add(3210)
    api.total_cap = 1000
    assert set(sync().table) == set(api.users)


def test_ties_in_an_order_of_their_own_are_read(api, sync):
    api.add(500, updated_at=EPOCH)
    api.tie_order = lambda user: user[ID][::-1]
    assert set(sync().table) == set(api.users)


@pytest.mark.parametrize("ties", [2, 10, 40])
@pytest.mark.parametrize("parallel", ["1", "4"])
@pytest.mark.parametrize("changes", [0, 3])
def test_ties_may_change_their_order_with_the_end_of_the_page(api, sync, ties, parallel, changes):
    for second in range(800 // ties):
        api.add(ties, updated_at=EPOCH + timedelta(seconds=second))
    victims = iter(range(1, 800, 7))
    api.tie_order = order_by_page_end(api)
    api.before = [lambda: api.touch(*(str(next(victims)) for _ in range(changes)))] * 10
    table = sync(parallel_requests=parallel).table
    assert names(table).keys() == names(api.users).keys()
    api.before = []
    api.now += timedelta(seconds=60)
    assert names(sync().table) == names(api.users)


@pytest.mark.parametrize("salt", range(8))
def test_two_users_of_one_time_may_change_places_between_two_pages(api, sync, salt):
    api.add(98)
    for id in ("a", "b"):
        api.add(updated_at=EPOCH + timedelta(hours=1), **{ID: f"{id} {salt}"})
    api.add(98, updated_at=EPOCH + timedelta(hours=2))
    api.add(50, updated_at=EPOCH + timedelta(hours=3))
    api.tie_order = order_by_page_end(api)
    assert set(sync(page_size="99").table) == set(api.users)


# Changes that show late, and lists that change all the time


@pytest.mark.slow
@pytest.mark.parametrize(("seconds", "same_time"), [(110, False), (26, True), (280, True)])
def test_rows_of_a_bulk_request_that_takes_minutes_are_not_lost(api, sync, seconds, same_time):
    """One transaction stamps its rows, each with its own time or all with one, and shows them when it ends."""
    api.add(1000)
    sync()
    ids = [str(number) for number in range(1, 801)]
    for second in range(seconds):
        if same_time:
            share = ids if second == 0 else []
        else:
            share = ids[second * 800 // seconds : (second + 1) * 800 // seconds]
        api.touch(*share, late=seconds - second)
        api.touch(str(801 + second % 200))  # others change meanwhile
        if second % 10 == 0:
            sync()
        api.now += timedelta(seconds=1)
        api.commit()
    api.now += timedelta(seconds=1)
    api.commit()
    assert names(sync().table) == names(api.users)


@pytest.mark.parametrize("parallel", ["1", "8"])
def test_a_list_of_which_five_rows_change_a_page_takes_at_most_1_3_requests_a_page(
    api, sync, parallel
):
    api.add(5000)
    victims = iter(range(1, 5000))
    api.before = [lambda: api.touch(*(str(next(victims)) for _ in range(5)))] * 50
    pages = len(sync(parallel_requests=parallel).all("upsert")) / 100
    assert len(api.requests) <= 1.3 * pages
    api.before = []
    assert names(sync().table) == names(api.users)


def test_a_filter_cut_to_the_day_and_a_change_every_ten_requests_take_few_requests(api, sync):
    api.add(3000)
    api.cut = cut_to_day
    api.now = EPOCH + timedelta(hours=23)
    victims = iter(range(1, 3000, 3))
    api.before = ([None] * 9 + [lambda: api.touch(str(next(victims)))]) * 30
    assert set(sync().table) == set(api.users)
    assert len(api.requests) <= 120


def test_a_total_that_ignores_the_filter_where_deep_offsets_time_out_fails_no_incremental_sync(
    api, sync
):
    api.add(5000)
    state = {"last_updated_at": api.updated_at("4900")}
    api.counts_all = True
    page = api.page
    api.page = lambda p: (504, {}, "") if int(p["offset"]) > 200 else page(p)
    assert len(sync(state).table) == 101
    assert sync().state == {"last_updated_at": api.updated_at("5000")}


@pytest.mark.parametrize("cap", [10, 50])
@pytest.mark.parametrize("ties", [1, 30, 400])
def test_an_api_that_caps_its_pages_and_says_no_total_is_read_whole(api, sync, cap, ties):
    for second in range(1200 // ties):
        api.add(ties, updated_at=EPOCH + timedelta(seconds=second))
    api.total, api.page_cap = PLAIN_TOTALS["left out"], cap
    assert set(sync(parallel_requests="4").table) == set(api.users)


def test_an_api_that_gives_the_same_page_for_ever_is_an_error(api, sync):
    api.add(300)
    api.answers = always(lambda page: api.page({"offset": 0, "limit": 100}))
    with pytest.raises(SyncError, match="offset"):
        sync()
    assert len(api.requests) < 30


@pytest.mark.parametrize("excess", [1, 3, 1000])
@pytest.mark.parametrize("count", [1, 2, 99, 100, 101, 150])
def test_a_total_that_promises_more_than_the_list_holds_is_no_error(api, sync, count, excess):
    api.add(count)
    api.total_excess = excess
    assert set(sync().table) == set(api.users)
    assert len(api.requests) <= count / 99 + 4
    assert set(sync().table) == set(api.users)


# Lists that take more than a new window


@pytest.mark.slow
def test_a_mass_tie_that_changes_lightly_is_read_in_few_requests(api, sync):
    """A migration stamps 12,000 users with one time, and one of them changes every 25 requests."""
    api.add(12_000, updated_at=EPOCH)
    api.seconds_per_request = 0
    victims = iter(range(1, 12_000, 7))

    def change_one_in_25():
        if len(api.requests) % 25 == 0:
            api.touch(str(next(victims)))

    api.before = [change_one_in_25] * 1000
    table = sync(page_size="200").table
    assert len(api.requests) < 90
    assert names(table) == names(api.users)


def test_pages_that_become_smaller_overlap_by_half_of_one_at_most(api, sync):
    """Changes in a mass tie make pages of 100 overlap by 32; then pages time out until 25 rows are asked for."""
    api.add(2000, updated_at=EPOCH)
    api.seconds_per_request = 0
    victims = iter(range(1, 2000))
    api.before = [lambda: api.touch(*(str(next(victims)) for _ in range(20)))] * 12
    page = api.page

    def slow_page(parameters):
        if len(api.requests) > 20 and int(parameters["limit"]) > 25:
            raise requests.ReadTimeout
        return page(parameters)

    api.page = slow_page
    assert set(sync(page_size="100").table) == set(api.users)
    assert len(api.requests) < 180


def test_pages_that_become_smaller_are_full_all_the_same_where_the_total_is_capped(api, sync):
    api.add(300)
    api.total_cap = 25
    page = api.page

    def slow_page(parameters):
        if int(parameters["limit"]) > 25:
            raise requests.ReadTimeout
        return page(parameters)

    api.page = slow_page
    assert set(sync(page_size="50").table) == set(api.users)


@pytest.mark.parametrize("parallel", ["1", "8"])
def test_pages_of_changing_length_take_hardly_more_requests_however_many_are_in_flight(
    api, sync, parallel
):
    api.add(3000)
    lengths = random.Random(1)
    api.page_lengths = lambda: lengths.randint(60, 100)
    assert set(sync(parallel_requests=parallel).table) == set(api.users)
    assert len(api.requests) <= 1.6 * 40


@pytest.mark.parametrize(
    "hidden", [range(120, 260), range(2, 202), range(1, 201), range(201, 301)]
)
def test_users_hidden_in_a_run_longer_than_a_page_are_read_around_or_end_the_sync_with_a_warning(
    api, sync, destination, hidden
):
    api.add(400)
    api.hidden = {str(number) for number in hidden}
    has_failed = True
    with suppress(SyncError):
        sync()
        has_failed = False
    is_whole = set(destination.table) == set(api.users) - api.hidden
    assert is_whole or has_failed or destination.warnings
    assert len(api.requests) < 60
    assert set(sync({}, page_size="400").table) >= set(api.users) - api.hidden


def test_an_absurd_total_costs_few_requests(api, sync):
    api.add(1)
    api.total_excess, api.offset_max = 100_000, 100
    assert set(sync(parallel_requests="8").table) == set(api.users)
    assert len(api.requests) < 25


@pytest.mark.parametrize(
    "hidden", [range(120, 150), range(1, 60), range(380, 401), range(300, 401), range(1, 401, 2)]
)
def test_users_hidden_in_shorter_runs_or_at_the_end_hide_nobody_else(api, sync, hidden):
    api.add(400)
    api.hidden = {str(number) for number in hidden}
    assert set(sync().table) == set(api.users) - api.hidden


@pytest.mark.parametrize("first_hidden", [1, 10, 75, 250])
def test_users_hidden_in_a_run_of_nearly_a_page_among_ties_hide_nobody_else(
    api, sync, first_hidden
):
    api.add(600, updated_at=EPOCH)
    api.hidden = {str(number) for number in range(first_hidden, first_hidden + 95)}
    assert set(sync().table) == set(api.users) - api.hidden


@pytest.mark.parametrize(("count", "hidden"), [(3, "1"), (3, "2"), (1000, "999")])
def test_a_user_hidden_in_the_last_page_is_not_taken_for_an_offset_that_is_ignored(
    api, sync, count, hidden
):
    api.add(count, updated_at=EPOCH if count == 3 else None)
    api.hidden = {hidden}
    for _ in range(2):
        assert set(sync().table) == set(api.users) - api.hidden


def test_a_row_as_late_as_the_lookback_allows_may_join_the_ties_of_the_last_row_read(api, sync):
    """It appears in front of rows that have been read, when a window begins at their time."""
    time = api.now - timedelta(minutes=20)
    api.tie_order = lambda user: user[ID]
    old = api.add(10, updated_at=time - timedelta(minutes=5))
    for number in range(12):
        api.add(updated_at=time, **{ID: f"tie {number:02}"})

    def join():
        api.add(updated_at=time, **{ID: "tie 00, late"})
        api.touch(*old[:3])

    api.before = [None, None, join]
    assert set(sync(page_size="8", lookback_seconds="3600").table) == set(api.users)


def test_offsets_that_are_not_followed_deep_without_a_word_are_read_in_windows(api, sync):
    api.add(5000)
    api.depth = 1000
    assert set(sync().table) == set(api.users)


def test_offsets_that_are_cut_to_a_largest_one_are_read_in_windows(api, sync):
    api.add(3000)
    page = api.page
    api.page = lambda parameters: page(
        parameters | {"offset": min(int(parameters["offset"]), 1000)}
    )
    assert set(sync().table) == set(api.users)


# Late commits, skewed clocks, coarse timestamps


@pytest.mark.parametrize("late", [1, 9, 110, 280])
def test_a_user_that_is_committed_late_is_read_by_the_next_sync(api, sync, late):
    api.add(3)
    api.seconds_per_request = 0
    (id,) = api.add(1, updated_at=api.now, late=late)
    api.now += timedelta(seconds=late - 1)
    api.add(1, updated_at=api.now)
    assert id not in sync().table
    api.now += timedelta(seconds=60)
    assert id in sync().table


@pytest.mark.parametrize("skew", [-3, 3])
def test_a_date_header_three_seconds_off_loses_nothing(api, sync, skew):
    api.skew = timedelta(seconds=skew)
    api.add(3)
    api.seconds_per_request = 0
    api.add(1, updated_at=api.now)
    sync()
    (id,) = api.add(1, updated_at=api.now, late=6)
    api.now += timedelta(seconds=5)
    api.add(1, updated_at=api.now)
    sync()
    api.now += timedelta(seconds=60)
    assert id in sync().table


def test_timestamps_in_whole_minutes_lose_nothing_of_the_minute_that_is_being_stamped(api, sync):
    api.stamp = whole_minutes
    api.tie_order = lambda user: user[ID]
    api.add(300, updated_at=api.now)
    api.now += timedelta(seconds=30)
    api.before = [None, *[lambda n=n: api.touch(str(n), str(n + 100)) for n in range(1, 9)]]
    sync()
    api.before = []
    api.touch("150", "299")
    table = sync().table
    assert names(table) == names(api.users)


# Times, filters, totals and clocks of the API's own


STYLES = {
    "space": lambda time: time.strftime("%Y-%m-%d %H:%M:%S"),
    "zone": lambda time: (time + timedelta(hours=2)).strftime("%Y-%m-%dT%H:%M:%S.123456+02:00"),
    "nanoseconds": lambda time: time.strftime("%Y-%m-%dT%H:%M:%S.123456789Z"),
    "minutes": lambda time: time.strftime("%Y-%m-%dT%H:%MZ"),
    "days": lambda time: time.strftime("%Y-%m-%d"),
}


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("lookback", ["10", "90", "9000"])
def test_an_api_that_compares_times_as_texts_loses_nothing(api, sync, style, lookback):
    api.compares_texts, api.stamp, api.seconds_per_request = True, STYLES[style], 0
    api.tie_order = lambda user: user[ID]
    for number in range(300):
        api.add(1, updated_at=api.now - timedelta(minutes=300 - number))
    api.before = [None, lambda: api.touch("1", "2"), None, lambda: api.touch("3", "150")]
    state = sync(lookback_seconds=lookback).state
    asked = len(api.requests)
    api.now += timedelta(hours=2)
    api.touch(*[str(number) for number in range(20, 50)])
    assert names(sync(lookback_seconds=lookback).table) == names(api.users)
    assert api.requests[asked]["updated_since"] == state["last_updated_at"]


@pytest.mark.parametrize("start", ["2024-01-15 10:30:00", "2024-01-15", "2024-01-15T12:30+02:00"])
def test_a_start_date_is_sent_in_the_first_sync_only(api, sync, start):
    api.add(300, updated_at=EPOCH + timedelta(days=20))
    sync(start_date=start)
    assert instant(api.requests[0]["updated_since"]) == instant(start)
    asked = len(api.requests)
    sync(start_date=start)
    assert {p["updated_since"] for p in api.requests[asked:]} == {api.updated_at("1")}


FORMS = ["250", 250.0, "250.0", 0, "", 2.5, "1,250", {"value": 250}, [250], 250, 10**30]
TOTALS = PLAIN_TOTALS | {
    **{repr(form): lambda total, rows, form=form: form for form in FORMS},
    "capped": lambda total, rows: min(total, 120),
}


@pytest.mark.parametrize("total", TOTALS)
def test_every_row_is_read_and_the_form_passes_whatever_the_total_says(api, sync, verdict, total):
    api.add(190)
    api.add(60, updated_at=EPOCH + timedelta(days=1))
    api.total, api.page_cap = TOTALS[total], 30
    assert set(sync(parallel_requests="8").table) == set(api.users)
    api.touch("7", "190", "250")
    assert names(sync(parallel_requests="8").table) == names(api.users)
    assert verdict() is None


@pytest.mark.parametrize("total", ["left out", "null", "negative", "capped", "''"])
def test_a_total_that_promises_no_more_rows_is_no_warning(api, sync, destination, lines, total):
    api.add(250)
    api.total = TOTALS[total]
    sync()
    assert lines("WARNING") == destination.warnings == []


@pytest.mark.parametrize("excess", [1, 40, 5000])
def test_a_total_that_promises_rows_that_do_not_come_is_a_warning(api, sync, destination, excess):
    api.add(250)
    api.total = lambda total, rows: 250 + excess
    assert set(sync().table) == set(api.users)
    (warning,) = destination.warnings
    assert str(250 + excess) in warning.replace(",", "")


def test_a_total_that_ignores_the_filter_may_come_with_timeouts_behind_the_last_row(api, sync):
    api.add(500)
    api.counts_all = True
    state = {"last_updated_at": api.updated_at("481")}
    api.refusal = lambda p: (504, {}, "") if p["offset"] != "0" and not api.page(p)[ROWS] else None
    assert set(sync(state).table) == set(map(str, range(481, 501)))


@pytest.mark.parametrize("changes", [0, 5])
def test_a_sync_ends_though_the_total_ignores_the_filter_and_rows_change_all_the_time(
    api, sync, changes
):
    api.add(5000)
    api.counts_all = True
    victims = iter(range(1, 5000))
    page = api.page

    def change_and_page(parameters):
        assert len(api.requests) < 500
        api.touch(*(str(next(victims)) for _ in range(changes)))
        return page(parameters)

    api.page = change_and_page
    state = {"last_updated_at": timestamp(EPOCH + timedelta(seconds=4990))}
    table = sync(state).table
    assert changes or set(table) == {str(number) for number in range(4990, 5001)}


def test_rows_stamped_hours_ahead_of_the_clock_are_all_read(api, sync):
    """Local times marked as UTC, as the playground writes them."""
    for number in range(25):
        api.add(100, updated_at=api.now + timedelta(hours=9, seconds=number))
    assert set(sync(page_size="20").table) == set(api.users)


def test_rows_are_all_read_though_the_date_header_is_a_year_behind(api, sync):
    api.add(2500)
    api.skew = timedelta(days=-365)
    assert set(sync(page_size="20").table) == set(api.users)


@pytest.mark.slow
@pytest.mark.parametrize(("count", "changes", "most"), [(14_000, 7, 300), (3_000, 30, 100)])
def test_a_filter_that_cuts_times_to_the_day_is_read_in_few_requests(
    api, sync, count, changes, most
):
    api.add(count)
    api.cut = cut_to_day
    api.now = EPOCH + timedelta(hours=23)
    for number in range(changes):
        api.before += [None] * 9 + [lambda number=number: api.touch(str(number * 5 + 1))]
    assert names(sync().table) == names(api.users)
    assert len(api.requests) <= most


@pytest.mark.slow
def test_a_filter_that_cuts_times_to_the_day_may_come_with_refused_depths(api, sync):
    for day in range(4):
        api.add(6000, updated_at=EPOCH + timedelta(days=day, hours=7))
    api.cut = cut_to_day
    api.offset_max = 9_900
    assert set(sync().table) == set(api.users)


@pytest.mark.slow
def test_a_filter_that_cuts_times_to_the_minute_may_come_with_refused_depths(api, sync):
    for second in range(60):
        api.add(400, updated_at=EPOCH + timedelta(seconds=second))
    api.cut = cut_to_minute
    api.offset_max = 9_900
    with pytest.raises(SyncError, match="offset"):
        sync()
    assert len(api.requests) < 500


# Ties in no stable order


def sizes(api) -> list:
    return [int(request["limit"]) for request in api.requests]


@pytest.fixture
def unstable(api):
    """The API, which sorts by time alone, with a group of users of one time."""

    def add(ties: int, second: int = 0):
        api.tie_order = order_by_page_end(api)
        api.add(50, updated_at=None)
        api.add(ties, updated_at=EPOCH + timedelta(hours=1, seconds=second))
        api.add(50, updated_at=EPOCH + timedelta(hours=2, seconds=second))

    return add


@pytest.mark.parametrize(
    ("ties", "page_size", "parallel"),
    [(120, 100, "8"), (1000, 100, "1"), (1000, 100, "8"), (300, 2, "8"), (40, 10, "1")],
)
def test_more_ties_than_a_page_are_read_whole_where_the_api_gives_larger_pages(
    api, unstable, sync, destination, lines, ties, page_size, parallel
):
    """As of PostgreSQL, after a bulk update, if the API sorts by time alone."""
    unstable(ties)
    sync(page_size=str(page_size), parallel_requests=parallel)
    assert set(destination.table) == set(api.users)
    said = [line.replace(",", "") for line in lines("")]
    assert destination.warnings == []
    grown = [line for line in said[1:-1] if re.search(rf"\b{max(sizes(api))}\b", line)]
    assert (max(sizes(api)) > page_size, len(grown)) == (True, 1)
    assert len(said) <= 12
    assert len(api.requests) < 250


@pytest.mark.parametrize("page_size", [2, 10])
def test_small_pages_grow_where_ties_are_in_no_order(api, sync, page_size):
    for second in range(20):
        api.add(100, updated_at=EPOCH + timedelta(seconds=second))
    api.tie_order = order_by_page_end(api)
    assert set(sync(page_size=str(page_size)).table) == set(api.users)
    assert len(api.requests) < 250


@pytest.mark.parametrize(("ties", "parallel"), [(150, "1"), (150, "8"), (1000, "1")])
@pytest.mark.parametrize("way", [{"page_cap": 100}, {"limit_max": 100}], ids=str)
def test_more_ties_than_a_page_are_an_error_where_the_api_gives_no_larger_ones(
    api, unstable, sync, way, ties, parallel
):
    unstable(ties)
    for name, value in way.items():
        setattr(api, name, value)
    with pytest.raises(SyncError, match=r"(?i)\bsort\b.*\bkey\b.*page_size.*fivetran reset"):
        sync(parallel_requests=parallel)
    assert len(api.requests) < 200


@pytest.mark.parametrize("ties", range(101, 131, 3))
def test_no_tie_is_lost_without_an_error_where_pages_are_capped(
    api, unstable, sync, destination, ties
):
    unstable(ties, second=ties)
    api.page_cap = 100
    with suppress(SyncError):
        assert set(sync().table) == set(api.users)


@pytest.mark.parametrize(
    "leaves", [["99"], ["100"], ["99", "100"], ["1", "100"], ["101"]], ids=str
)
@pytest.mark.parametrize("happens", ["delete", "touch"])
@pytest.mark.parametrize("number", [2, 4])
def test_a_tie_of_the_overlap_may_leave_a_sorted_list_of_an_api_that_caps_its_pages(
    api, sync, destination, lines, leaves, happens, number
):
    api.add(350, updated_at=EPOCH)
    api.page_cap = 100
    api.tie_order = lambda user: int(user[ID])
    api.before = [None] * (number - 1) + [lambda: getattr(api, happens)(*leaves)]
    assert set(sync().table) >= set(api.users)
    assert lines("WARNING") == destination.warnings == []


@pytest.mark.parametrize(
    "failure",
    [
        (400, {}, "limit"),
        (403, {}, "no"),
        (404, {}, ""),
        (500, {}, ""),
        (413, {}, ""),
        requests.ReadTimeout(),
    ],
    ids=str,
)
def test_what_fails_when_larger_pages_are_asked_for_goes_back_to_the_size_that_was_accepted(
    api, unstable, sync, failure
):
    unstable(500)
    api.refusal = lambda p: failure if int(p["limit"]) > 200 else None
    with pytest.raises(SyncError, match="fivetran reset") as caught:
        sync()
    assert max(sizes(api)) > 200
    assert sizes(api)[-1] in (100, 200)
    assert "page_size" in str(caught.value)
    assert "api_key" not in str(caught.value)
    assert "base_url" not in str(caught.value)


def test_pages_that_became_smaller_lose_no_ties_that_fitted_before(api, sync, destination):
    for second in range(40):
        api.add(60, updated_at=EPOCH + timedelta(seconds=second))
    api.tie_order = order_by_page_end(api)
    api.before = [None] * 5 + [lambda: (504, {}, "")] * 4
    with suppress(SyncError):
        assert set(sync().table) == set(api.users)


@pytest.mark.parametrize("ties", [3, 10, 62])
@pytest.mark.parametrize("seed", range(3))
def test_pages_of_any_length_do_not_hide_ties(api, sync, ties, seed):
    for second in range(310 // ties):
        api.add(ties, updated_at=EPOCH + timedelta(seconds=second))
    lengths = random.Random(seed)
    api.page_lengths = lambda: lengths.choice((4, 10, 30, 100))
    assert set(sync().table) == set(api.users)


@pytest.mark.slow
@pytest.mark.parametrize("page_size", ["100", "1000"])
def test_ties_behind_the_depth_of_an_api_are_never_lost_without_a_word(
    api, sync, destination, page_size
):
    api.add(12_000, updated_at=EPOCH)
    api.depth, api.total = 10_000, PLAIN_TOTALS["left out"]
    with suppress(SyncError):
        sync(page_size=page_size)
        assert destination.warnings


# Ends


@pytest.mark.parametrize("total", ["left out", "the page's own count"])
def test_a_list_at_rest_is_read_whole_however_close_its_times_are(api, sync, destination, total):
    """As after an import: a page has the changes of less time than it takes to ask for it."""
    api.stamp = lambda time: time.isoformat(timespec="microseconds")
    for number in range(3000):
        api.add(updated_at=EPOCH + timedelta(milliseconds=number))
    api.total = PLAIN_TOTALS[total]
    assert set(sync(page_size="20").table) == set(api.users)
    assert destination.warnings == []


@pytest.mark.parametrize("at", range(4, 9))
def test_an_answer_that_comes_empty_once_among_ties_is_not_taken_for_the_end(api, sync, at):
    api.add(150, updated_at=EPOCH)
    api.add(50)
    api.page_cap = 20
    api.before = [None, None, None, lambda: api.delete(*[str(n) for n in range(1, 60)])]
    api.answers = {at: lambda page: page | {ROWS: []}}
    assert set(sync().table) >= set(api.users)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["1", "8"])
@pytest.mark.parametrize(("changes", "page_size"), [(3, "20"), (10, "40")])
def test_a_busy_list_whose_times_are_hours_behind_the_clock_is_reached_in_every_row(
    api, sync, destination, changes, page_size, parallel
):
    """The lookback is the five hours between them, and more rows than a sync reads changed in those."""
    api.skew = timedelta(hours=5)
    for age in range(2400, 0, -1):
        api.add(updated_at=api.now - timedelta(seconds=5 * age))
    ids = itertools.cycle(range(1, 201))
    page = api.page

    def change_and_page(parameters):
        assert len(api.requests) < 800, "this sync never ends"
        api.touch(*(str(next(ids)) for _ in range(changes)))
        return page(parameters)

    def sync_again():
        api.requests.clear()
        sync(page_size=page_size, lookback_seconds="18300", parallel_requests=parallel)

    api.page = change_and_page
    for _ in range(2):
        sync_again()
        assert len(destination.warnings) == 1
        destination.warnings.clear()
    (id,) = api.add(updated_at=api.now)
    for _ in range(2):
        sync_again()
    assert set(destination.table) == set(api.users)
    assert id in destination.table
    api.page = page
    sync_again()
    assert names(destination.table) == names(api.users)


@pytest.mark.parametrize("count", [99, 100, 250])
def test_an_offset_behind_the_end_may_be_answered_with_the_last_page(
    api, sync, destination, count
):
    api.add(count)
    api.total, api.cut = PLAIN_TOTALS["left out"], cut_to_day
    page = api.page

    def last_page(parameters):
        end = len(api.matching(api.sorted_users(), parameters))
        most = max(end - int(parameters["limit"]), 0)
        return page(parameters | {"offset": min(int(parameters["offset"]), most)})

    api.page = last_page
    for _ in range(2):
        assert set(sync().table) == set(api.users)
    assert len(api.requests) < 30
