def test_incident_01a3185c_f7f8_7ebc_b261_298c5ce24f71(replay):
    """Incident 01a3185c-f7f8-7ebc-b261-298c5ce24f71: contained as expect.yaml says."""
    replay.check()
