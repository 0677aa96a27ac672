"""Charts of ``percoedge bench --json``, drawn where matplotlib is: not on the device."""
