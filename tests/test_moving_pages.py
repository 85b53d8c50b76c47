"""What a sync does while the list changes, and with APIs that page in their own way."""

import itertools
import json
import random
from datetime import UTC, datetime, timedelta

import pytest
import requests

import connector
from connector import SyncError
from memory_api import (
    EPOCH,
    ID,
    UPDATED_AT,
    envelope,
    instant,
    names,
    timestamp,
    whole_minutes,
)


def offsets(api) -> list:
    return [int(request["offset"]) for request in api.requests]


def test_each_page_overlaps_the_one_before_by_a_user(api, sync):
    api.add(250)
    sync()
    assert offsets(api) == [0, 99, 198]


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


def test_after_a_broken_seam_reading_starts_again_at_the_last_user(api, sync):
    api.add(300)
    api.before = [None, lambda: api.touch("1")]
    sync()
    assert [(request.get("updated_since"), request["offset"]) for request in api.requests[:3]] == [
        (None, "0"),
        (None, "99"),
        (timestamp(EPOCH + timedelta(seconds=100)), "0"),
    ]


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
    table = sync(page_size="3").table
    assert table["slips"]["name"] == "User 1"
    sync(page_size="3")
    assert table["slips"]["name"] == "User 1'"


@pytest.mark.parametrize("age", [-3600, 0, 5, 8])
def test_the_cursor_stays_ten_seconds_behind_the_start_of_the_sync(api, sync, age):
    api.add(3)
    api.add(1, updated_at=api.now - timedelta(seconds=age))
    assert sync().state == {"last_updated_at": api.updated_at("3")}


def test_a_row_that_is_ten_seconds_old_is_the_next_cursor(api, sync):
    api.add(3)
    old, _ = api.add(1, updated_at=api.now - timedelta(seconds=10)), api.add(1, updated_at=api.now)
    assert sync().state == {"last_updated_at": api.updated_at(old[0])}


@pytest.mark.parametrize("state", [{"last_updated_at": "2024-01-15T10:30:00.000Z"}, {}])
def test_while_no_row_is_ten_seconds_old_the_state_stays_as_it_was(api, sync, state):
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
        match=r"2024-01-01T00:00:00Z.*page_size.*400.*at offset 2079",
    ):
        sync()


def test_more_ties_than_an_api_follows_offsets_through_without_a_word_are_an_error(api, sync):
    api.add(15_000, updated_at=EPOCH)
    api.depth = 10_000
    with pytest.raises(SyncError, match=r"15000.*10000"):
        sync(page_size="1000")


def test_a_total_that_never_says_more_than_1000_is_no_end(api, sync):
    api.add(3210)
    api.total_cap = 1000
    assert set(sync().table) == set(api.users)


@pytest.mark.parametrize("ties", [1, 150])
def test_an_api_whose_filter_is_exclusive_loses_nothing_with_a_lookback_of_1(
    api, sync, small_windows, ties
):
    api.exclusive = True
    for second in range(0, 3000 // ties, 5):
        api.add(ties, updated_at=EPOCH + timedelta(seconds=second))
    api.before = [None, lambda: api.touch("1"), None, lambda: api.touch("2")]
    sync(lookback_seconds="1")
    api.add(1, updated_at=instant(sync(lookback_seconds="1").state["last_updated_at"]))
    assert set(sync(lookback_seconds="1").table) == set(api.users)


def test_the_lookback_changes_what_is_asked_for_and_never_the_cursor(api, sync):
    api.add(300)
    cursor = {"last_updated_at": timestamp(EPOCH + timedelta(seconds=290))}
    checkpoints = sync(cursor, lookback_seconds="200").all("checkpoint")
    assert api.requests[0]["updated_since"] == timestamp(EPOCH + timedelta(seconds=90))
    assert checkpoints[0] == cursor
    assert checkpoints[-1] == {"last_updated_at": timestamp(EPOCH + timedelta(seconds=300))}


def test_ties_in_an_order_of_their_own_are_read(api, sync):
    api.add(500, updated_at=EPOCH)
    api.tie_order = lambda user: user[ID][::-1]
    assert set(sync().table) == set(api.users)


@pytest.mark.parametrize("ties", [2, 3, 10, 40])
@pytest.mark.parametrize("parallel", ["1", "4"])
@pytest.mark.parametrize("changes", [0, 3])
def test_ties_may_change_their_order_with_the_end_of_the_page(api, sync, ties, parallel, changes):
    """PostgreSQL sorts `order by updated_at limit 100 offset 99` so, without a second column."""
    for second in range(2000 // ties):
        api.add(ties, updated_at=EPOCH + timedelta(seconds=second))
    victims = iter(range(1, 2000, 7))

    def place(user):
        end = int(api.requests[-1]["offset"]) + int(api.requests[-1]["limit"])
        return random.Random(f"{user[ID]} {end}").random()

    api.tie_order = place
    api.before = [lambda: api.touch(*(str(next(victims)) for _ in range(changes)))] * 20
    table = sync(parallel_requests=parallel).table
    assert names(table).keys() == names(api.users).keys()
    api.now += timedelta(seconds=60)
    assert names(sync().table) == names(api.users)


def test_ties_in_a_new_order_each_time_are_an_error_that_says_what_would_help(api, sync):
    api.add(300, updated_at=EPOCH)
    order = random.Random(1)
    api.tie_order = lambda user: order.random()
    with pytest.raises(SyncError, match=r"stable order.*page_size.*100"):
        sync()
    assert len(api.requests) < 400


def test_an_api_that_gives_the_same_page_for_ever_is_an_error(api, sync):
    api.add(300)
    api.answers = {n: lambda page: page | api.page({"offset": 0, "limit": 100})
                   | {"offset": None} for n in range(1, 100)}  # fmt: skip
    with pytest.raises(SyncError, match="offset"):
        sync()
    assert len(api.requests) < 30


def test_pages_of_one_user_are_an_error(api, sync):
    api.add(3)
    api.page_cap = 1
    with pytest.raises(SyncError, match="2 rows"):
        sync()


@pytest.mark.parametrize("excess", [1, 3, 1000])
@pytest.mark.parametrize("count", [1, 2, 99, 100, 101, 150])
def test_a_total_that_promises_more_than_the_list_holds_is_no_error(api, sync, count, excess):
    api.add(count)
    api.total_excess = excess
    assert set(sync().table) == set(api.users)
    assert len(api.requests) <= count / 99 + 4
    assert set(sync().table) == set(api.users)


def test_a_full_sync_that_is_promised_rows_and_gets_none_is_an_error(api, sync):
    api.total_excess = 5
    with pytest.raises(SyncError, match="5 rows"):
        sync()
    api.offset_max = 0
    with pytest.raises(SyncError, match="5 rows"):
        sync()


def test_a_total_that_is_far_too_large_is_logged(api, sync, capsys):
    api.add(150)
    api.total_excess = 1000
    sync()
    assert '"WARNING"' in capsys.readouterr().out


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
    assert len(api.requests) < 140
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
def test_users_hidden_in_a_run_longer_than_a_page_are_an_error_that_says_what_helps(
    api, sync, hidden
):
    api.add(400)
    api.hidden = {str(number) for number in hidden}
    with pytest.raises(SyncError, match="page_size"):
        sync()
    assert len(api.requests) < 60
    assert set(sync({}, page_size="400").table) >= set(api.users) - api.hidden


def test_users_hidden_in_a_long_run_are_an_error_also_where_the_last_promised_page_is_refused(
    api, sync
):
    api.add(3000)
    api.hidden = {str(number) for number in range(300, 400)}
    api.offset_max = 1500
    with pytest.raises(SyncError, match="page_size"):
        sync()
    assert len(api.requests) < 60


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


@pytest.mark.parametrize(
    ("count", "hidden", "lookback"), [(3, "1", "0"), (3, "2", "0"), (1000, "999", "1")]
)
def test_a_user_hidden_in_the_last_page_is_not_taken_for_an_offset_that_is_ignored(
    api, sync, count, hidden, lookback
):
    api.add(count, updated_at=EPOCH if count == 3 else None)
    api.hidden = {hidden}
    for _ in range(2):
        assert set(sync(lookback_seconds=lookback).table) == set(api.users) - api.hidden


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


@pytest.mark.parametrize("late", [1, 9])
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
