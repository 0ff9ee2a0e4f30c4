"""The record: the only home of SQL; it keeps what was asked, judged, sent and answered."""
