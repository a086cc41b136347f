"""What a world is doing, and what can go wrong in it."""

from __future__ import annotations

DUE, TERMINATED, TRUNCATED, FAILED = range(4)
"""A decision is due; the workload is finished; the episode is long enough; an error has happened."""

OK, HEAP_FULL, SLOTS_FULL, EVENTS_FULL, DELIVERIES_FULL, TABLE_FULL = range(6)
ADVICE = {
    HEAP_FULL: "the event queue is full; give the engine a larger `heap_events`",
    SLOTS_FULL: "too many requests in the system at once; give the engine a larger `max_active_requests`",
    EVENTS_FULL: "the event log is full between two decisions; give the engine a larger `log_events`",
    DELIVERIES_FULL: "the log of deliveries is full; shorten episode.window_s, or use engine='reference'",
    TABLE_FULL: "the table of requests is full; shorten episode.window_s, or use engine='reference'",
}
"""What to do about each error."""
