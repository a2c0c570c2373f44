"""Which lines of the gateware run, and which signals toggle, in the tests of whole programs.

With TILEWRIGHT_COVERAGE=FOLDER every `RtlDevice` is one that counts, and leaves its counts there.
`python -m tilewright_sim.coverage FOLDER` adds them up (`make coverage` does both).
"""
