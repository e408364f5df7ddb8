"""The benchmarks; README.md says what each command measures."""
