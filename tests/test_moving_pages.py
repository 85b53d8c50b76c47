"""What a sync does while the list changes, and with APIs that page in their own way."""

import itertools
import json
import random
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest
import requests

import connector
from connector import SyncError
from memory_api import (
    EPOCH,
    ID,
    TOTALS,
    UPDATED_AT,
    cut_to_day,
    envelope,
    names,
    order_by_page_end,
    whole_minutes,
)


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


def test_without_a_date_header_the_start_is_that_of_the_local_clock(api, sync):
    rows = [{ID: "1", UPDATED_AT: "2024-01-01"}, {ID: "2", UPDATED_AT: "2999-01-01"}]
    for date in ("yesterday", "", "0", "-0000", "Wed, 03 Apr 99999999999 12:34:56 GMT"):
        api.answers = dict.fromkeys(
            range(1, 99), (200, {"Date": date}, json.dumps(envelope(rows, 2)))
        )
        assert sync({}).state == {"last_updated_at": "2024-01-01"}


def test_a_list_that_moves_faster_than_it_is_read_ends_the_sync(api, sync):
    api.add(5, updated_at=api.now)
    api.add(295, updated_at=api.now + timedelta(seconds=1))
    moves = iter(range(6, 300))
    api.before = [None] + [lambda: api.touch(str(next(moves))) for _ in range(200)]
    sync()
    api.before = []
    assert set(sync().table) == set(api.users)


def test_a_list_that_never_stops_changing_ends_the_sync_after_100_pages_of_changes(api, sync):
    api.add(10)
    ids = itertools.cycle(api.users)
    page = api.page

    def change_and_page(parameters):
        api.touch(*itertools.islice(ids, 8))
        return page(parameters)

    api.page = change_and_page
    sync(page_size="5")
    assert 100 < len(api.requests) < 250
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
    assert sum(offset > 2000 for offset in offsets(api)) == 1


def test_more_ties_than_an_api_lets_be_paged_through_are_an_error_that_says_so(api, sync):
    api.add(2500, updated_at=EPOCH)
    api.offset_max = 2000
    with pytest.raises(
        SyncError,
        match=r"2024-01-01T00:00:00Z.*page_size.*400",
    ):
        sync()


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


@pytest.mark.parametrize("ties", [2, 3, 10, 40])
@pytest.mark.parametrize("parallel", ["1", "4"])
@pytest.mark.parametrize("changes", [0, 3])
def test_ties_may_change_their_order_with_the_end_of_the_page(api, sync, ties, parallel, changes):
    for second in range(2000 // ties):
        api.add(ties, updated_at=EPOCH + timedelta(seconds=second))
    victims = iter(range(1, 2000, 7))
    api.tie_order = order_by_page_end(api)
    api.before = [lambda: api.touch(*(str(next(victims)) for _ in range(changes)))] * 20
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
    api.total, api.page_cap = TOTALS["left out"], cap
    assert set(sync(parallel_requests="4").table) == set(api.users)


@pytest.mark.parametrize("ties", [120, 1000])
def test_more_ties_than_a_page_whose_order_changes_are_an_error_that_says_what_would_help(
    api, sync, ties
):
    """As of PostgreSQL, after a bulk update, if the API sorts by time alone."""
    api.add(50)
    api.add(ties, updated_at=EPOCH + timedelta(hours=1))
    api.tie_order = order_by_page_end(api)
    with pytest.raises(SyncError, match=r"Sort.*page_size.*100"):
        sync()
    assert len(api.requests) < 200


def test_an_api_that_gives_the_same_page_for_ever_is_an_error(api, sync):
    api.add(300)
    api.answers = {n: lambda page: page | api.page({"offset": 0, "limit": 100})
                   | {"offset": None} for n in range(1, 100)}  # fmt: skip
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


def test_a_mass_tie_that_changes_lightly_is_read_in_few_requests(api, sync):
    """A migration stamps 30,000 users with one time, and one of them changes every 25 requests."""
    api.add(30_000, updated_at=EPOCH)
    api.seconds_per_request = 0
    victims = iter(range(1, 30_000, 7))

    def change_one_in_25():
        if len(api.requests) % 25 == 0:
            api.touch(str(next(victims)))

    api.before = [change_one_in_25] * 1000
    table = sync(page_size="500").table
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
    assert len(api.requests) <= 1.5 * 40


@pytest.mark.parametrize(
    "hidden", [range(120, 260), range(2, 202), range(1, 201), range(201, 301)]
)
def test_users_hidden_in_a_run_longer_than_a_page_are_read_around_or_end_the_sync_with_a_warning(
    api, sync, destination, capsys, hidden
):
    api.add(400)
    api.hidden = {str(number) for number in hidden}
    has_failed = True
    with suppress(SyncError):
        sync()
        has_failed = False
    is_whole = set(destination.table) == set(api.users) - api.hidden
    assert is_whole or has_failed or '"WARNING"' in capsys.readouterr().out
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
    api.page = lambda parameters: (
        page(parameters | {"offset": min(int(parameters["offset"]), 1000)}) | {"offset": None}
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
