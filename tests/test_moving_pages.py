"""What a sync does while the list changes, and with APIs that page in their own way."""

import random
from datetime import timedelta

import pytest

import connector
from connector import SyncError
from memory_api import EPOCH, timestamp


def offsets(api) -> list:
    return [int(request["offset"]) for request in api.requests]


def test_each_page_overlaps_the_one_before_by_a_user(api, sync):
    api.add(250)
    sync()
    assert offsets(api) == [0, 99, 198]


def test_no_user_is_lost_when_users_change_between_two_pages(api, sync):
    api.add(500)
    api.before = [None, lambda: api.touch("1", "2", "3"), None, lambda: api.touch("150"), lambda: api.touch("151")]
    table = sync().table
    assert {id: row["name"] for id, row in table.items()} == {id: user["name"] for id, user in api.users.items()}


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


def test_links_that_are_signed_anew_in_each_answer_break_no_seam(api, sync):
    api.add(250)
    api.answers = {n: lambda page, n=n: page | {"data": [user | {"photo": f"?sig={n}"} for user in page["data"]]}
                   for n in range(1, 9)}  # fmt: skip
    sync()
    assert offsets(api) == [0, 99, 198]


@pytest.fixture
def tied_api(api):
    """An API whose users but one, "slips", share the second in which a sync begins, and are then sorted by id."""
    api.seconds_per_request = 0
    api.tie_order = lambda user: user["id"]
    api.add(id="slips", updated_at=EPOCH)
    for id in ("t1", "t2", "t3"):
        api.add(id=id, updated_at=api.now)
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


def test_the_cursor_never_passes_the_moment_the_sync_began(api, sync):
    began = api.now  # what its clock says before the first request, which takes a second
    api.add(3)
    api.add(1, updated_at=api.now + timedelta(hours=9))
    cursor = connector.parse_time(sync().state["last_updated_at"])
    assert timedelta(0) <= began - cursor <= timedelta(seconds=2)


def test_a_user_that_changes_while_the_first_page_is_answered_is_read_by_the_next_sync(tied_api, sync):
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
    api.add(1, updatedAt="2999-01-01T00:00:00Z")
    api.answers = {1: (200, {"Date": "yesterday"}, '{"data": [{"id": 1, "updatedAt": "2999-01-01"}], "total": 1}')}
    assert sync().state["last_updated_at"] < "2999"


def test_a_list_that_moves_faster_than_it_is_read_ends_the_sync(api, sync):
    api.add(5, updated_at=api.now)
    api.add(295, updated_at=api.now + timedelta(seconds=1))
    moves = iter(range(6, 300))
    api.before = [None] + [lambda: api.touch(str(next(moves))) for _ in range(200)]
    sync()
    assert len(api.requests) < 5
    api.before = []
    assert set(sync().table) == set(api.users)


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
def test_more_users_with_one_time_than_fit_in_a_page_or_a_window_are_read(api, sync, small_windows, count):
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
        SyncError, match=r"More users share updatedAt 2024-01-01T00:00:00Z .* refuses offset 2079\. .*400"
    ):
        sync()


def test_a_total_that_never_says_more_than_1000_is_no_end(api, sync):
    api.add(3210)
    api.total_cap = 1000
    assert set(sync().table) == set(api.users)


@pytest.mark.parametrize("ties", [1, 150])
def test_an_api_whose_filter_is_exclusive_loses_nothing_with_a_lookback_of_1(api, sync, small_windows, ties):
    api.exclusive = True
    for second in range(0, 3000 // ties, 5):
        api.add(ties, updated_at=EPOCH + timedelta(seconds=second))
    api.before = [None, lambda: api.touch("1"), None, lambda: api.touch("2")]
    sync(lookback_seconds="1")
    api.add(1, updated_at=connector.parse_time(sync(lookback_seconds="1").state["last_updated_at"]))
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
    api.tie_order = lambda user: user["id"][::-1]
    assert set(sync().table) == set(api.users)


def test_ties_in_a_new_order_each_time_are_an_error_that_says_what_would_help(api, sync):
    api.add(300, updated_at=EPOCH)
    order = random.Random(1)
    api.tie_order = lambda user: order.random()
    with pytest.raises(
        SyncError,
        match=r"cannot be paged: read again 5 times, .*300 users share updatedAt 2024-01-01T00:00:00Z.*page_size",
    ):
        sync()
    assert len(api.requests) < 400


def test_an_api_that_gives_the_same_page_for_ever_is_an_error(api, sync):
    api.add(300)
    api.answers = {n: lambda page: page | api.page({"order_by": "updatedAt", "offset": 0, "limit": 100})
                   | {"offset": page["offset"]} for n in range(1, 100)}  # fmt: skip
    with pytest.raises(SyncError, match=r"cannot be paged: read again 5 times.* at offset 99 .* heed offset"):
        sync()
    assert len(api.requests) < 30


def test_pages_of_one_user_are_an_error(api, sync):
    api.add(3)
    api.page_cap = 1
    with pytest.raises(SyncError, match="at least 2 users per page"):
        sync()


def test_a_total_that_promises_more_than_the_list_holds_is_a_warning(api, sync):
    api.add(150)
    api.add(3, updated_at=EPOCH + timedelta(hours=1))
    api.answers = {n: lambda page: page | {"total": page["total"] + 3} for n in range(1, 20)}
    assert len(sync().table) == 153
    assert "its list ends after 3" in sync().all("warning")[0]
