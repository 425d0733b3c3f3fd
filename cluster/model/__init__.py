"""What the core talks about: Plans, Runs, events, commands. Values only: no I/O, no clock."""
