"""What is timed against what: every figure beside a named peer, measured in the same process, in turn, with the machine's limit."""
