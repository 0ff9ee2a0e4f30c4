def test_incident_01a3185c_6770_7e52_bd0e_bb2c0219d3e8(replay):
    """Incident 01a3185c-6770-7e52-bd0e-bb2c0219d3e8: contained as expect.yaml says."""
    replay.check()
